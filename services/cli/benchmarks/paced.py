"""A tenant that calls at some rate, whatever the answers: a process of its own, beside what it measures.

    python -m services.cli.benchmarks.paced < SPEC.json > RESULT.json

SPEC, one line, is {"host", "port", "token", "paths", "body", "per_second", "calls", "seed"}: POSTs of `body` to `paths`
in turn, at moments that are independent of each other (a Poisson process), so that two tenants are not in step;
`calls` in all or, when that is null, until standard input ends. RESULT is {"latencies_ms": […], "answers":
{status: number}, "first_refusal"}. A latency counts from when the call was due, so that what waits for others is not
left out.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import Counter
from random import Random
from typing import Any

import uvloop

from services.cli.benchmarks.http_client import HttpConnection, request_bytes

CALL_SECONDS = 30.0
MOST_AT_ONCE = 64
"""Calls under way; one that is due while there are so many waits, and that is in its latency."""


class Tenant:
    """What SPEC says, and what became of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._host, self._port = spec["host"], spec["port"]
        body = spec["body"].encode()
        self._requests = [
            request_bytes("POST", self._host, self._port, path, spec["token"], body) for path in spec["paths"]
        ]
        self._per_second: float = spec["per_second"]
        self._random = Random(spec["seed"])
        self._calls: int | None = spec["calls"]
        self._idle: list[HttpConnection] = []
        self.latencies_ms: list[float] = []
        self.answers: Counter[int] = Counter()
        self.first_refusal = ""

    async def run(self, ended: asyncio.Event) -> None:
        """Call until all calls are made, or `ended`. Raises what the first call raises that gets no answer."""
        loop = asyncio.get_running_loop()
        under_way: set[asyncio.Task[None]] = set()
        # The loop's own time is of whole milliseconds.
        due, number = time.perf_counter(), 0
        while not (ended.is_set() if self._calls is None else number >= self._calls):
            due += self._random.expovariate(self._per_second)
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            under_way.add(loop.create_task(self._call(number, due)))
            number += 1
            done = {task for task in under_way if task.done()}
            if len(under_way) - len(done) >= MOST_AT_ONCE:
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            under_way -= done
            for task in done:
                task.result()
        await asyncio.gather(*under_way)
        for connection in self._idle:
            connection.close()

    async def _call(self, number: int, due: float) -> None:
        connection = self._idle.pop() if self._idle else await HttpConnection.open(self._host, self._port)
        request = self._requests[number % len(self._requests)]
        status, body = await connection.request(request, CALL_SECONDS)
        self._idle.append(connection)
        self.latencies_ms.append((time.perf_counter() - due) * 1e3)
        self.answers[status] += 1
        if status != 200 and not self.first_refusal:
            self.first_refusal = body[:300].decode(errors="replace")


async def _run(spec: dict[str, Any]) -> Tenant:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read_to_the_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(ended.set)

    reading = loop.run_in_executor(None, read_to_the_end)
    tenant = Tenant(spec)
    gc.collect()
    gc.freeze()
    await tenant.run(ended)
    await reading
    return tenant


def main() -> None:
    """SPEC from stdin, RESULT to stdout; a failure is one sentence on stderr and exit code 1."""
    spec = json.loads(sys.stdin.readline())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            tenant = runner.run(_run(spec))
    except Exception as error:
        sys.exit(f"a call failed: {error}")
    result = {"latencies_ms": tenant.latencies_ms, "answers": tenant.answers, "first_refusal": tenant.first_refusal}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
