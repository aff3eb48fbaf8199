"""Changed copies of frozen records and members of enums: what decisions are made of, and so made to be fast."""

import sys
from enum import EnumType
from typing import TYPE_CHECKING, Any, TypeVar

if sys.version_info < (3, 12):
    # Python 3.12 took this method away: members have been plain class attributes since 3.11, so it finds nothing,
    # and while it is there, `Phase.ENDED` takes fifteen times as long.
    del EnumType.__getattr__  # type: ignore[attr-defined]  # typeshed does not know it

if TYPE_CHECKING:
    from dataclasses import replace as replace
else:
    _Record = TypeVar("_Record")

    def replace(record: _Record, /, **changes: Any) -> _Record:
        """``dataclasses.replace`` for records without slots, which takes five times as long.

        Type checkers see the original, and with it every wrong field name.
        """
        changed = object.__new__(type(record))
        # A new dict is copied as a whole; merging into the object's own goes key by key.
        object.__setattr__(changed, "__dict__", {**record.__dict__, **changes})
        return changed
