"""The README's first call, literally, with softphones nobody here wrote (baresip): we speak SIP, not a dialect of our own."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from callcenter.phone.measure import correlation, read_wav, tone, write_wav
from tests.e2e.house import ROOT, TONES, House, Rest, prepared, standing, until

STORY = ["arrived", "greeted", "queued", "offered", "answered", "invited", "consulted", "joined", "ended"]
END_SECONDS = 5
BARESIP_MISSING = "baresip is missing; install the Debian package baresip-core."


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house of its own, whose prompts are as long as a newcomer hears them."""
    house = House(tmp_path_factory.mktemp("house"), short_prompts=False)
    prepared(house, offer_seconds=10, wrap_up_seconds=2)
    yield from standing(house)


@pytest.mark.parametrize(
    ("readme", "transport"),
    [("README.md", "udp"), ("README.zh-CN.md", "tcp")],
    ids=["english-udp", "chinese-tcp"],
)
async def test_the_first_call_as_the_readme_tells_it(
    clean_house: House, tmp_path: Path, readme: str, transport: str
) -> None:
    """Its commands are run as they are written there, in one shell; only the addresses are this house's."""
    house = clean_house
    greeting, _ = read_wav(house.flows / "prompts" / "audio" / "welcome_12345.wav")
    telephones, ready, invite, merge, ticket = _commands(house, readme)
    async with contextlib.AsyncExitStack() as stack:
        shell = await stack.enter_async_context(_shell(house))
        me = await stack.enter_async_context(house.rest("agent1"))
        expert = await stack.enter_async_context(house.rest("spec1"))
        secrets = {
            row.split()[0]: row.split()[-1]
            for row in (await shell(telephones)).splitlines()
            if " demo" in row
        }

        agent = await stack.enter_async_context(
            _softphone(house, tmp_path, "agent", 0, "1001", secret=secrets["agent1"], transport=transport)
        )
        specialist = await stack.enter_async_context(
            _softphone(house, tmp_path, "specialist", 1, "8001", secret=secrets["spec1"], transport=transport)
        )
        for rest in (me, expert):
            await until(_me(rest), lambda agent: agent["phone_reachable"])
        assert json.loads(await shell(ready))["agent"]["state"] == "ready"
        citizen = await stack.enter_async_context(
            _softphone(house, tmp_path, "caller", 2, "13800001234", secret=None, transport=transport)
        )

        # the greeting, then a person
        citizen.types(f"/dial sip:12345@127.0.0.1:{house.sip};transport={transport}")
        await until(_me(me), lambda agent: agent["state"] == "talking", seconds=20)
        assert len(citizen.heard()) > 0.9 * len(greeting)
        assert correlation(greeting, citizen.heard())[0] > 0.95
        await citizen.until_hears("agent")
        await agent.until_hears("caller")

        # a third party, first privately, then together
        await shell(invite)
        await agent.until_hears("specialist")
        await specialist.until_hears("agent")
        await citizen.until_hears()
        await shell(merge)
        await citizen.until_hears("agent", "specialist")
        await agent.until_hears("caller", "specialist")
        await specialist.until_hears("caller", "agent")

        # all hang up; what is left of it
        for phone in (citizen, agent, specialist):
            phone.types("/hangup")
        seen, files = await until(
            lambda: _ticket(shell, ticket), lambda seen: len(seen[0]["recordings"]) == 4
        )
        assert seen["call_id"] == (await shell("echo $call")).strip()
        assert (seen["status"], seen["caller"], seen["line"]) == ("accepted", "13800001234", "12345")
        steps = [step["kind"] for step in seen["call"]["steps"]]
        assert [kind for kind in steps if kind in STORY] == STORY
        assert {recording["name"] for recording in seen["recordings"]} <= set(files.split())
        for recording in seen["recordings"]:
            status, _, sound = await me.raw(recording["href"])
            assert (status, len(sound), sound[:4]) == (200, recording["bytes"], b"fLaC")
        await me.put("/api/v1/me/state", {"state": "logged_out"})


# --- what the README says -------------------------------------------------------------------------------------


