"""A real, private Asterisk for tests: unpacked once below the tree, run from a temporary directory on free ports.

A test module takes the fixture by importing it: ``from tests.asterisk_fixture import real_asterisk``.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import shutil
import socket
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from callcenter.asterisk.config import InstanceSettings, Phone, PhoneKind, render
from callcenter.asterisk.install import AsteriskInstall, ensure_asterisk
from callcenter.asterisk.process import AsteriskProcess

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = ROOT / "var"  # shared with `make run`: the packages are fetched once
FIRST_PORT, LAST_PORT, BLOCK = 21000, 21999, 200
PHONE_SECRET = "demo"


def shared_install() -> AsteriskInstall:
    """The Asterisk every test runs; fetched now if this is the first time on this machine."""
    return ensure_asterisk(DATA_DIR, progress=print)


class RealAsterisk:
    """One instance with the demo's lines and phones; other settings by keyword, as in InstanceSettings.

    ``carrier_port`` is where calls to outside numbers are sent; a test puts its own phone there.
    """

    def __init__(self, directory: Path | None = None, **settings: Any) -> None:
        # short, because a Unix socket's path is
        self.directory = directory or Path(tempfile.mkdtemp(prefix="ast-"))
        self._temporary = directory is None
        self._reservation, base = _reserve_ports()
        self.carrier_port = base + 6
        prompts = self.directory / "prompts"
        prompts.mkdir(parents=True, exist_ok=True)
        agents = [
            Phone(number=n, secret=PHONE_SECRET, kind=PhoneKind.AGENT)
            for n in ("1001", "1002", "1003", "1004")
        ]
        specialists = [
            Phone(number=n, secret=PHONE_SECRET, kind=PhoneKind.SPECIALIST) for n in ("8001", "8002")
        ]
        values: dict[str, Any] = {
            "sip_port": base + 1,
            "ami_port": base + 2,
            "http_port": base + 3,
            "https_port": base + 4,
            "rtp_start": base + 10,
            "rtp_end": base + BLOCK - 1,
            "ami_secret": secrets.token_urlsafe(24),
            "prompts_dir": prompts,
            "recordings_dir": self.directory / "recordings",
            "hotline_numbers": ("12345", "96500", "7220000", "12346"),
            "phones": (*agents, *specialists),
            "trunk_addresses": ("127.0.0.1/32",),
            "trunk_contact": f"127.0.0.1:{self.carrier_port}",
        }
        self.settings = InstanceSettings(**(values | settings))
        self.instance = render(self.settings, shared_install(), self.directory / "a")
        self.process = AsteriskProcess(self.instance)

    @property
    def sip_address(self) -> tuple[str, int]:
        return self.settings.bind_address, self.settings.sip_port

    def start(self) -> None:
        """From outside a running event loop; inside one await ``process.start()``."""
        _run(self.process.start())

    def stop(self) -> None:
        _run(self.process.stop())

    def close(self) -> None:
        """Stop, give the ports back, remove the directory."""
        with contextlib.ExitStack() as last:
            last.callback(self._reservation.close)
            if self._temporary:
                last.callback(shutil.rmtree, self.directory)
            self.stop()

    def complaints(self) -> list[str]:
        """The warnings and errors logged so far."""
        lines = (self.instance.directory / "log" / "messages").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if " WARNING[" in line or " ERROR[" in line]


@pytest.fixture(scope="session")
def real_asterisk() -> Iterator[RealAsterisk]:
    """A running Asterisk shared by all tests that do not stop it."""
    asterisk = RealAsterisk()
    try:
        asterisk.start()
        yield asterisk
    finally:
        asterisk.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Off the main thread, so that the test runner's own event loop is left alone."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, work).result()


def _reserve_ports() -> tuple[socket.socket, int]:
    """A block of ports; its first one stays bound as long as the block is ours."""
    for base in range(FIRST_PORT, LAST_PORT, BLOCK):
        reservation = socket.socket()
        try:
            reservation.bind(("127.0.0.1", base))
            for port in range(base + 1, base + 7):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as probe:
                        if kind is socket.SOCK_STREAM:
                            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
        else:
            return reservation, base
    raise RuntimeError(
        f"Every block of ports between {FIRST_PORT} and {LAST_PORT} is taken; stop other test runs."
    )


def with_settings(asterisk: RealAsterisk, **changes: Any) -> InstanceSettings:
    """The settings of an instance with some of them changed."""
    return dataclasses.replace(asterisk.settings, **changes)
