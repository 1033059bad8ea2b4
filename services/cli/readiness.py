"""Whether a process of a mesh is ready, seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from skerry.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from services.cli.mesh import HOST, SCHEDULER, SET, Mesh, Process
from services.runtime.channels import connect
from services.runtime.errors import SkerryError

_POLL = 0.02
_CALL_SECONDS = 2.0
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50))


async def serves(mesh: Mesh, process: Process) -> None:
    """Return once `process` serves at all its doors and, where it places machines, knows every worker of the region."""
    for port in (process.internal, process.grpc) if process.has_gateway else (process.internal,):
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=_OPTIONS) as channel:
            await _until(partial(_is_serving, health_pb2_grpc.HealthStub(channel)))
    if process.has_gateway:
        await _until(lambda: _is_healthy(process.rest))
    if process.service in (SET, SCHEDULER):
        caller = f"{mesh.cell(process.region)}/cli"
        address = f"{HOST}:{process.internal}"
        async with connect([address], caller=caller, callee=SCHEDULER, secret=mesh.secret) as channel:
            await _until(partial(_knows_workers, scheduler_pb2_grpc.SchedulerStub(channel), mesh.workers))


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110  (what is asked is another process)
        await asyncio.sleep(_POLL)


async def _is_serving(health: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS, wait_for_ready=True)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _is_healthy(port: int) -> bool:
    """Whether GET /healthz answers 200."""
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(f"GET /healthz HTTP/1.1\r\nhost: {HOST}:{port}\r\nconnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _knows_workers(scheduler: scheduler_pb2_grpc.SchedulerAsyncStub, workers: int) -> bool:
    try:
        answer = await scheduler.Place(scheduler_pb2.PlaceRequest(limit=1), timeout=_CALL_SECONDS)
    except SkerryError:
        return False
    return bool(answer.workers >= workers)
