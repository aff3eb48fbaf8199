"""People, phones, choices, passwords and sessions, on SQLite and on PostgreSQL."""

import asyncio
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError
from sqlalchemy import select

import callcenter
from callcenter.database import Database
from callcenter.directory import schema
from callcenter.directory.content import (
    BadContent,
    ChoiceData,
    NumberData,
    QueueData,
    ReasonData,
    SkillData,
    UserData,
    read_content,
)
from callcenter.directory.store import (
    Accounts,
    AllowedNumber,
    Choice,
    ChoiceKind,
    Directory,
    EditRefused,
    LoginReason,
    LoginRefused,
)
from callcenter.domain.agents import UserRole
from callcenter.domain.calls import UserId

pytest_plugins = ["database_fixture"]

DEMO = Path(callcenter.__file__).parent / "profiles" / "demo.yaml"
START = datetime(2026, 11, 20, 4, 0, tzinfo=UTC)
AGENT1 = UserId("agent1")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def after(self, **amount: float) -> None:
        self.now += timedelta(**amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def directory(database: Database, clock: Clock) -> Directory:
    directory = Directory(database, now=clock)
    await directory.seed(DEMO)
    return directory


@pytest.fixture
def accounts(database: Database, directory: Directory, clock: Clock) -> Accounts:
    return Accounts(database, session_hours=10, max_failures=3, lock_seconds=60, now=clock)


def a_user(user: str = "agent9", **changes: object) -> UserData:
    return UserData.model_validate({"user": user, "name": "孙悦", "roles": ["agent"], **changes})


# --- content ------------------------------------------------------------------------------------------------


async def test_the_demo_content_is_what_the_readme_promises(directory: Directory) -> None:
    content = await directory.load()
    people = {profile.user_id: profile for profile in content.profiles}
    assert {user: profile.phone for user, profile in people.items() if profile.phone} == {
        "agent1": "1001",
        "agent2": "1002",
        "agent3": "1003",
        "agent4": "1004",
        "spec1": "8001",
        "spec2": "8002",
    }
    assert set(people) - {"agent1", "agent2", "agent3", "agent4", "spec1", "spec2"} == {
        "leader1",
        "qa1",
        "dispatch1",
        "dept1",
        "admin",
    }
    assert people[AGENT1].roles == {UserRole.AGENT}
    assert people[AGENT1].skills == {"hotline": 3, "company": 5}
    assert people[UserId("spec1")].department == "市场监管局"
    assert [
        (queue.queue_id, queue.skill, queue.offer_seconds, queue.wrap_up_seconds) for queue in content.queues
    ] == [
        ("company", "company", 15, 30),
        ("hotline", "hotline", 15, 30),
    ]
    assert [reason.zh for reason in content.not_ready_reasons] == ["小休", "就餐", "培训", "会议"]
    assert Choice("answered", "直接答复", "Answered on the spot") in content.dispositions
    assert AllowedNumber("110", "公安报警", "Police") in content.allowed_numbers
    assert set((await directory.phone_secrets()).values()) == {"demo"}


async def test_seeding_again_adds_nothing_and_undoes_no_edit(directory: Directory) -> None:
    await directory.change_user(a_user("agent1", name="改名", skills={"hotline": 1}))
    await directory.set_disabled(UserId("agent2"), disabled=True)
    await directory.retire_choice(ChoiceKind.NOT_READY, "rest")
    before = await directory.load(), await directory.phone_secrets(), await directory.audit_trail()
    await directory.seed(DEMO)
    assert (await directory.load(), await directory.phone_secrets(), await directory.audit_trail()) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("users: [", ":1: "),
        ("skills:\n  - {skill: a, zh: 甲, en: A}\n  - {skill: a, zh: 乙, en: B}\n", ":3: a is there twice"),
        ("skills:\n  - {skill: a, zh: 甲, en: A}\n  - {skill: b, zh: 甲, en: B}\n", ":3: 甲 is there twice"),
        ("password: a\npassword: b\n", ":2: password is there twice"),
        ("queues:\n  - {queue: q, zh: 甲, en: A, skill: nothing}\n", ":2: there is no skill nothing"),
        ("users:\n  - {user: A B, name: 甲, roles: [agent]}\n", ":2: users.0.user: String should match"),
        ("users:\n  - {user: a, name: 甲, roles: [boss]}\n", "users.0.roles.0: Input should be 'agent'"),
        ("users:\n  - {user: a, name: 甲, roles: []}\n", "users.0.roles"),
        (
            "users:\n  - {user: a, name: 甲, roles: [agent], phone: 1001}\n",
            "users.0.phone: Input should be a valid string",
        ),
        (
            "users:\n  - {user: a, name: 甲, roles: [agent], pone: '1'}\n",
            "users.0.pone: Extra inputs are not permitted",
        ),
        ("users:\n\n\n  - user: a\n    roles: [agent]\n", ":4: users.0.name: Field required"),
        (
            "not_ready_reasons:\n  - {code: missed, zh: 甲, en: A}\n",
            ":2: not_ready_reasons.0: Value error, the centre itself",
        ),
        ("allowed_numbers:\n  - {number: '11a', zh: 甲, en: A}\n", ":2: allowed_numbers.0.number"),
    ],
)
async def test_a_mistake_in_a_content_file_is_told_with_file_and_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "content.yaml"
    path.write_text(text)
    with pytest.raises(BadContent) as raised:
        read_content(path)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadContent, match="No such file"):
        read_content(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"password: \xff\xfe")
    with pytest.raises(BadContent, match="not UTF-8"):
        read_content(tmp_path / "latin.yaml")


