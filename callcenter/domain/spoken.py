"""What is said from recordings: numbers, telephone numbers, waiting times, a place in the queue.

A place in the queue and a wait are announced in whole sentences, which are understood better than joined syllables.
Every function answers with names of prompts in the order in which they are played.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

_DIGITS = "零一二三四五六七八九"

LAST_POSITION = 20
"""The last place in the queue that has a sentence of its own."""
LAST_MINUTE = 30
"""The longest wait, in minutes, that has a sentence of its own."""


def _below_hundred(number: int) -> str:
    tens, ones = divmod(number, 10)
    ten = "十" if tens == 1 else f"{_DIGITS[tens]}十" if tens else ""
    return ten + (_DIGITS[ones] if ones else "")


_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        **{f"queue/position_{n}": f"您排在第{_below_hundred(n)}位" for n in range(1, LAST_POSITION + 1)},
        "queue/position_beyond": "来电较多您前面至少还有二十人",
        **{
            f"queue/wait_{n}": f"预计等待{'两' if n == 2 else _below_hundred(n)}分钟左右"
            for n in range(1, LAST_MINUTE + 1)
        },
        "queue/wait_beyond": "预计等待超过三十分钟",
    }
)

ATOMS: Mapping[str, str] = MappingProxyType(
    {
        **{f"digits/{value}": text for value, text in enumerate(_DIGITS)},
        "digits/yao": "幺",
        "digits/liang": "两",
        "digits/shi": "十",
        "digits/bai": "百",
        "digits/qian": "千",
        "digits/wan": "万",
        "digits/dian": "点",
        "words/di": "第",
        "words/wei": "位",
        "words/fenzhong": "分钟",
        "words/miao": "秒",
        "words/nin_qianmian": "您前面还有",
        "words/nin_paizai": "您排在",
        "words/yuji_dengdai": "预计等待",
        "words/zuoyou": "左右",
        **_SENTENCES,
    }
)
"""Name of each recording that is said from here, and its words without punctuation."""

MAX_NUMBER = 99_999_999
"""The largest number that can be said: there is no atom for 亿."""

_UNITS = ((1000, "digits/qian"), (100, "digits/bai"), (10, "digits/shi"))
_BY_TEXT = {text: name for name, text in ATOMS.items()}
_WORDS = [text for name, text in ATOMS.items() if name not in _SENTENCES]
_LONGEST_FIRST = sorted(_BY_TEXT, key=len, reverse=True)
_NUMBER = re.compile("[0-9]+")
_MEASURES = ("位", "分钟")
_SILENT = " \t\n，。、；：！,.;:!"


def number_prompts(number: int, *, counted: bool = False) -> tuple[str, ...]:
    """Say a whole number from 0 to 99 999 999 as a cardinal: 110 is 一百一十, 10001 is 一万零一.

    `counted` means that a measure word follows, so that a lone 2 is 两 (两分钟); an ordinal (第二位) is not counted.
    2 before 千 and 万 at the head of the number is 两 (两千, 两万二千). Before 百 it is 二: both are right at the head,
    but only 二百 is right inside a number too (一千二百), so one reading serves everywhere. ValueError outside the range.
    """
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"{number} cannot be said: the recorded atoms reach from 0 to {MAX_NUMBER}.")
    if number == 0:
        return ("digits/0",)
    if number == 2 and counted:
        return ("digits/liang",)
    high, low = divmod(number, 10_000)
    if not high:
        return _section(low, at_head=True)
    said = ("digits/liang",) if high == 2 else _section(high, at_head=True)
    said = (*said, "digits/wan")
    if not low:
        return said
    gap = ("digits/0",) if low < 1000 else ()
    return (*said, *gap, *_section(low, at_head=False))


def _section(number: int, *, at_head: bool) -> tuple[str, ...]:
    """Say 1 to 9999; at the head of a number 十 stands for 一十 and 两千 for 二千."""
    said: list[str] = []
    gap = False
    rest = number
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if not count:
            gap = bool(said)
            continue
        if gap:
            said.append("digits/0")
            gap = False
        if at_head and not said and size == 10 and count == 1:
            said.append(unit)
        elif at_head and not said and size == 1000 and count == 2:
            said += ["digits/liang", unit]
        else:
            said += [f"digits/{count}", unit]
    if rest:
        if gap:
            said.append("digits/0")
        said.append(f"digits/{rest}")
    return tuple(said)


def digits_prompts(text: str, *, telephone: bool = True) -> tuple[str, ...]:
    """Say digits one by one; on the telephone 1 is 幺, so that it is not taken for 7 (110 is 幺幺零).

    Spaces and hyphens are passed over. ValueError for anything else that is not a digit.
    """
    said = []
    for character in text:
        if character in " -":
            continue
        if character not in "0123456789":
            raise ValueError(f"{text!r} cannot be said digit by digit: {character!r} is not a digit.")
        said.append("digits/yao" if telephone and character == "1" else f"digits/{character}")
    return tuple(said)


def minutes_prompts(seconds: float) -> tuple[str, ...]:
    """Say a wait in whole minutes, rounded up and at least one: 61 s is 两分钟, 5 s is 一分钟.

    Rounded up because a wait that turns out shorter than promised is forgiven and a longer one is not.
    ValueError when it is not a finite number or too long to be said.
    """
    if not math.isfinite(seconds):
        raise ValueError("A wait must be a finite number of seconds to be said.")
    return (*number_prompts(_minutes(seconds), counted=True), "words/fenzhong")


def _minutes(seconds: float) -> int:
    return max(1, math.ceil(seconds / 60))


def queue_announcement(position: int | None, expected_wait_seconds: float | None) -> tuple[str, ...]:
    """Say “您排在第三位。预计等待两分钟左右。”; what is not known (None, or a wait without end) is left out.

    Position 1 is next to be answered. Beyond `LAST_POSITION` and `LAST_MINUTE` one sentence, true for all that is
    longer, is said. The wait is in seconds, rounded as by `minutes_prompts`. ValueError for a position below 1.
    """
    said: tuple[str, ...] = ()
    if position is not None:
        if position < 1:
            raise ValueError(f"A place in the queue counts from 1, not {position}.")
        said = (f"queue/position_{position if position <= LAST_POSITION else 'beyond'}",)
    if expected_wait_seconds is not None and math.isfinite(expected_wait_seconds):
        minutes = _minutes(expected_wait_seconds)
        said = (*said, f"queue/wait_{minutes if minutes <= LAST_MINUTE else 'beyond'}")
    return said


def text_prompts(text: str) -> tuple[str, ...]:
    """Say a text that is made of atoms and Arabic numbers only: “您前面还有2位” is 您前面还有 + 两 + 位.

    Punctuation is passed over. ValueError names the first piece for which nothing is recorded.
    """
    said: list[str] = []
    at = 0
    while at < len(text):
        if text[at] in _SILENT:
            at += 1
            continue
        number = _NUMBER.match(text, at)
        if number:
            ordinal = said[-1:] == ["words/di"]
            measured = text.startswith(_MEASURES, number.end())
            said += number_prompts(int(number[0]), counted=measured and not ordinal)
            at = number.end()
            continue
        atom = next((atom for atom in _LONGEST_FIRST if text.startswith(atom, at)), None)
        if atom is None:
            raise ValueError(
                f"Nothing is recorded for “{text[at : at + 6]}”: use numbers and {'、'.join(_WORDS)} only."
            )
        said.append(_BY_TEXT[atom])
        at += len(atom)
    return tuple(said)
