"""The house every end-to-end test visits, and the proof after each that nothing was left in it."""

import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.house import House, prepared, standing, until


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A running house with short prompts, short offers and a short wrap-up."""
    house = House(tmp_path_factory.mktemp("house"))
    prepared(house, offer_seconds=3, wrap_up_seconds=2)
    yield from standing(house)


@pytest.fixture
async def clean_house(house: House) -> AsyncIterator[House]:
    """The house; when the test is over no call, channel, unfinished recording or draft may be left."""
    yield house
    async with house.rest("admin") as admin:

        async def left() -> dict[str, object]:
            calls = await admin.get("/api/v1/calls")
            drafts = await admin.get("/api/v1/tickets?status=draft")
            return {
                "calls": calls["calls"],
                "channels": await house.channels(),
                "unfinished recordings": house.raw_recordings(),
                "drafts": drafts["tickets"],
            }

        await until(left, lambda seen: not any(seen.values()), seconds=10)
    errors = [line for line in _log(house) if line.get("level") in {"error", "critical"}]
    assert errors == []


def _log(house: House) -> list[dict[str, object]]:
    return [json.loads(line) for line in house.said().splitlines() if line.startswith("{")]
