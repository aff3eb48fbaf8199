"""`python -m tests.chaos [NAME…]`: break things on purpose, print what was promised and what came of it."""

import argparse
import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from tests.bench.rows import Row, Verdict, judged
from tests.chaos import day, kill, link, script
from tests.chaos.asterisk import AGENTS, IDLE, SPECIALISTS, TRUE_SECONDS, Fault, asterisk_fails
from tests.chaos.audit import Audit, shown
from tests.chaos.city import standing
from tests.chaos.wire import telephoned_in_bad_weather
from tests.e2e.house import ROOT

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


def asterisk() -> list[Row]:
    """Asterisk killed, killed with the engine, frozen, and hung for good, each with a caller at every stage."""
    rows = []
    for fault in Fault:
        with (
            tempfile.TemporaryDirectory(prefix="chaos-") as directory,
            standing(
                Path(directory),
                agents=AGENTS + IDLE,
                specialists=SPECIALISTS,
                offer_seconds=kill.OFFER_SECONDS,
                wrap_up_seconds=kill.WRAP_UP_SECONDS,
                change=kill.flows_for_stages,
            ) as house,
        ):
            came = asyncio.run(asterisk_fails(house, fault, seed=7))
        if came.wrong:
            print(shown(came.wrong, most=30), file=sys.stderr)
        rows.append(
            judged(
                f"{fault.value}, a caller at every stage",
                ours=f"{len(came.wrong)} violations; away {came.away:.1f} s, all true {came.true_after:.1f} s after "
                f"its return; {came.found}",
                target=f"nothing violated, all true within {TRUE_SECONDS:.0f} s",
                met=not came.wrong and came.true_after <= TRUE_SECONDS,
            )
        )
    return rows


def days() -> list[Row]:
    """A fortnight of real calls, and the busiest day of the largest hotline, both in virtual time."""
    rows = [_day("a day of 87,000 calls", list(day.synthetic(87_000)), agents=720, specialists=80)]
    trace = os.environ.get("CALL_TRACE")
    if not trace:
        missing = "not replayed: set CALL_TRACE to the file of calls (tests/chaos/day.py says which)"
        return [*rows, Row("real calls replayed", missing, verdict=Verdict.FAILED)]
    return [*rows, _day("real calls replayed", day.traced(Path(trace)), agents=9, specialists=4)]


def _day(what: str, callers: Sequence[day.Caller], *, agents: int, specialists: int) -> Row:
    began = time.monotonic()
    found = day.Day(callers, agents=agents, specialists=specialists).play()
    if found.wrong:
        print(shown(found.wrong, most=30), file=sys.stderr)
    return judged(
        f"{what}, {agents} agents",
        ours=f"{len(found.wrong)} violations; {found}; {found.hours:,.0f} h in {time.monotonic() - began:.0f} s",
        target="nothing violated, an end for each",
        met=not found.wrong and found.ended == found.calls == len(callers),
    )


def wire() -> list[Row]:
    """Packets of SIP and RTP lost, doubled and out of order between the phones and Asterisk."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as directory,
        standing(Path(directory), agents=4, specialists=2) as house,
    ):
        found, weather = asyncio.run(telephoned_in_bad_weather(house, seed=8, calls=100, at_once=8))
    did = weather.did
    what = (
        f"{did['lost']:,} packets of {did['packets']:,} lost, {did['twice']:,} doubled, {did['late']:,} late"
    )
    return [_judged(what, found.wrong, found)]


def _tests(*arguments: str, seconds: float, **environment: str) -> Callable[[], list[Row]]:
    """Tests in their long form, as a row; so many seconds at most."""

    def run() -> list[Row]:
        what = " ".join([*(f"{name}={value}" for name, value in environment.items()), *arguments])
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                said, _ = running.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGINT)  # pytest takes its houses down
                said, _ = running.communicate(timeout=60)
        if running.returncode:
            print(said[-6_000:], file=sys.stderr)
        last = said.strip().splitlines()[-1] if said.strip() else "said nothing"
        return [
            judged(
                what,
                ours=last.strip("= "),
                target=f"all pass in {seconds:.0f} s",
                met=running.returncode == 0,
            )
        ]

    return run


def steps() -> list[Row]:
    """The control link cut at every action of all that agents do."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        found = link.long_form(Path(directory))
    if found.wrong:
        print(shown(found.wrong, most=30), file=sys.stderr)
    return [
        judged(
            "AMI cut at each action of an offer, a hold, a consult, a merge, a leave, a transfer, an end",
            ours=f"{len(found.wrong)} violations; {found}",
            target="nobody lost, nothing twice",
            met=not found.wrong,
        )
    ]


FAULTS: dict[str, Callable[[], list[Row]]] = {
    "stages": stages,
    "away": away,
    "adopt": kill.adopt,
    "kills": kills,
    "scripts": scripts,
    "asterisk": asterisk,
    "wire": wire,
    "day": days,
    "core": _tests("tests/domain/test_random_scripts.py", "-k", "long", seconds=1800, LONG_EVENTS="1000000"),
    "link": _tests("tests/e2e/test_link_lost.py", seconds=1200),
    "clock": _tests("tests/e2e/test_link_clock.py", seconds=900),
    "phones": _tests("tests/e2e/test_phones_vanish.py", seconds=600),
    "shutdown": _tests("tests/e2e/test_shutdown.py", seconds=900),
    "storage": _tests("tests/e2e/test_storage_outage.py", seconds=1200, OUTAGE_SECONDS="60"),
    "disk": _tests("tests/e2e/test_storage_disk.py", seconds=900),
    "backup": _tests("tests/e2e/test_storage_backup.py", seconds=900),
    "steps": steps,
}
"""By name; each ends by itself or after its bound."""


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
