"""Recordings: in parts, only to those who may."""

import pytest

from tests.e2e.house import House, ProblemError, dial, until, until_hears


async def test_ranges_roles_and_the_trace_of_who_listened(clean_house: House) -> None:
    async with clean_house.person("agent1", "1001") as agent, clean_house.caller() as citizen:
        call = await dial(citizen)
        desk = await agent.answers()
        call_id = await agent.call_id()
        # Something must have been said: a talk of a few milliseconds leaves no sound to keep.
        await until_hears(call, "agent")
        await until_hears(desk, "caller")
        await call.hang_up()
        await desk.ended.wait(5)
        files = (
            await until(
                lambda: agent.rest.get(f"/api/v1/calls/{call_id}/recordings"),
                lambda r: len(r["recordings"]) == 3,
            )
        )["recordings"]
        assert sorted(file["kind"] for file in files) == ["call", "leg", "leg"]
        href = files[0]["href"]
        async with clean_house.rest("qa1") as quality:
            status, headers, whole = await quality.raw(href)
            assert (status, len(whole)) == (200, files[0]["bytes"])
            status, headers, part = await quality.raw(href, Range="bytes=10-19")
            assert (status, part) == (206, whole[10:20])
            assert headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
            status, _, _ = await quality.raw(href, Range=f"bytes={len(whole)}-")
            assert status == 416
            status, _, _ = await quality.raw(f"/api/v1/recordings/{call_id}/..%2f..%2fami.secret")
            assert status == 404
        for stranger in ("agent2", "dept1", "spec1"):
            async with clean_house.rest(stranger) as rest:
                status, _, _ = await rest.raw(href)
                assert status in {403, 404}
        async with clean_house.rest() as nobody:
            status, _, _ = await nobody.raw(href)
            assert status == 401
            with pytest.raises(ProblemError) as refused:
                await nobody.get("/api/v1/tickets")
            assert refused.value.status == 401
