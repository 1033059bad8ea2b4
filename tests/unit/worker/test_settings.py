from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from skerry.types.v1.resources_pb2 import Resources

from services.worker.settings import WorkerSettings


def settings(**changes: Any) -> WorkerSettings:
    return WorkerSettings.model_validate({"id": "w1", "capacity": {"memory_bytes": 5}, "data": "/data", **changes})


def test_capacity_is_a_table_of_amounts_or_a_message() -> None:
    assert settings().capacity == Resources(memory_bytes=5)
    assert settings(capacity=Resources(gpus_a10=1)).capacity == Resources(gpus_a10=1)
    assert settings().data == Path("/data")
    assert settings().heartbeat_seconds == 1.0
    assert settings().model_dump(mode="json")["capacity"]["memory_bytes"] == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": {"memory": 1}},
        {"capacity": {"memory_bytes": -1}},
        {"capacity": {"memory_bytes": "much"}},
        {"id": "../up"},
        {"id": ""},
        {"driver": "magic"},
        {"heartbeat_seconds": 0},
        {"unknown": 1},
        {"process": {"unknown": 1}},
    ],
)
def test_what_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**changes)


def test_the_operators_images_go_before_those_that_are_known_anyway() -> None:
    tables = settings(process={"images": {"nginx": ["mine"], "acme/api": ["api", "-v"]}}).process.command_tables()
    assert tables["nginx"] == ["mine"]
    assert tables["acme/api"] == ["api", "-v"]
    assert tables["httpd"][0] == sys.executable
