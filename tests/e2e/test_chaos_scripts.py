"""Thirty callers, agents and specialists do anything at any time; then phones and records must agree."""

import asyncio
from pathlib import Path

from tests.chaos import script
from tests.chaos.audit import shown
from tests.chaos.city import standing


def test_anybody_does_anything_at_any_time(tmp_path: Path) -> None:
    with standing(tmp_path) as house:
        found = asyncio.run(script.played(house, seed=20, calls=30, at_once=12))
    assert not found.wrong, shown(found.wrong)
