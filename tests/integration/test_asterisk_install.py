"""The private Asterisk: found, unpacked once, and a clear sentence when it cannot be had."""

import fcntl
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from callcenter.asterisk import install as installing
from callcenter.asterisk.install import MODULES, AsteriskUnavailable, debian_mirror, ensure_asterisk
from tests.asterisk_fixture import DATA_DIR, shared_install

NOWHERE = "http://127.0.0.1:1/debian"  # refuses at once: nothing can be fetched by mistake


def test_the_shared_one_runs_and_is_complete() -> None:
    """Version 20 or newer, with every module the configuration loads."""
    found = shared_install()
    assert found.major >= 20
    assert [name for name in MODULES if not found.has_module(name)] == []
    assert any(found.music.glob("*.wav"))


def test_a_second_look_is_fast() -> None:
    """Nothing is started, fetched or unpacked when it is there."""
    shared_install()
    began = time.monotonic()
    ensure_asterisk(DATA_DIR, mirror=NOWHERE)
    assert time.monotonic() - began < 0.05


def test_no_archives_stay_behind() -> None:
    """Only the unpacked files are kept, not the 110 MB they came in."""
    shared_install()
    assert not list(DATA_DIR.rglob("*.deb"))
    assert not list(DATA_DIR.glob(".asterisk-root-*"))


def test_a_mirror_that_does_not_answer(tmp_path: Path) -> None:
    """The message says what to look at, and nothing is left, not even what an earlier attempt left."""
    (tmp_path / ".asterisk-root-abandoned").mkdir()
    with pytest.raises(AsteriskUnavailable, match=r"read Debian's package lists\. .*[Nn]etwork"):
        ensure_asterisk(tmp_path, mirror=NOWHERE)
    assert [path.name for path in tmp_path.iterdir()] == ["asterisk-root.lock"]


def test_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is no Debian is told what it can do."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AsteriskUnavailable, match=r"apt-get was not found.*Install Asterisk 20"):
        ensure_asterisk(tmp_path, mirror=NOWHERE)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is looked at before an hour of downloading."""
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 10**18)
    with pytest.raises(AsteriskUnavailable, match="MB are free"):
        ensure_asterisk(tmp_path, mirror=NOWHERE)


@pytest.mark.parametrize("mirror", ["ftp://x", "http://a b", "http://x [trusted=yes]", "", "deb http://x"])
def test_a_mirror_that_is_no_address(tmp_path: Path, mirror: str) -> None:
    """The address enters a file that apt reads: nothing but an address may."""
    with pytest.raises(AsteriskUnavailable, match="not the address"):
        ensure_asterisk(tmp_path, mirror=mirror)


def test_two_at_once(tmp_path: Path) -> None:
    """The second waits for the first and then takes what the first unpacked."""
    shared_install()
    waiting, outcome = threading.Event(), []
    with (tmp_path / "asterisk-root.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(
            target=lambda: outcome.append(
                ensure_asterisk(tmp_path, mirror=NOWHERE, progress=lambda _: waiting.set())
            )
        )
        second.start()
        assert waiting.wait(5)
        (tmp_path / "asterisk-root").symlink_to(DATA_DIR / "asterisk-root")
    second.join(5)
    assert [found.version for found in outcome] == [shared_install().version]


def test_an_old_asterisk_of_the_system_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is said why."""
    old = tmp_path / "asterisk"
    old.write_text("#!/bin/sh\necho Asterisk 18.9.0\n", encoding="utf-8")
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said: list[str] = []
    found = ensure_asterisk(DATA_DIR, mirror=NOWHERE, progress=said.append)
    assert str(old) not in found.command
    assert "18.9.0" in said[0]


def test_the_machines_own_mirror() -> None:
    """apt itself is asked, so one-line files and deb822 files both work."""
    assert "://" in debian_mirror() or debian_mirror().startswith("mirror+file:")


@pytest.mark.parametrize(
    ("archives", "chosen"),
    [
        (
            [("http://s/debian-security", "bookworm-security"), ("http://a/debian/", "bookworm")],
            "http://a/debian",
        ),
        ([("http://b/debian/", "trixie-updates"), ("http://b/debian", "stable")], "http://b/debian"),
        ([("http://other/x", "stable"), ("http://a/debian", "bookworm")], "http://a/debian"),
        (
            [("mirror+file:/etc/apt/mirrors/debian.list", "bookworm")],
            "mirror+file:/etc/apt/mirrors/debian.list",
        ),
    ],
)
def test_the_archive_of_the_machines_release_is_taken(archives: list[tuple[str, str]], chosen: str) -> None:
    """Not the security archive and not a third party's."""
    listed = [[uri, suite, "main"] for uri, suite in archives]
    assert installing._choose_mirror(listed, "bookworm") == chosen


def test_no_archive_at_all() -> None:
    """A disc and a third party's archive are none."""
    listed = [["cdrom://Debian", "bookworm", "main"], ["http://x/nodesource", "nodistro", "main"]]
    with pytest.raises(AsteriskUnavailable, match="mirror in the settings"):
        installing._choose_mirror(listed, "bookworm")