# --- edits --------------------------------------------------------------------------------------------------


async def test_edits_go_by_id_and_are_audited(directory: Directory, clock: Clock) -> None:
    admin = UserId("admin")
    await directory.add_user(a_user(phone="1009", skills={"hotline": 2}), password="right", by=admin)
    await directory.save_skill(SkillData(skill="water", zh="供水", en="Water"), by=admin)
    await directory.save_queue(QueueData(queue="water", zh="供水队列", en="Water", skill="water"), by=admin)
    await directory.change_user(a_user(name="孙悦儿", phone="1010", skills={"water": 5}), by=admin)
    await directory.save_choice(
        ChoiceKind.DISPOSITION, ChoiceData(code="other", zh="其他", en="Other"), position=9
    )
    await directory.save_choice(
        ChoiceKind.ALLOWED_NUMBER, NumberData(number="95598", zh="供电", en="Power"), position=9
    )
    content = await directory.load()
    [profile] = [profile for profile in content.profiles if profile.user_id == "agent9"]
    assert (profile.name, profile.phone, profile.skills) == ("孙悦儿", "1010", {"water": 5})
    assert "water" in {queue.queue_id for queue in content.queues}
    assert content.dispositions[-1].code == "other"
    assert content.allowed_numbers[-1].number == "95598"
    trail = await directory.audit_trail(user_id=admin)
    assert [entry.action for entry in trail] == ["user_changed", "queue_saved", "skill_saved", "user_added"]
    assert trail[0].at == START
    secrets = await directory.phone_secrets()
    assert len(secrets["1009"]) >= 24
    assert secrets["1009"] != secrets["1010"]
    assert (
        await directory.renew_phone_secret("1010")
        == (await directory.phone_secrets())["1010"]
        != secrets["1010"]
    )


