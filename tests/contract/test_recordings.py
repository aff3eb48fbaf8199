"""Recordings: real files, a real writer that holds them open, a disk that is really full."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from callcenter.domain.calls import Call, CallId, Leg, LegId, LegState, Phase, Place, Role, Step, StepKind
from callcenter.domain.recordings import is_complete, recorded_since
from callcenter.quality import recordings as module
from callcenter.quality.recordings import NoSuchRecording, RecordingKind, Recordings

NOON = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)
CALL_ID = CallId("ast1-1763763843.12")
LEG2 = LegId(f"{CALL_ID}-2")


def a_call(*, call_id: str = CALL_ID, at: datetime = NOON, talked: bool = True) -> Call:
    def leg(leg_id: str, role: Role) -> Leg:
        return Leg(
            LegId(leg_id), role, "1", None, LegState.ENDED, Place.ALONE, at, answered_at=at, ended_at=ended
        )

    ended = at + timedelta(seconds=2)

    legs = (leg(call_id, Role.CALLER), leg(f"{call_id}-2", Role.AGENT))
    return Call(
        CallId(call_id),
        line="12345",
        flow_version="1",
        dialled="12345",
        caller="138",
        arrived_at=at,
        phase=Phase.ENDED,
        legs=legs if talked else legs[:1],
        answered_at=at if talked else None,
        ended_at=ended,
    )


def tone(hertz: float, *, seconds: float = 2.0, amplitude: int = 8000) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 8000)) / 8000)).astype("<i2")


def stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    return np.stack([left, right], axis=1).astype("<i2").tobytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


@pytest.fixture
def recordings(root: Path) -> Recordings:
    return Recordings(root)


def record(recordings: Recordings, call: Call) -> tuple[np.ndarray, np.ndarray]:
    """What Asterisk leaves after a call: the caller at 440 Hz, the agent at 1000 Hz."""
    caller, agent = tone(440), tone(1000)
    recordings.raw_path(call, LegId(call.call_id), RecordingKind.CALL).write_bytes(stereo(caller, agent))
    return caller, agent


def sound(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


def swept_with(*calls: Call, living: Collection[CallId] = ()) -> tuple:
    """What a sweep is told: who lives, and the records."""
    records = {call.call_id: call for call in calls}

    async def record_of(call_id: CallId) -> Call | None:
        return records.get(call_id)

    return lambda: living, record_of


@contextmanager
def held_open(path: Path, data: bytes) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written `data` and holds the file open until its input is closed."""
    program = """
import sys
file = open(sys.argv[1], "wb", buffering=0)
file.write(bytes.fromhex(sys.argv[2])); print("open", flush=True)
sys.stdin.read()
file.write(bytes.fromhex(sys.argv[2])); file.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), data.hex()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        if not process.stdin.closed:
            process.stdin.close()
        process.wait(10)
        process.stdout.close()


# --- paths --------------------------------------------------------------------------------------------------


def test_files_stand_under_the_day_in_shanghai(recordings: Recordings, root: Path) -> None:
    just_before_midnight = datetime(2026, 11, 20, 15, 59, 59, tzinfo=UTC)
    call = a_call(at=just_before_midnight)
    assert recordings.raw_path(call, CALL_ID, RecordingKind.CALL) == root / f"2026/11/20/{CALL_ID}/call.raw"
    call = a_call(at=just_before_midnight + timedelta(seconds=1))
    directory = root / f"2026/11/21/{CALL_ID}"
    assert recordings.raw_path(call, LegId(CALL_ID), RecordingKind.LEG) == directory / "leg-1.raw"
    assert recordings.raw_path(call, LEG2, RecordingKind.LEG) == directory / "leg-2.raw"
    assert recordings.raw_path(call, CALL_ID, RecordingKind.MESSAGE) == directory / "message.wav"
    assert [path.stat().st_mode & 0o777 for path in (directory, *list(directory.parents)[:3])] == [0o750] * 4


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "../x", "a/b", "/etc", "a\0b", "a b", "-a", "a..b", "a\n", "张", "a" * 81, "%2e%2e"],
)
def test_an_id_that_is_no_safe_name_is_refused(recordings: Recordings, root: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="call id"):
        recordings.raw_path(a_call(call_id=bad), LegId(bad), RecordingKind.CALL)
    with pytest.raises(ValueError, match="leg"):
        recordings.raw_path(a_call(), LegId(f"{CALL_ID}-{bad}"), RecordingKind.LEG)


@given(st.text())
def test_no_path_whatever_it_is_leads_outside(path: str) -> None:
    with pytest.raises(NoSuchRecording):
        Recordings(Path(__file__).parent / "nothing").open(path)


async def test_only_files_inside_are_opened(recordings: Recordings, root: Path) -> None:
    call = a_call()
    record(recordings, call)
    done = await recordings.finish(call)
    assert recordings.open(done.files[0].path).read_bytes()[:4] == b"fLaC"
    (root.parent / "secret.flac").write_text("secret")
    (root / "link.flac").symlink_to(root.parent / "secret.flac")
    for path in [
        "../secret.flac",
        "2026/../../secret.flac",
        str(root.parent / "secret.flac"),
        "link.flac",
        "2026",
    ]:
        with pytest.raises(NoSuchRecording):
            recordings.open(path)


# --- finishing ----------------------------------------------------------------------------------------------


async def test_a_finished_call_has_lossless_files_with_their_digests(
    recordings: Recordings, root: Path
) -> None:
    call = a_call()
    caller, agent = record(recordings, call)
    done = await recordings.finish(call)
    assert (done.missing, done.kept) == ((), ())
    assert [(file.kind, file.leg_id, file.seconds, file.codec) for file in done.files] == [
        (RecordingKind.CALL, None, 2.0, "flac"),
        (RecordingKind.LEG, CALL_ID, 2.0, "flac"),
        (RecordingKind.LEG, LEG2, 2.0, "flac"),
    ]
    for file in done.files:
        content = (root / file.path).read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    both, rate = soundfile.read(root / done.files[0].path, dtype="int16")
    assert rate == 8000
    assert np.array_equal(both[:, 0], caller)  # left: what the caller said
    assert np.array_equal(both[:, 1], agent)
    assert np.array_equal(soundfile.read(root / done.files[2].path, dtype="int16")[0], agent)
    assert sorted(path.name for path in (root / done.files[0].path).parent.iterdir()) == [
        "call.flac",
        "leg-1.flac",
        "leg-2.flac",
    ]


async def test_finishing_again_describes_the_same_files(recordings: Recordings) -> None:
    call = a_call()
    record(recordings, call)
    assert await recordings.finish(call) == await recordings.finish(call)


async def test_a_sweep_that_meets_the_end_of_the_call_does_no_harm(recordings: Recordings) -> None:
    call = a_call()
    record(recordings, call)
    done, _, again = await asyncio.gather(
        recordings.finish(call), recordings.sweep(*swept_with(call)), recordings.finish(call)
    )
    assert done == again
    assert (len(done.files), done.kept) == (3, ())


async def test_absent_and_empty_files_are_said_to_be_missing(recordings: Recordings) -> None:
    call = a_call()
    recordings.raw_path(call, CALL_ID, RecordingKind.CALL).write_bytes(b"")
    recordings.raw_path(call, LEG2, RecordingKind.LEG).write_bytes(tone(440).tobytes())
    done = await recordings.finish(call)
    assert [Path(file.path).name for file in done.missing] == ["call.flac", "leg-1.flac"]
    assert all(file.missing and not is_complete(file, call) for file in done.missing)
    assert [file.leg_id for file in done.files] == [LEG2]
    unanswered = a_call(call_id="ast1-1.1", talked=False)
    assert await recordings.finish(unanswered) == module.Finished(unanswered.call_id)


async def test_a_message_left_is_finished_like_the_rest(recordings: Recordings, root: Path) -> None:
    call = a_call(talked=False)
    call = replace(call, steps=(Step(NOON, StepKind.MESSAGE_LEFT),))
    [missing] = (await recordings.finish(call)).missing
    assert (missing.kind, missing.codec, missing.bytes) == (RecordingKind.MESSAGE, "missing", 0)
    said = tone(440)
    soundfile.write(recordings.raw_path(call, CALL_ID, RecordingKind.MESSAGE), said, 8000, subtype="PCM_16")
    done = await recordings.finish(call)
    [file] = done.files
    assert (file.kind, file.leg_id, file.seconds, done.missing) == (RecordingKind.MESSAGE, None, 2.0, ())
    assert np.array_equal(soundfile.read(root / file.path, dtype="int16")[0], said)


async def test_a_frame_cut_in_half_is_left_out(recordings: Recordings, root: Path) -> None:
    call = a_call()
    recordings.raw_path(call, CALL_ID, RecordingKind.CALL).write_bytes(
        stereo(tone(440), tone(1000)) + b"\1\2\3"
    )
    done = await recordings.finish(call)
    assert done.files[0].seconds == 2.0


async def test_a_long_recording_is_whole(recordings: Recordings, root: Path) -> None:
    call = a_call()
    noise = np.random.default_rng(1).integers(-9000, 9000, (25 * 8000 + 17, 2)).astype("<i2")
    recordings.raw_path(call, CALL_ID, RecordingKind.CALL).write_bytes(noise.tobytes())
    done = await recordings.finish(call)
    assert np.array_equal(soundfile.read(root / done.files[0].path, dtype="int16")[0], noise)


# --- whose voice is in which file ---------------------------------------------------------------------------


def a_consultation() -> Call:
    """The agent answers at 0 s, holds the caller from 2 s to 6 s and asks a specialist, up from 3 s to 5 s; all end at 8 s."""

    def at(seconds: float) -> datetime:
        return NOON + timedelta(seconds=seconds)

    call = a_call()
    caller, agent = (replace(leg, ended_at=at(8)) for leg in call.legs)
    expert = replace(
        agent, leg_id=LegId(f"{CALL_ID}-3"), role=Role.SPECIALIST, answered_at=at(3), ended_at=at(5)
    )
    steps = (Step(at(2), StepKind.HELD), Step(at(6), StepKind.RESUMED))
    return replace(call, legs=(caller, agent, expert), steps=steps, ended_at=at(8))


async def test_who_was_heard_where_the_caller_was_not_has_that_in_his_file_too(
    recordings: Recordings, root: Path
) -> None:
    """Until the hold it stands in the file of the call, from then on in his own; the music is in neither."""
    call = a_consultation()
    expert = LegId(f"{CALL_ID}-3")
    assert recorded_since(call, call.legs[1]) == NOON + timedelta(seconds=2)
    assert recorded_since(call, call.legs[2]) == NOON + timedelta(seconds=3)
    heard = np.concatenate([tone(1000), tone(300, seconds=4), tone(1000)])
    whole = stereo(tone(440, seconds=8), heard)
    apart, said = np.concatenate([tone(1100, seconds=4), tone(1000)]), tone(700)
    recordings.raw_path(call, CALL_ID, RecordingKind.CALL).write_bytes(whole)
    recordings.raw_path(call, LEG2, RecordingKind.LEG).write_bytes(apart.tobytes())
    recordings.raw_path(call, expert, RecordingKind.LEG).write_bytes(said.tobytes())
    done = await recordings.finish(call)
    assert (done.missing, done.kept) == ((), ())
    files = {file.leg_id: root / file.path for file in done.files}
    assert np.array_equal(sound(files[CALL_ID]), tone(440, seconds=8))
    assert np.array_equal(sound(files[LEG2]), np.concatenate([tone(1000), apart]))
    assert np.array_equal(sound(files[expert]), said)
    assert all(is_complete(file, call) for file in done.files)


async def test_two_agents_after_one_another_have_each_his_part(recordings: Recordings, root: Path) -> None:
    call = a_call()
    caller, first = call.legs
    second = replace(
        first,
        leg_id=LegId(f"{CALL_ID}-3"),
        answered_at=NOON + timedelta(seconds=3),
        ended_at=NOON + timedelta(seconds=5),
    )
    later = NOON + timedelta(seconds=6)
    call = replace(call, legs=(replace(caller, ended_at=later), first, second), ended_at=later)
    heard = np.concatenate([tone(1000), tone(300, seconds=1), tone(700), tone(300, seconds=1)])
    path = recordings.raw_path(call, CALL_ID, RecordingKind.CALL)
    path.write_bytes(stereo(tone(440, seconds=6), heard))
    files = {file.leg_id: root / file.path for file in (await recordings.finish(call)).files}
    assert np.array_equal(sound(files[LEG2]), tone(1000))
    assert np.array_equal(sound(files[second.leg_id]), tone(700))


async def test_a_recording_of_his_own_that_never_began_leaves_his_file_short(recordings: Recordings) -> None:
    """And one that was to be all of it, missing."""
    call = a_consultation()
    path = recordings.raw_path(call, CALL_ID, RecordingKind.CALL)
    path.write_bytes(stereo(tone(440, seconds=8), tone(1000, seconds=8)))
    done = await recordings.finish(call)
    assert [file.leg_id for file in done.missing] == [f"{CALL_ID}-3"]
    assert [file.leg_id for file in done.files if not is_complete(file, call)] == [LEG2]


async def test_a_party_recorded_from_the_first_word_is_not_cut(recordings: Recordings, root: Path) -> None:
    """As the fallback queue does it."""
    call = a_call()
    record(recordings, call)
    recordings.raw_path(call, LEG2, RecordingKind.LEG).write_bytes(tone(700).tobytes())
    files = {file.leg_id: root / file.path for file in (await recordings.finish(call)).files}
    assert np.array_equal(sound(files[LEG2]), tone(700))


async def test_a_crash_between_two_removals_costs_nothing(recordings: Recordings, root: Path) -> None:
    """The parties' originals go first: what was made of both is not made anew of the one that is left."""
    call = a_consultation()
    whole = stereo(tone(440, seconds=8), tone(1000, seconds=8))
    path = recordings.raw_path(call, CALL_ID, RecordingKind.CALL)
    path.write_bytes(whole)
    own = recordings.raw_path(call, LEG2, RecordingKind.LEG)
    own.write_bytes(tone(1100, seconds=6).tobytes())
    done = await recordings.finish(call)
    path.write_bytes(whole)
    assert await recordings.finish(call) == done


