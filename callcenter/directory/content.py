"""What a directory may hold: every field typed and bounded, the same for a content file and for an edit."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from callcenter.domain.agents import NotReady, UserRole


class BadContent(Exception):  # noqa: N818 - read as sentences by whoever wrote the file
    """The content cannot be taken; each line says where and why."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _printable(value: str) -> str:
    if bad := next((letter for letter in value if ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0), None):
        raise ValueError(f"a control character (U+{ord(bad):04X}) cannot be part of a name")
    return value


Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True), AfterValidator(_printable)
]
Department = Annotated[
    str, StringConstraints(max_length=80, strip_whitespace=True), AfterValidator(_printable)
]
Number = Annotated[str, StringConstraints(pattern=r"^[0-9]{2,20}$")]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=r"^[!-~]+$")]
Password = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Level = Annotated[int, Field(ge=1, le=5)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SkillData(_Model):
    skill: Identifier
    zh: Name
    en: Name


class QueueData(_Model):
    queue: Identifier
    zh: Name
    en: Name
    skill: Identifier
    offer_seconds: Annotated[float, Field(ge=3, le=120)] = 15
    wrap_up_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 500


class UserData(_Model):
    user: Identifier
    name: Name
    roles: Annotated[frozenset[UserRole], Field(min_length=1)]
    phone: Number | None = None
    department: Department = ""
    skills: dict[Identifier, Level] = {}


class ChoiceData(_Model):
    code: Identifier
    zh: Name
    en: Name


class ReasonData(ChoiceData):
    @model_validator(mode="after")
    def _is_not_the_centres_own(self) -> Self:
        if self.code in set(NotReady):
            raise ValueError(f"the centre itself uses the reason {self.code}; choose another code")
        return self


class NumberData(_Model):
    number: Number
    zh: Name
    en: Name


class ContentData(_Model):
    """A content file; lists are shown to people in this order."""

    password: Password | None = None
    """Given to every user of the file; without it nobody can log in before a password is set."""
    phone_secret: Secret | None = None
    """Given to every phone of the file; without it each gets one of its own."""
    skills: tuple[SkillData, ...] = ()
    queues: tuple[QueueData, ...] = ()
    users: tuple[UserData, ...] = ()
    not_ready_reasons: tuple[ReasonData, ...] = ()
    dispositions: tuple[ChoiceData, ...] = ()
    allowed_numbers: tuple[NumberData, ...] = ()


def read_content(path: Path) -> ContentData:
    """Read a content file. BadContent names file, line and field of every mistake."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise BadContent([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise BadContent([f"{path}: is not UTF-8"]) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadContent([f"{path}:{line}: {error.problem}"]) from error
    except yaml.YAMLError as error:
        raise BadContent([f"{path}: {error}"]) from error
    problems = [f"{path}:{line}: {what}" for line, what in _twice_in_a_mapping(node)]
    if problems or node is None:
        raise BadContent(problems or [f"{path}: is empty"])
    try:
        content = ContentData.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BadContent(
            [
                f"{path}:{_line(node, found['loc'])}: {'.'.join(map(str, found['loc']))}: {found['msg']}"
                for found in error.errors()
            ]
        ) from error
    if problems := [f"{path}:{_line(node, where)}: {what}" for where, what in _contradictions(content)]:
        raise BadContent(problems)
    return content


def _contradictions(content: ContentData) -> Iterable[tuple[tuple[str | int, ...], str]]:
    lists: dict[str, list[Sequence[str | None]]] = {
        "skills": [[skill.skill for skill in content.skills], [skill.zh for skill in content.skills]],
        "queues": [[queue.queue for queue in content.queues], [queue.zh for queue in content.queues]],
        "users": [[user.user for user in content.users], [user.phone for user in content.users]],
        "not_ready_reasons": [[reason.code for reason in content.not_ready_reasons]],
        "dispositions": [[disposition.code for disposition in content.dispositions]],
        "allowed_numbers": [[number.number for number in content.allowed_numbers]],
    }
    for name, columns in lists.items():
        for column in columns:
            for at, value in enumerate(column):
                if value is not None and value in column[:at]:
                    yield (name, at), f"{value} is there twice"
    skills = {skill.skill for skill in content.skills}
    for at, queue in enumerate(content.queues):
        if queue.skill not in skills:
            yield ("queues", at, "skill"), f"there is no skill {queue.skill}"
    for at, user in enumerate(content.users):
        for skill in user.skills.keys() - skills:
            yield ("users", at, "skills", skill), f"there is no skill {skill}"


def _twice_in_a_mapping(node: yaml.Node | None) -> Iterable[tuple[int, str]]:
    """YAML readers silently take the last of two equal keys."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield key.start_mark.line + 1, f"{key.value} is there twice"
            seen.add(str(key.value))
            yield from _twice_in_a_mapping(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice_in_a_mapping(value)


def _line(node: yaml.Node, where: tuple[str | int, ...]) -> int:
    """The line of the field, or of the nearest thing round it that is in the file."""
    for step in where:
        inner = None
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            inner = node.value[step]
        elif isinstance(node, yaml.MappingNode):
            inner = next((value for key, value in node.value if key.value == str(step)), None)
        if inner is None:
            break
        node = inner
    return int(node.start_mark.line) + 1
