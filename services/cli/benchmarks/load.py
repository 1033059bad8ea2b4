"""The load generator, a process of its own so that it shares no interpreter with what it measures.

    python -m services.cli.benchmarks.load < SPEC.json > RESULT.json

SPEC is {"targets": {name: target}, "phases": [{"targets": [name], "concurrency", "rounds", "each"}]}. In a phase, each
round drives each target in turn with `each` calls, so that what the machine does meanwhile hits all alike. RESULT is
{"phases": [{name: {"latencies_ms": […], "seconds"}}]}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import uvloop

CALL_SECONDS = 30.0


class Caller(Protocol):
    """One client: makes a call at a time."""

    async def call(self) -> None:
        """Make one call; raises when it fails."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


class GrpcCaller:
    """Creates a machine over gRPC; also how the echo is called, which speaks the same messages."""

    def __init__(self, target: dict[str, Any]) -> None:
        import grpc
        from skerry.machines.v1 import machines_pb2, machines_pb2_grpc

        self._channel = grpc.aio.insecure_channel(target["address"])
        self._call = machines_pb2_grpc.MachinesStub(self._channel).CreateMachine
        self._request = machines_pb2.CreateMachineRequest.FromString(bytes.fromhex(target["request"]))
        self._metadata = (("authorization", f"Bearer {target['token']}"),)

    async def call(self) -> None:
        await self._call(self._request, metadata=self._metadata, timeout=CALL_SECONDS)

    async def close(self) -> None:
        await self._channel.close()


class RestCaller:
    """Creates a machine over a keep-alive connection and, if the target has it so, waits for a state of it."""

    def __init__(self, target: dict[str, Any]) -> None:
        from services.cli.benchmarks.http_client import HttpConnection, request_bytes

        self._host, self._port, self._token = target["host"], target["port"], target["token"]
        self._path = target["path"]
        self._wait = target.get("wait")
        self._request_bytes = request_bytes
        self._open = HttpConnection.open
        self._request = request_bytes("POST", self._host, self._port, self._path, self._token, target["body"].encode())
        self._connection: HttpConnection | None = None

    async def call(self) -> None:
        body = await self._send(self._request)
        if self._wait:
            path = f"{self._path}/{json.loads(body)['id']}/wait?state={self._wait}&timeout=30"
            await self._send(self._request_bytes("GET", self._host, self._port, path, self._token))

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _send(self, request: bytes) -> bytes:
        if self._connection is None:
            self._connection = await self._open(self._host, self._port)
        status, body = await self._connection.request(request, CALL_SECONDS)
        if status != 200:
            raise RuntimeError(f"the server answered {status}: {body[:300]!r}")
        return body


class CommitCaller:
    """Commits one row durably."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._dsn, self._payload = target["dsn"], bytes.fromhex(target["request"])
        self._insert: Callable[..., Awaitable[Any]] | None = None
        self._connection: Any = None

    async def call(self) -> None:
        if self._insert is None:
            import asyncpg

            self._connection = await asyncpg.connect(self._dsn)
            statement = await self._connection.prepare("INSERT INTO commit_floor (payload) VALUES ($1) RETURNING id")
            self._insert = statement.fetchval
        await self._insert(self._payload, timeout=CALL_SECONDS)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


KINDS: dict[str, Callable[[dict[str, Any]], Caller]] = {
    "grpc": GrpcCaller,
    "rest": RestCaller,
    "commit": CommitCaller,
}


async def generate(spec: dict[str, Any]) -> dict[str, Any]:
    """Run the phases of SPEC one after another. Raises what the first failing call raised."""
    callers: dict[str, list[Caller]] = {name: [] for name in spec["targets"]}
    phases: list[dict[str, Any]] = []
    try:
        for phase in spec["phases"]:
            for name in phase["targets"]:
                target, idle = spec["targets"][name], callers[name]
                while len(idle) < phase["concurrency"]:
                    # One gRPC channel carries many calls; a connection of HTTP/1.1 carries one.
                    shared = target["kind"] == "grpc" and idle
                    idle.append(idle[0] if shared else KINDS[target["kind"]](target))
            phases.append(await _run_phase(phase, callers))
    finally:
        for caller in {id(caller): caller for group in callers.values() for caller in group}.values():
            await caller.close()
    return {"phases": phases}


async def _run_phase(phase: dict[str, Any], callers: dict[str, list[Caller]]) -> dict[str, Any]:
    measured = {name: {"latencies_ms": [], "seconds": 0.0} for name in phase["targets"]}
    gc.collect()
    gc.freeze()
    for _ in range(phase["rounds"]):
        for name in phase["targets"]:
            began = time.perf_counter()
            latencies = await _drive(callers[name][: phase["concurrency"]], phase["each"])
            result: Any = measured[name]
            result["seconds"] += time.perf_counter() - began
            result["latencies_ms"] += latencies
    return measured


async def _drive(group: list[Caller], calls: int) -> list[float]:
    """`calls` calls in all, each caller of `group` with one at a time; their latencies in ms."""
    left = calls
    latencies: list[float] = []

    async def drive(caller: Caller) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await caller.call()
            latencies.append((time.perf_counter() - began) * 1e3)

    if len(group) == 1:
        await drive(group[0])
        return latencies
    async with asyncio.TaskGroup() as tasks:
        for caller in group:
            tasks.create_task(drive(caller))
    return latencies


def main() -> None:
    """SPEC from stdin, RESULT to stdout; a failure is one sentence on stderr and exit code 1."""
    spec = json.load(sys.stdin)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(generate(spec))
    except* Exception as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        sys.exit(f"a call failed: {first}")
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
