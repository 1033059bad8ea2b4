from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.durations import LONGEST, format_go_duration, parse_go_duration

# What Go's time.ParseDuration answers.
PARSED = {
    "0": 0,
    "+0": 0,
    "-0": 0,
    "-0s": 0,
    "0s": 0,
    "15s": 15_000_000_000,
    "+5s": 5_000_000_000,
    "1m30s": 90_000_000_000,
    "30s1m": 90_000_000_000,
    "1.5h": 5_400_000_000_000,
    "500ms": 500_000_000,
    "10us": 10_000,
    "10µs": 10_000,
    "10μs": 10_000,
    "7ns": 7,
    ".5s": 500_000_000,
    "1.s": 1_000_000_000,
    "00000000000000000000001s": 1_000_000_000,
    "0.3333333333333333333h": 1_200_000_000_000,
    "0.100000000000000000000h": 360_000_000_000,
    "9223372036854775807ns": LONGEST,
    "2562047h47m16.854775807s": LONGEST,
    "39h9m14.425s": 140_954_425_000_000,
    "1.0000000009s": 1_000_000_000,
}

# What its Duration.String answers.
FORMATTED = {
    0: "0s",
    1: "1ns",
    1_100: "1.1µs",
    2_200_000: "2.2ms",
    3_300_000_000: "3.3s",
    1_000_000: "1ms",
    1_000_000_000: "1s",
    60_000_000_000: "1m0s",
    245_001_000_000: "4m5.001s",
    3_600_000_000_000: "1h0m0s",
    18_367_001_000_000: "5h6m7.001s",
    480_000_000_001: "8m0.000000001s",
    LONGEST: "2562047h47m16.854775807s",
    -1: "-1ns",
    -90_000_000_000: "-1m30s",
    -LONGEST - 1: "-2562047h47m16.854775808s",
}


@pytest.mark.parametrize("text", PARSED)
def test_a_duration_is_read_as_go_reads_it(text: str) -> None:
    assert parse_go_duration(text) == PARSED[text]


@pytest.mark.parametrize("nanoseconds", FORMATTED)
def test_a_duration_is_written_as_go_writes_it(nanoseconds: int) -> None:
    assert format_go_duration(nanoseconds) == FORMATTED[nanoseconds]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must be a duration"),
        ("+", "must be a duration"),
        ("fifteen", "must be a duration"),
        (".", "must be a duration"),
        (".s", "must be a duration"),
        ("+.s", "must be a duration"),
        ("--1s", "must be a duration"),
        ("s", "must be a duration"),
        ("15", "must have a unit"),
        ("1m30", "must have a unit"),
        ("1.", "must have a unit"),
        ("1d", 'must use the units ns, us, ms, s, m and h, has "d"'),
        ("15 s", "must use the units"),
        ("15s ", "must use the units"),
        ("1S", "must use the units"),
        ("١s", "must be a duration"),
        ("-1s", "must not be negative"),
        ("-1ns", "must not be negative"),
        ("9223372036854775808ns", "must not be longer"),
        ("2562047h47m16.854775808s", "must not be longer"),
        ("9999999h", "must not be longer"),
        ("9" * 5000 + "h", "must not be longer"),
    ],
)
def test_what_is_no_duration_is_refused_with_what_would_be_right(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refusal:
        parse_go_duration(text)
    assert len(str(refusal.value)) < 200


@given(st.integers(0, LONGEST))
def test_what_was_written_is_read_as_the_same(nanoseconds: int) -> None:
    assert parse_go_duration(format_go_duration(nanoseconds)) == nanoseconds


@given(st.integers(1, LONGEST))
def test_a_negative_duration_is_its_opposite_with_a_minus(nanoseconds: int) -> None:
    assert format_go_duration(-nanoseconds) == "-" + format_go_duration(nanoseconds)


@given(st.text(st.sampled_from("0123456789.hmsnuµ+-"), max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        nanoseconds = parse_go_duration(text)
    except ValueError:
        return
    assert 0 <= nanoseconds <= LONGEST
