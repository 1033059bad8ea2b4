from __future__ import annotations

from typing import Any

import pytest
from skerry.types.v1.spec_pb2 import RESTART_POLICY_ALWAYS, RESTART_POLICY_NO, RESTART_POLICY_ON_FAILURE

from services.config_converter.parts.restart import PART
from tests.unit.config_converter.judging import accept, refuse


@pytest.mark.parametrize(
    ("fields", "policy", "retries"),
    [
        ({}, RESTART_POLICY_ON_FAILURE, 10),
        ({"restart": {}}, RESTART_POLICY_ON_FAILURE, 10),
        ({"restart": {"policy": ""}}, RESTART_POLICY_ON_FAILURE, 10),
        ({"restart": {"max_retries": 3}}, RESTART_POLICY_ON_FAILURE, 3),
        ({"restart": {"policy": "on-failure", "max_retries": 0}}, RESTART_POLICY_ON_FAILURE, 0),
        ({"restart": {"policy": "always", "max_retries": 3}}, RESTART_POLICY_ALWAYS, 0),
        ({"restart": {"policy": "no"}}, RESTART_POLICY_NO, 0),
        ({"auto_destroy": False}, RESTART_POLICY_ON_FAILURE, 10),
        ({"auto_destroy": True}, RESTART_POLICY_NO, 0),
        ({"schedule": "hourly"}, RESTART_POLICY_NO, 0),
        ({"schedule": "hourly", "restart": {"policy": ""}}, RESTART_POLICY_NO, 0),
        ({"auto_destroy": True, "restart": {"policy": "on-failure"}}, RESTART_POLICY_ON_FAILURE, 10),
    ],
)
def test_the_policy_that_is_not_said_follows_from_the_kind_of_machine(
    fields: dict[str, Any], policy: int, retries: int
) -> None:
    spec = accept(PART, fields)
    assert (spec.policy, spec.max_retries) == (policy, retries)
    assert spec.auto_destroy == fields.get("auto_destroy", False)


def test_an_unknown_policy_and_negative_retries_are_refused() -> None:
    problems = refuse(PART, {"restart": {"policy": "sometimes", "max_retries": -1}})
    assert problems["restart.policy"] == 'must be no, on-failure or always, is "sometimes"'
    assert "is -1" in problems["restart.max_retries"]
