"""Several sets on a region's one PostgreSQL: any of them serves any request."""

from __future__ import annotations

import json
import os
from functools import partial

from tests.e2e.meshes import SLEEPER, RunningMesh, kill_9, running_with
from tests.support import eventually

MACHINES = "/apps/sets/machines"


def creates_through(mesh: RunningMesh, door: int) -> bool:
    return mesh.request("POST", MACHINES, {"config": SLEEPER, "skip_launch": True}, door=door).is_success


def lists_through(mesh: RunningMesh, door: int) -> bool:
    return mesh.request("GET", MACHINES, door=door).is_success


async def test_two_sets_serve_one_region_and_one_takes_over_when_the_owner_of_postgresql_is_killed() -> None:
    marker = f"SETS_{os.getpid()}"
    with RunningMesh("--sets", "2", "--workers", "1") as mesh:
        sets = mesh.endpoints["regions"]["syd"]["sets"]
        assert len(sets) == 2
        mesh.ok("POST", "/apps", {"name": "sets"}, door=0)
        made = [
            mesh.ok("POST", MACHINES, {"config": {**SLEEPER, "env": {marker: str(number)}}}, door=number % 2)
            for number in range(4)
        ]
        for number, machine in enumerate(made):
            other = mesh.ok("GET", f"{MACHINES}/{machine['id']}", door=(number + 1) % 2)
            assert other["instance_id"] == machine["instance_id"], "a create is read through any set at once"
            mesh.ok("GET", f"{MACHINES}/{machine['id']}/wait?state=started&timeout=20", door=(number + 1) % 2)
        assert {value: len(pids) for value, pids in running_with(marker).items()} == {str(n): 1 for n in range(4)}

        # Both, one after the other: one of them is the owner of PostgreSQL.
        for killed, alive in ((0, 1), (1, 0)):
            kill_9(mesh.endpoints["regions"]["syd"]["sets"][killed]["pid"])
            await eventually(partial(creates_through, mesh, alive), seconds=20)
            assert json.loads(mesh.skerry("machines", "list", "sets", "--dir", str(mesh.directory), "--json").stdout)
            kill_9(mesh.postmaster())
            await eventually(partial(lists_through, mesh, alive), seconds=20)
            mesh.up()
        assert {value: len(pids) for value, pids in running_with(marker).items()} == {str(n): 1 for n in range(4)}
        states = [machine["state"] for machine in mesh.ok("GET", MACHINES)]
        assert states.count("started") == 4
