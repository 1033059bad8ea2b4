"""Workers that run against a store in memory, and the processes of their machines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.types.v1.spec_pb2 import RESTART_POLICY_NO, MachineSpec

from services.runtime import channels
from services.runtime.clock import SystemClock
from services.worker.drivers.shim import process_folders, stat_fields
from services.worker.service import WorkerService
from services.worker.settings import WorkerSettings
from tests.integration.worker.ledger import Ledger, Served
from tests.support import eventually

MARKER = "SKERRY_TEST_MARKER"


def machine_spec(*command: str, marker: str = "", **env: str) -> MachineSpec:
    """A machine that runs a command; its policy never restarts it, its stop waits a second."""
    spec = MachineSpec()
    spec.image.repository = "library/busybox"
    spec.init.exec.extend(command)
    spec.env.variables.update({**({MARKER: marker} if marker else {}), **env})
    spec.guest.memory_bytes = 64 << 20
    spec.restart.policy = RESTART_POLICY_NO
    spec.stop.signal = "SIGTERM"
    spec.stop.timeout.CopyFrom(Duration(seconds=1))
    return spec


def holders_of(marker: str) -> list[int]:
    """All processes whose environment has the marker."""
    return _whose_environment(lambda variables: f"{MARKER}={marker}".encode() in variables)


def leaders_of(marker: str) -> list[int]:
    """Leaders of process groups, no zombies, with the marker: what an outsider takes for the machine."""
    holders = {pid: stat_fields(f"/proc/{pid}") for pid in holders_of(marker)}
    return [pid for pid, fields in holders.items() if fields and fields[0] != b"Z" and int(fields[2]) == pid]


def heeds(marker: str, number: int) -> bool:
    """Whether a process with the marker has by now said that it catches or ignores a signal."""
    masks = []
    for pid in holders_of(marker):
        try:
            masks += re.findall(r"^Sig(?:Cgt|Ign):\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        except OSError:
            continue
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def _whose_environment(matches: Callable[[list[bytes]], bool]) -> list[int]:
    found = []
    for folder in process_folders():
        try:
            variables = Path(folder, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if matches(variables):
            found.append(int(folder.rpartition("/")[2]))
    return found


class Workers:
    """Starts workers on a folder, in this process or as one that can be killed."""

    def __init__(self, data: Path, served: Served) -> None:
        self.data = data
        self.served = served
        self._tasks: list[asyncio.Task[Any]] = []
        self._processes: list[asyncio.subprocess.Process] = []

    def settings(self, **process: Any) -> WorkerSettings:
        return WorkerSettings.model_validate(
            {
                "id": "w1",
                "zone": "a",
                "capacity": {"shared_cpu_millicores": 8000, "memory_bytes": 1 << 34, "disk_bytes": 1 << 40},
                "data": self.data,
                "process": process,
                "heartbeat_seconds": 0.2,
            }
        )

    def service(self, **process: Any) -> WorkerService:
        channel = channels.connect([self.served.address], caller="001/worker", callee="machine-store", secret=None)
        return WorkerService(
            channel,
            [self.settings(**process)],
            region="syd",
            cell="001",
            clock=SystemClock(),
            random=Random(7),
            address="127.0.0.1:1",
        )

    async def start(self, **process: Any) -> tuple[WorkerService, asyncio.Task[Any]]:
        """A worker in this process that is ready."""
        service = self.service(**process)
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready.set))
        self._tasks.append(task)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=15)
        assert ready.is_set(), task
        return service, task

    async def end(self, task: asyncio.Task[Any]) -> None:
        """End a worker as a process that is told to end does it."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def spawn(self, **options: str) -> asyncio.subprocess.Process:
        """A worker as a process of its own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("run_worker.py")),
            str(self.data),
            self.served.address,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **options},
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._processes.append(process)
        return process

    async def close(self) -> None:
        for task in self._tasks:
            await self.end(task)
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        # Nothing of a test outlives it, whatever became of its worker.
        ours = f"MACHINE_ROOT={self.data}/".encode()
        for pid in _whose_environment(lambda variables: any(one.startswith(ours) for one in variables)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served(Ledger())  # type: ignore[abstract]
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
def ledger(served: Served) -> Ledger:
    return served.ledger


@pytest.fixture
async def workers(tmp_path: Path, served: Served) -> AsyncIterator[Workers]:
    workers = Workers(tmp_path / "worker", served)
    yield workers
    await workers.close()


@pytest.fixture
def reaches(ledger: Ledger) -> Callable[..., Any]:
    """Waits until a machine is in a state."""

    async def wait(machine_id: str, state: str, seconds: float = 10.0) -> None:
        try:
            await eventually(lambda: ledger.state(machine_id) == state, seconds)
        except AssertionError:
            raise AssertionError(
                f"{machine_id} is {ledger.state(machine_id)}, not {state}; seen {ledger.seen(machine_id)}"
            ) from None

    return wait
