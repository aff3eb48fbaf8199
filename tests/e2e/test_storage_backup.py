"""A backup taken while calls are made, cut short, brought back: nothing that had ended before it is missing."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from callcenter.database import Database
from callcenter.domain.calls import Call, CallId, Phase
from callcenter.tickets.store import TicketStore
from tests.e2e.house import House, Person, dial, prepared, until, until_hears

pytest_plugins = ["tests.database_fixture"]

CALLERS = 3
NewDatabase = Callable[[], Awaitable[str]]


@pytest.fixture(params=["sqlite", "postgresql"])
async def busy_house(
    request: pytest.FixtureRequest, tmp_path: Path, new_database: NewDatabase
) -> AsyncIterator[House]:
    """A running house on each kind of database, not yet called."""
    url = await new_database() if request.param == "postgresql" else ""
    house = House(tmp_path / "h", database_url=url)
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=5, wrap_up_seconds=0)
        await asyncio.to_thread(house.start)
        yield house
    finally:
        await asyncio.to_thread(house.close)


def another(house: House, tmp_path: Path, *, url: str = "") -> House:
    """An empty house that a backup may be restored into."""
    new = House(tmp_path / "new", database_url=url)
    new.environment["CALLCENTER_FLOWS__DIR"] = str(new.directory / "restored_flows")
    return new


async def one_call(house: House, agent: Person, number: str) -> str:
    async with house.caller(number) as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        await until_hears(call, "agent")  # there is something to record
        await call.hang_up()
        await desk.ended.wait(10)
    await agent.until_state("ready", seconds=15)
    return call_id


async def recorded(agent: Person, call_id: str) -> None:
    """Wait until the call's recordings have their rows."""
    await until(
        lambda: agent.rest.get(f"/api/v1/calls/{call_id}/recordings"),
        lambda seen: len(seen["recordings"]) == 3,
        seconds=20,
    )


async def calls_of(house: House) -> dict[CallId, Call]:
    url = house.environment["CALLCENTER_DATABASE__URL"] or f"sqlite:///{house.data / 'callcenter.db'}"
    async with Database.connect(url) as database:
        return {call.call_id: call for call in await TicketStore(database).calls(limit=10_000)}


async def run(house: House, *words: str, status: int = 0) -> str:
    ended = await asyncio.to_thread(house.command, *words, seconds=100)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


async def test_a_backup_under_load_holds_every_call_that_had_ended_before_it(
    busy_house: House, tmp_path: Path, new_database: NewDatabase
) -> None:
    house, kept = busy_house, tmp_path / "kept"
    ended: list[str] = []
    stop = asyncio.Event()

    async def load(agent: Person) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            ended.append(await one_call(house, agent, f"1710000{number:04d}"))

    async with house.person("agent1", "1001") as agent, asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(load(agent), name="load")
        await until(lambda: asyncio.sleep(0, len(ended)), lambda n: n >= CALLERS, seconds=60)
        before = set(ended)
        await run(house, "backup", str(kept))
        await until(lambda: asyncio.sleep(0, len(ended)), lambda n: n > len(before), seconds=60)
        said = await run(house, "backup", str(kept), "--keep", "2")
        stop.set()
        await calling
        assert "schema" in said
        await recorded(agent, ended[-1])
    assert len([*kept.glob("*.json")]) == 2
    await run(house, "verify", str(kept))
    await run(house, "verify")

    url = await new_database() if house.environment["CALLCENTER_DATABASE__URL"] else ""
    new = another(house, tmp_path, url=url)
    with contextlib.closing(new):
        first = min(path.stem for path in kept.glob("*.json"))
        said = await run(new, "restore", str(kept), "--name", first)
        assert first in said
        there = await calls_of(new)
        assert before <= set(there)
        assert all(there[CallId(call_id)].phase is Phase.ENDED for call_id in before)
        assert all(there[CallId(call_id)].ticket_number for call_id in before)
        flow = Path(new.environment["CALLCENTER_FLOWS__DIR"]) / "12345.yaml"
        assert flow.read_bytes() == (house.flows / "12345.yaml").read_bytes()
        # Once is enough: what is there is never overwritten.
        assert "移走" in await run(new, "restore", str(kept), status=1) or url
        await asyncio.to_thread(new.start)
        async with new.person("agent1", "1001") as agent:
            await one_call(new, agent, "17100009999")
            for call_id in before:
                await recorded(agent, call_id)


