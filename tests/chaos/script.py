"""Random calls on the real system, in peace and while the engine is killed; then the audit."""

import asyncio
import random

from tests.chaos.audit import Audit, audit
from tests.chaos.city import living, random_traffic
from tests.chaos.kill import killed_now_and_then
from tests.e2e.house import ROOT, House

AGENTS, SPECIALISTS = 6, 3


async def played(
    house: House, *, seed: int, calls: int, at_once: int, kills: int = 0, longest_away: float = 12.0
) -> Audit:
    """So many random calls, the engine killed so often meanwhile; the log is in var/chaos."""
    async with living(house, seed=seed, agents=AGENTS, specialists=SPECIALISTS) as city:
        async with asyncio.TaskGroup() as tasks:
            killing = tasks.create_task(
                killed_now_and_then(
                    city, times=kills, rng=random.Random(f"{seed} kills"), longest_away=longest_away
                ),
                name="kills",
            )
            await random_traffic(city, calls=calls, at_once=at_once)
            while not killing.done():
                # The killing outlasts the callers: more of them.
                await random_traffic(city, calls=at_once, at_once=at_once)
        found = await audit(city)
        city.write_log(ROOT / "var" / "chaos" / f"script-{seed}.log")
    return found
