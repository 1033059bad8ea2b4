"""A worker as a process of its own: DATA STORE_ADDRESS."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from random import Random

from services.runtime import channels
from services.runtime.clock import SystemClock
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings


async def main(data: Path, store: str) -> None:
    settings = WorkerSettings.model_validate(
        {"id": "w1", "capacity": {"memory_bytes": 1 << 34}, "data": data, "heartbeat_seconds": 0.2}
    )
    channel = channels.connect([store], caller="001/worker", callee="machine-store", secret=None)
    service = WorkerService(
        channel, [settings], region="syd", cell="001", clock=SystemClock(), random=Random(), address="127.0.0.1:1"
    )
    await service.run(lambda: None)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
