"""`python -m tests.bench [NAME…]`: measure, and print one table."""

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import structlog
from rich.console import Console
from rich.table import Table

from tests.bench import core, load, storage, telephony
from tests.bench.rows import Row, Verdict

WIDTH = 168
"""Of a table that goes into a file."""


class Bench(NamedTuple):
    measure: Callable[[], list[Row]]
    seconds: int
    """It is given up after this."""


BENCHES = {
    "core": Bench(core.core, 60),
    "routing": Bench(core.routing, 60),
    "enter": Bench(telephony.enter, 150),
    "enter100": Bench(telephony.enter_hundred, 240),
    "free": Bench(telephony.free, 180),
    "answer": Bench(telephony.answer, 120),
    "steps": Bench(telephony.steps, 180),
    "load": Bench(load.load, 180),
    "memory": Bench(core.memory, 120),
    "journal": Bench(storage.journal, 120),
    "start": Bench(storage.start, 900),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run; all without: {', '.join(BENCHES)}"
    )
    names = parser.parse_args(arguments).names or list(BENCHES)
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no such measurement: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # the table stands alone
    before = _load()
    rows = [row for name in names for row in _measured(name)]
    _print(rows, load=f"load average before {before}, after {_load()}")
    return 0 if not any(row.verdict is Verdict.FAILED for row in rows) else 1


def _measured(name: str) -> list[Row]:
    bench = BENCHES[name]
    print(f"{name} …", end=" ", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        with _at_most(bench.seconds):
            return bench.measure()
    # One measurement that breaks must not cost the others theirs.
    except Exception as error:  # noqa: BLE001  # see above
        traceback.print_exc()
        return [Row(name, f"{type(error).__name__}: {error}", verdict=Verdict.FAILED)]
    finally:
        print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """End what takes longer, be it computing or waiting, with TimeoutError."""

    def over(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _print(rows: list[Row], *, load: str) -> None:
    machine = f"{os.cpu_count()} CPUs ({_cpu_name()}), Python {platform.python_version()}, {load}"
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH, no_color=True)
    table = Table(
        "what", "ours", "beside it, same run", "target", "verdict", title=machine, title_justify="left"
    )
    colours = {
        Verdict.MET: "green",
        Verdict.MISSED: "red",
        Verdict.FAILED: "bold red",
        Verdict.SHOWN: "default",
    }
    for row in rows:
        table.add_row(
            row.what, row.ours, row.beside, row.target, row.verdict.value, style=colours[row.verdict]
        )
    console.print(table)


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    sys.exit(main())
