"""`python -m tests.bench [NAME…]`: measure, and print one table."""

import argparse
import contextlib
import logging
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import structlog
from rich.console import Console
from rich.table import Table

from tests.bench import core, crowd, growth, load, media, storage, telephony
from tests.bench.rows import Row, Verdict
from tests.chaos import kill

WIDTH = 120
"""Of a table that goes into a file."""


class Bench(NamedTuple):
    measure: Callable[[], list[Row]]
    seconds: int
    """It is given up after this."""
    only_by_name: bool = False
    """It takes too long to be part of everything."""


BENCHES = {
    "core": Bench(core.core, 60),
    "routing": Bench(core.routing, 60),
    "enter": Bench(telephony.enter, 150),
    "enter100": Bench(telephony.enter_hundred, 240),
    "enter1000": Bench(telephony.enter_thousand, 300),
    "free": Bench(telephony.free, 180),
    "answer": Bench(telephony.answer, 120),
    "steps": Bench(telephony.steps, 180),
    "load": Bench(load.load, 480),
    "rate": Bench(load.rate, 420),
    "memory": Bench(core.memory, 120),
    "journal": Bench(storage.journal, 120),
    "start": Bench(storage.start, 900),
    "free1000": Bench(crowd.free_thousand, 400),
    "media": Bench(media.media, 600),
    "growth": Bench(growth.growth, 1_200),
    "adopt": Bench(kill.adopt, 240),
    "soak": Bench(growth.soak, int(growth.SOAK_SECONDS) + 300, only_by_name=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    everything = [name for name, bench in BENCHES.items() if not bench.only_by_name]
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which to run, of {', '.join(BENCHES)}; all but soak without",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/performance.md")
    options = parser.parse_args(arguments)
    names = options.names or everything
    if unknown := [name for name in names if name not in BENCHES]:
        parser.error(f"no such measurement: {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # the table stands alone
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    before, began = _load(), time.monotonic()
    rows: list[Row] = []
    with contextlib.suppress(KeyboardInterrupt):  # what has been measured is not lost
        for name in names:
            rows += _measured(name)
    (_print_markdown if options.markdown else _print)(rows)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {(time.monotonic() - began) / 60:.0f} min; {os.cpu_count()} CPUs ({_cpu_name()}), "
        f"Python {platform.python_version()}; load average before {before}, after {_load()}"
    )
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


HEADINGS = ("what", "ours", "beside it, same run", "target", "verdict")


def _print(rows: list[Row]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH, no_color=True)
    table = Table(*HEADINGS, show_lines=True)
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


def _print_markdown(rows: list[Row]) -> None:
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|")
    for row in rows:
        well = row.verdict in (Verdict.MET, Verdict.SHOWN)
        verdict = row.verdict.value if well else f"**{row.verdict.value}**"
        cells = (row.what, row.ours, row.beside, row.target, verdict)
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    print()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    sys.exit(main())
