"""One region as an operator runs it: real processes, started and ended by the command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.cli import processes
from tests.e2e.meshes import SLEEPER, RunningMesh, kill_9, running_with
from tests.support import eventually, free_port

APP = "e2e"
MACHINES = f"/apps/{APP}/machines"


@pytest.fixture(scope="module")
def started() -> Iterator[RunningMesh]:
    with RunningMesh() as running:
        yield running


@pytest.fixture
def mesh(started: RunningMesh) -> RunningMesh:
    """A region that runs, with an app without machines."""
    started.up()
    if started.request("GET", f"/apps/{APP}").is_success:
        started.ok("DELETE", f"/apps/{APP}")
    started.ok("POST", "/apps", {"name": APP})
    return started


def web_server(port: int) -> dict[str, Any]:
    return {
        "image": "registry-1.docker.io/library/python:3.12-slim",
        "env": {"PORT": str(port)},
        "init": {"exec": ["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1"]},
        "services": [
            {
                "protocol": "tcp",
                "internal_port": port,
                "ports": [{"port": 80, "handlers": ["http"]}],
                "checks": [{"type": "http", "port": port, "path": "/", "interval": "1s", "timeout": "1s"}],
            }
        ],
        "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
    }


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def environment(marker: str) -> dict[str, Any]:
    return {**SLEEPER, "env": {marker: "here"}}


@pytest.fixture
def marker(request: pytest.FixtureRequest) -> str:
    return f"E2E_{os.getpid()}_{abs(hash(request.node.name))}"


async def test_a_machine_answers_on_its_port_survives_kill_9_of_its_region_and_is_adopted(mesh: RunningMesh) -> None:
    port = free_port()
    machine = mesh.ok("POST", MACHINES, {"name": "web-1", "region": "syd", "config": web_server(port)})
    path = f"{MACHINES}/{machine['id']}"
    mesh.ok("GET", f"{path}/wait?state=started&timeout=20")
    await eventually(lambda: answers(port))

    kill_9(mesh.pid)
    assert answers(port)
    before = mesh.endpoints
    mesh.up()
    assert mesh.endpoints["regions"] == before["regions"], "the ports stay the same"
    [found] = mesh.ok("GET", MACHINES)
    assert (found["id"], found["state"], found["instance_id"]) == (machine["id"], "started", machine["instance_id"])
    assert answers(port)
    assert [event["type"] for event in mesh.ok("GET", f"{path}/events")].count("start") == 1, "it was not started again"

    await eventually(lambda: [check["status"] for check in mesh.ok("GET", path).get("checks", [])] == ["passing"])
    assert mesh.request("DELETE", path).status_code == 412
    assert mesh.ok("DELETE", f"{path}?force=true") == {"ok": True}
    await eventually(lambda: not answers(port))
    mesh.ok("GET", f"{path}/wait?state=destroyed&timeout=20")
    assert mesh.ok("GET", MACHINES) == []


async def test_a_lease_and_a_suspended_machine_survive_kill_9_of_everything(mesh: RunningMesh, marker: str) -> None:
    machine = mesh.ok("POST", MACHINES, {"config": environment(marker), "lease_ttl": 600})
    path, holder = f"{MACHINES}/{machine['id']}", {"fly-machine-lease-nonce": machine["nonce"]}
    mesh.ok("GET", f"{path}/wait?state=started&timeout=20")
    mesh.ok("POST", f"{path}/suspend", headers=holder)
    mesh.ok("GET", f"{path}/wait?state=suspended&timeout=20")
    [pid] = running_with(marker)["here"]
    postmaster = mesh.postmaster()
    for each in (mesh.pid, postmaster):
        kill_9(each)
    mesh.up()
    assert running_with(marker)["here"] == [pid]
    assert mesh.ok("GET", path)["state"] == "suspended"
    assert mesh.ok("GET", f"{path}/lease")["data"]["nonce"] == machine["nonce"]
    assert mesh.request("POST", f"{path}/start").status_code == 409
    mesh.ok("POST", f"{path}/start", headers=holder)
    mesh.ok("GET", f"{path}/wait?state=started&timeout=20")
    assert running_with(marker)["here"] == [pid], "it went on as it was"


async def test_down_stops_machines_and_the_next_up_starts_those_that_were_asked_to_run(
    mesh: RunningMesh, marker: str
) -> None:
    runs = mesh.ok("POST", MACHINES, {"config": environment(marker)})
    mesh.ok("GET", f"{MACHINES}/{runs['id']}/wait?state=started&timeout=20")
    stopped = mesh.ok("POST", MACHINES, {"config": environment(marker), "skip_launch": True})
    assert len(running_with(marker)["here"]) == 1

    for _ in range(2):  # the second one finds nothing to do
        mesh.skerry("down", "--dir", str(mesh.directory))
        assert running_with(marker) == {}
        assert processes.running(mesh.mesh) == {}
    postmaster = mesh.mesh.postgres_directory("syd") / "postmaster.pid"
    assert not postmaster.exists()

    mesh.up()
    await eventually(lambda: len(running_with(marker).get("here", [])) == 1)
    mesh.ok("GET", f"{MACHINES}/{runs['id']}/wait?state=started&timeout=20")
    assert mesh.ok("GET", f"{MACHINES}/{stopped['id']}")["state"] == "created"


async def test_down_ends_machines_and_postgresql_also_when_the_region_was_killed(
    mesh: RunningMesh, marker: str
) -> None:
    machine = mesh.ok("POST", MACHINES, {"config": environment(marker)})
    mesh.ok("GET", f"{MACHINES}/{machine['id']}/wait?state=started&timeout=20")
    postmaster = mesh.postmaster()
    kill_9(mesh.pid)
    assert len(running_with(marker)["here"]) == 1

    mesh.skerry("down", "--dir", str(mesh.directory))
    assert running_with(marker) == {}
    await eventually(lambda: not processes.is_alive(postmaster))


async def test_up_on_a_mesh_that_runs_changes_nothing(mesh: RunningMesh) -> None:
    before = mesh.endpoints
    said = mesh.skerry("up", "--dir", str(mesh.directory), "--detach").stderr
    assert mesh.endpoints == before
    assert "runs already" in said


async def test_a_postgresql_that_dies_is_restarted_by_its_owner(mesh: RunningMesh) -> None:
    kill_9(mesh.postmaster())
    await eventually(lambda: mesh.request("GET", MACHINES).status_code == 200, seconds=20)
    mesh.ok("POST", MACHINES, {"config": SLEEPER, "skip_launch": True})


async def test_everyday_commands_do_what_the_api_does(mesh: RunningMesh, tmp_path: Path) -> None:
    where = ("--dir", str(mesh.directory))

    def json_of(*arguments: str) -> Any:
        return json.loads(mesh.skerry(*arguments[:2], *where, "--json", *arguments[2:]).stdout)

    assert json_of("apps", "create", "shop")["name"] == "shop"
    assert {app["name"] for app in json_of("apps", "list")["apps"]} == {APP, "shop"}
    file = tmp_path / "sleeper.json"
    file.write_text(json.dumps({"name": "one", "config": SLEEPER}))
    one = json_of("machines", "create", "shop", "--file", str(file))
    assert (one["name"], one["state"]) == ("one", "started")
    two = json_of("machines", "create", "shop", "--image", "busybox", "--skip-launch", "--", "/bin/sleep", "60")
    assert two["state"] == "created"
    assert [machine["id"] for machine in json_of("machines", "list", "shop")] == [one["id"], two["id"]]
    assert json_of("machines", "start", "shop", two["id"])["previous_state"] == "created"
    assert json_of("machines", "update", "shop", one["id"], "--env", "A=1")["config"]["env"] == {"A": "1"}
    assert json_of("machines", "restart", "shop", one["id"]) == {"ok": True}
    assert json_of("machines", "stop", "shop", one["id"], "--signal", "SIGKILL") == {"ok": True}
    stopped = json_of("machines", "get", "shop", one["id"])
    assert stopped["state"] == "stopped"
    instance = stopped["instance_id"]
    assert json_of("machines", "wait", "shop", one["id"], "--state", "stopped", "--instance-id", instance) == {
        "ok": True
    }
    kinds = [event["type"] for event in json_of("machines", "events", "shop", one["id"])]
    assert {"launch", "start", "update", "restart", "stop", "exit"} <= set(kinds)
    assert json_of("machines", "destroy", "shop", two["id"], "--force") == {"ok": True}
    assert json_of("apps", "delete", "shop") == {"ok": True}

    refused = mesh.skerry("machines", "get", APP, one["id"], *where, "--json", check=False)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "not_found" in refused.stderr
