"""Working days: what is known is looked up, what is not known is never guessed."""

from collections.abc import Mapping
from datetime import date


def working_day(day: date, known: Mapping[date, bool]) -> bool | None:
    """Whether `day` is a working day in China; None when the published calendar does not cover it.

    Weekends alone cannot answer: the State Council's yearly notice (国务院办公厅关于节假日安排的通知) moves
    working days onto Saturdays and Sundays (调休), so a year without its notice is unknown as a whole.
    """
    return known.get(day)
