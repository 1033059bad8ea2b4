"""A worker whose journal cannot be written: nothing is forgotten, and all of it is done once there is room."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.types.v1.spec_pb2 import CHECK_TYPE_TCP, RESTART_POLICY_ALWAYS, CheckSpec

from services.worker import journal
from tests.integration.worker.conftest import Workers, holders_of, leaders_of, machine_spec
from tests.integration.worker.ledger import Ledger
from tests.support import eventually

Reaches = Callable[..., Awaitable[None]]


class Disk:
    """Room for a number of lines of the journal; without one, for all."""

    def __init__(self, write: Callable[[int, bytes], None]) -> None:
        self._write = write
        self.lines: int | None = None
        self.refused = 0

    def __call__(self, fd: int, data: bytes) -> None:
        if self.lines is not None:
            if not self.lines:
                self.refused += 1
                os.write(fd, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.lines -= 1
        self._write(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(journal._write_all)
    monkeypatch.setattr(journal, "_write_all", made)
    return made


@pytest.mark.parametrize("lines", range(4))
async def test_a_machine_is_started_once_wherever_in_its_start_the_disk_was_full(
    workers: Workers, ledger: Ledger, reaches: Reaches, disk: Disk, lines: int
) -> None:
    _, working = await workers.start()
    disk.lines = lines
    machine = await ledger.create(machine_spec("sleep", "100", marker=f"full-{lines}"))
    await eventually(lambda: disk.refused > 0 or ledger.state(machine) == "started")
    disk.lines = None
    await reaches(machine, "started")
    assert len(leaders_of(f"full-{lines}")) == 1
    assert ledger.kinds(machine) == ["started"]
    assert not working.done()


@pytest.mark.parametrize("lines", range(3))
async def test_an_end_while_the_disk_is_full_is_told_and_acted_upon_once_there_is_room(
    workers: Workers, ledger: Ledger, reaches: Reaches, disk: Disk, lines: int
) -> None:
    await workers.start()
    spec = machine_spec("sleep", "100", marker=f"ends-{lines}")
    spec.restart.policy = RESTART_POLICY_ALWAYS
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    (pid,) = leaders_of(f"ends-{lines}")
    disk.lines = lines
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: disk.refused > 1)
    disk.lines = None
    await eventually(lambda: ledger.kinds(machine) == ["started", "exited", "started"])
    assert len(leaders_of(f"ends-{lines}")) == 1
    (exited,) = ledger.seen(machine, "exited")
    assert (exited.exited.exit.signal, exited.exited.exit.restarting) == (9, True)


async def test_a_machine_is_stopped_also_while_the_disk_is_full(
    workers: Workers, ledger: Ledger, reaches: Reaches, disk: Disk
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="stops"))
    await reaches(machine, "started")
    disk.lines = 0
    await ledger.stop(machine)
    await eventually(lambda: not holders_of("stops"))
    disk.lines = None
    await reaches(machine, "stopped")
    assert ledger.kinds(machine) == ["started", "exited"]
    assert ledger.seen(machine, "exited")[0].exited.exit.requested_stop


@pytest.mark.parametrize("killed", [True, False])
async def test_a_worker_comes_back_while_the_disk_is_full_and_knows_what_became_of_its_machines(
    workers: Workers, ledger: Ledger, reaches: Reaches, disk: Disk, killed: bool
) -> None:
    _, working = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker=f"back-{killed}"))
    await reaches(machine, "started")
    (pid,) = leaders_of(f"back-{killed}")
    await workers.end(working)
    if killed:
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not leaders_of(f"back-{killed}"))
    disk.lines = 0
    _, working = await workers.start()
    if killed:
        await eventually(lambda: disk.refused > 0)
        disk.lines = None
        await reaches(machine, "stopped")
    else:
        await ledger.stop(machine)
        await eventually(lambda: not holders_of(f"back-{killed}"))
        disk.lines = None
        await reaches(machine, "stopped")
    assert ledger.kinds(machine) == ["started", "exited"]
    assert not working.done()


async def test_a_check_that_changes_while_the_disk_is_full_is_told_once_there_is_room(
    workers: Workers, ledger: Ledger, reaches: Reaches, disk: Disk
) -> None:
    _, working = await workers.start()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    spec = machine_spec("sleep", "100")
    port = server.sockets[0].getsockname()[1]
    spec.checks.checks["alive"].CopyFrom(CheckSpec(type=CHECK_TYPE_TCP, port=port, interval=Duration(nanos=50_000_000)))
    machine = await ledger.create(spec)
    await reaches(machine, "started")

    def status() -> list[str]:
        return [check.status for check in ledger.records[machine].checks]

    await eventually(lambda: status() == ["passing"])
    disk.lines = 0
    server.close()
    await eventually(lambda: disk.refused > 0)
    disk.lines = None
    await eventually(lambda: status() == ["critical"])
    assert not working.done()
