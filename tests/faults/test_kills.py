"""Machines are created while the processes of the region are killed in turn, and come back."""

from __future__ import annotations

import asyncio
import os
from functools import partial

import pytest

from services.cli.mesh import Mesh
from tests.e2e.meshes import RunningMesh, kill_9, running_with
from tests.faults.audit import assert_each_exists_once, assert_each_runs_once, assert_reservations_add_up, read_books
from tests.faults.creators import Creators
from tests.support import eventually

APP = "faults"
SETTLED_SECONDS = 30.0
POSTGRESQL = "postgresql"


class ApartMesh(RunningMesh):
    """Every service in a process of its own."""

    def up(self, *options: str) -> None:
        if not (self.directory / "mesh.json").exists():
            Mesh.prepare(self.directory, regions=[self.regions], apart=True)
        super().up(*options)


def victims(mesh: Mesh) -> list[str]:
    return [process.name for process in mesh.processes("syd")] + [POSTGRESQL]


def kill(mesh: RunningMesh, victim: str) -> None:
    if victim == POSTGRESQL:
        kill_9(mesh.postmaster())
        return
    mesh.kill(next(process for process in mesh.mesh.processes("syd") if process.name == victim))


def has_come(creators: Creators, due: int, creating: asyncio.Task[None]) -> bool:
    """Whether `due` machines are acknowledged, or none comes any more."""
    return len(creators.acknowledged) >= due or creating.done()


@pytest.mark.parametrize(
    ("machines", "rounds", "pause"),
    [
        pytest.param(100, 1, 0.2, id="a hundred machines"),
        pytest.param(1000, 3, 0.1, id="a thousand machines", marks=pytest.mark.soak),
    ],
)
async def test_machines_created_while_every_process_is_killed_in_turn_all_exist_and_run_exactly_once(
    machines: int, rounds: int, pause: float
) -> None:
    marker = f"KILLS_{os.getpid()}"
    with ApartMesh() as mesh:
        mesh.ok("POST", "/apps", {"name": APP})
        endpoints = mesh.endpoints
        creators = Creators(endpoints["regions"]["syd"]["rest"], endpoints["token"], APP, marker=marker)
        order = victims(mesh.mesh) * rounds
        creating = asyncio.create_task(creators.create(machines, pause=pause))
        try:
            for turn, victim in enumerate(order):
                due = machines * turn // len(order)
                await eventually(partial(has_come, creators, due, creating), seconds=60)
                kill(mesh, victim)
                await asyncio.to_thread(mesh.up)
            await asyncio.wait_for(creating, 120)
        finally:
            creating.cancel()
        assert creators.unanswered > 0, "the kills hit nothing"
        assert len(creators.acknowledged) == machines

        async def holds() -> bool:
            books = await read_books(mesh.mesh)
            assert_each_exists_once(books, creators.acknowledged)
            assert_reservations_add_up(books)
            assert_each_runs_once(books, marker)
            return True

        await eventually(holds, seconds=SETTLED_SECONDS)

        mesh.ok("DELETE", f"/apps/{APP}")
        await eventually(lambda: not running_with(marker), seconds=SETTLED_SECONDS)

        async def released() -> bool:
            books = await read_books(mesh.mesh)
            assert books.machines == ()
            assert_reservations_add_up(books)
            return True

        await eventually(released, seconds=SETTLED_SECONDS)
