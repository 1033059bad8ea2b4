"""Two regions as clients see them: one API through any gateway, and the outage of one of the two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.support import eventually

REGIONS = ("syd", "iad")
MACHINES = "/apps/far/machines"
UNREACHABLE = "skerry-unreachable-regions"


class Doors:
    """The REST doors of all regions of a mesh."""

    def __init__(self, mesh: RunningMesh) -> None:
        endpoints = mesh.endpoints
        self._token = endpoints["token"]
        self._rest = {code: region["rest"] for code, region in endpoints["regions"].items()}
        self._client = httpx.Client(timeout=30)

    def close(self) -> None:
        self._client.close()

    def request(self, region: str, method: str, path: str, body: Any = None) -> httpx.Response:
        """One request to /v1PATH through the gateway of `region`. Raises httpx.HTTPError."""
        headers = {"authorization": f"Bearer {self._token}"}
        return self._client.request(method, f"{self._rest[region]}/v1{path}", json=body, headers=headers)

    def ok(self, region: str, method: str, path: str, body: Any = None) -> Any:
        answer = self.request(region, method, path, body)
        assert answer.is_success, f"{method} {path} through {region}: {answer.status_code} {answer.text}"
        return answer.json()

    def knows(self, region: str) -> bool:
        return self.request(region, "GET", "/apps/far").is_success

    def listed(self, region: str) -> set[str]:
        return {machine["id"] for machine in self.ok(region, "GET", MACHINES)}


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh("--workers", "1", regions=",".join(REGIONS)) as running:
        yield running


async def test_any_gateway_serves_any_region_and_a_list_names_the_one_that_is_away(mesh: RunningMesh) -> None:
    doors = Doors(mesh)
    doors.ok("syd", "POST", "/apps", {"name": "far"})
    await eventually(lambda: doors.knows("iad"), seconds=10)

    made: dict[str, str] = {}
    for via in REGIONS:
        for home in REGIONS:
            body = {"config": SLEEPER, "region": home, "skip_launch": True}
            machine = doors.ok(via, "POST", MACHINES, body)
            assert machine["region"] == home
            made[machine["id"]] = home
    for via in REGIONS:
        for machine_id, home in made.items():
            assert doors.ok(via, "GET", f"{MACHINES}/{machine_id}")["region"] == home
        answer = doors.request(via, "GET", MACHINES)
        assert {machine["id"] for machine in answer.json()} == made.keys()
        assert UNREACHABLE not in answer.headers
    there = next(machine_id for machine_id, home in made.items() if home == "iad")
    here = {machine_id for machine_id, home in made.items() if home == "syd"}
    doors.ok("syd", "POST", f"{MACHINES}/{there}/start")
    doors.ok("syd", "GET", f"{MACHINES}/{there}/wait?state=started&timeout=20")

    mesh.skerry("region", "kill", "iad", "--dir", str(mesh.directory))
    answer = doors.request("syd", "GET", MACHINES)
    assert answer.is_success, answer.text
    assert answer.headers[UNREACHABLE] == "iad"
    assert {machine["id"] for machine in answer.json()} == here
    away = doors.request("syd", "GET", f"{MACHINES}/{there}")
    assert (away.status_code, away.json()["status"]) == (503, "dependency_down"), away.text
    assert "iad" in away.json()["error"]
    differences = mesh.skerry("handover", "diff", "--json", "--dir", str(mesh.directory), check=False)
    assert (differences.returncode, json.loads(differences.stdout)) == (1, {"differences": []})
    assert "iad" in differences.stderr
    assert "syd" not in differences.stderr
    doors.ok("syd", "POST", MACHINES, {"config": SLEEPER, "region": "syd", "skip_launch": True})

    mesh.skerry("region", "start", "iad", "--dir", str(mesh.directory))
    await eventually(lambda: made.keys() <= doors.listed("syd"), seconds=20)
    assert doors.ok("syd", "GET", f"{MACHINES}/{there}")["state"] == "started", "its machine ran on"
    doors.close()
