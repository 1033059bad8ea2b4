"""A region whose conversion is still the centre's: the outage of the centre, and the way out of needing it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.cli import processes
from services.cli.mesh import CENTRAL
from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.support import eventually

APP = "handed"
MACHINES = f"/apps/{APP}/machines"
PART = "guest"
REFUSAL_SECONDS = 5.0
"""The longest that a conversion may wait for a centre that refuses connections, on a machine that is busy."""
KNOWN = {**SLEEPER, "env": {"CONTENT": "known"}}

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def started() -> Iterator[RunningMesh]:
    with RunningMesh("--plan", "central", "--workers", "1") as running:
        running.ok("POST", "/apps", {"name": APP})
        yield running


@pytest.fixture
async def mesh(started: RunningMesh) -> RunningMesh:
    """A region with an app in it, and the centre up and asked."""
    if not processes.running(started.mesh).keys() >= set(started.mesh.processes(CENTRAL)):
        started.up()
        await eventually(lambda: converts_anew(started), seconds=30)
    return started


def create(mesh: RunningMesh, config: dict[str, Any]) -> httpx.Response:
    return mesh.request("POST", MACHINES, {"config": config, "skip_launch": True})


def never_seen() -> dict[str, Any]:
    """A configuration that nobody has converted before."""
    return {**SLEEPER, "env": {"CONTENT": f"new {next(_numbers)}"}}


def converts_anew(mesh: RunningMesh) -> bool:
    return create(mesh, never_seen()).is_success


def operator(mesh: RunningMesh, *arguments: str, refused: bool = False) -> Any:
    """What a command prints as JSON. One that has to be refused exits 1; what it says on stderr is returned then."""
    done = mesh.skerry(*arguments, "--dir", str(mesh.directory), "--json", check=not refused)
    if not refused:
        return json.loads(done.stdout)
    assert done.returncode == 1, f"skerry {' '.join(arguments)} was not refused: {done.stdout}{done.stderr}"
    return done.stderr


async def test_known_content_converts_without_the_centre_and_new_content_is_refused_by_name(mesh: RunningMesh) -> None:
    assert create(mesh, KNOWN).is_success
    machines = len(mesh.ok("GET", MACHINES))

    mesh.skerry("central", "down", "--dir", str(mesh.directory))
    known = create(mesh, KNOWN)
    assert known.is_success, known.text

    began = time.monotonic()
    refused = create(mesh, never_seen())
    took = time.monotonic() - began
    assert refused.status_code == 503, refused.text
    assert refused.json()["status"] == "dependency_down"
    assert "central" in refused.json()["error"]
    assert "env" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) >= 1
    assert took < REFUSAL_SECONDS

    new_app = mesh.request("POST", "/apps", {"name": "late"})
    assert (new_app.status_code, new_app.json()["status"]) == (503, "dependency_down"), new_app.text
    assert len(mesh.ok("GET", MACHINES)) == machines + 1, "what was refused left nothing behind"

    mesh.skerry("central", "up", "--dir", str(mesh.directory))
    await eventually(lambda: converts_anew(mesh), seconds=30)
    await eventually(lambda: mesh.request("POST", "/apps", {"name": "late"}).is_success, seconds=30)


def test_a_part_is_not_promoted_without_evidence_and_the_centre_may_not_drop_it_before(mesh: RunningMesh) -> None:
    [change] = operator(mesh, "handover", "promote", PART, "--regions", "syd")["changed"]
    assert (change["region"], change["part"], change["mode"]) == ("syd", PART, "shadow")

    reasons = operator(mesh, "handover", "promote", PART, "--regions", "syd", "--min-compared", "5", refused=True)
    assert "0 conversions were compared, 5 are needed" in reasons
    refusal = operator(mesh, "central", "deploy", "2", refused=True)
    assert f"syd still needs {PART}" in refusal

    status = operator(mesh, "handover", "status")
    assert status["epoch"] == {"syd": change["epoch"]}, "what is refused changes no plan"
    assert {entry["part"]: entry["mode"] for entry in status["parts"] if entry["mode"] != "central"} == {PART: "shadow"}
    assert mesh.mesh.central_releases == ("1",)


def test_deps_draws_the_allowed_edges_and_counts_the_seen_ones(mesh: RunningMesh) -> None:
    assert create(mesh, never_seen()).is_success
    document = operator(mesh, "deps")
    assert document.keys() == {"allowed", "seen"}
    assert ["gateway", "central-sync"] in document["allowed"]
    assert all(callee != "gateway" for caller, callee in document["allowed"] if caller == "central")
    for edge in document["seen"]:
        assert edge.keys() == {"from", "to", "calls", "errors"}
        assert [edge["from"], edge["to"]] in document["allowed"]
        assert edge["calls"] >= 1
    seen = {(edge["from"], edge["to"]) for edge in document["seen"]}
    assert {("gateway", "config-converter"), ("gateway", "machine-store"), ("config-converter", "central-sync")} <= seen
    assert ("central-sync", "central") in seen


def test_catalog_status_tells_how_far_the_replica_is_and_the_state_of_the_breakers(mesh: RunningMesh) -> None:
    [status] = operator(mesh, "catalog", "status")["regions"]
    assert status["region"] == "syd"
    assert status["filled"] is True
    assert status["held_changes"] == 0
    assert {"conversion", "apps", "pull", "mirror"} <= {breaker["class"] for breaker in status["breakers"]}
