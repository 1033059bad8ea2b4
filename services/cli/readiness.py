"""Whether the processes of a mesh are ready, seen from outside."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from skerry.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from services.cli.mesh import GATEWAY, HOST, SCHEDULER, SET, Mesh, Process
from services.runtime.registry import CALLER_KEY, SECRET_KEY

_CALL_SECONDS = 1.0
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class Probe:
    """Looks at one process until it is ready: it serves at all its doors and, if it places machines, knows all workers.

    A context manager, for it keeps connections.
    """

    def __init__(self, mesh: Mesh, process: Process) -> None:
        self._mesh = mesh
        self._process = process
        self._channels: dict[int, grpc.Channel] = {}
        self._left = list(self._questions())

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def is_ready(self) -> bool:
        """Ask what has not been answered well yet; never waits for longer than a second or so."""
        while self._left and self._left[0]():
            del self._left[0]
        return not self._left

    def _questions(self) -> Iterator[Callable[[], bool]]:
        process = self._process
        if process.is_central:
            yield lambda: _is_healthy(process.rest)
            return
        if process.service != GATEWAY:
            yield lambda: self._serves(process.internal)
        if process.has_gateway:
            yield lambda: self._serves(process.grpc)
            yield lambda: _is_healthy(process.rest)
        if process.service in (SET, SCHEDULER):
            yield self._knows_all_workers

    def _channel(self, port: int) -> grpc.Channel:
        if port not in self._channels:
            self._channels[port] = grpc.insecure_channel(f"{HOST}:{port}", options=_OPTIONS)
        return self._channels[port]

    def _serves(self, port: int) -> bool:
        health = health_pb2_grpc.HealthStub(self._channel(port))
        try:
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _knows_all_workers(self) -> bool:
        scheduler = scheduler_pb2_grpc.SchedulerStub(self._channel(self._process.internal))
        caller = f"{self._mesh.cell(self._process.region)}/cli"
        credentials = ((CALLER_KEY, caller), (SECRET_KEY, self._mesh.secret))
        try:
            answer = scheduler.Place(scheduler_pb2.PlaceRequest(limit=1), timeout=_CALL_SECONDS, metadata=credentials)
        except grpc.RpcError:
            return False
        return answer.workers >= self._mesh.workers


def _is_healthy(port: int) -> bool:
    """Whether GET /healthz answers 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_CALL_SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
