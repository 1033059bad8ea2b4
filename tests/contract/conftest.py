"""A region whose machines really run, one for all tests of a module."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from services.worker.drivers.shim import process_folders
from services.worker.settings import WorkerSettings
from tests.support_gateway import GIB, TestRegion
from tests.support_gateway import region as new_region

ROOM = {"shared_cpu_millicores": 64_000, "memory_bytes": 64 * GIB, "disk_bytes": 1000 * GIB}
"""What each of the workers has that run machines."""


def workers_below(data: Path) -> list[WorkerSettings]:
    """Two workers, in two zones."""
    return [
        WorkerSettings.model_validate({"id": f"w{zone}", "zone": zone, "capacity": ROOM, "data": data / zone})
        for zone in ("a", "b")
    ]


def kill_machines_below(data: Path) -> None:
    """Nothing of a test outlives it, whatever became of its worker."""
    mark = f"MACHINE_ROOT={data}/".encode()
    for folder in process_folders():
        try:
            variables = Path(folder, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(variable.startswith(mark) for variable in variables):
            os.kill(int(folder.rpartition("/")[2]), signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lively_region(postgres: str) -> AsyncIterator[TestRegion]:
    """A region that serves, with two workers that run machines, and one that only says so."""
    with tempfile.TemporaryDirectory(prefix="skerry-", ignore_cleanup_errors=True) as folder:
        try:
            async with new_region(postgres, workers=workers_below(Path(folder))) as serving:
                yield serving
        finally:
            kill_machines_below(Path(folder))
