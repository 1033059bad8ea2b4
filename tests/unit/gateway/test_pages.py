"""Pages of lists over several cells, and what differs between two configurations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from skerry.machines.v1 import machines_pb2 as api

from gateway.dry_run import Difference, differences
from gateway.pages import Position, cut, position_of, read_cursor, write_cursor
from services.runtime.errors import InvalidConfig

CELLS = ("001", "002", "003")


def machine(cell: str, number: int, created: int) -> api.Machine:
    return api.Machine(id=f"{cell}{number:011x}", created_at=Timestamp(seconds=created))


def answered(there: Sequence[api.Machine], cell: str, limit: int, cursor: str) -> list[api.Machine]:
    """What a cell answers: its machines after its own position, as the store lists them."""
    after = read_cursor(cursor).get(cell)
    own = sorted((each for each in there if each.id.startswith(cell)), key=position_of)
    return [each for each in own if after is None or position_of(each) > after][:limit]


@given(
    st.lists(st.tuples(st.sampled_from(CELLS), st.integers(1, 20)), max_size=30),
    st.integers(1, 7),
    st.sets(st.integers(0, 5)),
)
def test_every_machine_is_on_one_page_also_when_a_cell_does_not_answer_for_a_while(
    made: list[tuple[str, int]], limit: int, away: set[int]
) -> None:
    there = [machine(cell, number, created) for number, (cell, created) in enumerate(made)]
    seen: list[str] = []
    cursor = ""
    for page in range(100):
        cells = CELLS[:-1] if page in away else CELLS
        found = [each for cell in cells for each in answered(there, cell, limit, cursor)]
        result = cut(found, limit, read_cursor(cursor))
        seen += [each.id for each in result.machines]
        cursor = result.next_cursor
        if not cursor:
            break
    assert len(seen) == len(set(seen))
    # What a cell has that was away at the end is not in the list, which names its region.
    assert set(seen) >= {each.id for each in there if page not in away or not each.id.startswith(CELLS[-1])}


@given(
    st.dictionaries(st.sampled_from(CELLS), st.builds(Position, st.integers(0, 1 << 60), st.text("01f", max_size=14)))
)
def test_a_cursor_reads_back_as_what_it_was_made_of(positions: dict[str, Position]) -> None:
    assert read_cursor(write_cursor(positions)) == positions


@given(st.text(max_size=60))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    with suppress(InvalidConfig):
        assert read_cursor(write_cursor(read_cursor(text))) == read_cursor(text)


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": True}, [Difference("config.a", 1, True)]),
        ({"a": {"b": 1}}, {"a": {"c": 2}}, [Difference("config.a.b", 1, None), Difference("config.a.c", None, 2)]),
        ({"l": [1, 2]}, {"l": [1]}, [Difference("config.l[1]", 2, None)]),
        ({"l": [{"p": 80}]}, {"l": [{"p": 81}]}, [Difference("config.l[0].p", 80, 81)]),
        ({"a": {"b": 1}}, {"a": "text"}, [Difference("config.a", {"b": 1}, "text")]),
    ],
)
def test_what_differs_is_told_by_path(before: Any, after: Any, found: list[Difference]) -> None:
    assert list(differences(before, after, "config")) == found