async def test_what_still_waits_for_the_disk_or_a_writer_is_not_missing(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    call = a_consultation()
    whole = recordings.raw_path(call, CALL_ID, RecordingKind.CALL)
    whole.write_bytes(stereo(tone(440, seconds=8), tone(1000, seconds=8)))
    expert = recordings.raw_path(call, LegId(f"{CALL_ID}-3"), RecordingKind.LEG)
    expert.write_bytes(tone(700).tobytes())
    with held_open(recordings.raw_path(call, LEG2, RecordingKind.LEG), tone(1100, seconds=3).tobytes()):
        done = await recordings.finish(call)
        assert [file.leg_id for file in done.files] == [f"{CALL_ID}-3"]
        assert [Path(kept.path).name for kept in done.kept] == ["leg-2.raw", "call.raw"]
        assert done.missing == ()
    [swept] = await recordings.sweep(*swept_with(call))
    assert [file.seconds for file in swept.files] == [8.0, 8.0, 8.0, 2.0]


async def test_a_call_without_a_record_keeps_what_can_be_told_without_one(recordings: Recordings) -> None:
    record(recordings, a_call())
    [swept] = await recordings.sweep(*swept_with())
    assert [(file.kind, file.leg_id) for file in swept.files] == [
        (RecordingKind.CALL, None),
        (RecordingKind.LEG, CALL_ID),
    ]


# --- the writer ---------------------------------------------------------------------------------------------


async def test_finishing_waits_until_the_writer_has_closed_the_file(recordings: Recordings) -> None:
    call = a_call()
    half = tone(440, seconds=0.5).tobytes()
    with held_open(recordings.raw_path(call, LEG2, RecordingKind.LEG), half) as process:
        task = asyncio.create_task(recordings.finish(call))
        await asyncio.sleep(0.3)
        assert not task.done()
        assert process.stdin is not None
        process.stdin.close()
        done = await task
    assert [file.seconds for file in done.files] == [1.0]


async def test_a_file_still_open_at_the_deadline_is_kept_and_swept_later(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.3)
    call = a_call()
    path = recordings.raw_path(call, LEG2, RecordingKind.LEG)
    with held_open(path, tone(440, seconds=0.5).tobytes()):
        done = await recordings.finish(call)
        assert done.files == ()
        assert [kept.reason for kept in done.kept] == ["It is still being written."]
        assert path.exists()
    [swept] = await recordings.sweep(*swept_with(call))
    assert [file.seconds for file in swept.files] == [1.0]


NO_LEASE = """
import asyncio, os, time
from pathlib import Path
from callcenter.quality import recordings

# Not the owner of the file and without privilege: the kernel gives no lease.
if os.geteuid() == 0:
    os.setuid(65534)
path = Path("/etc/passwd")
print(recordings._open_for_writing(path).name)
started = time.monotonic()
print(asyncio.run(recordings._closed(path, deadline=started + 30)), time.monotonic() - started < 10)
"""


async def test_where_no_lease_is_given_a_settled_size_is_the_sign() -> None:
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", NO_LEASE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.split() == ["UNKNOWN", "True", "True"], result.stderr


async def test_asking_does_not_disturb_a_writer_that_comes_in_that_instant(recordings: Recordings) -> None:
    path = recordings.raw_path(a_call(), LEG2, RecordingKind.LEG)
    path.write_bytes(b"xx")
    done = asyncio.Event()

    def ask() -> int:
        asked = 0
        while not done.is_set():
            module._open_for_writing(path)
            asked += 1
        return asked

    asking = asyncio.create_task(asyncio.to_thread(ask))
    program = "import sys\nfor _ in range(3000): open(sys.argv[1], 'ab').close()"
    writing = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))
    assert await asyncio.wait_for(writing.wait(), 60) == 0
    done.set()
    assert await asking > 100


