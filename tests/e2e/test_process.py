"""The program as a process: starts, says what is wrong in one line, stops and leaves nothing running."""

import asyncio
import json
import os
import resource
import socket
from pathlib import Path

import pytest

from callcenter.database import Database
from callcenter.domain.calls import EndReason, Phase
from callcenter.domain.records import replace
from callcenter.phone.measure import tone
from callcenter.tickets.store import TicketStore, call_json
from tests.e2e.house import TONES, House, dial, prepared, until, until_hears

pytest_plugins = ["tests.database_fixture"]


@pytest.fixture
def own_house(tmp_path: Path) -> House:
    return House(tmp_path / "h")


async def test_it_starts_takes_a_call_stops_and_starts_again(own_house: House) -> None:
    """Second start within 10 s; Ctrl-C in the middle of a call ends everything, and the record is closed."""
    house = own_house
    try:
        await asyncio.to_thread(house.start)
        asterisk = _asterisk_pid(house)
        async with house.caller() as citizen:
            call = await dial(citizen)
            status = await asyncio.to_thread(house.stop)
            assert status == 0
            await call.ended.wait(5)
        assert not _lives(asterisk)
        assert await asyncio.to_thread(house.start) <= 10
        async with house.rest("admin") as admin:
            records = await admin.get("/api/v1/call-records?limit=10")
            assert [call["phase"] for call in records["calls"]] == ["ended"]
            health = await admin.get("/healthz")
            assert health["standing"] == "ok"
        asterisk = _asterisk_pid(house)
        assert await asyncio.to_thread(house.stop) == 0
        assert not _lives(asterisk)
    finally:
        house.close()


