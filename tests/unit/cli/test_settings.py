"""What an operator may say about a mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import GatewayLimits
from services.cli.settings import MeshSettings
from services.runtime.errors import InvalidConfig

EXAMPLE = Path(__file__).parents[3] / "deploy" / "settings.toml"


def test_the_example_says_what_the_defaults_of_the_limits_are() -> None:
    assert MeshSettings.load(EXAMPLE, region="syd").limits == GatewayLimits()


def test_rates_of_calls_are_set_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[limits.calls]\neverybody = true\naction = { per_second = 0.5, burst = 2 }\n", encoding="utf-8")
    calls = MeshSettings.load(file, region="syd").limits.calls
    assert (calls.action.per_second, calls.action.burst, calls.everybody) == (0.5, 2, True)
    assert calls.get == GatewayLimits().calls.get


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("action = { per_second = 0, burst = 3 }", "limits.calls.action.per_second"),
        ("action = { per_second = inf, burst = 3 }", "limits.calls.action.per_second"),
        ("get = { per_second = 1, burst = 0 }", "limits.calls.get.burst"),
        ("gets = { per_second = 1, burst = 1 }", "limits.calls.gets"),
    ],
)
def test_a_rate_that_is_none_is_refused_by_name(tmp_path: Path, line: str, field: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[limits.calls]\n{line}\n", encoding="utf-8")
    with pytest.raises(InvalidConfig) as caught:
        MeshSettings.load(file, region="syd")
    assert field in [violation.field for violation in caught.value.violations]