# --- crashes and full disks ---------------------------------------------------------------------------------


async def test_the_sweep_finishes_what_a_crash_left_but_for_living_calls(
    recordings: Recordings, root: Path
) -> None:
    dead, living = a_call(call_id="ast1-1.1"), a_call(call_id="ast1-1.2", at=NOON + timedelta(days=400))
    record(recordings, dead)
    record(recordings, living)
    (root / "2026/11/20/ast1-1.1/call.flac.part").write_bytes(b"half of it")
    (root / "2026/11/20/notes.txt").write_text("not ours")
    [swept] = await recordings.sweep(*swept_with(dead, living, living=[living.call_id]))
    assert swept.call_id == dead.call_id
    assert [(file.kind, file.leg_id) for file in swept.files] == [
        (RecordingKind.CALL, None),
        (RecordingKind.LEG, "ast1-1.1"),
        (RecordingKind.LEG, "ast1-1.1-2"),
    ]
    assert not list((root / "2026/11/20").glob("*/*.part"))
    assert [path.parent.name for path in root.glob("*/*/*/*/*.raw")] == [living.call_id]
    assert await recordings.sweep(*swept_with(living=[living.call_id])) == []


FULL = """
import asyncio, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_recordings import a_call
from callcenter.quality.recordings import Recordings

# No file of this process may grow beyond this: the operating system refuses the write.
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
done = asyncio.run(Recordings(Path(sys.argv[1])).finish(a_call()))
[file], [kept] = done.files, done.kept
print(file.codec, file.seconds, file.path == kept.path, kept.reason)
"""


