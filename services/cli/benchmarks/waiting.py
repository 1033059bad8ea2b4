"""What it costs a region to let many wait at once, and how soon they hear.

Most of them wait for one machine, and are woken together at the end. Before that, while they wait, machines with one
waiter each change one after another: that is how soon a waiter hears of an event.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import grpc
import psutil
import uvloop
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.machines_pb2_grpc import MachinesStub

from services.cli import processes
from services.cli.benchmarks import bed
from services.cli.benchmarks.http_client import HttpConnection, request_bytes
from services.cli.benchmarks.statistics import quantile
from services.cli.console import CommandError
from services.cli.mesh import HOST, Mesh
from services.cli.rest import Api

SINGLES = 100
"""Machines with one waiter each."""
AT_ONCE = 200
"""Waits that are begun together; the next ones follow when the server has answered something after them."""
WAIT_SECONDS = 60
_SPARE_FILES = 500
_QUIET_PERCENT = 15.0
_LONGEST_SETTLING = 30.0

Wait = Callable[[str, str], Coroutine[Any, Any, float]]
"""Waits for a machine (its id and version) to be stopped; returns when it heard of it, in unix seconds."""


def bench_waiters(waiters: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Kilobytes of the region's memory a waiter, and the latency of waking in ms, over gRPC and over REST.

    `wake` is the latency of one waiter of one machine while `waiters` others wait, `herd` that of all of them when they
    wait for the same machine: both from the commit of the change. Raises CommandError.
    """
    _allow_files(waiters)
    runs: list[dict[str, Any]] = []
    for via, opened in (("grpc", _grpc_waits), ("rest", _rest_waits)):
        with bed.temporary_folder() as folder:
            tell("starting a set")
            with bed.mesh_in(folder) as mesh:
                tell(f"letting {waiters} wait over {via}")
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(_measure(mesh, Api.of(folder, bed.REGION), waiters, opened, run := {"via": via}))
                runs.append(run)
    return {"waiters": waiters, "runs": runs}


def _allow_files(waiters: int) -> None:
    """Have as many files open as there are waiters, here and in what is started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = waiters + _SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CommandError(f"{waiters} waiters need {needed} open files, and {hard} are allowed (ulimit -Hn)")
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _measure(
    mesh: Mesh,
    rest: Api,
    waiters: int,
    open_waits: Callable[[Mesh, AsyncExitStack], Wait],
    run: dict[str, Any],
) -> None:
    herd, *singles = _machines(rest, SINGLES + 1)
    server = psutil.Process(processes.running(mesh)[bed.door(mesh)])
    async with AsyncExitStack() as stack:
        wait = open_waits(mesh, stack)
        # What comes with the first requests is not what a waiter costs.
        await _wake([await _wait_for(wait, singles.pop())], rest)
        await _quiet(server)
        before = server.memory_info().rss
        waiting: list[asyncio.Task[float]] = []
        while len(waiting) < waiters:
            some = min(AT_ONCE, waiters - len(waiting))
            waiting += [asyncio.create_task(wait(herd["id"], herd["instance_id"])) for _ in range(some)]
            await asyncio.sleep(0)
            # gRPC turns calls away that come faster than a server takes them.
            await asyncio.to_thread(rest.call, "GET", "apps", bed.APP, "machines", herd["id"])
        await _quiet(server)
        run["kb_per_waiter"] = round((server.memory_info().rss - before) / waiters / 1024, 2)
        wake = [latency for single in singles for latency in await _wake([await _wait_for(wait, single)], rest)]
        changed = await _stop(rest, herd["id"])
        heard = await asyncio.gather(*waiting)
    run |= {f"wake_{name}": value for name, value in _figures(wake).items()}
    run |= {f"herd_{name}": value for name, value in _figures([(at - changed) * 1e3 for at in heard]).items()}


async def _wait_for(wait: Wait, machine: dict[str, Any]) -> tuple[dict[str, Any], asyncio.Task[float]]:
    task = asyncio.create_task(wait(machine["id"], machine["instance_id"]))
    # It has to be waiting when its machine changes.
    await asyncio.sleep(0.02)
    return machine, task


async def _wake(waiting: Sequence[tuple[dict[str, Any], asyncio.Task[float]]], rest: Api) -> list[float]:
    """Stop the machines; how long after that each waiter heard of it, in ms."""
    latencies = []
    for machine, task in waiting:
        changed = await _stop(rest, machine["id"])
        latencies.append((await task - changed) * 1e3)
    return latencies


async def _stop(rest: Api, machine_id: str) -> float:
    """Stop a machine that was never started, which is done at once; the moment of the change, in unix seconds."""
    path = ("apps", bed.APP, "machines", machine_id)
    await asyncio.to_thread(rest.call, "POST", *path, "stop", body={})
    machine = await asyncio.to_thread(rest.call, "GET", *path)
    return datetime.fromisoformat(machine["updated_at"]).timestamp()


def _machines(rest: Api, count: int) -> list[dict[str, Any]]:
    machines: list[dict[str, Any]] = []
    config = {"image": "docker.io/library/busybox:1"}
    while len(machines) < count:
        body = {"config": config, "skip_launch": True, "count": min(100, max(2, count - len(machines)))}
        machines += rest.call("POST", "apps", bed.APP, "machines", body=body)
    return machines[:count]


async def _quiet(server: psutil.Process) -> None:
    """Wait until the server has taken in what was sent."""
    ends = time.monotonic() + _LONGEST_SETTLING
    server.cpu_percent()
    while time.monotonic() < ends:
        await asyncio.sleep(0.5)
        if server.cpu_percent() < _QUIET_PERCENT:
            return


def _figures(latencies_ms: Sequence[float]) -> dict[str, float]:
    return {
        "p50_ms": round(quantile(latencies_ms, 0.5), 2),
        "p99_ms": round(quantile(latencies_ms, 0.99), 2),
    }


def _grpc_waits(mesh: Mesh, stack: AsyncExitStack) -> Wait:
    channel = grpc.aio.insecure_channel(f"{HOST}:{bed.door(mesh).grpc}")
    stack.push_async_callback(channel.close)
    stub: Any = MachinesStub(channel)
    metadata = (("authorization", f"Bearer {mesh.token}"),)

    async def wait(machine_id: str, version: str) -> float:
        request = api.WaitMachineRequest(
            app_name=bed.APP, machine_id=machine_id, state=["stopped"], version=version, timeout=f"{WAIT_SECONDS}s"
        )
        await stub.WaitMachine(request, metadata=metadata, timeout=WAIT_SECONDS + 5)
        return time.time()

    return wait


def _rest_waits(mesh: Mesh, stack: AsyncExitStack) -> Wait:
    port = bed.door(mesh).rest

    async def wait(machine_id: str, version: str) -> float:
        connection = await HttpConnection.open(HOST, port)
        stack.callback(connection.close)
        query = f"state=stopped&version={version}&timeout={WAIT_SECONDS}"
        path = f"/v1/apps/{bed.APP}/machines/{machine_id}/wait?{query}"
        status, body = await connection.request(request_bytes("GET", HOST, port, path, mesh.token), WAIT_SECONDS + 5)
        heard = time.time()
        if status != 200:
            raise CommandError(f"a wait was answered {status}: {body[:300]!r}")
        return heard

    return wait
