"""Numbers and times of day in English words."""

from datetime import time
from typing import Final

_SMALL: Final = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_TENS: Final = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spell_number(n: int) -> str:
    """A number below a million in words: 342 -> three hundred forty-two."""
    if not 0 <= n < 1_000_000:
        raise ValueError(f"cannot spell {n}: not between 0 and 999999")
    if n < 20:
        return _SMALL[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")
    unit, word = (1000, "thousand") if n >= 1000 else (100, "hundred")
    count, rest = divmod(n, unit)
    return f"{spell_number(count)} {word}" + (f" {spell_number(rest)}" if rest else "")


def speak_time(moment: time) -> str:
    """A time on a multiple of five minutes as it is said: 19:45 -> quarter to eight in the evening."""
    if moment.minute % 5:
        raise ValueError(f"cannot speak {moment}: its minutes are no multiple of five")
    part = _part_of_day(moment.hour)
    if moment.minute == 0:
        return f"{_hour_word(moment.hour)} o'clock {part}"
    if moment.minute <= 30:
        return f"{_minutes_word(moment.minute)} past {_hour_word(moment.hour)} {part}"
    return f"{_minutes_word(60 - moment.minute)} to {_hour_word(moment.hour + 1)} {part}"


def _hour_word(hour: int) -> str:
    return spell_number((hour - 1) % 12 + 1)


def _minutes_word(minutes: int) -> str:
    return {15: "quarter", 30: "half"}.get(minutes) or spell_number(minutes)


def _part_of_day(hour: int) -> str:
    if hour >= 22:
        return "at night"
    if hour >= 18:
        return "in the evening"
    return "in the afternoon" if hour >= 12 else "in the morning"
