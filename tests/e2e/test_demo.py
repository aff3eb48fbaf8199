"""The demo plays whole evenings at a running house and tells truly what became of the callers."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.house import House

EVENING = """
title: everything once
rate: 2
arrivals: steady
seconds: 4
seed: 5
sound: speech
callers:
  lines: {"12345": 2, "12346": 1}
  keys: {"12346": {"1": 1}}
  key_after: {median: 0.5}
  patience: {median: 60}
  talk: {median: 1.5}
agents:
  pick_up: {median: 0.3}
  rejects: 0.2
  holds: 0.5
  hold: {median: 1}
  invites: 0.5
  consult: {median: 0.6}
  transfers: 0.3
  wrap_up: {median: 0.2}
  pause: {median: 0.2}
specialists: {pick_up: {median: 0.3}, rejects: 0.3}
"""


def _scenario(tmp_path: Path, text: str) -> str:
    path = tmp_path / "evening.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


async def _demo(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(house.command, "demo", *words, seconds=110)


async def test_an_evening_of_everything_leaves_every_call_in_the_records(
    clean_house: House, tmp_path: Path
) -> None:
    async with clean_house.rest("qa1") as quality:
        before = await _records(quality)
        done = await _demo(clean_house, _scenario(tmp_path, EVENING))
        after = await _records(quality)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"placed (\d+) .*answered (\d+)", done.stdout)
    assert found, done.stdout
    placed, answered = int(found[1]), int(found[2])
    assert placed == 7
    new = [call for call_id, call in after.items() if call_id not in before]
    assert len(new) == placed
    assert sum(call["ticket_number"] is not None for call in new) == answered
    assert "FAILED" not in done.stdout
    assert "TROUBLE" not in done.stdout
    for figure in ("INVITE to greeting", "INVITE to agent's ring", "answer to both hear", "largest RTP gap"):
        assert figure in done.stdout


async def _records(quality: object) -> dict[str, dict[str, object]]:
    answer = await quality.get("/api/v1/call-records?limit=200")  # type: ignore[attr-defined]
    return {call["call_id"]: call for call in answer["calls"]}


async def test_a_call_that_should_not_have_failed_is_told_and_makes_the_exit_status(
    clean_house: House, tmp_path: Path
) -> None:
    nobody_s = EVENING.replace('lines: {"12345": 2, "12346": 1}', 'lines: {"99999": 1}')
    done = await _demo(clean_house, _scenario(tmp_path, nobody_s), "--seconds", "1")
    assert done.returncode == 1
    assert "FAILED 1: " in done.stdout


async def test_ctrl_c_hangs_everybody_up_and_sends_them_home(clean_house: House, tmp_path: Path) -> None:
    """`clean_house` sees afterwards that no call, channel or recording is left."""
    long = EVENING.replace("seconds: 4", "seconds: 100").replace("talk: {median: 1.5}", "talk: {median: 90}")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "callcenter",
        "demo",
        _scenario(tmp_path, long),
        env=clean_house.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    shown = ""
    try:
        async with asyncio.timeout(60):
            while "talking" not in shown:
                line = await process.stdout.readline()
                assert line, shown
                shown += line.decode()
            process.send_signal(signal.SIGINT)
            shown += (await process.stdout.read()).decode()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, shown
    assert re.search(r"stopped [1-9]", shown), shown
    async with clean_house.rest("leader1") as leader:
        agents = (await leader.get("/api/v1/agents"))["agents"]
    at_work = [agent["user_id"] for agent in agents if agent["state"] != "logged_out"]
    assert at_work == []


def test_a_system_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = _alone(tmp_path, "demo", "quiet", "--url", "http://127.0.0.1:9", "--sip", "127.0.0.1:9")
    assert done.returncode == 1
    assert "make run" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_prepare_adds_agents_with_phones_once(tmp_path: Path) -> None:
    for _ in range(2):
        done = _alone(tmp_path, "demo", "prepare", "--agents", "3")
        assert done.returncode == 0, done.stderr
    listed = _alone(tmp_path, "users", "list").stdout
    assert re.findall(r"load\d+", listed) == ["load001", "load002", "load003"]
    assert "20003" in listed


def test_prepare_does_nothing_in_production(tmp_path: Path) -> None:
    done = _alone(tmp_path, "demo", "prepare", CALLCENTER_PROFILE="production")
    assert done.returncode == 2
    assert "only in the demo profile" in done.stderr


def _alone(directory: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command with a data directory of its own and no system running."""
    return subprocess.run(
        [sys.executable, "-m", "callcenter", *words],
        cwd=directory,
        env={**os.environ, "CALLCENTER_DATA_DIR": str(directory / "var"), **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
