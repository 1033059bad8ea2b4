from __future__ import annotations

from typing import Any

import pytest

from services.config_converter.parts.metrics import PART
from tests.unit.config_converter.judging import accept, refuse


@pytest.mark.parametrize("fields", [{}, {"metrics": {}}])
def test_without_metrics_nothing_is_scraped(fields: dict[str, Any]) -> None:
    assert accept(PART, fields).port == 0


def test_metrics_have_a_usual_path() -> None:
    spec = accept(PART, {"metrics": {"port": 9187}})
    assert (spec.port, spec.path, spec.https) == (9187, "/metrics", False)
    spec = accept(PART, {"metrics": {"port": 1, "path": "/m", "https": True}})
    assert (spec.port, spec.path, spec.https) == (1, "/m", True)


@pytest.mark.parametrize(
    ("metrics", "field"), [({"path": "/m"}, "port"), ({"port": 0}, "port"), ({"port": 1, "path": "m"}, "path")]
)
def test_metrics_without_a_port_or_with_a_bad_path_are_refused(metrics: dict[str, Any], field: str) -> None:
    assert list(refuse(PART, {"metrics": metrics})) == [f"metrics.{field}"]
