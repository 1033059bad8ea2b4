"""Durations as Go writes and reads them ("1m30s"), in integers of nanoseconds."""

from __future__ import annotations

import json
import re

NANOSECOND = 1
MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

LONGEST = (1 << 63) - 1
"""The longest duration there is, in nanoseconds: about 292 years."""

_UNITS = {
    "ns": NANOSECOND,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # U+00B5, the micro sign
    "μs": MICROSECOND,  # U+03BC, the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}

# The digits are ASCII only: \d would take any script's.
_ONE_TERM = re.compile(r"([0-9]{1,9})(ms|s|m|h)").fullmatch
_TERM = re.compile(r"([0-9]*)(\.[0-9]*)?([^0-9.]*)").match
_SHOWN = 40


def parse_go_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as "1m30s", "1.5h", "500ms", "10µs" or "0".

    Fractions are cut to whole nanoseconds as Go does. Raises ValueError, with a message that says what is allowed, when
    `text` is no duration, is negative or is longer than LONGEST.
    """
    simple = _ONE_TERM(text)
    if simple:
        nanoseconds = int(simple[1]) * _UNITS[simple[2]]
        if nanoseconds <= LONGEST:
            return nanoseconds
    return _parse_terms(text)


def _parse_terms(text: str) -> int:
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if unsigned == "0":
        return 0
    if not unsigned:
        raise _not_a_duration(text)
    total = 0
    at = 0
    while at < len(unsigned):
        term = _TERM(unsigned, at)
        if term is None:
            raise _not_a_duration(text)
        whole, fraction, name = term[1], (term[2] or "")[1:], term[3]
        if not whole and not fraction:
            raise _not_a_duration(text)
        if not name:
            raise ValueError(f"must have a unit (ns, us, ms, s, m or h) after each number, is {_shown(text)}")
        unit = _UNITS.get(name)
        if unit is None:
            raise ValueError(f"must use the units ns, us, ms, s, m and h, has {_shown(name)}")
        total += _whole(whole) * unit + _fraction(fraction, unit)
        if total > LONGEST:
            raise ValueError(f"must not be longer than {format_go_duration(LONGEST)}, is {_shown(text)}")
        at = term.end()
    if text[0] == "-" and total:
        raise ValueError(f"must not be negative, is {_shown(text)}")
    return total


def _whole(digits: str) -> int:
    significant = digits.lstrip("0")
    # int() refuses thousands of digits; whatever has more than 19 is too long anyway.
    return int(significant or "0") if len(significant) <= 19 else LONGEST + 1


def _fraction(digits: str, unit: int) -> int:
    value, scale = 0, 1.0
    for digit in digits:
        longer = value * 10 + int(digit)
        if value > LONGEST // 10 or longer > LONGEST + 1:
            break
        value, scale = longer, scale * 10
    # Floating point, in this order: the same nanosecond comes out as in Go.
    return int(float(value) * (float(unit) / scale))


def _not_a_duration(text: str) -> ValueError:
    return ValueError(f'must be a duration such as "15s" or "1m30s", is {_shown(text)}')


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= _SHOWN else text[:_SHOWN] + "…", ensure_ascii=False)


def format_go_duration(nanoseconds: int) -> str:
    """The duration as Go prints it: "1m30s", "1h0m0s", "1.5s", "500ms", "10µs", "0s"; "-" before negative ones."""
    if nanoseconds < 0:
        return "-" + format_go_duration(-nanoseconds)
    if nanoseconds < SECOND:
        for name, unit in (("ms", MILLISECOND), ("µs", MICROSECOND), ("ns", NANOSECOND)):
            if nanoseconds >= unit:
                return _decimal(nanoseconds, unit) + name
        return "0s"
    minutes, rest = divmod(nanoseconds, MINUTE)
    seconds = _decimal(rest, SECOND) + "s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


def _decimal(nanoseconds: int, unit: int) -> str:
    whole, rest = divmod(nanoseconds, unit)
    if not rest:
        return str(whole)
    places = len(str(unit)) - 1
    return f"{whole}.{rest:0{places}d}".rstrip("0")
