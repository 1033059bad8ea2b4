"""What one GraphQL operation may come to, whatever it asks for."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.graphql.execution import execute
from gateway.graphql.reads import MOST_SHOWN, RegionReads
from services.runtime.errors import InvalidConfig


def reads_with(machines: int) -> tuple[RegionReads, Any]:
    """The reads of an operation that has listed the machines of an app already."""
    reads = RegionReads(SimpleNamespace(around=None, catalog=None))  # type: ignore[arg-type]
    app: Any = SimpleNamespace(name="web")
    reads._machines["web"] = [SimpleNamespace()] * machines  # type: ignore[list-item]
    return reads, app


async def test_machines_count_each_time_that_they_are_asked_for() -> None:
    reads, app = reads_with(MOST_SHOWN // 4)
    for _ in range(4):
        assert len(await reads.machines_of(app)) == MOST_SHOWN // 4
    with pytest.raises(InvalidConfig, match=str(MOST_SHOWN)):
        await reads.machines_of(app)


@pytest.mark.parametrize("document", [b"{", b"[]", b'{"query": 5}', b'{"query": ""}', b'{"query": " \\n"}'])
async def test_what_is_no_operation_is_the_callers_mistake(document: bytes) -> None:
    nothing: Any = SimpleNamespace(around=None, catalog=None)
    answer, _ = await execute(document, nothing)
    shown = json.loads(answer)
    assert shown["data"] is None
    assert [error["extensions"]["code"] for error in shown["errors"]] == ["INVALID"]
