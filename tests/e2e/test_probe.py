"""The probe says well when the greeting of the line is heard, and otherwise in one line what is wrong."""

import asyncio
import socket
import subprocess
from pathlib import Path

import pytest

from tests.e2e.house import House


async def _probe(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(house.command, "probe", *words)


@pytest.mark.parametrize("number", ["12345", "96500", "7220000", "12346"])
async def test_each_line_is_well(clean_house: House, number: str) -> None:
    done = await _probe(clean_house, "--number", number)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{number} 正常 OK: ")
    assert len(done.stdout.splitlines()) == 1


async def test_another_sound_than_the_greeting_is_a_problem(clean_house: House) -> None:
    other = clean_house.flows / "prompts" / "audio" / "goodbye.wav"
    done = await _probe(clean_house, "--greeting", str(other), "--seconds", "3")
    assert done.returncode == 1
    assert "not the greeting" in done.stdout
    assert len(done.stdout.splitlines()) == 1


async def test_a_system_that_does_not_answer_is_a_problem(clean_house: House) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = await _probe(clean_house, "--sip", address, "--seconds", "1")
    assert done.returncode == 1
    assert "not answered within 1 s" in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--number", "99999"), "--greeting"), (("--sip", "nowhere"), "HOST:PORT")],
)
async def test_wrong_usage_is_told(clean_house: House, words: tuple[str, ...], told: str) -> None:
    done = await _probe(clean_house, *words)
    assert done.returncode == 2
    assert told in done.stderr


async def test_a_greeting_must_be_for_the_telephone(clean_house: House, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_bytes(b"not a sound")
    done = await _probe(clean_house, "--greeting", str(tmp_path / "no.wav"))
    assert done.returncode == 2
    assert "no.wav" in done.stderr
