"""The circle of the incident, end to end: the centre that asks a region for what it was asked by it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.meshes import SLEEPER, RunningMesh

SETTINGS = "[handover]\ndrill_no_facts = true\n"
"""As the platform of the incident was: the centre looks up in the region where a volume is."""
WITH_A_VOLUME = {**SLEEPER, "mounts": [{"path": "/data", "volume": "vol_0010000000000001"}]}


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh("--plan", "central", "--workers", "1", settings=SETTINGS) as running:
        running.ok("POST", "/apps", {"name": "round"})
        yield running


def test_the_first_request_that_closes_the_circle_is_refused_with_the_whole_chain_and_counted(
    mesh: RunningMesh,
) -> None:
    refused = mesh.request("POST", "/apps/round/machines", {"config": WITH_A_VOLUME, "skip_launch": True})
    assert (refused.status_code, refused.json()["status"]) == (508, "dependency_cycle"), refused.text
    chain = re.findall(r"(?:\w+/)?([a-z-]+)(?=>|:| |$)", refused.json()["error"].partition("dependency: ")[2])
    assert chain[:5] == ["gateway", "config-converter", "central-sync", "central", "gateway"], refused.text
    assert mesh.ok("GET", "/apps/round/machines") == [], "nothing was written"

    [process] = mesh.mesh.processes("syd")
    metrics = httpx.get(f"http://127.0.0.1:{process.metrics}/metrics").text
    counted = [line for line in metrics.splitlines() if line.startswith("skerry_guard_refusals_total")]
    assert any('callee="gateway"' in line and float(line.split()[-1]) >= 1 for line in counted), counted

    without = mesh.request("POST", "/apps/round/machines", {"config": SLEEPER, "skip_launch": True})
    assert without.is_success, "what closes no circle goes on"
