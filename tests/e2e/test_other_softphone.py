"""A softphone nobody here wrote (pyVoIP) registers and takes a call: we speak SIP, not a dialect of our own."""

import asyncio
import contextlib
import socket
import time
import warnings
from collections.abc import Iterator

from tests.e2e.house import House, dial, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pyVoIP.VoIP import CallState, VoIPCall, VoIPPhone


@contextlib.contextmanager
def _foreign_phone(house: House, taken: list[VoIPCall]) -> Iterator[VoIPPhone]:
    def ring(call: VoIPCall) -> None:
        taken.append(call)
        call.answer()

    phone = VoIPPhone(
        "127.0.0.1",
        house.sip,
        "1004",
        "demo",
        myIP="127.0.0.1",
        sipPort=_free_port(),
        rtpPortLow=39000,
        rtpPortHigh=39100,
        callCallback=ring,
    )
    phone.start()
    try:
        yield phone
    finally:
        phone.stop()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_foreign_softphone_answers_and_talks(clean_house: House) -> None:
    """An agent who sits at an ordinary softphone; pyVoIP is slow to answer, which is its own affair."""
    taken: list[VoIPCall] = []
    with _foreign_phone(clean_house, taken):
        async with clean_house.rest("agent4") as rest, clean_house.caller() as citizen:
            await until(lambda: rest.get("/api/v1/me"), lambda me: me["agent"]["phone_reachable"])
            await rest.put("/api/v1/me/state", {"state": "ready"})
            call = await dial(citizen)
            await until(
                lambda: rest.get("/api/v1/me"), lambda me: me["agent"]["state"] == "talking", seconds=20
            )
            heard = await asyncio.to_thread(_hears_something, taken)
            assert heard
            await call.hang_up()
            await until(lambda: rest.get("/api/v1/me"), lambda me: me["agent"]["state"] == "wrap_up")
            await rest.put("/api/v1/me/state", {"state": "logged_out"})


def _hears_something(taken: list[VoIPCall]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if taken and taken[0].state == CallState.ANSWERED:
            sound = taken[0].read_audio(160, blocking=False)
            if any(abs(sample - 128) > 20 for sample in sound):
                return True
        time.sleep(0.01)
    return False
