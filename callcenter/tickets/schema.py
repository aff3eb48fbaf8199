"""Tables of calls, tickets, recordings and what agents did; their meaning is told in docs/data.md."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from callcenter.database import UtcDateTime, Words, metadata

# Codes and ids the centre itself makes are `String`; whatever a network or a person wrote is `Words`.
_ID = 80

calls = Table(
    "calls",
    metadata,
    Column("call_id", String(_ID), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("line", Words(40), nullable=False),
    Column("dialled", Words(40), nullable=False),
    Column("caller", Words(40), nullable=False),
    Column("queue", Words(_ID)),
    Column("phase", String(20), nullable=False),
    Column("arrived_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime),
    Column("answered_at", UtcDateTime),
    Column("answered_by", Words(_ID)),
    Column("ended_at", UtcDateTime),
    Column("end_reason", String(30)),
    Column("disposition", Words(_ID)),
    Column("rating", Integer),
    Column("state", Text, nullable=False),
    Index(None, "arrived_at", "call_id"),
    Index(None, "caller", "arrived_at"),
    Index(None, "line", "arrived_at"),
    Index(None, "answered_by", "arrived_at"),
    Index(None, "phase"),
)

call_steps = Table(
    "call_steps",
    metadata,
    Column("call_id", String(_ID), ForeignKey("calls.call_id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("leg_id", Words(_ID)),
    Column("user_id", Words(_ID)),
    Column("detail", Words(500), nullable=False),
    Index(None, "kind", "at"),
)

call_parties = Table(
    "call_parties",
    metadata,
    Column("call_id", String(_ID), ForeignKey("calls.call_id"), primary_key=True),
    Column("leg_id", String(_ID), primary_key=True),
    Column("role", String(20), nullable=False),
    Column("user_id", Words(_ID)),
    Column("address", Words(_ID), nullable=False),
    Column("asked_at", UtcDateTime, nullable=False),
    Column("asked_by", Words(_ID)),
    Column("answered_at", UtcDateTime),
    Column("joined_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("outcome", String(20)),
    Index(None, "user_id", "asked_at"),
    Index(None, "asked_at"),
)

tickets = Table(
    "tickets",
    metadata,
    Column("number", String(20), primary_key=True),
    Column("call_id", String(_ID), ForeignKey("calls.call_id"), nullable=False, unique=True),
    Column("status", String(20), nullable=False),
    Column("line", Words(40), nullable=False),
    Column("dialled", Words(40), nullable=False),
    Column("caller", Words(40), nullable=False),
    Column("agent", Words(_ID)),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("accepted_at", UtcDateTime),
    Column("disposition", Words(_ID)),
    Column("note", Words, nullable=False),
    Column("rating", Integer),
    Index(None, "opened_at"),
    Index(None, "caller", "opened_at"),
    Index(None, "agent", "opened_at"),
    Index(None, "status", "opened_at"),
)

ticket_forms = Table(
    "ticket_forms",
    metadata,
    Column("number", String(20), ForeignKey("tickets.number"), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("spec_version", String(20), nullable=False),
    Column("saved_at", UtcDateTime, nullable=False),
    Column("saved_by", Words(_ID), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("title", Words(200), nullable=False),
    Column("content", Words, nullable=False),
    Column("category", String(20), nullable=False),
    Column("region", Words(200), nullable=False),
    Column("address", Words(300), nullable=False),
    Column("occurred_on", Date),
    Column("contact_name", Words(80), nullable=False),
    Column("contact_phone", Words(40), nullable=False),
    Column("confidential", Boolean, nullable=False),
    Column("reply", Words, nullable=False),
    Index(None, "category", "saved_at"),
)

ticket_numbers = Table(
    "ticket_numbers",
    metadata,
    Column("day", Date, primary_key=True),
    Column("last", Integer, nullable=False),
)

recordings = Table(
    "recordings",
    metadata,
    Column("call_id", String(_ID), primary_key=True),
    Column("kind", String(10), primary_key=True),
    # The empty string for the file of the whole call: a key cannot hold NULL.
    Column("leg_id", String(_ID), primary_key=True),
    Column("path", String(300), nullable=False, unique=True),
    Column("seconds", Float, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("codec", String(10), nullable=False),
)

agent_states = Table(
    "agent_states",
    metadata,
    Column("user_id", Words(_ID), primary_key=True),
    Column("at", UtcDateTime, primary_key=True),
    Column("state", String(20), primary_key=True),
    Column("reason", Words(_ID), nullable=False),
    Column("call_id", Words(_ID)),
    Index(None, "at"),
)

agents_now = Table(
    "agents_now",
    metadata,
    Column("user_id", Words(_ID), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Words(_ID), nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("call_id", Words(_ID)),
    Column("after_call", String(20), nullable=False),
    Column("after_reason", Words(_ID), nullable=False),
    Column("phone_reachable", Boolean, nullable=False),
    Column("wrap_up_until", UtcDateTime),
)
