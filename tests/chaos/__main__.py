"""`python -m tests.chaos [NAME…]`: break things on purpose, print what was promised and what came of it."""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from tests.bench.rows import Row, Verdict, judged, spread
from tests.chaos import kill, script
from tests.chaos.audit import Audit, shown
from tests.chaos.city import standing

WIDTH = 150


def _judged(what: str, wrong: Sequence[str], found: Audit) -> Row:
    if wrong:
        print(shown(wrong, most=30), file=sys.stderr)
    seen = f"{len(wrong)} violations; {found}; longest silence {found.longest_silence:.1f} s"
    return judged(what, ours=seen, target="nothing violated, silence ≤ 8 s", met=not wrong)


def scripts() -> list[Row]:
    """500 random calls with each of three seeds."""
    rows = []
    for seed in (1, 2, 3):
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory, standing(Path(directory)) as house:
            found = asyncio.run(script.played(house, seed=seed, calls=500, at_once=20))
        rows.append(_judged(f"500 random calls, 20 at once, seed {seed}", found.wrong, found))
    return rows


def kills() -> list[Row]:
    """The engine killed ten times while people telephone."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory, standing(Path(directory)) as house:
        found = asyncio.run(script.played(house, seed=4, calls=200, at_once=15, kills=10))
    return [_judged("engine killed 10 times, also as it starts", found.wrong, found)]


def stages() -> list[Row]:
    """Killed with a caller at every stage: back at once, and back after the fallback queue has taken over."""
    rows = []
    for away in (0.0, 8.0):
        with (
            tempfile.TemporaryDirectory(prefix="chaos-") as directory,
            standing(
                Path(directory),
                agents=9,
                specialists=3,
                offer_seconds=kill.OFFER_SECONDS,
                wrap_up_seconds=kill.WRAP_UP_SECONDS,
                change=kill.flows_for_stages,
            ) as house,
        ):
            wrong, found, gone = asyncio.run(kill.killed_at_every_stage(house, seed=5, away_seconds=away))
        rows.append(_judged(f"engine killed, a caller at every stage, away {gone:.1f} s", wrong, found))
    return rows


def away() -> list[Row]:
    """Twelve callers come while no engine is there."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as directory,
        standing(Path(directory), agents=2, specialists=0) as house,
    ):
        wrong, found = asyncio.run(kill.served_without_engine(house, seed=6, callers=12))
    return [_judged("12 callers served without an engine", wrong, found)]


def adopt() -> list[Row]:
    """200 calls adopted."""
    took = spread(kill.kill_and_adopt(200))
    return [
        judged(
            "engine's start → call adopted, 200 calls",
            ours=str(took),
            target="p95 ≤ 5 s",
            met=took.p95 <= 5000,
        )
    ]


FAULTS: dict[str, Callable[[], list[Row]]] = {
    "stages": stages,
    "away": away,
    "adopt": adopt,
    "kills": kills,
    "scripts": scripts,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run, of {', '.join(FAULTS)}; all without"
    )
    names = parser.parse_args(arguments).names or list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    table = Table("what is broken", "what came of it", "promised", "verdict")
    verdicts = []
    for name in names:
        began = time.monotonic()
        print(f"{name} …", end=" ", file=sys.stderr, flush=True)
        try:
            rows = FAULTS[name]()
        # One that breaks must not cost the others theirs.
        except Exception as error:  # noqa: BLE001  # see above
            traceback.print_exc()
            rows = [Row(name, f"{type(error).__name__}: {error}", verdict=Verdict.FAILED)]
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        for row in rows:
            verdicts.append(row.verdict)
            table.add_row(row.what, row.ours, row.target, row.verdict.value)
    (Console() if sys.stdout.isatty() else Console(width=WIDTH, no_color=True)).print(table)
    return 0 if all(verdict is Verdict.MET for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
