"""Who may do and see what: one table from role to rights, and the mask over callers' numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from callcenter.domain.agents import UserRole
from callcenter.domain.calls import Call, UserId


class Right(StrEnum):
    TELEPHONE = "telephone"
    """Set one's own state; act on calls one is in (the centre checks that one is)."""
    SEE_CALLS = "see_calls"
    """One's own calls."""
    SEE_ALL_CALLS = "see_all_calls"
    SEE_COLLEAGUES = "see_colleagues"
    """Who is ready, talking, away; how many wait in which queue."""
    SEE_NUMBER_ON_CALL = "see_number_on_call"
    """The caller's full number in calls and tickets one handles."""
    SEE_NUMBERS = "see_numbers"
    """Every caller's full number."""
    SEE_TICKETS = "see_tickets"
    FIND_BY_NUMBER = "find_by_number"
    """Look for tickets by the caller's number."""
    HEAR_OWN = "hear_own"
    """Recordings of calls one handled."""
    HEAR_ALL = "hear_all"
    SEE_REPORTS = "see_reports"
    SEE_ALARMS = "see_alarms"


RIGHTS: Mapping[UserRole, frozenset[Right]] = MappingProxyType(
    {
        UserRole.AGENT: frozenset(
            {
                Right.TELEPHONE,
                Right.SEE_CALLS,
                Right.SEE_COLLEAGUES,
                Right.SEE_NUMBER_ON_CALL,
                Right.SEE_TICKETS,
                Right.FIND_BY_NUMBER,
                Right.HEAR_OWN,
            }
        ),
        # A specialist answers a question; who asks it is not needed for that.
        UserRole.SPECIALIST: frozenset({Right.TELEPHONE, Right.SEE_CALLS, Right.SEE_COLLEAGUES}),
        UserRole.LEADER: frozenset(
            {
                Right.TELEPHONE,
                Right.SEE_CALLS,
                Right.SEE_ALL_CALLS,
                Right.SEE_COLLEAGUES,
                Right.SEE_NUMBERS,
                Right.SEE_TICKETS,
                Right.FIND_BY_NUMBER,
                Right.HEAR_ALL,
                Right.SEE_REPORTS,
                Right.SEE_ALARMS,
            }
        ),
        UserRole.QUALITY: frozenset(
            {
                Right.SEE_CALLS,
                Right.SEE_ALL_CALLS,
                Right.SEE_COLLEAGUES,
                Right.SEE_TICKETS,
                Right.HEAR_ALL,
                Right.SEE_REPORTS,
            }
        ),
        # Dispatching means calling back when a request is unclear.
        UserRole.DISPATCHER: frozenset({Right.SEE_TICKETS, Right.SEE_NUMBERS, Right.FIND_BY_NUMBER}),
        # Departments get their own tickets with dispatching; until then there is nothing that is theirs.
        UserRole.DEPARTMENT: frozenset(),
        UserRole.ADMIN: frozenset(
            {
                Right.SEE_CALLS,
                Right.SEE_ALL_CALLS,
                Right.SEE_COLLEAGUES,
                Right.SEE_TICKETS,
                Right.HEAR_ALL,
                Right.SEE_REPORTS,
                Right.SEE_ALARMS,
            }
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Viewer:
    """The logged-in user behind a request or a screen; made from the session, never from what was sent."""

    user_id: UserId
    roles: frozenset[UserRole]
    rights: frozenset[Right]

    @classmethod
    def of(cls, user_id: UserId, roles: frozenset[UserRole]) -> "Viewer":
        return cls(user_id, roles, frozenset[Right]().union(*(RIGHTS[role] for role in roles)))

    def may(self, right: Right) -> bool:
        return right in self.rights

    def sees(self, call: Call) -> bool:
        return self.may(Right.SEE_ALL_CALLS) or (self.may(Right.SEE_CALLS) and took_part(call, self.user_id))

    def hears(self, call: Call) -> bool:
        return self.may(Right.HEAR_ALL) or (
            self.may(Right.HEAR_OWN) and self.user_id in {call.answered_by, *call.handled_by}
        )

    def sees_number_of(self, call: Call) -> bool:
        return self.may(Right.SEE_NUMBERS) or (
            self.may(Right.SEE_NUMBER_ON_CALL) and took_part(call, self.user_id)
        )


@dataclass(frozen=True, slots=True)
class Login:
    """A living session."""

    viewer: Viewer
    expires_at: datetime


def took_part(call: Call, user_id: UserId) -> bool:
    """Whether the call is or was the user's: he handled it, is being rung for it, or was connected to it.

    An offer he missed does not make a call his.
    """
    return user_id in call.handled_by or any(
        leg.user_id == user_id and (leg.alive or leg.answered_at is not None) for leg in call.legs
    )


def masked(number: str) -> str:
    """The number with its middle hidden: ``13812345678`` -> ``138****5678``; short ones show less or nothing."""
    if len(number) >= 11:
        return f"{number[:3]}****{number[-4:]}"
    if len(number) >= 7:
        return f"****{number[-3:]}"
    return "****" if number else ""
