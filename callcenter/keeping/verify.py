"""Is the house whole? Every call, ticket and recording against every other, read in one transaction."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from sqlalchemy import Row, Select, Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from callcenter.database import Database, newest_schema_version, schema_of
from callcenter.domain.calls import Call, Phase
from callcenter.domain.recordings import MISSING
from callcenter.tickets import schema
from callcenter.tickets.store import TicketStatus, call_from_json

Progress = Callable[[str], None]

PAGE = 1000
SHOWN = 20
"""So many faults of one kind are told one by one."""
FINISHING = timedelta(minutes=15)
"""A file whose call ended less than this ago may still wait to be encoded and noted."""
_RECORDING = re.compile(r"(\d{4})/(\d\d)/(\d\d)/([^/]+)/(?:call|leg-\d+|message)\.(?:flac|raw|wav)")
_SHANGHAI = ZoneInfo("Asia/Shanghai")


class Files(Protocol):
    """The recordings of a house, or of a backup of it."""

    def names(self) -> Iterable[str]:
        """Relative to the root of all recordings."""
        ...

    def digest(self, name: str) -> tuple[int, str] | None:
        """Bytes and sha256; None when there is no such file."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """The recordings of a living house."""

    root: Path

    def names(self) -> Iterable[str]:
        for path in self.root.rglob("*"):
            if path.is_file():
                yield path.relative_to(self.root).as_posix()

    def digest(self, name: str) -> tuple[int, str] | None:
        try:
            with (self.root / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                return file.tell(), digest
        except FileNotFoundError:
            return None


@dataclass(slots=True)
class Check:
    """One promise, how many things were looked at, and what breaks it."""

    zh: str
    en: str
    looked_at: int = 0
    faults: int = 0
    told: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, well: bool, fault: str) -> None:
        self.looked_at += 1
        if not well:
            self.fails(fault)

    def fails(self, fault: str) -> None:
        self.faults += 1
        if len(self.told) < SHOWN:
            self.told.append(fault)


async def verify(
    database: Database, files: Files, *, at: datetime, progress: Progress = lambda _: None
) -> list[Check]:
    """Look at everything; `at` is the moment of which the house tells. DatabaseAway, OSError."""
    async with database.read() as connection:
        if database.dialect == "postgresql":
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        progress("数据库版本 / schema")
        found = [await _schema(connection)]
        if found[0].faults:
            return found
        progress("通话与工单 / calls and tickets")
        found += await _calls(connection)
        found += [await _numbers(connection)]
        rows = {row.path: row async for row in _pages(connection, schema.recordings, "path")}
        progress(f"{len(rows)} 条录音 / recordings")
        found.append(await _rows_have_files(database, rows, files, progress))
        found.append(await _files_have_rows(connection, set(rows), files, at=at))
    return found


async def _schema(connection: AsyncConnection) -> Check:
    check = Check("数据库版本为本程序所用", "the schema is this program's")
    version, newest = await schema_of(connection), newest_schema_version()
    check.expect(
        version == newest,
        f"版本为 {version}，应为 {newest}；启动一次即可升级 / it is {version} instead of {newest}: a start migrates it",
    )
    return check


async def _pages(connection: AsyncConnection, table: Table, key: str) -> AsyncIterator[Row[Any]]:
    column, last = table.c[key], ""
    while True:
        rows = (
            await connection.execute(select(table).where(column > last).order_by(column).limit(PAGE))
        ).all()
        for row in rows:
            yield row
        if len(rows) < PAGE:
            return
        last = getattr(rows[-1], key)


async def _calls(connection: AsyncConnection) -> list[Check]:
    versions = Check("通话记录前后一致", "a call's row says what its state says")
    answered = Check("接通的通话各有一张工单", "every answered call has one ticket, no other call has one")
    times = Check("时间先后有序", "times are in order")
    whole = Check("步骤与各方齐全", "every step and party has its row")
    page: list[Row[Any]] = []

    async def look() -> None:
        ids = [row.call_id for row in page]
        tickets = {
            row.call_id: row
            for row in await connection.execute(
                select(schema.tickets).where(schema.tickets.c.call_id.in_(ids))
            )
        }
        steps = await _counts(connection, schema.call_steps, ids)
        parties = await _counts(connection, schema.call_parties, ids)
        for row in page:
            try:
                call = call_from_json(row.state)
            except ValueError:
                versions.expect(False, f"{row.call_id}: 内容无法读出 / its state cannot be read")
                continue
            told = (row.version, row.phase, row.answered_at, row.ended_at)
            versions.expect(
                told == (call.version, call.phase.value, call.answered_at, call.ended_at)
                and call.call_id == row.call_id,
                f"{row.call_id}: {told}",
            )
            ticket = tickets.get(row.call_id)
            answered.expect(*_ticket_fits(call, ticket))
            times.expect(*_in_order(call))
            whole.expect(
                (steps.get(row.call_id, 0), parties.get(row.call_id, 0)) == (len(call.steps), len(call.legs)),
                f"{row.call_id}: {steps.get(row.call_id, 0)}/{len(call.steps)} 步骤 steps, "
                f"{parties.get(row.call_id, 0)}/{len(call.legs)} 方 parties",
            )

    async for row in _pages(connection, schema.calls, "call_id"):
        page.append(row)
        if len(page) == PAGE:
            await look()
            page.clear()
    await look()
    return [versions, answered, times, whole]


async def _counts(connection: AsyncConnection, table: Table, ids: Sequence[str]) -> dict[str, int]:
    query = select(table.c.call_id, func.count()).where(table.c.call_id.in_(ids)).group_by(table.c.call_id)
    return {row[0]: row[1] for row in await connection.execute(query)}


def _ticket_fits(call: Call, ticket: Row[Any] | None) -> tuple[bool, str]:
    if call.answered_at is None or ticket is None:
        well = call.answered_at is None and ticket is None
        return well, f"{call.call_id}: {'没有工单 no ticket' if ticket is None else ticket.number}"
    status = TicketStatus.ACCEPTED if call.phase is Phase.ENDED else TicketStatus.DRAFT
    well = (ticket.status, ticket.opened_at, ticket.accepted_at) == (
        status.value,
        call.answered_at,
        call.ended_at if call.phase is Phase.ENDED else None,
    )
    return well, f"{call.call_id}: 工单 ticket {ticket.number} {ticket.status}"


def _in_order(call: Call) -> tuple[bool, str]:
    spans: list[list[datetime | None]] = [
        [call.arrived_at, call.answered_at, call.ended_at],
        [call.arrived_at, call.queued_at, call.ended_at],
        [*(step.at for step in call.steps)],
        *([leg.asked_at, leg.answered_at, leg.joined_at, leg.ended_at] for leg in call.legs),
    ]
    for span in spans:
        times = [time for time in span if time is not None]
        if times != sorted(times):
            return False, f"{call.call_id}: {' > '.join(f'{time:%H:%M:%S.%f}' for time in times)}"
    ended = call.phase is Phase.ENDED
    well = ended == (call.ended_at is not None) == (call.end_reason is not None)
    return well, f"{call.call_id}: {call.phase.value} {call.ended_at} {call.end_reason}"


async def _numbers(connection: AsyncConnection) -> Check:
    check = Check("工单号逐日连续", "ticket numbers count each day without gap or double")
    day = func.substr(schema.tickets.c.number, 1, 8)
    number = schema.tickets.c.number
    each_day: Select[Any] = select(day, func.count(), func.min(number), func.max(number)).group_by(day)
    counted = {row[0]: tuple(row[1:]) for row in await connection.execute(each_day)}
    for row in await connection.execute(select(schema.ticket_numbers)):
        key = f"{row.day:%Y%m%d}"
        wanted = (row.last, f"{key}-{1:06d}", f"{key}-{row.last:06d}")
        check.expect(counted.pop(key, None) == wanted, f"{key}: {row.last}")
    for key in counted:
        check.expect(False, f"{key}: 没有计数 not counted")
    return check


async def _rows_have_files(
    database: Database, rows: dict[str, Row[Any]], files: Files, progress: Progress
) -> Check:
    check = Check("每条录音记录有其文件，校验值相符", "every recording's row has its file, and the hash fits")
    missing = 0
    for number, (path, row) in enumerate(rows.items(), start=1):
        if row.codec == MISSING:
            missing += 1
            continue
        if not number % PAGE:
            progress(f"{number}/{len(rows)} 录音 / recordings")
        found = files.digest(path)
        if found != (row.bytes, row.sha256):
            # While we looked it may have been encoded: its row is another by now.
            now = await _row_now(database, row)
            if now is not None and now.path != path:
                path, found, row = now.path, files.digest(now.path), now
        if found is None:
            check.expect(False, f"{path}: 文件不在 there is no file")
        else:
            check.expect(found == (row.bytes, row.sha256), f"{path}: 内容已变 its content has changed")
    if missing:
        check.note = f"{missing} 条已注明缺失 / marked as missing"
    return check


async def _row_now(database: Database, row: Row[Any]) -> Row[Any] | None:
    table = schema.recordings
    mine = (table.c.call_id == row.call_id, table.c.kind == row.kind, table.c.leg_id == row.leg_id)
    async with database.read() as connection:
        return (await connection.execute(select(table).where(*mine))).one_or_none()


async def _files_have_rows(
    connection: AsyncConnection, known: set[str], files: Files, *, at: datetime
) -> Check:
    check = Check("每个录音文件有其记录", "every recording's file has its row")
    waiting = 0
    unknown: dict[str, list[str]] = {}
    for name in files.names():
        check.looked_at += 1
        if name in known:
            continue
        match = _RECORDING.fullmatch(name)
        if match is None:
            check.fails(f"{name}: 不是录音文件 not the name of a recording")
        else:
            unknown.setdefault(match[4], []).append(name)
    ended = {}
    ids = sorted(unknown)
    for start in range(0, len(ids), PAGE):
        query = select(schema.calls.c.call_id, schema.calls.c.ended_at).where(
            schema.calls.c.call_id.in_(ids[start : start + PAGE])
        )
        ended.update({row.call_id: row.ended_at for row in await connection.execute(query)})
    today = at.astimezone(_SHANGHAI).date()
    for call_id, names in unknown.items():
        day = datetime.strptime("".join(names[0].split("/")[:3]), "%Y%m%d").replace(tzinfo=_SHANGHAI).date()
        if call_id in ended:
            living = ended[call_id] is None or at - ended[call_id] < FINISHING
        else:
            living = today - day < timedelta(days=2)  # its call may not be written yet
        for name in names:
            if living:
                waiting += 1
            else:
                check.fails(f"{name}: 没有记录 there is no row")
    if waiting:
        check.note = f"{waiting} 个尚在写入或编码 / still being written or encoded"
    return check
