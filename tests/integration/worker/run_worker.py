"""A worker as a process of its own: DATA STORE_ADDRESS. With DIE_AT in its environment it ends there, as by kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from services.runtime import channels
from services.runtime.clock import SystemClock
from services.worker import contents, volumes
from services.worker.agent import Agent
from services.worker.drivers.fork_server import ForkServer
from services.worker.drivers.process import ProcessDriver
from services.worker.service import WorkerService, _StoreClient
from services.worker.settings import WorkerSettings


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after(owner: Any, name: str) -> Callable[[], None]:
    def arrange() -> None:
        original = getattr(owner, name)

        def then_die(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            die()

        async def then_die_async(*args: Any, **kwargs: Any) -> None:
            await original(*args, **kwargs)
            die()

        setattr(owner, name, then_die_async if asyncio.iscoroutinefunction(original) else then_die)

    return arrange


def dies_before(owner: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(owner, name, die)


POINTS: dict[str, Callable[[], None]] = {
    "the intent is in the journal": dies_before(ProcessDriver, "launch"),
    "the plan is on the disk": dies_before(ProcessDriver, "_limit"),
    "the fork was asked for": lambda: dies_after(asyncio.get_running_loop(), "sock_sendall")(),
    "the process was forked": dies_before(ForkServer, "_take"),
    "the start is in the journal": dies_before(Agent, "_attach"),
    "the report was taken": dies_after(_StoreClient, "report"),
    "the exit was seen": dies_before(Agent, "_conclude"),
    "the exit is in the journal": dies_after(Agent, "_conclude"),
    "a file is copied": dies_after(contents, "_copy_file"),
    "the snapshot is taken": dies_after(volumes, "_take_snapshot"),
    "the volume is made": dies_after(volumes.VolumeKeeper, "_make_volume"),
    "the volume was told": dies_after(_StoreClient, "report_volumes"),
    "the volume is removed": dies_after(volumes.VolumeKeeper, "_remove"),
}


async def main(data: Path, store: str) -> None:
    if point := os.environ.get("DIE_AT"):
        POINTS[point]()
    settings = WorkerSettings.model_validate(
        {
            "id": "w1",
            "capacity": {"memory_bytes": 1 << 34, "disk_bytes": 1 << 40},
            "data": data,
            "heartbeat_seconds": 0.2,
        }
    )
    channel = channels.connect([store], caller="001/worker", callee="machine-store", secret=None)
    service = WorkerService(
        channel, [settings], region="syd", cell="001", clock=SystemClock(), random=Random(), address="127.0.0.1:1"
    )
    await service.run(lambda: None)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
