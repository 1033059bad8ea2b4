"""Many clients that wait, as one process: `python waiting_clients.py ADDRESS TOKEN`.

It reads a line of JSON for each machine, {"app", "id", "version", "waiters"}, and begins to wait; for each waiter that
woke it writes a line {"id", "at"}, with the moment in unix seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import grpc
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.machines_pb2_grpc import MachinesStub

CHANNELS = 8


async def main(address: str, token: str) -> None:
    # Channels that are to have connections of their own must not share their settings.
    channels = [grpc.aio.insecure_channel(address, options=[("skerry.client", n)]) for n in range(CHANNELS)]
    stubs = itertools.cycle([MachinesStub(channel) for channel in channels])
    bearer = (("authorization", f"Bearer {token}"),)

    async def wait(machine: dict[str, Any], stub: Any) -> None:
        request = api.WaitMachineRequest(
            app_name=machine["app"], machine_id=machine["id"], state=["stopped"], version=machine["version"]
        )
        await stub.WaitMachine(request, timeout=120, metadata=bearer)
        print(json.dumps({"id": machine["id"], "at": time.time()}), flush=True)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as waiters:
        async for line in lines:
            machine = json.loads(line)
            for _ in range(machine["waiters"]):
                waiters.create_task(wait(machine, next(stubs)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
