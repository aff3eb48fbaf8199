"""Numbers, waits and places in the queue are said as a Mandarin speaker says them."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callcenter.domain.spoken import (
    ATOMS,
    LAST_MINUTE,
    LAST_POSITION,
    MAX_NUMBER,
    digits_prompts,
    minutes_prompts,
    number_prompts,
    queue_announcement,
    text_prompts,
)


def heard(prompts: tuple[str, ...]) -> str:
    return "".join(ATOMS[prompt] for prompt in prompts)


def understood(text: str) -> int:
    """The number a listener takes from a Chinese numeral, written independently of how it is said."""
    high, _, low = text.rpartition("万")
    return (_below_wan(high) * 10_000 if high else 0) + _below_wan(low)


def _below_wan(text: str) -> int:
    total, digit = 0, 0
    for character in text:
        if character in "十百千":
            total += (digit or 1) * {"十": 10, "百": 100, "千": 1000}[character]
            digit = 0
        else:
            digit = "零一二三四五六七八九".find(character) if character != "两" else 2
    return total + digit


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "零"),
        (2, "二"),
        (10, "十"),
        (12, "十二"),
        (20, "二十"),
        (100, "一百"),
        (105, "一百零五"),
        (110, "一百一十"),
        (112, "一百一十二"),
        (200, "二百"),
        (222, "二百二十二"),
        (1005, "一千零五"),
        (1050, "一千零五十"),
        (1200, "一千二百"),
        (2000, "两千"),
        (2222, "两千二百二十二"),
        (10_000, "一万"),
        (10_001, "一万零一"),
        (10_010, "一万零一十"),
        (12_345, "一万二千三百四十五"),
        (20_000, "两万"),
        (22_000, "两万二千"),
        (96_500, "九万六千五百"),
        (101_000, "十万一千"),
        (120_000, "十二万"),
        (2_000_000, "二百万"),
        (20_000_000, "两千万"),
        (MAX_NUMBER, "九千九百九十九万九千九百九十九"),
    ],
)
def test_a_number_is_said_as_it_is_written_in_words(number: int, text: str) -> None:
    assert heard(number_prompts(number)) == text


@settings(deadline=None)
@given(st.integers(0, MAX_NUMBER))
@example(10_010)
def test_a_listener_takes_the_number_that_was_meant(number: int) -> None:
    assert understood(heard(number_prompts(number))) == number


@pytest.mark.parametrize(
    ("number", "text"), [(1, "一"), (2, "两"), (12, "十二"), (20, "二十"), (102, "一百零二")]
)
def test_only_a_lone_two_before_a_measure_word_is_liang(number: int, text: str) -> None:
    assert heard(number_prompts(number, counted=True)) == text


@pytest.mark.parametrize("number", [-1, MAX_NUMBER + 1])
def test_a_number_without_atoms_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="cannot be said"):
        number_prompts(number)


def test_on_the_telephone_one_is_yao() -> None:
    assert heard(digits_prompts("110")) == "幺幺零"
    assert heard(digits_prompts("0512-1 2345")) == "零五幺二幺二三四五"
    assert heard(digits_prompts("110", telephone=False)) == "一一零"
    with pytest.raises(ValueError, match="'a' is not a digit"):
        digits_prompts("1a")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "一分钟"),
        (0, "一分钟"),
        (60, "一分钟"),
        (60.1, "两分钟"),
        (120, "两分钟"),
        (121, "三分钟"),
        (720, "十二分钟"),
    ],
)
def test_a_wait_is_said_in_whole_minutes_rounded_up(seconds: float, text: str) -> None:
    assert heard(minutes_prompts(seconds)) == text


@pytest.mark.parametrize("seconds", [float("inf"), float("nan")])
def test_a_wait_without_end_cannot_be_said(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        minutes_prompts(seconds)


@pytest.mark.parametrize(
    ("position", "wait", "text"),
    [
        (3, 110, "您排在第三位预计等待两分钟左右"),
        (2, None, "您排在第二位"),
        (20, 1800, "您排在第二十位预计等待三十分钟左右"),
        (21, 1800.1, "来电较多您前面至少还有二十人预计等待超过三十分钟"),
        (None, 60, "预计等待一分钟左右"),
        (None, -3, "预计等待一分钟左右"),
        (12, 1260, "您排在第十二位预计等待二十一分钟左右"),
        (1, float("inf"), "您排在第一位"),
        (1, float("nan"), "您排在第一位"),
        (None, None, ""),
    ],
)
def test_the_announcement_says_what_is_known(position: int | None, wait: float | None, text: str) -> None:
    assert heard(queue_announcement(position, wait)) == text


@pytest.mark.parametrize("position", [0, -1])
def test_there_is_no_place_before_the_first(position: int) -> None:
    with pytest.raises(ValueError, match="counts from 1"):
        queue_announcement(position, None)


def test_each_place_and_wait_is_one_sentence_with_its_own_number() -> None:
    for position in range(1, 1001):
        (sentence,) = queue_announcement(position, None)
        said = ATOMS[sentence]
        if position <= LAST_POSITION:
            assert understood(said.removeprefix("您排在第").removesuffix("位")) == position
        else:
            assert said == "来电较多您前面至少还有二十人"
    for seconds in range(7201):
        (sentence,) = queue_announcement(None, seconds)
        said = ATOMS[sentence]
        if seconds <= LAST_MINUTE * 60:
            minutes = understood(said.removeprefix("预计等待").removesuffix("分钟左右"))
            assert minutes == max(1, -(-seconds // 60))
        else:
            assert said == "预计等待超过三十分钟"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("您前面还有2位，预计等待12分钟左右。", "您前面还有两位预计等待十二分钟左右"),
        ("您排在第2位", "您排在第二位"),
        ("30秒", "三十秒"),
        ("三点五", "三点五"),
        ("您排在第三位。", "您排在第三位"),
    ],
)
def test_a_text_of_atoms_is_said(text: str, said: str) -> None:
    assert heard(text_prompts(text)) == said


def test_a_text_names_the_piece_that_is_not_recorded() -> None:
    with pytest.raises(ValueError, match="Nothing is recorded for “分机8”"):
        text_prompts("您排在分机8")
