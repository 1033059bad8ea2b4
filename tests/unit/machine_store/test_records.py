"""Rows and messages, ids of events, and what is refused before the database sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.machine_store.records import (
    EventIds,
    check_text,
    from_timestamp,
    moment,
    storable,
    timestamp,
)
from services.runtime.clock import FakeClock
from services.runtime.errors import InvalidConfig


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1)))
def test_moments_survive_the_way_into_a_message_and_back(naive: datetime) -> None:
    at = naive.replace(tzinfo=UTC)
    assert from_timestamp(timestamp(at)) == at


def test_a_moment_that_no_datetime_can_hold_is_kept_as_the_epoch() -> None:
    assert from_timestamp(Timestamp(seconds=2**62)) == datetime(1970, 1, 1, tzinfo=UTC)


def test_seconds_become_moments_to_the_microsecond() -> None:
    assert moment(1_700_000_000.123456) == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


@given(st.lists(st.floats(0, 0.002), min_size=1, max_size=40), st.integers())
async def test_ids_of_events_grow_however_little_time_passes(pauses: list[float], seed: int) -> None:
    clock = FakeClock()
    ids = EventIds(clock, Random(seed))
    made = []
    for pause in pauses:
        await clock.advance(pause)
        made.append(ids.new())
    assert made == sorted(set(made))
    assert all(len(one) == 26 for one in made)


def test_an_id_is_greater_than_one_of_an_instance_whose_clock_is_ahead() -> None:
    ahead = EventIds(FakeClock(1000.0), Random(1))
    behind = EventIds(FakeClock(999.0), Random(2))
    earlier = ahead.new()
    assert behind.new() < earlier
    assert behind.new(after=moment(1000.0)) > earlier


def test_a_prefix_with_numbers_makes_ids_in_their_order() -> None:
    ids = EventIds(FakeClock(), Random(1))
    before, prefix = ids.new(), ids.prefix()
    numbered = [f"{prefix}{n:06d}" for n in (1, 2, 999_999)]
    assert [len(one) for one in numbered] == [26] * 3
    assert numbered == sorted(numbered)
    assert before[:20] <= prefix


@pytest.mark.parametrize("text", ["a\0b", "x" * 1025, "ä" * 513])
def test_text_that_the_database_cannot_keep_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        check_text(fine="fine", name=text)
    assert [violation.field for violation in refused.value.violations] == ["name"]


@given(st.text(max_size=200).filter(lambda text: "\0" not in text))
def test_other_text_is_let_through(text: str) -> None:
    check_text(name=text)
    assert storable(text) == text


def test_an_identifier_that_nothing_can_have_can_still_be_looked_for() -> None:
    assert "\0" not in storable("a\0b")
