"""Which telephone stands for a number, and whether it can be reached."""

from callcenter.asterisk.devices import Devices
from callcenter.domain.messages import PhoneSeen


def test_the_browser_stands_for_the_number_while_it_is_chosen() -> None:
    devices = Devices()
    assert devices.contact("1001", "sip:desk", "Reachable") == PhoneSeen("1001", True)
    assert devices.of("1001") == "1001"
    assert devices.choose("1001", browser=True) == PhoneSeen("1001", False)
    assert devices.of("1001") == "web-1001"
    assert devices.contact("1001", "sip:desk", "Unreachable") is None
    assert devices.contact("web-1001", "sip:page", "NonQualified") == PhoneSeen("1001", True)
    assert devices.choose("1001", browser=False) == PhoneSeen("1001", False)
    assert devices.contact("web-1001", "sip:page", "Removed") is None


def test_a_page_that_reloads_stays_reachable() -> None:
    """The new contact comes before the old one goes."""
    devices = Devices()
    devices.choose("1001", browser=True)
    assert devices.contact("web-1001", "sip:old", "Reachable") == PhoneSeen("1001", True)
    assert devices.contact("web-1001", "sip:new", "NonQualified") is None
    assert devices.contact("web-1001", "sip:old", "Removed") is None
    assert devices.contact("web-1001", "sip:new", "Removed") == PhoneSeen("1001", False)


def test_what_asterisk_lists_after_a_restart() -> None:
    devices = Devices()
    contacts = [
        ("1001", "sip:desk", "Reachable"),
        ("web-1002", "sip:page", "NonQualified"),
        ("1003", "sip:away", "Unreachable"),
        ("1004", "sip:desk", "Reachable"),
    ]
    found = devices.found(contacts, ["web-1002", "web-1004", "stranger"])
    assert found == {"1001", "1002"}
    assert devices.in_browser == {"1002", "1004"}
