"""The log of calls that fail: bounded, and honest about what it leaves out."""

from __future__ import annotations

from typing import Any

from services.runtime.errors import DependencyDown
from services.runtime.registry import FailureLog

ERROR = DependencyDown("the store is away")


def test_an_outage_is_told_of_by_a_bounded_number_of_lines_that_count_the_rest(logs: list[Any]) -> None:
    now = 0.0
    failures = FailureLog(per_second=2, at_once=5, monotonic=lambda: now)
    for _ in range(1000):
        failures.tell("/a.B/C", ERROR)
    assert len(logs) == 5
    assert all("left_out_before" not in line for line in logs)
    now = 1.0
    for _ in range(10):
        failures.tell("/a.B/C", ERROR)
    assert [line.get("left_out_before") for line in logs[5:]] == [995, None]