def _commands(house: House, readme: str) -> list[str]:
    """The README's shell blocks after `make run`, with the addresses of this house."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / readme).read_text(), flags=re.DOTALL | re.MULTILINE)
    here = {"http://127.0.0.1:8080": house.url, ".venv/bin/callcenter": f"{sys.executable} -m callcenter"}
    for there, this in here.items():
        blocks = [block.replace(there, this) for block in blocks]
    assert blocks[0].startswith("make run")
    return blocks[1:]


class _Shell:
    """One shell for all of it, as a newcomer has: what an earlier command set is there for the next one."""

    END = "what the last block said ends here"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, commands: str, *, seconds: float = 20) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{commands}\necho; echo {self.END}\n".encode())
        async with asyncio.timeout(seconds):
            said = await self._process.stdout.readuntil(f"\n{self.END}\n".encode())
        return said.decode().removesuffix(f"\n{self.END}\n")


@contextlib.asynccontextmanager
async def _shell(house: House) -> AsyncIterator[_Shell]:
    process = await asyncio.create_subprocess_exec(
        "sh",
        cwd=house.directory,
        env=house.environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield _Shell(process)
    finally:
        await _end(process, b"exit\n")


async def _ticket(shell: _Shell, commands: str) -> tuple[dict[str, Any], str]:
    """The ticket as the README's command prints it, and the list of files after it."""
    said = await shell(commands)
    seen, end = json.JSONDecoder().raw_decode(said)
    return seen, said[end:]


def _me(rest: Rest) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def look() -> dict[str, Any]:
        agent: dict[str, Any] = (await rest.get("/api/v1/me"))["agent"]
        return agent

    return look


# --- baresip --------------------------------------------------------------------------------------------------


class _Softphone:
    """One baresip process, without a sound card: it says a tone and writes what it hears."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory

    def types(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def heard(self) -> NDArray[np.int16]:
        """All so far; the header of a WAV that is still being written does not count its samples yet."""
        written = next(self._directory.glob("*-dec.wav"), None)
        sound = written.read_bytes()[44:] if written is not None else b""
        return np.frombuffer(sound[: len(sound) // 2 * 2], dtype="<i2")

    async def until_hears(self, *who: str, seconds: float = 8) -> None:
        """Wait until the last 0.4 s have the tones of exactly these."""

        async def look() -> set[str]:
            sound = self.heard()[-3200:].astype(np.float64)
            if len(sound) < 3200:
                return {"too little"}
            turns = np.arange(len(sound)) / 8000
            return {
                name
                for name, pitch in TONES.items()
                if 2 * np.abs(np.mean(sound * np.exp(-2j * np.pi * pitch * turns))) > 1000
            }

        await until(look, lambda names: names == set(who), seconds=seconds)


@contextlib.asynccontextmanager
async def _softphone(
    house: House, root: Path, name: str, place: int, user: str, *, secret: str | None, transport: str
) -> AsyncIterator[_Softphone]:
    """A baresip of its own; with a secret it registers and answers by itself, without one it only dials."""
    program = shutil.which("baresip")
    modules = next(Path("/usr/lib").glob("**/baresip/modules"), None)
    assert program is not None, BARESIP_MISSING
    assert modules is not None, BARESIP_MISSING
    directory = root / name
    directory.mkdir()
    write_wav(directory / "says.wav", tone(TONES[name], 60))
    account = f"<sip:{user}@127.0.0.1:{house.sip};transport={transport}>"
    account += f";auth_pass={secret};answermode=auto;regint=60" if secret else ";regint=0"
    (directory / "accounts").write_text(f"{account}\n")
    (directory / "contacts").touch()
    sip = house.carrier + 1 + 2 * place  # it also takes the port above, for TLS
    (directory / "config").write_text(f"""\
net_interface 127.0.0.1
sip_listen 127.0.0.1:{sip}
rtp_ports {house.carrier + 8 + 2 * place}-{house.carrier + 9 + 2 * place}
audio_source aufile,{directory}/says.wav
audio_player aubridge,none
audio_alert aubridge,none
snd_path {directory}
statmode_default off
module_path {modules}
module stdio.so
module g711.so
module sndfile.so
module aufile.so
module aubridge.so
module_app account.so
module_app menu.so
""")
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            "-f",
            directory,
            env={**os.environ, "HOME": str(directory)},
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        yield _Softphone(process, directory)
    finally:
        await _end(process, b"/quit\n")


async def _end(process: asyncio.subprocess.Process, farewell: bytes) -> None:
    """Ask it to go, tell it to go, make it go."""
    if process.stdin is not None and process.returncode is None:
        process.stdin.write(farewell)
    for urge in (process.terminate, process.kill):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await process.wait()
            return
        urge()
    await process.wait()
