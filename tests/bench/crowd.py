"""A thousand agents: the real `callcenter run`, its journal and its AMI link, against a peer that plays Asterisk."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO

from tests.bench.peer import Plan, Result
from tests.bench.process import Footprint
from tests.bench.rows import Row, judged, spread
from tests.bench.site import FIRST_PHONE, LINE, Staff, site
from tests.e2e.house import ROOT, House

SECRET = "only-for-the-scripted-peer"
START_SECONDS = 120.0


def free_thousand(
    *, agents: int = 1_000, calls_a_second: float = 20.0, waiting: int = 200, seconds: float = 60.0
) -> list[Row]:
    """Agent becomes free -> Originate at the peer, everybody busy and many waiting."""
    plan = Plan(
        agents=agents,
        first_phone=FIRST_PHONE,
        line=LINE,
        waiting=waiting,
        calls_a_second=calls_a_second,
        measured_seconds=seconds,
    )
    result, engine_cpu = _measure(plan)
    took = spread(result.free_to_ring)
    return [
        judged(
            f"agent becomes free → Originate, {agents:,} agents, {result.fewest_waiting} and more waiting, "
            f"{result.calls_a_second:.1f} calls/s (scripted AMI peer)",
            ours=f"{took}; engine {engine_cpu:.0%} of a core, {result.events_a_call:.0f} events a call",
            beside=f"the peer's own timers late by {result.lag_p99 * 1000:.1f} ms (p99), "
            f"{result.lag_max * 1000:.0f} ms (worst); {result.own_cpu:.0%} of a core",
            target="p99 ≤ 100 ms",
            met=took.p99 <= 100 and result.fewest_waiting >= waiting,
        )
    ]


def _measure(plan: Plan) -> tuple[Result, float]:
    """What the peer has seen, and the engine's share of one core meanwhile."""
    with site(Staff(plan.agents), ready=True) as house, _playing_asterisk(house, plan) as said:
        house.start(seconds=START_SECONDS)
        # It fills the house first.
        assert _line(said) == "measuring"
        before = Footprint.of(house.pid)
        result = Result(**json.loads(_line(said)))
        cpu = Footprint.of(house.pid).cpu_seconds - before.cpu_seconds
        house.stop()
    return result, cpu / plan.measured_seconds


def _line(said: IO[str]) -> str:
    line = said.readline().strip()
    if not line:
        raise RuntimeError("the peer ended before its measurement")
    return line


@contextmanager
def _playing_asterisk(house: House, plan: Plan) -> Iterator[IO[str]]:
    """The peer in Asterisk's place; what it says, line by line."""
    directory = (house.data / "asterisk").resolve()
    for name in ("etc", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    secret = house.data / "ami.secret"
    secret.write_text(SECRET, encoding="ascii")
    secret.chmod(0o600)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.bench.peer", str(directory / "etc" / "asterisk.conf")),
            *(str(house.ami), SECRET, json.dumps(asdict(plan))),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as peer:
        try:
            assert peer.stdout is not None
            assert _line(peer.stdout) == "ready"
            yield peer.stdout
        finally:
            peer.kill()
