"""Rows and messages, ids of events, and what is refused before the database sees it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.machine_store.records import (
    check_text,
    from_timestamp,
    moment,
    storable,
    timestamp,
)
from services.runtime.errors import InvalidConfig


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9000, 1, 1)))
def test_moments_survive_the_way_into_a_message_and_back(naive: datetime) -> None:
    at = naive.replace(tzinfo=UTC)
    assert from_timestamp(timestamp(at)) == at


def test_a_moment_that_no_datetime_can_hold_is_kept_as_the_epoch() -> None:
    assert from_timestamp(Timestamp(seconds=2**62)) == datetime(1970, 1, 1, tzinfo=UTC)


def test_seconds_become_moments_to_the_microsecond() -> None:
    assert moment(1_700_000_000.123456) == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)


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