async def test_when_the_disk_takes_no_more_the_original_stays_and_is_marked(
    recordings: Recordings, root: Path
) -> None:
    call = a_call()
    noise = np.random.default_rng(1).integers(-9000, 9000, (60 * 8000, 2)).astype("<i2")
    path = recordings.raw_path(call, CALL_ID, RecordingKind.CALL)
    path.write_bytes(noise.tobytes())
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FULL, str(root), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.startswith("slin 60.0 True It could not be encoded (is the disk full?)"), (
        result.stderr
    )
    assert path.read_bytes() == noise.tobytes()
    assert [entry.name for entry in path.parent.iterdir()] == ["call.raw"]
    [swept] = await recordings.sweep(*swept_with(call))
    assert [file.codec for file in swept.files] == ["flac"] * 3
    assert np.array_equal(soundfile.read(root / swept.files[0].path, dtype="int16")[0], noise)


async def test_a_message_that_is_no_audio_stays_as_it_is(recordings: Recordings) -> None:
    call = a_call(talked=False)
    path = recordings.raw_path(call, CALL_ID, RecordingKind.MESSAGE)
    path.write_bytes(b"this is not a wave file")
    done = await recordings.finish(call)
    assert [kept.path for kept in done.kept] == [file.path for file in done.files]
    assert path.read_bytes() == b"this is not a wave file"
