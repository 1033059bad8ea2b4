"""The incident, replayed: the drill that an operator watches shows the harm, and that the protections take it away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli import drill
from services.cli.main import app


def acts_of_the_drill() -> tuple[dict[str, Any], str]:
    """The acts by their names, and what was told meanwhile."""
    done = CliRunner().invoke(app, ["drill", "incident", "--json"])
    assert done.exit_code == 0, done.stderr
    acts = {act["act"]: act for act in json.loads(done.stdout)["acts"]}
    assert list(acts) == ["unprotected", "checked", "forced", "handed-over"]
    return acts, done.stderr


def check(acts: dict[str, Any], told: str, least_requests: int) -> None:
    unprotected, checked, forced, handed_over = acts.values()
    assert unprotected["staging_failed"] == 0, "staging passes, as it did"
    assert unprotected["half_converted"] > 0, "production does not"

    assert checked["refused"] is True
    assert (checked["failed"], checked["half_converted"]) == (0, 0)
    assert "syd still needs guest; iad still needs guest" in told, "the refusal names regions and parts"

    assert forced["half_converted"] == 0
    assert forced["rolled_back"] is True
    assert 0 < forced["failed"] < forced["requests"]
    assert "the part guest is not served" in told

    assert (handed_over["failed"], handed_over["half_converted"]) == (0, 0)
    assert min(act["requests"] for act in (unprotected, forced, handed_over)) >= least_requests


def test_the_incident_hurts_without_protections_and_is_refused_rolled_back_or_handed_over_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drill, "REGIONS", ("syd", "iad"))
    monkeypatch.setattr(drill, "LEAST_REQUESTS", 80)
    monkeypatch.setattr(drill, "MIN_COMPARED", 15)
    monkeypatch.setattr(drill, "PACE_SECONDS", 0.05)
    check(*acts_of_the_drill(), least_requests=80)


@pytest.mark.soak
def test_the_incident_at_its_full_length_in_three_regions() -> None:
    check(*acts_of_the_drill(), least_requests=200)