async def test_an_edit_is_seen_by_who_asks_and_nothing_else_looks_like_one(directory: Directory) -> None:
    """However it came: what this says is all that a running engine looks at."""
    before = await directory.last_entry()
    await directory.audit(AGENT1, "recording_played", "x-1.1")
    await directory.set_password(AGENT1, "another-1")
    assert await directory.edits_since(before) == (frozenset(), await directory.last_entry())
    for edit in (
        directory.add_user(a_user()),
        directory.set_disabled(UserId("agent9"), disabled=True),
        directory.save_queue(QueueData(queue="new", zh="新", en="New", skill="hotline")),
    ):
        seen = await directory.last_entry()
        await edit
        edits, newest = await directory.edits_since(seen)
        assert edits == {newest}
    edits, newest = await directory.edits_since(before)
    assert len(edits) == 3
    assert await directory.edits_since(newest) == (frozenset(), newest)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.add_user(a_user("agent1")),
        lambda d: d.add_user(a_user(phone="1001")),
        lambda d: d.add_user(a_user(skills={"nothing": 1})),
        lambda d: d.change_user(a_user("nobody")),
        lambda d: d.change_user(a_user("agent2", phone="1001")),
        lambda d: d.set_password(UserId("nobody"), "x"),
        lambda d: d.set_disabled(UserId("nobody"), disabled=True),
        lambda d: d.save_skill(SkillData(skill="other", zh="热线综合", en="Other")),
        lambda d: d.save_queue(QueueData(queue="other", zh="热线综合队列", en="Other", skill="hotline")),
        lambda d: d.save_queue(QueueData(queue="other", zh="另一", en="Other", skill="nothing")),
        lambda d: d.retire_choice(ChoiceKind.NOT_READY, "nothing"),
        lambda d: d.renew_phone_secret("9999"),
    ],
)
async def test_a_contradicting_edit_is_refused_and_changes_nothing(
    directory: Directory, edit: Callable[[Directory], object]
) -> None:
    before = await directory.load(), await directory.phone_secrets(), await directory.audit_trail()
    with pytest.raises(EditRefused):
        await edit(directory)
    assert (await directory.load(), await directory.phone_secrets(), await directory.audit_trail()) == before


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (UserData, {"user": "x" * 33, "name": "n", "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "n" * 81, "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "  ", "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "a\x00b", "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "a\nb", "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "n\ud800", "roles": ["agent"]}),
        (UserData, {"user": "x\n", "name": "n", "roles": ["agent"]}),
        (UserData, {"user": "x", "name": "n", "roles": ["agent"], "skills": {"a": 6}}),
        (UserData, {"user": "x", "name": "n", "roles": ["agent"], "phone": "1001;x"}),
        (UserData, {"user": "x", "name": "n", "roles": ["agent"], "phone": "1" * 21}),
        (QueueData, {"queue": "q", "zh": "甲", "en": "A", "skill": "s", "offer_seconds": 0}),
        (QueueData, {"queue": "q", "zh": "甲", "en": "A", "skill": "s", "max_waiting": 0}),
        (ReasonData, {"code": "no_phone", "zh": "甲", "en": "A"}),
    ],
)
def test_what_is_out_of_bounds_is_no_content(model: type[UserData], data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(data)


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE users; --", "𠮷野家 💢", "<b>x</b>", "%s {0}", "\u202eright", "e\u0301"]
)
async def test_hostile_names_are_stored_and_read_back(sqlite_url: str, postgres_url: str, name: str) -> None:
    for url in (sqlite_url, postgres_url):
        async with Database.connect(url) as database:
            directory = Directory(database)
            await directory.add_user(a_user(name=name, department=name))
            await directory.audit(AGENT1, "tried", f"\x00{name}", f"\ud800{name}")
            [profile] = (await directory.load()).profiles
            assert (profile.name, profile.department) == (name, name)
            entry = (await directory.audit_trail(user_id=AGENT1))[0]
            # NUL and lone surrogates become U+FFFD: PostgreSQL could store neither.
            assert (entry.subject, entry.detail) == (f"\ufffd{name}", f"\ufffd{name}")


async def test_a_disabled_user_is_no_profile_any_more(directory: Directory) -> None:
    await directory.set_disabled(AGENT1, disabled=True)
    assert AGENT1 not in {profile.user_id for profile in (await directory.load()).profiles}
    await directory.set_disabled(AGENT1, disabled=False)
    assert AGENT1 in {profile.user_id for profile in (await directory.load()).profiles}


# --- logging in ---------------------------------------------------------------------------------------------


async def refusal(accounts: Accounts, user: str, password: str, *, client: str = "10.0.0.1") -> LoginRefused:
    with pytest.raises(LoginRefused) as raised:
        await accounts.log_in(user, password, client=client)
    return raised.value


async def test_a_session_is_found_by_its_token_until_it_is_ended(accounts: Accounts) -> None:
    session = await accounts.log_in("agent1", "demo", client="10.0.0.1")
    assert (session.user_id, session.roles) == (AGENT1, {UserRole.AGENT})
    assert session.expires_at == START + timedelta(hours=10)
    assert session.token not in repr(session)
    assert await accounts.session(session.token) == session
    assert await accounts.session("another") is None
    assert await accounts.session("") is None
    assert await accounts.session("\ud800\x00") is None
    await accounts.log_out(session.token)
    await accounts.log_out(session.token)
    assert await accounts.session(session.token) is None


async def test_only_a_digest_of_the_token_and_a_hash_of_the_password_are_stored(
    accounts: Accounts, database: Database
) -> None:
    session = await accounts.log_in("agent1", "demo", client="10.0.0.1")
    async with database.read() as connection:
        [row] = await connection.execute(select(schema.sessions))
        hashes = list(await connection.scalars(select(schema.users.c.password_hash)))
    assert session.token not in str(row)
    assert all(stored.startswith("$argon2id$v=19$m=65536,t=3,p=4$") for stored in hashes)


async def test_a_session_lasts_from_its_last_use(accounts: Accounts, clock: Clock) -> None:
    session = await accounts.log_in("agent1", "demo", client="10.0.0.1")
    for _ in range(3):
        clock.after(hours=9)
        found = await accounts.session(session.token)
        assert found is not None
        assert found.expires_at == clock.now + timedelta(hours=10)
    clock.after(hours=10)
    assert await accounts.session(session.token) is None


