"""Ids: their form, and the cell in them."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.ids import cell_of, is_cell, new_machine_id, new_ulid

cells = st.integers(1, 0xFFF).map(lambda number: f"{number:03x}")


@given(cell=cells, seed=st.integers())
def test_a_machine_id_is_14_hex_digits_and_begins_with_its_cell(cell: str, seed: int) -> None:
    identifier = new_machine_id(cell, Random(seed))
    assert re.fullmatch("[0-9a-f]{14}", identifier)
    assert cell_of(identifier) == cell


def test_machine_ids_do_not_repeat() -> None:
    random = Random(1)
    assert len({new_machine_id("001", random) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("cell", ["000", "00", "0001", "00G", "ABC", ""])
def test_what_is_no_cell_makes_no_machine_id(cell: str) -> None:
    assert not is_cell(cell)
    with pytest.raises(ValueError, match="is no cell"):
        new_machine_id(cell, Random(1))


@pytest.mark.parametrize(
    ("identifier", "cell"), [("vol_0a1xyz", "0a1"), ("vs_fff1", "fff"), ("000123", None), ("zz", None), ("", None)]
)
def test_the_cell_stands_after_the_prefix(identifier: str, cell: str | None) -> None:
    assert cell_of(identifier) == cell


@given(now=st.floats(0, 4e9), later=st.floats(0.002, 1e6), seed=st.integers())
def test_ulids_sort_by_their_moments(now: float, later: float, seed: int) -> None:
    random = Random(seed)
    first, second = new_ulid(now, random), new_ulid(now + later, random)
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", first)
    assert first < second


def test_a_ulid_begins_with_its_milliseconds() -> None:
    # The example of the ULID specification.
    assert new_ulid(1469918176.385, Random(1)).startswith("01ARYZ6S41")
