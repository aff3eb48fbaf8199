"""Starts, finds again and stops the private Asterisk, and sees to it that nothing of it stays behind."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from callcenter.asterisk.config import Instance

_POLL_SECONDS = 0.02


class AsteriskStartFailed(Exception):  # noqa: N818  # says what happened
    """Asterisk did not come up; the message says why and where its log is."""


class PortInUse(AsteriskStartFailed):
    """Another program has the port; `setting` is the name under which a person can choose another."""

    def __init__(self, port: int, setting: str, address: str, protocol: str) -> None:
        self.port, self.setting = port, setting
        super().__init__(
            f"端口 {port}（{protocol}）已被占用，请停掉占用它的程序或更改 {setting} / port {port} ({protocol}, {address}) is "
            f"in use: stop the program that has it, or set {setting}."
        )


def running_pid(directory: Path) -> int | None:
    """The process id of the Asterisk that runs from `directory`, also one that an earlier run left; else None."""
    configuration = directory.resolve() / "etc" / "asterisk.conf"
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / "run" / "asterisk.pid").read_text(encoding="ascii"))
        # A pid file may outlive its process and the number be given to another one: ask the process itself.
        if os.fsencode(configuration) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return pid
    return None


class AsteriskProcess:
    """One running Asterisk, started here or adopted from an earlier run; usable from any event loop, one at a time."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._child: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @classmethod
    def attach(cls, instance: Instance) -> Self | None:
        """Adopt the Asterisk that an earlier run left in the same directory, calls and all; None if there is none."""
        pid = running_pid(instance.directory)
        if pid is None:
            return None
        process = cls(instance)
        process._pid = pid
        return process

    @property
    def pid(self) -> int | None:
        return self._pid

    async def start(self, *, timeout: float = 30) -> None:  # noqa: ASYNC109  # covers several waits and the clean-up
        """Start, and return once calls are taken; raises AsteriskStartFailed and leaves nothing behind."""
        directory = self.instance.directory
        if (pid := running_pid(directory)) is not None:
            raise AsteriskStartFailed(
                f"Asterisk 已在 {directory} 运行（进程 {pid}），请先停掉它 / Asterisk already runs from there: stop it first."
            )
        self._require_free_ports()
        deadline = time.monotonic() + timeout
        # What Asterisk prints before its logger runs; afterwards log/messages has it.
        with open(directory / "log" / "output", "wb", opener=_private) as output:  # noqa: ASYNC230  # a moment
            self._child = subprocess.Popen(  # noqa: S603, ASYNC220  # our own command; forks in a millisecond
                [*self.instance.install.command, "-f", "-C", str(self.instance.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for our parent, who stops us in order
                cwd=directory,
            )
        self._pid = self._child.pid
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                await self._manager_answers()
                await self._fully_booted()
        except TimeoutError as error:
            await self.stop(timeout=2)
            raise AsteriskStartFailed(
                f"Asterisk 在 {timeout:.0f} 秒内没有就绪 / was not ready after {timeout:.0f} seconds. {self._last_words()}"
            ) from error
        except BaseException:
            await self.stop(timeout=2)
            raise

    async def stop(self, *, timeout: float = 10) -> None:  # noqa: ASYNC109  # SIGTERM's share; SIGKILL follows
        """End it: SIGTERM, and SIGKILL to its whole group when `timeout` seconds were not enough."""
        if self._pid is None:
            return
        pid, self._pid = self._pid, None
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._reap()
            return
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            try:
                async with asyncio.timeout(timeout):
                    await _readable(descriptor)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                async with asyncio.timeout(5):
                    await _readable(descriptor)
        except ProcessLookupError:
            pass  # it ended by itself between the two calls
        finally:
            os.close(descriptor)
            self._reap()

    def kill(self) -> None:
        """End it at once, with all that it started; ``wait`` returns then."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)

    async def answers(self, *, timeout: float) -> bool:  # noqa: ASYNC109  # what the caller calls no answer
        """Whether it answers on its own console, a socket that needs none of its manager interface."""
        try:
            async with asyncio.timeout(timeout):
                return b"uptime" in await self._console("core show uptime seconds")
        except TimeoutError:
            return False

    async def wait(self) -> int | None:
        """Return when it has ended, with its exit status (None if it was adopted: only a parent learns it)."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(self._pid)
                try:
                    await _readable(descriptor)
                finally:
                    os.close(descriptor)
        return self._reap()

    def _reap(self) -> int | None:
        return self._child.wait(timeout=5) if self._child is not None else None

    async def _manager_answers(self) -> None:
        while True:
            self._require_alive()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.instance.settings.ami_port)
            except OSError:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            try:
                banner = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            if banner.startswith(b"Asterisk Call Manager"):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _fully_booted(self) -> None:
        """Asterisk's own command for it: the manager answers before the last module is loaded."""
        while True:
            self._require_alive()
            if b"fully booted" in await self._console("core waitfullybooted"):
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _console(self, command: str) -> bytes:
        """What it prints to a command on its console; nothing when nobody listens there."""
        asker = await asyncio.create_subprocess_exec(
            *self.instance.install.command,
            *("-C", str(self.instance.configuration), "-rx", command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            answer, _ = await asker.communicate()
        finally:
            if asker.returncode is None:
                asker.kill()
                await asker.wait()
        return answer

    def _require_alive(self) -> None:
        if self._child is not None and (status := self._child.poll()) is not None:
            raise AsteriskStartFailed(
                f"Asterisk 启动后即退出 / ended at once with status {status}. {self._last_words()}"
            )

    def _last_words(self) -> str:
        """The last complaint in its logs, and where they are."""
        directory = self.instance.directory / "log"
        lines: list[str] = []
        for name in ("output", "messages"):
            with contextlib.suppress(OSError):
                lines += (directory / name).read_text(encoding="utf-8", errors="replace").splitlines()
        complaint = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "")
        return f"Its log is in {directory}. {complaint[:300]}".strip()

    def _require_free_ports(self) -> None:
        settings = self.instance.settings
        wanted = (
            ("sip.port", settings.sip_port, settings.bind_address, socket.SOCK_DGRAM),
            ("sip.port", settings.sip_port, settings.bind_address, socket.SOCK_STREAM),
            ("asterisk.http_port", settings.http_port, settings.bind_address, socket.SOCK_STREAM),
            ("asterisk.https_port", settings.https_port, settings.bind_address, socket.SOCK_STREAM),
            ("asterisk.ami_port", settings.ami_port, "127.0.0.1", socket.SOCK_STREAM),
        )
        for setting, port, address, kind in wanted:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with socket.socket(family, kind) as probe:
                if kind is socket.SOCK_STREAM:  # as Asterisk does: old connections in TIME_WAIT do not matter
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((address, port))
                except OSError as error:
                    protocol = "TCP" if kind is socket.SOCK_STREAM else "UDP"
                    if error.errno == errno.EADDRINUSE:
                        raise PortInUse(port, setting, address, protocol) from error
                    if error.errno == errno.EADDRNOTAVAIL:
                        raise AsteriskStartFailed(
                            f"本机没有 sip.bind 所设的地址 {address} / this machine has no address {address}, set by sip.bind."
                        ) from error
                    raise AsteriskStartFailed(
                        f"端口 {port}（{protocol}，{setting}）无法使用 / port {port} ({address}) cannot be used: {error.strerror}."
                    ) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def _readable(descriptor: int) -> None:
    """Wait until a process ended: its pidfd becomes readable, whoever its parent is."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
