"""Which telephone stands for a number: the desk phone of the configuration, or a browser chosen at login. Pure.

The domain knows numbers (``1001``). A desk phone's SIP account has the number as its name; a browser's account is
``web-1001``, made at run time and known to Asterisk alone, so that it outlives the engine. While there is one, the
browser is rung and the desk phone is not.
"""

import re
from collections.abc import Iterable

from callcenter.domain.messages import PhoneSeen

_BROWSER = "web-"
_STATUS = {True: "Reachable", False: "Unreachable"}
_HOST = re.compile(r"@(\[[^\]]+\]|[^:;>]+)")


def browser_of(number: str) -> str:
    """The name of the number's SIP account in a browser."""
    return _BROWSER + number


def number_of(account: str) -> str:
    """The number an account stands for."""
    return account.removeprefix(_BROWSER)


class Devices:
    def __init__(self) -> None:
        self._in_browser: set[str] = set()
        self._contacts: dict[str, dict[str, bool]] = {}
        """Account -> where it is registered -> whether it answers there."""

    def of(self, number: str) -> str:
        """The SIP account to ring for a number."""
        return browser_of(number) if number in self._in_browser else number

    @property
    def in_browser(self) -> frozenset[str]:
        """The numbers that a browser stands for."""
        return frozenset(self._in_browser)

    def choose(self, number: str, *, browser: bool) -> PhoneSeen | None:
        """Ring the browser, or the desk phone again; says whether that can be reached where it makes a difference."""
        before = self._reachable(self.of(number))
        (self._in_browser.add if browser else self._in_browser.discard)(number)
        after = self._reachable(self.of(number))
        return PhoneSeen(number, after) if before != after else None

    def contact(self, account: str, uri: str, status: str) -> PhoneSeen | None:
        """One contact of an account changed; one that registers from elsewhere has two for a moment."""
        before = self._reachable(account)
        contacts = self._contacts.setdefault(account, {})
        if status == "Removed":
            contacts.pop(uri, None)
        else:
            contacts[uri] = status != "Unreachable"
        after = self._reachable(account)
        number = number_of(account)
        return PhoneSeen(number, after) if before != after and self.of(number) == account else None

    def found(self, contacts: Iterable[tuple[str, str, str]], browsers: Iterable[str]) -> frozenset[str]:
        """Learn all contacts (account, URI, status) and browsers' accounts anew; returns the numbers that answer."""
        self._contacts = {}
        for account, uri, status in contacts:
            self._contacts.setdefault(account, {})[uri] = status != "Unreachable"
        self._in_browser = {name.removeprefix(_BROWSER) for name in browsers if name.startswith(_BROWSER)}
        numbers = {number_of(account) for account in self._contacts}
        return frozenset(number for number in numbers if self._reachable(self.of(number)))

    def missed(self, contacts: Iterable[tuple[str, str, str]]) -> frozenset[tuple[str, str, str]]:
        """What ``contact`` would have been told had no event been lost, compared with the contacts there are."""
        listed = {(account, uri): status != "Unreachable" for account, uri, status in contacts}
        told = {(a, uri): well for a, uris in self._contacts.items() for uri, well in uris.items()}
        changed = {key: _STATUS[well] for key, well in listed.items() if told.get(key) is not well}
        gone = {key: "Removed" for key in told if key not in listed}
        return frozenset((account, uri, status) for (account, uri), status in (changed | gone).items())

    def answers(self, number: str) -> bool:
        """Whether the telephone of a number can be reached."""
        return self._reachable(self.of(number))

    def addresses(self) -> frozenset[str]:
        """The IP addresses at which accounts are registered."""
        uris = (uri for contacts in self._contacts.values() for uri in contacts)
        return frozenset(found[1].strip("[]") for uri in uris if (found := _HOST.search(uri)))

    def _reachable(self, account: str) -> bool:
        return any(self._contacts.get(account, {}).values())
