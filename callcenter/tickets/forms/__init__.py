"""The ticket form: what an agent writes beside the call, kept at every stroke, and the words it is made of.

What a kind of request needs and the tree of categories are versioned data (``<version>.yaml`` beside this file); a
form says which version it was written with.
"""

from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict
from sqlalchemy import select, update

from callcenter.database import Database
from callcenter.domain.calls import UserId
from callcenter.tickets import schema

CURRENT = "1"


class Words(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    code: str
    zh: str
    en: str


class Kind(Words):
    required: tuple[str, ...]


def _with_codes(value: object) -> object:
    """The third level is written as ``[01, name, name]``; its whole code begins with its parent's."""
    if not isinstance(value, dict):
        return value
    parts = [
        {"code": f"{value['code']}{int(part[0]):02d}", "zh": part[1], "en": part[2]}
        if isinstance(part, list)
        else part
        for part in value.get("parts", ())
    ]
    return {**value, "parts": parts}


class Category(Words):
    parts: "tuple[Annotated[Category, BeforeValidator(_with_codes)], ...]" = ()


class Spec(BaseModel):
    """One version of the form."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str
    kinds: tuple[Kind, ...]
    categories: tuple[Annotated[Category, BeforeValidator(_with_codes)], ...]

    def path(self, code: str) -> tuple[Category, ...]:
        """The category and those it belongs to, the widest first; empty for a code there is not."""
        found: list[Category] = []
        parts = self.categories
        while step := next((part for part in parts if code.startswith(part.code)), None):
            found.append(step)
            parts = step.parts
        return tuple(found) if found and found[-1].code == code else ()


@cache
def spec(version: str = CURRENT) -> Spec:
    """KeyError for a version there never was."""
    path = Path(__file__).parent / f"{version}.yaml"
    if not version.isdigit() or not path.is_file():
        raise KeyError(version)
    return Spec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of a request; empty where nothing has been written."""

    kind: str = ""
    title: str = ""
    content: str = ""
    category: str = ""
    region: str = ""
    """Administrative division, the widest first, as read: ``太原市晋源区``."""
    address: str = ""
    occurred_on: date | None = None
    contact_name: str = ""
    contact_phone: str = ""
    confidential: bool = False
    """The caller does not want his name told to whoever handles it (GB/T 33358-2016)."""
    reply: str = ""
    """What was answered on the spot."""
    spec_version: str = CURRENT

    def missing(self) -> tuple[str, ...]:
        """What its kind needs and nobody has written yet, in the order of the form."""
        kinds = {kind.code: kind for kind in spec(self.spec_version).kinds}
        if self.kind not in kinds:
            return ("kind",)
        return tuple(name for name in kinds[self.kind].required if not getattr(self, name))

    def problems(self) -> tuple[str, ...]:
        """Fields whose words are none of this version's; what people write freely is never wrong."""
        words = spec(self.spec_version)
        wrong = []
        if self.kind and self.kind not in {kind.code for kind in words.kinds}:
            wrong.append("kind")
        if self.category and not words.path(self.category):
            wrong.append("category")
        return tuple(wrong)


@dataclass(frozen=True, slots=True)
class Kept:
    """A form as it is kept."""

    form: Form
    version: int
    """0: nothing has been written yet; grows by one with each change."""
    saved_at: datetime | None = None
    saved_by: UserId | None = None


class Changed(Exception):  # noqa: N818  # an expected no
    """Somebody else has written the form since it was read; ``kept`` is what stands there."""

    def __init__(self, kept: Kept) -> None:
        super().__init__(f"version {kept.version} is there")
        self.kept = kept


_FIELDS = tuple(field.name for field in fields(Form))


class FormStore:
    """Forms in the database. Every method may raise DatabaseAway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, number: str) -> Kept:
        return (await self.read_many([number])).get(number, Kept(Form(), 0))

    async def read_many(self, numbers: list[str]) -> dict[str, Kept]:
        table = schema.ticket_forms
        async with self._database.read() as connection:
            rows = await connection.execute(select(table).where(table.c.number.in_(numbers)))
            return {row.number: _kept(row) for row in rows}

    async def write(self, number: str, form: Form, *, onto: int, by: UserId, at: datetime) -> Kept:
        """Keep the form in the place of version ``onto``; writing the same again is no change.

        Raises Changed when another version is there, so that two screens never undo each other's words.
        """
        table = schema.ticket_forms
        kept = Kept(form, onto + 1, at, by)
        row = {name: getattr(form, name) for name in _FIELDS} | {
            "version": kept.version,
            "saved_at": at,
            "saved_by": by,
        }
        async with self._database.write() as connection:
            if onto == 0:
                insert = self._database.insert(table).values(number=number, **row).on_conflict_do_nothing()
                written = (await connection.execute(insert)).rowcount
            else:
                change = update(table).where(table.c.number == number, table.c.version == onto).values(**row)
                written = (await connection.execute(change)).rowcount
            if written:
                return kept
            there = (await connection.execute(select(table).where(table.c.number == number))).one_or_none()
        found = _kept(there) if there is not None else Kept(Form(), 0)
        if found.form == form:
            return found  # the answer to the first writing was lost on its way
        raise Changed(found)


def _kept(row: Any) -> Kept:
    values = {name: getattr(row, name) for name in _FIELDS}
    return Kept(replace(Form(), **values), row.version, row.saved_at, UserId(row.saved_by))
