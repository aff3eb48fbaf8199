"""Tables of people, phones, queues and choices; their meaning is told in docs/data.md."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
)

from callcenter.database import UtcDateTime, Words, metadata

_ID = 32
_NAME = 80

skills = Table(
    "skills",
    metadata,
    Column("skill", String(_ID), primary_key=True),
    Column("zh", Words(_NAME), nullable=False, unique=True),
    Column("en", Words(_NAME), nullable=False),
)

queues = Table(
    "queues",
    metadata,
    Column("queue_id", String(_ID), primary_key=True),
    Column("zh", Words(_NAME), nullable=False, unique=True),
    Column("en", Words(_NAME), nullable=False),
    Column("skill", String(_ID), ForeignKey("skills.skill"), nullable=False),
    Column("offer_seconds", Float, nullable=False),
    Column("wrap_up_seconds", Float, nullable=False),
    Column("max_waiting", Integer, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String(_ID), primary_key=True),
    Column("name", Words(_NAME), nullable=False),
    Column("department", Words(_NAME), nullable=False),
    # Empty: nobody can log in with this user.
    Column("password_hash", String(200), nullable=False),
    # The password is one the whole world knows, such as the demo's.
    Column("password_public", Boolean, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

user_roles = Table(
    "user_roles",
    metadata,
    Column("user_id", String(_ID), ForeignKey("users.user_id"), primary_key=True),
    Column("role", String(20), primary_key=True),
)

user_skills = Table(
    "user_skills",
    metadata,
    Column("user_id", String(_ID), ForeignKey("users.user_id"), primary_key=True),
    Column("skill", String(_ID), ForeignKey("skills.skill"), primary_key=True),
    Column("level", Integer, nullable=False),
    CheckConstraint("level BETWEEN 1 AND 5", name="level"),
)

phones = Table(
    "phones",
    metadata,
    Column("phone", String(20), primary_key=True),
    Column("user_id", String(_ID), ForeignKey("users.user_id"), unique=True),
    # In the clear: SIP digest authentication needs it (RFC 3261 section 22).
    Column("secret", String(80), nullable=False),
)

choices = Table(
    "choices",
    metadata,
    Column("kind", String(20), primary_key=True),
    Column("code", String(_ID), primary_key=True),
    Column("zh", Words(_NAME), nullable=False),
    Column("en", Words(_NAME), nullable=False),
    Column("position", Integer, nullable=False),
    # No longer offered; old calls still name it.
    Column("retired", Boolean, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("user_id", String(_ID), ForeignKey("users.user_id"), nullable=False),
    Column("client", Words(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index(None, "user_id"),
    Index(None, "expires_at"),
)

login_failures = Table(
    "login_failures",
    metadata,
    Column("user_id", Words(_NAME), primary_key=True),
    Column("client", Words(100), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    Index(None, "last_at"),
)

audit = Table(
    "audit",
    metadata,
    # SQLite counts by itself only in a column declared INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    # Not a foreign key: what somebody did outlives the user.
    Column("user_id", Words(_NAME)),
    Column("action", String(40), nullable=False),
    Column("subject", Words(100), nullable=False),
    Column("detail", Words, nullable=False),
    Index(None, "at"),
    Index(None, "user_id", "at"),
    Index(None, "subject", "at"),
)