@pytest.fixture
def small_house(tmp_path: Path) -> Iterator[House]:
    """A house with 40 recordings of calls that are in no book: enough to be interrupted in the middle."""
    house = House(tmp_path / "h")
    with contextlib.closing(house):
        assert house.command("setup", seconds=120).returncode == 0
        for number in range(40):
            path = house.recordings / "2026/11/22" / f"ast1-1763763843.{number}" / "call.raw"
            path.parent.mkdir(parents=True)
            path.write_bytes(os.urandom(50_000))
        yield house


def test_a_backup_that_is_killed_or_stopped_leaves_the_earlier_one_good(
    small_house: House, tmp_path: Path
) -> None:
    house, kept = small_house, tmp_path / "kept"
    first = house.command("backup", str(kept))
    assert first.returncode == 0, first.stderr
    assert (oct(kept.stat().st_mode & 0o777), len([*kept.glob("*.json")])) == ("0o700", 1)
    for number, how in enumerate((signal.SIGKILL, signal.SIGINT), start=1):
        new = house.recordings / "2026/11/22" / f"ast1-1763763850.{number}"
        new.mkdir()
        for leg in range(1, 400):
            (new / f"leg-{leg}.raw").write_bytes(os.urandom(20_000))
        before = len([*kept.glob("objects/*/*")])
        cut = subprocess.Popen(
            [sys.executable, "-m", "callcenter", "backup", str(kept)],
            cwd=house.directory,
            env=house.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while len([*kept.glob("objects/*/*")]) < before + 5:
            assert cut.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        cut.send_signal(how)
        _, said = cut.communicate(timeout=30)
        assert cut.returncode == (-9 if how is signal.SIGKILL else 130)
        assert b"Traceback" not in said
        assert len([*kept.glob("*.json")]) == 1
        verified = house.command("verify", str(kept))
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert (kept / ".making").exists() == (how is signal.SIGKILL)
    assert house.command("backup", str(kept), "--keep", "1").returncode == 0
    assert len([*kept.glob("*.json")]) == 1
    assert not (kept / ".making").exists()


def test_a_second_backup_copies_only_what_is_new(small_house: House, tmp_path: Path) -> None:
    house, kept = small_house, tmp_path / "kept"
    assert house.command("backup", str(kept)).returncode == 0
    objects = {path: path.stat().st_ino for path in kept.glob("objects/*/*")}
    new = house.recordings / "2026/11/22" / "ast1-1763763851.1" / "call.raw"
    new.parent.mkdir()
    new.write_bytes(os.urandom(1000))
    assert house.command("backup", str(kept)).returncode == 0
    added = {path for path in kept.glob("objects/*/*") if path not in objects}
    assert 1 <= len(added) <= 2  # the recording, and the database if it has changed


@pytest.mark.parametrize("form", ["kept", "kept.tar"])
def test_damage_is_found_and_nothing_damaged_is_restored(
    small_house: House, tmp_path: Path, form: str
) -> None:
    house, kept = small_house, tmp_path / form
    assert house.command("backup", str(kept)).returncode == 0
    assert house.command("verify", str(kept)).returncode == 0
    if kept.is_dir():
        manifest = json.loads(next(kept.glob("*.json")).read_text())
        sha256 = next(sha for name, sha, _ in manifest["files"] if name.startswith("recordings/"))
        victim, at = kept / "objects" / sha256[:2] / sha256, 100
    else:
        victim, at = kept, kept.stat().st_size // 2
    with victim.open("r+b") as file:
        file.seek(at)
        file.write(b"\0damage\0")
    verified = house.command("verify", str(kept))
    assert verified.returncode == 1
    assert "changed" in verified.stderr
    new = another(house, tmp_path)
    with contextlib.closing(new):
        restored = new.command("restore", str(kept))
        assert restored.returncode == 1
        assert "damaged" in restored.stderr
        assert not (new.data / "callcenter.db").exists()
        assert not [path for path in new.recordings.rglob("*") if path.is_file()]


def test_a_file_holds_a_whole_backup_too(small_house: House, tmp_path: Path) -> None:
    house, kept = small_house, tmp_path / "kept.tar"
    settings = house.directory / "callcenter.toml"
    settings.write_text('[log]\nlevel = "info"\n')
    assert house.command("backup", str(kept)).returncode == 0
    new = another(house, tmp_path)
    with contextlib.closing(new):
        restored = new.command("restore", str(kept))
        assert restored.returncode == 0, restored.stdout + restored.stderr
        assert (new.data / "callcenter.toml.restored").read_text() == settings.read_text()
        sounds = {
            path.relative_to(house.recordings): path.read_bytes() for path in house.recordings.rglob("*.raw")
        }
        assert sounds == {
            path.relative_to(new.recordings): path.read_bytes() for path in new.recordings.rglob("*.raw")
        }
        assert new.command("verify").returncode == 0


async def test_a_house_in_use_or_not_empty_is_left_alone(small_house: House, tmp_path: Path) -> None:
    house, kept = small_house, tmp_path / "kept"
    await run(house, "backup", str(kept))
    said = await run(house, "restore", str(kept), status=1)
    assert "callcenter.db" in said
    await asyncio.to_thread(house.start)
    assert "stop callcenter" in await run(house, "restore", str(kept), status=1)
    new = another(house, tmp_path)
    with contextlib.closing(new):
        other = new.recordings / "2026/01/01/ast1-1.1/call.flac"
        other.parent.mkdir(parents=True)
        other.write_bytes(b"somebody else's")
        assert "recordings.dir" in await run(new, "restore", str(kept), status=1)
        assert not (new.data / "callcenter.db").exists()
        assert "no such backup" in await run(new, "restore", str(kept), "--name", "then", status=1)
        assert "does not exist" in await run(new, "verify", str(tmp_path / "nowhere"), status=1)


async def test_the_house_itself_is_verified(busy_house: House) -> None:
    house = busy_house
    async with house.person("agent1", "1001") as agent:
        call_id = await one_call(house, agent, "17100000001")
        await recorded(agent, call_id)
        await run(house, "verify")
        [whole] = house.recordings.rglob("call.flac")
        sound = whole.read_bytes()
        whole.write_bytes(sound[:-1])
        assert "changed" in await run(house, "verify", status=1)
        whole.unlink()
        assert "no file" in await run(house, "verify", status=1)
        # A backup of such a house is made, and says so.
        assert "no file" in await run(house, "backup", str(house.directory / "kept"), status=1)
        whole.write_bytes(sound)
        stray = house.recordings / "2025/01/01/ast1-1.1/call.flac"
        stray.parent.mkdir(parents=True)
        stray.write_bytes(sound)
        assert "no row" in await run(house, "verify", status=1)


def test_postgresql_without_its_client_is_one_clear_line(tmp_path: Path, postgres_url: str) -> None:
    house = House(tmp_path / "h", database_url=postgres_url)
    with contextlib.closing(house):
        house.environment["PATH"] = str(tmp_path)
        ended = house.command("backup", str(tmp_path / "kept"))
        assert ended.returncode == 1
        assert "postgresql-client" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert not [*(tmp_path / "kept").glob("*.json")]