async def test_wrong_passwords_and_unknown_users_look_alike(accounts: Accounts) -> None:
    for user, password in [
        ("agent1", "wrong"),
        ("nobody", "demo"),
        ("agent1", ""),
        ("", ""),
        ("agent1", "x" * 10_000),
    ]:
        assert (await refusal(accounts, user, password, client=user + password[:3])).reason == "wrong"
    for user in ["Agent1", "agent1 ", "agent1\x00", "' OR 1=1 --", "\ud800"]:
        assert (await refusal(accounts, user, "demo")).reason == LoginReason.WRONG


async def test_an_unknown_user_takes_as_long_as_a_known_one(accounts: Accounts) -> None:
    async def seconds(user: str) -> float:
        taken = []
        for number in range(5):
            started = time.process_time()
            await refusal(accounts, user, "wrong", client=f"{user}{number}")
            taken.append(time.process_time() - started)
        return statistics.median(taken)

    known, unknown = await seconds("agent1"), await seconds("nobody")
    assert unknown > known / 2


async def test_a_user_without_a_password_cannot_log_in(accounts: Accounts, directory: Directory) -> None:
    await directory.add_user(a_user())
    for password in ("", "demo", "all the same to us"):
        assert (await refusal(accounts, "agent9", password)).reason == LoginReason.WRONG


async def test_too_many_failures_lock_this_user_from_this_client_for_a_while(
    accounts: Accounts, clock: Clock
) -> None:
    for _ in range(3):
        assert (await refusal(accounts, "agent1", "wrong")).reason == LoginReason.WRONG
    clock.after(seconds=20)
    locked = await refusal(accounts, "agent1", "demo")
    assert (locked.reason, locked.retry_after) == (LoginReason.LOCKED, 40)
    await accounts.log_in("agent1", "demo", client="10.0.0.2")
    await accounts.log_in("agent2", "demo", client="10.0.0.1")
    clock.after(seconds=40)
    await accounts.log_in("agent1", "demo", client="10.0.0.1")


async def test_a_success_forgets_the_failures(accounts: Accounts) -> None:
    for _ in range(3):
        for _ in range(2):
            await refusal(accounts, "agent1", "wrong")
        await accounts.log_in("agent1", "demo", client="10.0.0.1")


async def test_many_guesses_at_once_are_no_way_round_the_lock(accounts: Accounts) -> None:
    refused = await asyncio.gather(*(refusal(accounts, "agent1", f"guess {n}") for n in range(8)))
    assert sorted(each.reason for each in refused) == ["locked"] * 5 + ["wrong"] * 3


async def test_unknown_users_are_locked_too_and_the_list_of_failures_stays_small(
    accounts: Accounts, database: Database, clock: Clock
) -> None:
    for _ in range(3):
        await refusal(accounts, "nobody", "x")
    assert (await refusal(accounts, "nobody", "x")).reason == LoginReason.LOCKED
    clock.after(hours=1)
    await refusal(accounts, "another", "x")
    async with database.read() as connection:
        assert [row.user_id for row in await connection.execute(select(schema.login_failures))] == ["another"]


async def test_disabling_and_a_new_password_end_every_session(
    accounts: Accounts, directory: Directory
) -> None:
    one = await accounts.log_in("agent1", "demo", client="a")
    await directory.set_password(AGENT1, "new one")
    assert await accounts.session(one.token) is None
    assert (await refusal(accounts, "agent1", "demo")).reason == LoginReason.WRONG
    two = await accounts.log_in("agent1", "new one", client="a")
    await directory.set_disabled(AGENT1, disabled=True)
    assert await accounts.session(two.token) is None
    assert (await refusal(accounts, "agent1", "new one")).reason == LoginReason.DISABLED
    assert (await refusal(accounts, "agent1", "wrong")).reason == LoginReason.WRONG
    for bad in ("", "x" * 201):
        with pytest.raises(ValueError, match="1 to 200"):
            await directory.set_password(AGENT1, bad)


async def test_demo_passwords_are_known_until_the_last_one_is_changed(
    accounts: Accounts, directory: Directory
) -> None:
    assert await accounts.has_demo_passwords()
    content = await directory.load()
    await asyncio.gather(
        *(directory.set_password(p.user_id, f"secret of {p.user_id}") for p in content.profiles)
    )
    assert await accounts.has_demo_passwords()
    for phone in await directory.phone_secrets():
        await directory.renew_phone_secret(phone)
    assert not await accounts.has_demo_passwords()
    await directory.set_password(AGENT1, "demo")
    assert await accounts.has_demo_passwords()
    await directory.set_disabled(AGENT1, disabled=True)
    assert not await accounts.has_demo_passwords()
