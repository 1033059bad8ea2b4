"""How machines that are only simulated are spread over regions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.platform import distribute


@given(st.integers(0, 1000), st.lists(st.integers(0, 300), max_size=6), st.integers(0, 1000), st.integers(0, 1000))
def test_all_that_find_room_are_placed_and_none_where_there_is_no_room(
    count: int, room: list[int], region: int, spread: int
) -> None:
    placed = distribute(count, room, region=region, spread=spread)
    assert sum(placed) == min(count, sum(room))
    assert all(0 <= there <= free for there, free in zip(placed, room, strict=True))


@pytest.mark.parametrize(
    ("region", "spread", "expected"),
    [
        (50, 0, [100, 20, 0]),  # The first is filled before the second.
        (0, 1, [40, 40, 40]),  # All are equal.
        (50, 1, [57, 40, 23]),  # The first begins, and the others follow once it has many.
    ],
)
def test_the_weights_decide_between_preference_and_spread(region: int, spread: int, expected: list[int]) -> None:
    assert distribute(120, [100, 100, 100], region=region, spread=spread) == expected


def test_what_finds_no_room_in_one_region_goes_to_the_next() -> None:
    assert distribute(10, [3, 0, 4], region=50, spread=1) == [3, 0, 4]