async def test_a_low_limit_of_open_files_is_raised_for_the_engine_and_asterisk(own_house: House) -> None:
    """A login's usual 1,024 is 140 recorded calls; what the system allows beyond it is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, hard))
        await asyncio.to_thread(own_house.start)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for pid in (own_house.pid, _asterisk_pid(own_house)):
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == min(hard, 16_384)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        own_house.close()


def _asterisk_pid(house: House) -> int:
    return int(next(house.data.glob("asterisk/**/asterisk.pid")).read_text())


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("CALLCENTER_HTTP__PORT", socket.SOCK_STREAM),
        ("CALLCENTER_SIP__PORT", socket.SOCK_DGRAM),
        ("CALLCENTER_ASTERISK__AMI_PORT", socket.SOCK_STREAM),
    ],
)
def test_a_port_in_use_is_one_clear_line(own_house: House, setting: str, kind: socket.SocketKind) -> None:
    house = own_house
    try:
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind is socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            house.environment[setting] = str(port)
            ended = house.command("run", seconds=60)
        assert ended.returncode != 0
        complaint = ended.stderr.strip().splitlines()
        assert len(complaint) == 1, ended.stderr
        assert str(port) in complaint[0]
        assert "Traceback" not in ended.stdout + ended.stderr
        assert not [*house.data.glob("asterisk/**/asterisk.pid")] or not _lives(_asterisk_pid(house))
    finally:
        house.close()


async def test_a_flow_with_an_error_is_named_at_the_start_and_nothing_is_left(own_house: House) -> None:
    house = own_house
    try:
        flow = house.flows / "12345.yaml"
        flow.write_text(flow.read_text(encoding="utf-8").replace("queue: hotline", "queue: nowhere"), "utf-8")
        ended = await asyncio.to_thread(house.command, "run")
        assert ended.returncode == 1
        assert "12345.yaml:" in ended.stderr
        assert "nowhere" in ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr
        assert not [*house.data.glob("asterisk/**/asterisk.pid")]
    finally:
        house.close()


async def test_a_wrong_ami_secret_is_one_clear_line(own_house: House) -> None:
    """An Asterisk that goes on running with another secret: the engine says so and does not start."""
    house = own_house
    try:
        await asyncio.to_thread(house.start)
        await asyncio.to_thread(house.kill)
        asterisk = _asterisk_pid(house)
        (house.data / "ami.secret").write_text("a-secret-that-asterisk-does-not-know")
        ended = await asyncio.to_thread(house.command, "run")
        assert ended.returncode != 0
        complaint = ended.stderr.strip().splitlines()
        assert len(complaint) == 1, ended.stderr
        assert "secret" in complaint[0]
        assert _lives(asterisk)  # its calls are not the new engine's to end
    finally:
        house.close()


async def test_without_an_engine_callers_are_answered_by_the_fallback_queue(own_house: House) -> None:
    """Who was ready is rung by the dialplan itself; the engine on its return leaves them talking."""
    house = own_house
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=3, wrap_up_seconds=2)
        await asyncio.to_thread(house.start)
        async with house.phone("1001") as handset, house.caller("17100000021") as citizen:
            async with house.rest("agent1") as rest:
                await until(lambda: rest.get("/api/v1/me"), lambda me: me["agent"]["phone_reachable"])
                await rest.put("/api/v1/me/state", {"state": "ready"})
            await asyncio.to_thread(house.kill)
            call = await dial(citizen, seconds=10)
            desk = await handset.next_call(20)
            await desk.answer()
            desk.play(tone(TONES["agent"], 1), loop=True)
            await until_hears(call, "agent")
            await until_hears(desk, "caller")
            await asyncio.to_thread(house.start)
            await until_hears(call, "agent")
            await call.hang_up()
            await desk.ended.wait(5)
    finally:
        house.close()


async def test_the_whole_job_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """The same call, the same ticket, on the bigger database."""
    house = House(tmp_path / "h", database_url=postgres_url)
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=3, wrap_up_seconds=1)
        await asyncio.to_thread(house.start)
        async with house.person("agent1", "1001") as agent, house.caller() as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            call_id = await agent.call_id()
            await until_hears(call, "agent")
            seen = await until(lambda: agent.call(call_id), lambda c: c["ticket_number"] is not None)
            await agent.does("wrap-up", call_id, disposition="answered", more_time=True)
            await agent.does("hangup", call_id, to_rating=False)
            await desk.ended.wait(5)
            ticket = await until(
                lambda: agent.rest.get(f"/api/v1/tickets/{seen['ticket_number']}"),
                lambda t: t["status"] == "accepted" and len(t["recordings"]) == 3,
            )
            assert ticket["disposition"] == "answered"
            await agent.until_state("ready")
        assert await asyncio.to_thread(house.stop) == 0
    finally:
        house.close()


async def test_the_engine_is_killed_and_takes_up_the_calls_that_were_going_on(own_house: House) -> None:
    """kill -9 while one citizen talks and one waits: nobody is cut off, the order stays, the records are complete."""
    house = own_house
    try:
        await asyncio.to_thread(house.start)
        async with (
            house.person("agent1", "1001") as agent,
            house.caller("17100000011") as first,
            house.caller("17100000012") as second,
        ):
            talking = await dial(first)
            desk = await agent.answers()
            call_id = await agent.call_id()
            waiting = await dial(second)
            await until(
                lambda: agent.rest.get("/api/v1/queues"),
                lambda q: next(e for e in q["queues"] if e["queue_id"] == "hotline")["waiting"] == 1,
            )
            await until(lambda: _stored(house, agent), lambda seen: seen >= 2)
            await asyncio.to_thread(house.kill)
            await asyncio.to_thread(house.start)
            assert not talking.ended.is_set()
            assert not desk.ended.is_set()
            assert not waiting.ended.is_set()
            seen = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "talking")
            assert seen["ticket_number"]
            await agent.does("hangup", call_id, to_rating=False)
            await talking.ended.wait(5)
            await desk.ended.wait(5)
            # The engine hears of the end later than the phone does: ready before it would mean after the wrap-up.
            await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended")
            await agent.set("ready")
            next_desk = await agent.answers()
            await waiting.hang_up()
            await next_desk.ended.wait(5)
            ended = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended")
            assert ended["end_reason"] == "completed"
    finally:
        house.close()


async def test_a_call_whose_end_is_only_in_the_spill_file_is_not_taken_up_again(own_house: House) -> None:
    """The engine that saw it end could not write it down and died: its record stands, not a guess of the next one."""
    house = own_house
    try:
        await asyncio.to_thread(house.start)
        async with house.person("agent1", "1001") as agent, house.caller("17100000013") as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            call_id = await agent.call_id()
            await until(lambda: _stored(house, agent), lambda seen: seen >= 1)
            await asyncio.to_thread(house.kill)
            await call.hang_up()
            await desk.ended.wait(10)
            async with Database.connect(f"sqlite:///{house.data / 'callcenter.db'}") as database:
                [living] = await TicketStore(database).open_calls()
            end = {"phase": Phase.ENDED, "end_reason": EndReason.COMPLETED, "ended_at": living.arrived_at}
            ended = call_json(replace(living, version=living.version + 1, **end))
            (house.data / "journal.spill").write_text(f'{{"call":{ended}}}\n')
            await asyncio.to_thread(house.start)
            seen = await agent.call(call_id)
            assert (seen["phase"], seen["end_reason"]) == ("ended", "completed")
    finally:
        house.close()


async def _stored(house: House, agent: object) -> int:
    found = await agent.rest.get("/api/v1/call-records?limit=10")  # type: ignore[attr-defined]
    return len(found["calls"]) + 1 if found["calls"] else 0


async def test_logs_never_hold_a_whole_callers_number(own_house: House) -> None:
    house = own_house
    house.environment["CALLCENTER_LOG__LEVEL"] = "debug"
    try:
        await asyncio.to_thread(house.start)
        async with house.person("agent1", "1001") as agent, house.caller("13912345678") as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            await call.hang_up()
            await desk.ended.wait(5)
        await asyncio.to_thread(house.stop)
        assert "13912345678" not in house.said()
        for line in house.said().splitlines():
            if line.startswith("{"):
                json.loads(line)
    finally:
        house.close()


async def test_health_and_metrics(house: House) -> None:
    async with house.rest() as nobody:
        health = await nobody.get("/healthz")
        assert {name: part["standing"] for name, part in health["components"].items()} == {
            "asterisk": "ok",
            "ami": "ok",
            "database": "ok",
            "disk": "ok",
        }
        status, headers, text = await nobody.raw("/metrics")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain")
        assert b"callcenter_calls_ended" in text


async def test_a_disk_that_is_nearly_full_is_told_and_calls_go_on(own_house: House) -> None:
    house = own_house
    house.environment["CALLCENTER_DISK__MIN_FREE_MB"] = "100000000"
    try:
        await asyncio.to_thread(house.start)
        async with house.rest() as nobody:
            health = await nobody.get("/healthz")
        assert (health["standing"], health["components"]["disk"]["standing"]) == ("degraded", "degraded")
        assert "disk" in health["components"]["disk"]["detail"]
        async with house.person("agent1", "1001") as agent, house.caller() as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            await call.hang_up()
            await desk.ended.wait(5)
    finally:
        house.close()


def test_production_refuses_demo_passwords(own_house: House) -> None:
    house = own_house
    try:
        assert house.command("setup").returncode == 0
        house.environment["CALLCENTER_PROFILE"] = "production"
        ended = house.command("run", seconds=60)
        assert ended.returncode != 0
        assert "password" in ended.stderr
        assert os.linesep not in ended.stderr.strip()
    finally:
        house.close()


async def test_asterisk_is_killed_and_comes_back(own_house: House) -> None:
    """The calls it had are closed with that reason, agents are back, and the next call goes through."""
    house = own_house
    try:
        await asyncio.to_thread(prepared, house, offer_seconds=3, wrap_up_seconds=1)
        await asyncio.to_thread(house.start)
        async with house.person("agent1", "1001") as agent, house.caller("17100000031") as citizen:
            await dial(citizen)
            await agent.answers()
            call_id = await agent.call_id()
            os.kill(_asterisk_pid(house), 9)
            ended = await until(lambda: agent.call(call_id), lambda c: c["phase"] == "ended", seconds=20)
            assert ended["end_reason"] == "telephony_lost"
            async with house.rest() as nobody:
                await until(lambda: nobody.get("/healthz"), lambda h: h["standing"] == "ok", seconds=20)
        async with house.person("agent1", "1001") as agent, house.caller("17100000032") as citizen:
            call = await dial(citizen)
            desk = await agent.answers()
            await until_hears(call, "agent")
            await call.hang_up()
            await desk.ended.wait(5)
    finally:
        house.close()


async def test_a_second_engine_on_the_same_data_leaves_the_first_alone(own_house: House) -> None:
    """Other ports do not help: it would take the first one's Asterisk, and the calls with it."""
    house = own_house
    try:
        await asyncio.to_thread(house.start)
        asterisk = _asterisk_pid(house)
        environment = dict(house.environment)
        for name in ("HTTP__PORT", "SIP__PORT", "ASTERISK__AMI_PORT"):
            house.environment[f"CALLCENTER_{name}"] = str(int(environment[f"CALLCENTER_{name}"]) + 7)
        ended = await asyncio.to_thread(house.command, "run")
        assert ended.returncode != 0
        assert "data_dir" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert _asterisk_pid(house) == asterisk
        assert _lives(asterisk)
        async with house.rest() as nobody:
            assert (await nobody.get("/healthz"))["standing"] == "ok"
    finally:
        house.close()
