"""Who has tried too often to get in: counts attempts by where they come from and decides who is shut out. Pure."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from callcenter.domain.calls import Now

Network = IPv4Network | IPv6Network

MAX_BANS = 2_000
"""More: the one that would end first ends now. Asterisk compares every request with every one of them."""
_MAX_WATCHED = 20_000
_ASKED_PER_FAILURE = 20
"""A phone is asked for its password at every registration, so being asked counts for little."""
_V6_PREFIX = 64  # what one customer is given (RFC 6177): a single address of it costs him nothing


class Fault(StrEnum):
    """What was wrong with an attempt."""

    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # its name, no password
    UNKNOWN_ACCOUNT = "unknown_account"
    MALFORMED = "malformed"
    NOT_ALLOWED = "not_allowed"
    ASKED = "asked"
    """None yet: a password was asked for. Everybody's first step, and all that a flood of empty requests does."""


class Door(StrEnum):
    """Where it was tried."""

    SIP = "sip"
    AMI = "ami"
    WEB = "web"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody tried to get in and did not; never with the password he tried."""

    door: Door
    source: str
    """His IP address."""
    account: str
    """The name he gave: his words, so anything may stand in it."""
    fault: Fault


class Verdict(StrEnum):
    NOTED = "noted"
    MORE = "more"
    """As before, and more than needs a line each."""
    BANNED = "banned"
    """From now on; told once."""
    SPARED = "spared"
    """Too many from somebody who is never shut out; told once a window."""


@dataclass(frozen=True, slots=True)
class Ban:
    network: Network
    since: datetime
    until: datetime
    fault: Fault
    """What the last attempt was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLimits:
    """``failures`` within ``within_seconds`` from one address shut it out for ``ban_seconds``."""

    failures: int
    within_seconds: float
    ban_seconds: float


@dataclass(slots=True)
class _Record:
    failures: deque[float] = field(default_factory=deque)
    asked: deque[float] = field(default_factory=deque)
    told_at: float = float("-inf")


class Guard:
    """Counts by address (IPv6: by /64); bans end by themselves. Bounded in everything it remembers."""

    def __init__(self, limits: GuardLimits, *, spared: Iterable[Network], bans: Iterable[Ban] = ()) -> None:
        self._limits = limits
        self._spared = tuple(spared)
        self._records: OrderedDict[Network, _Record] = OrderedDict()
        self._bans = {ban.network: ban for ban in bans}

    @property
    def bans(self) -> tuple[Ban, ...]:
        return tuple(sorted(self._bans.values(), key=lambda ban: ban.until))

    def attempt(self, attempt: Attempt, now: Now, *, at_work: bool) -> Verdict:
        """Count it. ``at_work``: a phone of ours is registered from there, so nobody there is shut out.

        Whoever can write a foreign source address into a datagram could otherwise shut out an office.
        """
        network = network_of(attempt.source)
        if network in self._bans:
            return Verdict.MORE
        record = self._record(network)
        limit = self._limits.failures
        if attempt.fault is Fault.ASKED:
            within, limit = record.asked, limit * _ASKED_PER_FAILURE
        else:
            within = record.failures
        within.append(now.seconds)
        while within[0] <= now.seconds - self._limits.within_seconds or len(within) > limit:
            within.popleft()
        if len(within) < limit:
            return Verdict.NOTED
        if at_work or any(_address(attempt.source) in each for each in self._spared):
            if now.seconds - record.told_at < self._limits.within_seconds:
                return Verdict.MORE
            record.told_at = now.seconds
            return Verdict.SPARED
        del self._records[network]
        self._bans[network] = Ban(
            network, now.utc, now.utc + timedelta(seconds=self._limits.ban_seconds), attempt.fault
        )
        if len(self._bans) > MAX_BANS:
            del self._bans[self.bans[0].network]
        return Verdict.BANNED

    def ban_of(self, source: str) -> Ban | None:
        return self._bans.get(network_of(source))

    def lift(self, network: Network) -> None:
        self._bans.pop(network, None)

    def ended(self, now: Now) -> list[Ban]:
        """Forget the bans that are over, and those a clock set back would make endless; returns them."""
        longest = now.utc + timedelta(seconds=self._limits.ban_seconds)
        over = [ban for ban in self._bans.values() if not now.utc < ban.until <= longest]
        for ban in over:
            del self._bans[ban.network]
        return over

    def _record(self, network: Network) -> _Record:
        record = self._records.setdefault(network, _Record())
        self._records.move_to_end(network)
        if len(self._records) > _MAX_WATCHED:
            self._records.popitem(last=False)
        return record


def network_of(source: str) -> Network:
    """What is counted and banned as one: an IPv4 address, or an IPv6 network of 64 bits. ValueError."""
    address = _address(source)
    return IPv6Network((address, _V6_PREFIX), strict=False) if address.version == 6 else ip_network(address)


def _address(source: str) -> IPv4Address | IPv6Address:
    address = ip_address(source)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
