"""A centre that is dead, slow or flaky for a while: a region that converts everything itself does not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from services.cli import central, processes
from services.cli.mesh import CENTRAL
from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.support import eventually

APP = "calm"
SLOW_MS = 5000
ERROR_RATE = 0.3
AT_ONCE = 4
MOST_MORE_FILES = 16
MOST_MORE_THREADS = 4
MOST_MORE_BYTES_A_MACHINE = 20_000
"""What a region remembers of a machine grows with machines: its views, its caches until they are full."""


class Use(NamedTuple):
    """What a process holds."""

    threads: int
    files: int
    resident: int


def use_of(process: psutil.Process) -> Use:
    return Use(process.num_threads(), process.num_fds(), process.memory_info().rss)


class Load:
    """Creates, updates, starts and destroys machines, several at once; `failed` are the answers that were none."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._base = mesh.endpoints["regions"]["syd"]["rest"]
        self._headers = {"authorization": f"Bearer {mesh.mesh.token}"}
        self.machines = 0
        self.requests = 0
        self.failed: list[str] = []

    async def run(self, seconds: float) -> None:
        """Go on for so long."""
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=f"{self._base}/v1/apps/{APP}", headers=self._headers, timeout=30) as http:
            await asyncio.gather(*(self._work(http, lambda: time.monotonic() < end) for _ in range(AT_ONCE)))

    async def _work(self, http: httpx.AsyncClient, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            self.machines += 1
            machine = await self._ask(http, "POST", "/machines", {"config": SLEEPER, "skip_launch": True})
            if machine is None:
                continue
            path = f"/machines/{machine['id']}"
            await self._ask(http, "POST", path, {"config": {**SLEEPER, "env": {"A": "1"}}})
            if self.machines % 10 == 0:
                await self._ask(http, "POST", f"{path}/start", {})
                await self._ask(http, "GET", f"{path}/wait?state=started&timeout=30")
            await self._ask(http, "DELETE", f"{path}?force=true")

    async def _ask(self, http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        self.requests += 1
        try:
            answer = await http.request(method, path, json=body)
        except httpx.HTTPError as error:
            self.failed.append(f"{method} {path}: {type(error).__name__}")
            return None
        if answer.is_success:
            return answer.json()
        self.failed.append(f"{method} {path}: {answer.status_code} {answer.text}")
        return None


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(6.0, id="for some seconds"),
        pytest.param(300.0, id="for five minutes", marks=pytest.mark.soak),
    ],
)
async def test_an_unwell_centre_fails_no_request_and_makes_nothing_grow(seconds: float) -> None:
    with RunningMesh("--workers", "1") as mesh:
        mesh.ok("POST", "/apps", {"name": APP})
        region = psutil.Process(mesh.pid)
        load = Load(mesh)
        await load.run(min(seconds, 30.0))

        async def unwell(what: str) -> None:
            before, machines = use_of(region), load.machines
            await load.run(seconds)
            after, made = use_of(region), load.machines - machines
            print(f"{what}: {before} -> {after} over {made} machines")
            assert load.failed == [], f"{what}: {load.failed[:3]}"
            assert after.threads <= before.threads + MOST_MORE_THREADS, what
            assert after.files <= before.files + MOST_MORE_FILES, what
            assert after.resident <= before.resident + 8e6 + made * MOST_MORE_BYTES_A_MACHINE, what

        central.fault(mesh.mesh, slow_ms=SLOW_MS)
        await unwell("slow")
        central.fault(mesh.mesh, slow_ms=0, error_rate=ERROR_RATE)
        await unwell("flaky")
        alive = processes.running(mesh.mesh)
        processes.kill([alive[process] for process in mesh.mesh.processes(CENTRAL)])
        await unwell("dead")
        mesh.up()
        await eventually(lambda: mesh.request("POST", "/apps", {"name": "back"}).is_success, seconds=60)
