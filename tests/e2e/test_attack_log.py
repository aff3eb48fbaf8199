"""Asterisk's own log under a flood: it is ended in time, and what is written meanwhile is not lost."""

from pathlib import Path

from callcenter.asterisk.telephony import rotated
from tests.e2e.house import House, until
from tests.e2e.sip_rubbish import message
from tests.e2e.test_rubbish_sip import send, where

STRANGER = "127.0.0.8"


async def test_asterisks_log_is_ended_when_it_has_grown(clean_house: House) -> None:
    log = next(clean_house.data.glob("asterisk/**/log/messages"))
    with log.open("ab") as grown:  # what a flood would write
        grown.truncate(11_000_000)
    older = log.with_name("messages.1")

    async def ended() -> bool:
        return older.exists() and log.exists()

    await until(ended, bool, seconds=30)

    async def written() -> int:
        flood = [message("REGISTER", house=house, here=here, user="nobody") for _ in range(20)]
        await send(clean_house, STRANGER, flood, after=1)
        return log.stat().st_size

    house, here = where(clean_house, STRANGER)
    assert 0 < await until(written, bool, seconds=20) < 1_000_000
    assert (log.parent / "output").stat().st_size < 10_000


def test_no_more_than_so_many_files_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "messages"
    for number in range(6):
        file.write_text(f"{number}" * 10)
        assert rotated(file, most_bytes=5, keep=3)
    assert {each.name: each.read_text()[0] for each in tmp_path.iterdir()} == {
        "messages.1": "5",
        "messages.2": "4",
        "messages.3": "3",
    }
    file.write_text("short")
    assert not rotated(file, most_bytes=5, keep=3)
