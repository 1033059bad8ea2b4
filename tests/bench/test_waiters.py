"""Ten thousand clients wait for machines of one region: what each costs it, and how soon they are woken."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from functools import partial
from pathlib import Path

from skerry.store.v1 import store_pb2 as store

from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion, region

WAITERS = 10_000
MACHINES = 1_000
PER_MACHINE = WAITERS // MACHINES
AT_ONCE = 20
"""Machines whose waiters begin at the same time: what is measured is waiting, not its beginning."""
WOKEN = 50
"""Machines that are stopped, one after the other."""
MOST_BYTES = 64 * 1024
"""Of the region's process for each waiter."""
MOST_SECONDS = 0.02
"""From the event to the client's knowing of it, in the median."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


async def test_ten_thousand_waiters_are_cheap_and_woken_at_once(postgres: str) -> None:
    async with region(postgres) as serving:
        app = await serving.app()
        made = [await serving.machine(app) for _ in range(MACHINES)]
        before = resident_bytes()
        clients = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("waiting_clients.py")),
            serving.grpc_address,
            TOKEN,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            assert clients.stdin is not None
            assert clients.stdout is not None
            for start in range(0, MACHINES, AT_ONCE):
                for machine in made[start : start + AT_ONCE]:
                    line = {"app": app, "id": machine["id"], "version": machine["instance_id"], "waiters": PER_MACHINE}
                    clients.stdin.write(json.dumps(line).encode() + b"\n")
                waiting = (start + AT_ONCE) * PER_MACHINE
                await eventually(partial(_are_waiting, serving, waiting), seconds=30)
            each = (resident_bytes() - before) / WAITERS
            late = [
                seconds for machine in made[:WOKEN] for seconds in await _wake(serving, machine["id"], clients.stdout)
            ]
            assert len(late) == WOKEN * PER_MACHINE
        finally:
            if clients.returncode is None:
                clients.kill()
            await clients.wait()
    late.sort()
    print(
        f"{WAITERS} waiters: {each / 1024:.1f} KiB each; woken after {statistics.median(late) * 1000:.1f} ms (p50), "
        f"{late[len(late) * 99 // 100] * 1000:.1f} ms (p99)"
    )
    assert each < MOST_BYTES
    assert statistics.median(late) < MOST_SECONDS


def _are_waiting(serving: TestRegion, number: int) -> bool:
    return serving.gateway.waiting == number


async def _wake(serving: TestRegion, machine_id: str, woken: asyncio.StreamReader) -> list[float]:
    """Stop a machine; how late its waiters were, in seconds."""
    request = store.ApplyVerbRequest(machine_id=machine_id, verb=store.VERB_STOP, source="user")
    stopped = await serving.store.ApplyVerb(request)
    at = stopped.machine.updated_at.ToNanoseconds() / 1e9
    lines = [json.loads(await woken.readline()) for _ in range(PER_MACHINE)]
    assert {line["id"] for line in lines} == {machine_id}
    return [line["at"] - at for line in lines]
