"""A disk that is full, read-only or gone: calls go on, somebody is told, and the record says what is absent.

The disks are small ones in memory (tmpfs), mounted in a namespace that the house alone lives in: nothing is left of them
when it ends, and no real disk is ever filled.
"""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import House, Person, dial, prepared, until

SMALL_MB = 8


class SmallDisk:
    """A disk of few megabytes, seen by one house only."""

    def __init__(self, house: House, path: Path) -> None:
        self._house, self._path = house, path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def _inside(self) -> Path:
        return Path(f"/proc/{self._house.pid}/root") / self._path.relative_to("/")

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self._inside / "ballast").open("ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        assert os.statvfs(self._inside).f_bavail == 0

    def registered(self, phone: str) -> bool:
        """Whether Asterisk has written down where the phone is; it does so once a second, all that came together."""
        # Its pages as they are: SQLite itself would look for the file outside of the house.
        pages = (self._inside / "asterisk" / "lib" / "astdb.sqlite3").read_bytes()
        return f"/registrar/contact/{phone};".encode() in pages

    def clear(self) -> None:
        (self._inside / "ballast").unlink()

    def remount(self, how: str) -> None:
        enter = ["nsenter", "-t", str(self._house.pid), "-m"]
        enter += [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        subprocess.run([*enter, "mount", "-o", f"remount,{how}", str(self._path)], check=True, timeout=10)


def small_disk(house: House, path: Path) -> SmallDisk:
    """Have the house start with a small disk at `path`, which holds what is there now."""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    mount = f'cp -a "$0" "$0.kept" && mount -t tmpfs -o size={SMALL_MB}m none "$0" && cp -a "$0.kept/." "$0"'
    disk = SmallDisk(house, path)
    tried = subprocess.run(
        [*unshare, "sh", "-c", 'mount -t tmpfs none "$0"', path], capture_output=True, timeout=10, check=False
    )
    if tried.returncode:
        pytest.fail(
            "No small disk can be mounted: run the tests as root, or allow unprivileged user namespaces "
            f"(sysctl kernel.unprivileged_userns_clone=1): {tried.stderr.decode()}",
            pytrace=False,
        )
    house.wrapper = [*unshare, "sh", "-c", f'{mount}; exec "$@"', str(path)]
    return disk


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "h", settings={"CALLCENTER_DISK__MIN_FREE_MB": "1"})
    try:
        prepared(house, offer_seconds=5, wrap_up_seconds=0)
        yield house
    finally:
        house.close()


async def health(agent: Person, part: str) -> dict[str, Any]:
    _, _, seen = await agent.rest.raw("/healthz")  # 503 when a part is down
    component: dict[str, Any] = json.loads(seen)["components"][part]
    return component


async def sounds(agent: Person, call_id: str) -> list[dict[str, Any]]:
    """The recordings of an ended call, once their rows are there."""
    seen = await until(
        lambda: agent.rest.get(f"/api/v1/calls/{call_id}/recordings"),
        lambda seen: len(seen["recordings"]) == 3,
        seconds=40,
    )
    recordings: list[dict[str, Any]] = seen["recordings"]
    return recordings


async def one_call(house: House, agent: Person, *, during: Any = None, seconds: float = 1) -> str:
    async with house.caller() as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        await asyncio.sleep(seconds)  # talk
        if during is not None:
            during()
            await asyncio.sleep(6)  # and more talk, which no disk takes
        await call.hang_up()
        await desk.ended.wait(10)
    await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended", seconds=20)
    await agent.until_state("ready", seconds=15)
    return call_id


async def test_a_full_disk_for_recordings_costs_recordings_only(house: House) -> None:
    disk = small_disk(house, house.recordings)
    await asyncio.to_thread(house.start)
    async with house.person("agent1", "1001") as agent:
        # in the middle of a call, while Asterisk writes
        cut = await one_call(house, agent, during=disk.fill)
        seen = await until(lambda: health(agent, "disk"), lambda part: part["standing"] == "degraded")
        assert "磁盘已满" in seen["detail"]
        assert "full" in seen["detail"]
        assert [each["complete"] for each in await sounds(agent, cut)] == [False] * 3
        # from its beginning
        absent = await one_call(house, agent)
        assert [each["complete"] for each in await sounds(agent, absent)] == [False] * 3
        assert (await agent.call(absent))["ticket_number"]
        assert '"recording_incomplete"' in house.said()
        disk.clear()
        whole = await one_call(house, agent)
        assert [(each["complete"], each["codec"]) for each in await sounds(agent, whole)] == [
            (True, "flac")
        ] * 3
        await until(lambda: health(agent, "disk"), lambda part: part["standing"] == "ok")


async def test_a_read_only_disk_for_recordings_costs_recordings_only(house: House) -> None:
    disk = small_disk(house, house.recordings)
    await asyncio.to_thread(house.start)
    async with house.person("agent1", "1001") as agent:
        disk.remount("ro")
        call_id = await one_call(house, agent)
        assert [each["codec"] for each in await sounds(agent, call_id)] == ["missing"] * 3
        seen = await until(lambda: health(agent, "disk"), lambda part: part["standing"] == "degraded")
        assert "不可写" in seen["detail"]
        disk.remount("rw")
        whole = await one_call(house, agent)
        assert [each["complete"] for each in await sounds(agent, whole)] == [True] * 3


async def test_a_directory_of_recordings_that_vanishes_is_told(house: House) -> None:
    await asyncio.to_thread(house.start)
    async with house.person("agent1", "1001") as agent:
        gone = house.recordings.with_name("gone")
        call_id = await one_call(house, agent, during=lambda: house.recordings.rename(gone))
        assert [each["codec"] for each in await sounds(agent, call_id)] == ["missing"] * 3
        seen = await until(lambda: health(agent, "disk"), lambda part: part["standing"] == "degraded")
        assert "gone" in seen["detail"]
        whole = await one_call(house, agent)  # into a new directory of that name
        assert [each["complete"] for each in await sounds(agent, whole)] == [True] * 3


@pytest.mark.parametrize("spill", ["with room to spill", "with no room to spill"])
async def test_a_full_disk_for_the_database_loses_nothing(house: House, spill: str) -> None:
    """Where the spill file has no room either, the newest state of each call waits in memory."""
    if spill == "with room to spill":
        place = house.directory / "database"
        disk = small_disk(house, place)
        (house.data / "callcenter.db").rename(place / "callcenter.db")
        house.environment["CALLCENTER_DATABASE__URL"] = f"sqlite:///{place / 'callcenter.db'}"
    else:
        disk = small_disk(house, house.data)
    await asyncio.to_thread(house.start)
    async with house.person("agent1", "1001") as agent:
        if spill == "with no room to spill":
            await until(lambda: asyncio.to_thread(disk.registered, "1001"), bool)
        disk.fill()
        calls = []
        for _ in range(2):
            async with house.caller() as citizen:
                call = await dial(citizen)
                desk = await agent.answers()
                calls.append(await agent.call_id())
                await call.hang_up()
                await desk.ended.wait(10)
            await agent.until_state("ready", seconds=15)
        seen = await until(
            lambda: health(agent, "database"),
            lambda part: part["standing"] == ("degraded" if spill == "with room to spill" else "down"),
            seconds=40,
        )
        assert ("内存" in seen["detail"]) == (spill == "with no room to spill")
        await until(lambda: asyncio.to_thread(house.said), lambda said: "database_health" in said)
        disk.clear()
        await until(lambda: health(agent, "database"), lambda part: part["standing"] == "ok", seconds=40)
        tickets = await until(
            lambda: agent.rest.get("/api/v1/tickets"), lambda seen: len(seen["tickets"]) == 2, seconds=20
        )
        assert sorted(ticket["call_id"] for ticket in tickets["tickets"]) == sorted(calls)
        assert {ticket["status"] for ticket in tickets["tickets"]} == {"accepted"}
