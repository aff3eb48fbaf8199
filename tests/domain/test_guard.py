"""Who is shut out, when, and who never."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

import pytest

from callcenter.domain.calls import Now
from callcenter.domain.guard import (
    MAX_BANS,
    Attempt,
    Door,
    Fault,
    Guard,
    GuardLimits,
    Verdict,
    network_of,
)

NOON = datetime(2026, 3, 2, 4, tzinfo=UTC)
LIMITS = GuardLimits(failures=5, within_seconds=60, ban_seconds=600)
SPARED = (ip_network("192.0.2.0/24"), ip_network("2001:db8:1::/48"))


def at(seconds: float) -> Now:
    return Now(seconds, NOON + timedelta(seconds=seconds))


def attempt(source: str = "198.51.100.7", fault: Fault = Fault.WRONG_PASSWORD) -> Attempt:
    return Attempt(Door.SIP, source, "1001", fault)


def tries(guard: Guard, count: int, source: str = "198.51.100.7", **more: bool) -> list[Verdict]:
    at_work = more.get("at_work", False)
    return [guard.attempt(attempt(source), at(second), at_work=at_work) for second in range(count)]


def test_the_fifth_failure_within_the_time_is_one_too_many() -> None:
    guard = Guard(LIMITS, spared=SPARED)
    assert tries(guard, 6) == [Verdict.NOTED] * 4 + [Verdict.BANNED, Verdict.MORE]
    assert guard.ban_of("198.51.100.7") is not None
    assert guard.ban_of("198.51.100.8") is None


def test_slow_mistakes_shut_nobody_out() -> None:
    guard = Guard(LIMITS, spared=SPARED)
    assert {guard.attempt(attempt(), at(15 * n), at_work=False) for n in range(100)} == {Verdict.NOTED}


def test_a_ban_ends_by_itself_and_then_counting_begins_anew() -> None:
    guard = Guard(LIMITS, spared=SPARED)
    tries(guard, 5)
    assert guard.ended(at(603)) == []
    assert [str(ban.network) for ban in guard.ended(at(604))] == ["198.51.100.7/32"]
    assert guard.attempt(attempt(), at(605), at_work=False) is Verdict.NOTED


def test_a_clock_set_back_makes_no_ban_endless() -> None:
    guard = Guard(LIMITS, spared=SPARED)
    tries(guard, 5)
    assert len(guard.ended(Now(10, NOON - timedelta(days=1)))) == 1


@pytest.mark.parametrize("source", ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8:1::9"])
def test_who_is_spared_is_told_of_once_a_window_and_never_shut_out(source: str) -> None:
    guard = Guard(LIMITS, spared=SPARED)
    assert tries(guard, 60, source) == [Verdict.NOTED] * 4 + [Verdict.SPARED] + [Verdict.MORE] * 55
    assert guard.attempt(attempt(source), at(64), at_work=False) is Verdict.SPARED
    assert guard.bans == ()


def test_an_office_whose_phones_are_registered_is_never_shut_out() -> None:
    """Its address can be forged in a datagram."""
    guard = Guard(LIMITS, spared=())
    assert Verdict.BANNED not in tries(guard, 50, at_work=True)


def test_being_asked_for_a_password_counts_little() -> None:
    """Forty phones that start again after a power cut are no attack; a flood of empty requests is."""
    guard = Guard(LIMITS, spared=())
    asked = attempt(fault=Fault.ASKED)
    verdicts = [guard.attempt(asked, at(0.1 * n), at_work=False) for n in range(101)]
    assert verdicts == [Verdict.NOTED] * 99 + [Verdict.BANNED, Verdict.MORE]


def test_an_ipv6_customer_is_one() -> None:
    guard = Guard(LIMITS, spared=())
    for host in range(5):
        guard.attempt(attempt(f"2001:db8:2::{host:x}"), at(host), at_work=False)
    assert guard.ban_of("2001:db8:2::ffff") is not None
    assert guard.ban_of("2001:db8:2:1::1") is None
    assert str(network_of("::ffff:198.51.100.7")) == "198.51.100.7/32"


def test_the_list_is_bounded_and_the_one_that_would_end_first_goes() -> None:
    guard = Guard(LIMITS, spared=())
    for host in range(MAX_BANS + 3):
        for _ in range(5):
            guard.attempt(attempt(f"10.{host >> 8}.{host & 255}.1"), at(host / 100), at_work=False)
    assert len(guard.bans) == MAX_BANS
    assert guard.ban_of("10.0.0.1") is None


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        Guard(LIMITS, spared=()).attempt(attempt("evil"), at(0), at_work=False)
