"""Logs: one structured stream for our own and every library's lines, in which no caller's number is ever whole."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

NUMBER_FIELDS = frozenset(
    {"caller", "caller_number", "number", "callerid", "caller_id", "calleridnum", "address"}
)
"""Fields that hold a telephone number; in every other field and text what looks like one is masked too."""

_NUMBER = re.compile(r"\+?[\d\s().-]{7,}")
_TICKET = re.compile(r"\d{8}-\d{6}")
# A mainland mobile, or a landline with its area code (GB and E.123 spellings), wherever it stands in a text. Call ids
# (epoch.serial), ticket numbers, dates and hashes do not look so.
_NUMBER_IN_TEXT = re.compile(
    r"(?<![\d.])(?:(?:\+|00)?86[- ]?)?(?:1[3-9]\d[- ]?\d{4}[- ]?\d{4}|\(?0\d{2,3}\)?[- ]?\d{7,8})(?!\d)"
)


def masked(number: str) -> str:
    """`13812345678` -> `138****5678`; a service or extension number (up to six digits) stays as it is."""
    size = len(number)
    if sum(character.isdigit() for character in number) < 7:
        return number
    if size >= 11:
        return f"{number[:3]}{'*' * (size - 7)}{number[-4:]}"
    return f"{'*' * (size - 2)}{number[-2:]}"


def mask_numbers(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: masks in place, after every other processor that adds text."""
    for key, value in event.items():
        event[key] = _mask(key, value)
    return event


def _mask(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {inner: _mask(str(inner), item) for inner, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_mask(key, item) for item in value]
    if value is None or isinstance(value, (bool, float)):
        return value
    if key.lower() in NUMBER_FIELDS and _NUMBER.fullmatch(text := str(value)) and not _TICKET.fullmatch(text):
        return masked(text)
    if isinstance(value, int):
        return value
    # Anything else would reach the renderer as its repr, which may hold a number.
    return _NUMBER_IN_TEXT.sub(
        lambda match: masked(match[0]), value if isinstance(value, str) else repr(value)
    )


def set_up_logs(*, level: str, json: bool, stream: TextIO | None = None) -> None:
    """Send every log line to `stream` (the standard error stream by default), as JSON or for people to read.

    `level` is one of debug, info, warning, error. May be called again; the last call counts.
    """
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if json
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), timestamp_key="at", exception_formatter=structlog.dev.plain_traceback
        )
    )
    # The traceback becomes text before the masking: a renderer that prints it itself would show numbers in it.
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            mask_numbers,
            render,
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries' chatter; their warnings still come through.
    for name in ("asyncio", "aiosqlite", "alembic", "aiohttp.access", "panoramisk"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
