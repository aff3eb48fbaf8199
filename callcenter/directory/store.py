"""People, phones, queues and choices in the database; logins and sessions."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import Table, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from callcenter.database import Database, Unstorable, clean_text
from callcenter.directory import passwords, schema
from callcenter.directory.content import ChoiceData, NumberData, QueueData, SkillData, UserData, read_content
from callcenter.domain.agents import Profile, Queue, UserRole
from callcenter.domain.calls import QueueId, UserId

SESSION_TOKEN_BYTES = 32
_NO_EDITS = ("recording_played", "ban_lifted", "password_changed", "phone_secret_renewed")
"""What the audit tells that leaves ``DirectoryContent`` as it is."""


class ChoiceKind(StrEnum):
    NOT_READY = "not_ready"
    DISPOSITION = "disposition"
    ALLOWED_NUMBER = "allowed_number"


class LoginReason(StrEnum):
    WRONG = "wrong"
    """No such user, or not his password; nobody is told which."""
    LOCKED = "locked"
    DISABLED = "disabled"


class LoginRefused(Exception):  # noqa: N818 - an expected "no"
    def __init__(self, reason: LoginReason, *, retry_after: float | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retry_after = retry_after
        """Seconds until another try is heard; only when locked."""


class EditRefused(Exception):  # noqa: N818 - read as a sentence by whoever edits
    """The directory cannot be changed like this."""


@dataclass(frozen=True, slots=True)
class Choice:
    code: str
    zh: str
    en: str


@dataclass(frozen=True, slots=True)
class AllowedNumber:
    number: str
    zh: str
    en: str


@dataclass(frozen=True, slots=True)
class DirectoryContent:
    profiles: tuple[Profile, ...]
    """Users who are not disabled."""
    queues: tuple[Queue, ...]
    not_ready_reasons: tuple[Choice, ...]
    dispositions: tuple[Choice, ...]
    allowed_numbers: tuple[AllowedNumber, ...]


@dataclass(frozen=True, slots=True)
class Session:
    token: str = field(repr=False)
    user_id: UserId
    roles: frozenset[UserRole]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    at: datetime
    user_id: UserId | None
    action: str
    subject: str
    detail: str


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Directory:
    """Who works here and what there is to choose from. Every method may raise DatabaseAway.

    `by` is the user who edits, None for the program itself; every edit leaves an audit entry in its own transaction.
    """

    def __init__(self, database: Database, *, now: Callable[[], datetime] = _utc_now) -> None:
        self._database = database
        self._now = now

    async def load(self) -> DirectoryContent:
        users, queues, choices = schema.users.c, schema.queues, schema.choices.c
        async with self._database.read() as connection:
            roles: dict[str, set[UserRole]] = {}
            for row in await connection.execute(select(schema.user_roles)):
                roles.setdefault(row.user_id, set()).add(UserRole(row.role))
            skills: dict[str, dict[str, int]] = {}
            for row in await connection.execute(select(schema.user_skills)):
                skills.setdefault(row.user_id, {})[row.skill] = row.level
            people = await connection.execute(
                select(users.user_id, users.name, users.department, schema.phones.c.phone)
                .join_from(schema.users, schema.phones, isouter=True)
                .where(users.disabled.is_(False))
                .order_by(users.user_id)
            )
            profiles = tuple(
                Profile(
                    UserId(row.user_id),
                    row.name,
                    frozenset(roles.get(row.user_id, ())),
                    row.phone,
                    MappingProxyType(skills.get(row.user_id, {})),
                    row.department,
                )
                for row in people
            )
            found_queues = tuple(
                Queue(
                    QueueId(row.queue_id),
                    MappingProxyType({"zh": row.zh, "en": row.en}),
                    row.skill,
                    row.offer_seconds,
                    row.wrap_up_seconds,
                    row.max_waiting,
                )
                for row in await connection.execute(select(queues).order_by(queues.c.queue_id))
            )
            offered: dict[str, list[Choice]] = {kind.value: [] for kind in ChoiceKind}
            for row in await connection.execute(
                select(schema.choices)
                .where(choices.retired.is_(False))
                .order_by(choices.position, choices.code)
            ):
                offered[row.kind].append(Choice(row.code, row.zh, row.en))
        return DirectoryContent(
            profiles,
            found_queues,
            tuple(offered[ChoiceKind.NOT_READY]),
            tuple(offered[ChoiceKind.DISPOSITION]),
            tuple(AllowedNumber(c.code, c.zh, c.en) for c in offered[ChoiceKind.ALLOWED_NUMBER]),
        )

    async def edits_since(self, entry: int) -> tuple[frozenset[int], int]:
        """The audit's entries after this one that tell of an edit, and its last one of all: much cheaper than ``load``.

        Of two writers the one that began first may end last; who asks again from an older entry misses neither.
        """
        entries = schema.audit.c
        query = select(entries.id, entries.action.not_in(_NO_EDITS).label("edit")).where(entries.id > entry)
        async with self._database.read() as connection:
            rows = [*await connection.execute(query)]
        return frozenset(row.id for row in rows if row.edit), max((row.id for row in rows), default=entry)

    async def last_entry(self) -> int:
        """The last entry of the audit; 0 for none."""
        async with self._database.read() as connection:
            return await connection.scalar(select(func.max(schema.audit.c.id))) or 0

    async def phone_secrets(self) -> dict[str, str]:
        """The SIP secret of every phone, for Asterisk's configuration alone."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(schema.phones.c.phone, schema.phones.c.secret))
            return {row.phone: row.secret for row in rows}

    async def seed(self, content_yaml: Path) -> None:
        """Add what the file has and the database has not; what exists stays as people have edited it.

        BadContent names file and line of every mistake; then nothing is added.
        """
        content = read_content(content_yaml)
        async with self._database.read() as connection:
            known = set(await connection.scalars(select(schema.users.c.user_id)))
        new = [user for user in content.users if user.user not in known]
        password_hash = await passwords.hash_password(content.password) if content.password and new else ""
        taken = "A user's phone in the content file belongs to somebody else already; change the file."
        async with self._edit(taken) as connection:
            for skill in content.skills:
                await self._add_new(connection, schema.skills, skill.model_dump())
            for queue in content.queues:
                await self._add_new(connection, schema.queues, _queue_row(queue))
            choices: list[tuple[ChoiceKind, Sequence[ChoiceData | NumberData]]] = [
                (ChoiceKind.NOT_READY, content.not_ready_reasons),
                (ChoiceKind.DISPOSITION, content.dispositions),
                (ChoiceKind.ALLOWED_NUMBER, content.allowed_numbers),
            ]
            for kind, items in choices:
                for position, item in enumerate(items):
                    await self._add_new(connection, schema.choices, _choice_row(kind, item, position))
            for user in new:
                await self._insert_user(
                    connection,
                    user,
                    password_hash=password_hash,
                    password_public=content.password in passwords.KNOWN_TO_ALL,
                    secret=content.phone_secret,
                )
            if new:
                await self._note(connection, None, "seeded", content_yaml.name, f"{len(new)} users")

    async def add_user(
        self, user: UserData, *, password: str | None = None, by: UserId | None = None
    ) -> None:
        """Add a user, with a phone of a new secret if he has one; without a password he cannot log in yet.

        EditRefused when the user or the phone exists already or a skill does not.
        """
        password_hash = "" if password is None else await passwords.hash_password(password)
        async with self._edit(
            f"{user.user}: the user or his phone exists already, or a skill does not."
        ) as connection:
            await self._insert_user(
                connection,
                user,
                password_hash=password_hash,
                password_public=password in passwords.KNOWN_TO_ALL,
                secret=None,
            )
            await self._note(connection, by, "user_added", user.user, user.model_dump_json())

    async def change_user(self, user: UserData, *, by: UserId | None = None) -> None:
        """Give the user with this id this name, department, roles, skills and phone; his password stays."""
        table = schema.users.c
        async with self._edit(
            f"{user.user}: the phone is another user's, or a skill does not exist."
        ) as connection:
            changed = await connection.execute(
                update(schema.users)
                .where(table.user_id == user.user)
                .values(name=user.name, department=user.department)
            )
            if not changed.rowcount:
                raise EditRefused(f"There is no user {user.user}.")
            await self._write_roles_and_skills(connection, user)
            await self._give_phone(connection, user, secret=None)
            await self._note(connection, by, "user_changed", user.user, user.model_dump_json())

    async def set_disabled(self, user_id: UserId, *, disabled: bool, by: UserId | None = None) -> None:
        """A disabled user cannot log in and is not rung; his sessions end at once."""
        async with self._edit() as connection:
            await self._change_one_user(connection, user_id, disabled=disabled)
            await self._end_sessions(connection, user_id)
            await self._note(connection, by, "user_disabled" if disabled else "user_enabled", user_id)

    async def set_password(self, user_id: UserId, password: str, *, by: UserId | None = None) -> None:
        """Change a password; every session of the user ends. ValueError for an empty or overlong one."""
        password_hash = await passwords.hash_password(password)
        public = password in passwords.KNOWN_TO_ALL
        async with self._edit() as connection:
            await self._change_one_user(
                connection, user_id, password_hash=password_hash, password_public=public
            )
            await self._end_sessions(connection, user_id)
            await self._note(connection, by, "password_changed", user_id)

    async def renew_phone_secret(self, phone: str, *, by: UserId | None = None) -> str:
        """Give a phone a new random SIP secret, and say it; Asterisk learns it when its configuration is rendered."""
        secret = _new_secret()
        async with self._edit() as connection:
            changed = await connection.execute(
                update(schema.phones).where(schema.phones.c.phone == phone).values(secret=secret)
            )
            if not changed.rowcount:
                raise EditRefused(f"There is no phone {phone}.")
            await self._note(connection, by, "phone_secret_renewed", phone)
        return secret

    async def save_skill(self, skill: SkillData, *, by: UserId | None = None) -> None:
        """Add or change a skill by its id. EditRefused when another one has its name."""
        async with self._edit(f"Another skill is called {skill.zh}.") as connection:
            await connection.execute(self._database.upsert(schema.skills), [skill.model_dump()])
            await self._note(connection, by, "skill_saved", skill.skill, skill.model_dump_json())

    async def save_queue(self, queue: QueueData, *, by: UserId | None = None) -> None:
        """Add or change a queue by its id. EditRefused when another one has its name or the skill does not exist."""
        refusal = f"Another queue is called {queue.zh}, or there is no skill {queue.skill}."
        async with self._edit(refusal) as connection:
            await connection.execute(self._database.upsert(schema.queues), [_queue_row(queue)])
            await self._note(connection, by, "queue_saved", queue.queue, queue.model_dump_json())

    async def save_choice(
        self, kind: ChoiceKind, choice: ChoiceData | NumberData, *, position: int, by: UserId | None = None
    ) -> None:
        """Add or change a choice by its code, or offer a retired one again."""
        async with self._edit() as connection:
            row = _choice_row(kind, choice, position)
            await connection.execute(self._database.upsert(schema.choices), [row])
            await self._note(connection, by, "choice_saved", str(row["code"]), choice.model_dump_json())

    async def retire_choice(self, kind: ChoiceKind, code: str, *, by: UserId | None = None) -> None:
        """Offer this choice no longer; old calls still name it, and a seed does not bring it back."""
        table = schema.choices.c
        async with self._edit() as connection:
            changed = await connection.execute(
                update(schema.choices).where(table.kind == kind, table.code == code).values(retired=True)
            )
            if not changed.rowcount:
                raise EditRefused(f"There is no such choice: {code}.")
            await self._note(connection, by, "choice_retired", code)

    async def audit(self, user_id: UserId | None, action: str, subject: str, detail: str = "") -> None:
        """Keep that this user did this; `action` is one of our own words, `subject` what it was done to."""
        async with self._database.write() as connection:
            await self._note(connection, user_id, action, subject, detail)

    async def audit_trail(
        self, *, user_id: UserId | None = None, subject: str | None = None, limit: int = 100
    ) -> list[AuditEntry]:
        """What was done, the latest first."""
        table = schema.audit.c
        query = select(schema.audit).order_by(table.at.desc(), table.id.desc()).limit(limit)
        if user_id is not None:
            query = query.where(table.user_id == user_id)
        if subject is not None:
            query = query.where(table.subject == subject)
        async with self._database.read() as connection:
            return [
                AuditEntry(row.at, row.user_id, row.action, row.subject, row.detail)
                for row in await connection.execute(query)
            ]

    @asynccontextmanager
    async def _edit(self, refusal: str = "") -> AsyncIterator[AsyncConnection]:
        try:
            async with self._database.write() as connection:
                yield connection
        except Unstorable as error:
            raise EditRefused(refusal or str(error)) from error

    async def _add_new(self, connection: AsyncConnection, table: Table, row: dict[str, object]) -> None:
        await connection.execute(self._database.insert(table).on_conflict_do_nothing(), [row])

    async def _insert_user(
        self,
        connection: AsyncConnection,
        user: UserData,
        *,
        password_hash: str,
        password_public: bool,
        secret: str | None,
    ) -> None:
        await connection.execute(
            insert(schema.users).values(
                user_id=user.user,
                name=user.name,
                department=user.department,
                password_hash=password_hash,
                password_public=password_public,
                disabled=False,
            )
        )
        await self._write_roles_and_skills(connection, user)
        await self._give_phone(connection, user, secret=secret)

    async def _write_roles_and_skills(self, connection: AsyncConnection, user: UserData) -> None:
        for table in (schema.user_roles, schema.user_skills):
            await connection.execute(delete(table).where(table.c.user_id == user.user))
        roles = [{"user_id": user.user, "role": role.value} for role in sorted(user.roles)]
        await connection.execute(insert(schema.user_roles), roles)
        skills = [
            {"user_id": user.user, "skill": skill, "level": level} for skill, level in user.skills.items()
        ]
        if skills:
            await connection.execute(insert(schema.user_skills), skills)

    async def _give_phone(self, connection: AsyncConnection, user: UserData, *, secret: str | None) -> None:
        """Make this the user's only phone; one that nobody has any more keeps its secret and may be given again."""
        table = schema.phones.c
        await connection.execute(update(schema.phones).where(table.user_id == user.user).values(user_id=None))
        if user.phone is None:
            return
        taken = await connection.execute(
            update(schema.phones)
            .where(table.phone == user.phone, table.user_id.is_(None))
            .values(user_id=user.user)
        )
        if not taken.rowcount:
            row = {"phone": user.phone, "user_id": user.user, "secret": secret or _new_secret()}
            await connection.execute(insert(schema.phones).values(row))

    async def _change_one_user(self, connection: AsyncConnection, user_id: UserId, **values: object) -> None:
        changed = await connection.execute(
            update(schema.users).where(schema.users.c.user_id == user_id).values(**values)
        )
        if not changed.rowcount:
            raise EditRefused(f"There is no user {user_id}.")

    async def _end_sessions(self, connection: AsyncConnection, user_id: UserId) -> None:
        await connection.execute(delete(schema.sessions).where(schema.sessions.c.user_id == user_id))

    async def _note(
        self, connection: AsyncConnection, by: UserId | None, action: str, subject: str, detail: str = ""
    ) -> None:
        await connection.execute(
            insert(schema.audit).values(
                at=self._now(), user_id=by, action=action, subject=subject, detail=detail
            )
        )


class Accounts:
    """Logins and sessions. Every method may raise DatabaseAway.

    `max_failures` wrong passwords for one user from one client lock that pair for `lock_seconds`; somebody else's
    guessing from elsewhere locks nobody out. A session lasts `session_hours` from its last use.
    """

    def __init__(
        self,
        database: Database,
        *,
        session_hours: float,
        max_failures: int,
        lock_seconds: float,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._database = database
        self._lasting = timedelta(hours=session_hours)
        self._max_failures = max_failures
        self._lock = timedelta(seconds=lock_seconds)
        self._now = now

    async def log_in(self, user: str, password: str, *, client: str) -> Session:
        """LoginRefused; `client` is the address the try came from."""
        now = self._now()
        user, client = clean_text(user)[:80], clean_text(client)[:100]
        # Counted before the password is looked at: many tries at once are no way round the lock.
        await self._count_try(user, client, now)
        users = schema.users.c
        async with self._database.read() as connection:
            query = select(users.password_hash, users.disabled).where(users.user_id == user)
            known = (await connection.execute(query)).one_or_none()
        if not await passwords.matches(password, known and known.password_hash) or known is None:
            raise LoginRefused(LoginReason.WRONG)
        if known.disabled:
            raise LoginRefused(LoginReason.DISABLED)
        renewed = (
            await passwords.hash_password(password) if passwords.is_outdated(known.password_hash) else None
        )
        token = secrets.token_urlsafe(SESSION_TOKEN_BYTES)
        expires_at = now + self._lasting
        failures, sessions = schema.login_failures.c, schema.sessions.c
        async with self._database.write() as connection:
            await connection.execute(
                delete(schema.login_failures).where(failures.user_id == user, failures.client == client)
            )
            await connection.execute(delete(schema.sessions).where(sessions.expires_at <= now))
            if renewed is not None:
                await connection.execute(
                    update(schema.users).where(users.user_id == user).values(password_hash=renewed)
                )
            await connection.execute(
                insert(schema.sessions).values(
                    token_sha256=_digest(token),
                    user_id=user,
                    client=client,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            roles = await _roles(connection, user)
        return Session(token, UserId(user), roles, expires_at)

    async def _count_try(self, user: str, client: str, now: datetime) -> None:
        table = schema.login_failures
        counting = (
            self._database.insert(table)
            .values(user_id=user, client=client, failures=1, last_at=now)
            .on_conflict_do_update(
                index_elements=["user_id", "client"],
                set_={
                    "failures": table.c.failures + 1,
                    # Trying while locked does not make the lock longer.
                    "last_at": case((table.c.failures < self._max_failures, now), else_=table.c.last_at),
                },
            )
            .returning(table.c.failures, table.c.last_at)
        )
        async with self._database.write() as connection:
            # Also keeps the table as small as the tries of the last `lock_seconds`.
            await connection.execute(delete(table).where(table.c.last_at <= now - self._lock))
            tried = (await connection.execute(counting)).one()
        if tried.failures > self._max_failures:
            wait = (tried.last_at + self._lock - now).total_seconds()
            raise LoginRefused(LoginReason.LOCKED, retry_after=wait)

    async def session(self, token: str) -> Session | None:
        """Whose session this is, or None when it has ended; using it makes it last longer."""
        now = self._now()
        sessions, users = schema.sessions.c, schema.users.c
        query = (  # one for all: it runs at every request
            select(sessions.user_id, sessions.expires_at, schema.user_roles.c.role)
            .join_from(schema.sessions, schema.users)
            .outerjoin(schema.user_roles, schema.user_roles.c.user_id == sessions.user_id)
            .where(
                sessions.token_sha256 == _digest(token),
                sessions.expires_at > now,
                users.disabled.is_(False),
            )
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        if not rows:
            return None
        user_id = UserId(rows[0].user_id)
        roles = frozenset(UserRole(row.role) for row in rows if row.role is not None)
        expires_at: datetime = rows[0].expires_at
        # Not at every request: one write for each twentieth of the lasting is near enough.
        if now + self._lasting - expires_at > self._lasting / 20:
            expires_at = now + self._lasting
            async with self._database.write() as connection:
                await connection.execute(
                    update(schema.sessions)
                    .where(sessions.token_sha256 == _digest(token))
                    .values(expires_at=expires_at)
                )
        return Session(token, user_id, roles, expires_at)

    async def logged_in(self) -> frozenset[UserId]:
        """Everybody with a session that has not ended."""
        query = select(schema.sessions.c.user_id).where(schema.sessions.c.expires_at > self._now()).distinct()
        async with self._database.read() as connection:
            return frozenset(UserId(user) for user in await connection.scalars(query))

    async def log_out(self, token: str) -> None:
        async with self._database.write() as connection:
            await connection.execute(
                delete(schema.sessions).where(schema.sessions.c.token_sha256 == _digest(token))
            )

    async def has_demo_passwords(self) -> bool:
        """Whether somebody who can log in, or a phone, has a password that the whole world knows."""
        users, phones = schema.users.c, schema.phones.c
        async with self._database.read() as connection:
            people = await connection.scalar(
                select(func.count()).where(users.password_public.is_(True), users.disabled.is_(False))
            )
            secrets_known = await connection.scalar(
                select(func.count()).where(phones.secret.in_(sorted(passwords.KNOWN_TO_ALL)))
            )
        return bool(people or secrets_known)


async def _roles(connection: AsyncConnection, user_id: str) -> frozenset[UserRole]:
    table = schema.user_roles.c
    rows = await connection.execute(select(table.role).where(table.user_id == user_id))
    return frozenset(UserRole(row.role) for row in rows)


def _digest(token: str) -> str:
    # The token is random and long: a plain digest cannot be guessed backwards.
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _new_secret() -> str:
    return secrets.token_urlsafe(18)


def _queue_row(queue: QueueData) -> dict[str, object]:
    return {**queue.model_dump(exclude={"queue"}), "queue_id": queue.queue}


def _choice_row(kind: ChoiceKind, choice: ChoiceData | NumberData, position: int) -> dict[str, object]:
    code = choice.code if isinstance(choice, ChoiceData) else choice.number
    if (kind is ChoiceKind.ALLOWED_NUMBER) is not isinstance(choice, NumberData):
        raise ValueError("Numbers, and only they, are allowed numbers.")
    return {
        "kind": kind.value,
        "code": code,
        "zh": choice.zh,
        "en": choice.en,
        "position": position,
        "retired": False,
    }
