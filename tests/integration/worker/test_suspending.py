"""Machines that are frozen and go on: real processes, a store in memory behind real gRPC."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from skerry.store.v1.store_pb2 import DESIRED_STATE_STOPPED
from skerry.types.v1.machine_pb2 import MACHINE_STATE_STOPPED
from skerry.types.v1.spec_pb2 import RESTART_POLICY_ALWAYS

from services.worker import agent
from services.worker.drivers import process
from services.worker.drivers.driver import CannotSuspend, Run
from services.worker.drivers.process import ProcessDriver
from services.worker.drivers.shim import stat_fields
from tests.integration.worker.conftest import Workers, holders_of, leaders_of, machine_spec
from tests.integration.worker.ledger import Ledger, Served
from tests.support import eventually

Reaches = Callable[..., Awaitable[None]]


def states_of(marker: str) -> set[bytes]:
    """States of the processes with a marker, as the kernel has them: T is stopped, D stops when it has waited."""
    return {stat_fields(f"/proc/{pid}")[0] for pid in holders_of(marker)}


def times_of(marker: str) -> dict[int, tuple[bytes, ...]]:
    """Processor time that the processes with a marker have taken, by process."""
    return {pid: tuple(stat_fields(f"/proc/{pid}")[11:13]) for pid in holders_of(marker)}


def was_written_since(moment: int, path: Path) -> bool:
    """Whether a file has changed after `moment`, in unix nanoseconds."""
    return path.stat().st_mtime_ns > moment


async def suspended(
    ledger: Ledger, reaches: Reaches, marker: str, *command: str, once_there: Path | None = None
) -> str:
    """A machine that was suspended while it ran; not before its command has written the file `once_there`."""
    machine = await ledger.create(machine_spec(*(command or ("sleep", "100")), marker=marker))
    await reaches(machine, "started")
    if once_there is not None:
        await eventually(lambda: once_there.exists() and once_there.stat().st_size)
    await ledger.suspend(machine)
    await reaches(machine, "suspended")
    assert states_of(marker) <= {b"T", b"D"}
    return machine


async def test_a_suspended_machine_stands_still_with_all_its_processes_and_goes_on_where_it_was(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    out = tmp_path / "out"
    script = f"sleep 100 & n=0; while :; do n=$((n + 1)); echo $n > {out}; sleep 0.01; done"
    machine = await suspended(ledger, reaches, "frozen", "sh", "-c", script, once_there=out)
    pid, count = leaders_of("frozen"), int(out.read_text() or 0)
    await ledger.resume(machine)
    await reaches(machine, "started")
    await eventually(lambda: int(out.read_text() or 0) > count + 2)
    assert leaders_of("frozen") == pid
    assert ledger.kinds(machine) == ["started", "suspended", "started"]
    assert {seen.generation for seen in ledger.seen(machine)} == {1}


async def test_a_machine_is_suspended_with_what_has_left_its_group_and_with_all_threads(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    counts = tmp_path / "count"
    count = f"import time\nfor n in range(10**6): open({str(counts)!r}, 'w').write(str(n)); time.sleep(0.001)"
    threads = "import threading\nfor _ in range(4): threading.Thread(target=lambda: sum(iter(int, 1))).start()"
    script = f'setsid {sys.executable} -c "$COUNT" & exec {sys.executable} -c "$THREADS"'
    machine = await ledger.create(machine_spec("sh", "-c", script, marker="apart", COUNT=count, THREADS=threads))
    await reaches(machine, "started")
    await eventually(lambda: counts.exists() and len(holders_of("apart")) == 2)
    for _ in range(5):
        await ledger.suspend(machine)
        await reaches(machine, "suspended")
        frozen = times_of("apart"), counts.stat().st_mtime_ns
        await asyncio.sleep(0.05)
        assert (times_of("apart"), counts.stat().st_mtime_ns) == frozen
        await ledger.resume(machine)
        await reaches(machine, "started")
        await eventually(partial(was_written_since, frozen[1], counts))


async def test_a_machine_whose_main_process_waits_in_the_kernel_is_suspended_and_goes_on(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Whoever spawns waits by vfork until what it spawns has opened the pipe, which nobody reads.
    opens = f"[(os.POSIX_SPAWN_OPEN, 9, {str(pipe)!r}, os.O_WRONLY, 0)]"
    spawns = f"os.posix_spawn('/bin/sleep', ['sleep', '100'], os.environ, file_actions={opens})"
    script = f"import os, time; {spawns}; time.sleep(100)"
    machine = await ledger.create(machine_spec(sys.executable, "-c", script, marker="waits"))
    await reaches(machine, "started")
    await eventually(lambda: b"D" in states_of("waits"))
    await ledger.suspend(machine)
    await reaches(machine, "suspended")
    assert states_of("waits") == {b"T", b"D"}
    await ledger.resume(machine)
    await reaches(machine, "started")
    with pipe.open("rb"):
        await eventually(lambda: states_of("waits") == {b"S"})


async def test_a_machine_that_does_not_stop_in_time_runs_on_and_its_owner_is_told(
    workers: Workers, ledger: Ledger, reaches: Reaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_STAND_STILL_SECONDS", 0.02)
    monkeypatch.setattr(process, "stands_still", lambda _: False)
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="restless"))
    await reaches(machine, "started")
    await ledger.suspend(machine)
    await eventually(lambda: "not_suspended" in ledger.kinds(machine))
    await reaches(machine, "started")
    assert states_of("restless") == {b"S"}
    assert ledger.seen(machine, "not_suspended")[0].not_suspended.reason.endswith("stop the machine instead")


async def test_a_suspended_machine_stays_so_while_its_worker_is_killed_and_comes_back(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    worker = await workers.spawn()
    machine = await suspended(ledger, reaches, "outlives")
    pid = leaders_of("outlives")
    worker.kill()
    await worker.wait()
    await workers.start()
    assert leaders_of("outlives") == pid
    assert states_of("outlives") == {b"T"}
    assert ledger.state(machine) == "suspended"
    await ledger.resume(machine)
    await reaches(machine, "started")
    assert leaders_of("outlives") == pid
    assert b"T" not in states_of("outlives")


async def test_a_worker_that_does_not_hear_of_the_store_wakes_nobody(
    workers: Workers, served: Served, ledger: Ledger, reaches: Reaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_WAIT_FOR_STORE_SECONDS", 0.05)
    _, task = await workers.start()
    machine = await suspended(ledger, reaches, "asleep")
    spec = machine_spec("sleep", "100", marker="awake")
    spec.restart.policy = RESTART_POLICY_ALWAYS
    await reaches(await ledger.create(spec), "started")
    await workers.end(task)
    await served.stop()
    os.kill(leaders_of("awake")[0], signal.SIGKILL)
    await eventually(lambda: not leaders_of("awake"))
    working = asyncio.create_task(workers.service().run(lambda: None))
    try:
        # That the other one runs again shows that the worker acts on what it knows.
        await eventually(lambda: len(leaders_of("awake")) == 1)
        assert states_of("asleep") == {b"T"}
    finally:
        await workers.end(working)
    assert ledger.kinds(machine) == ["started", "suspended"]


async def test_a_suspended_machine_is_stopped_by_its_own_signal(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    ready = tmp_path / "ready"
    script = f"trap 'echo term >> {tmp_path}/out; exit 3' TERM; echo > {ready}; while :; do sleep 0.02; done"
    machine = await suspended(ledger, reaches, "polite", "sh", "-c", script, once_there=ready)
    # What is stopped while it is suspended is told to be stopped at once, and goes in peace.
    await ledger.change(machine, desired=DESIRED_STATE_STOPPED, state=MACHINE_STATE_STOPPED)
    await eventually(lambda: not holders_of("polite"))
    await eventually(lambda: bool(ledger.seen(machine, "exited")))
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert (exit.exit_code, exit.requested_stop) == (3, True)
    assert (tmp_path / "out").read_text() == "term\n"
    await ledger.start(machine)
    await reaches(machine, "started")


async def test_a_suspended_machine_that_is_killed_from_outside_has_stopped(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await suspended(ledger, reaches, "shot")
    os.kill(leaders_of("shot")[0], signal.SIGKILL)
    await reaches(machine, "stopped")
    assert ledger.kinds(machine) == ["started", "suspended", "exited"]


async def test_a_suspended_machine_is_destroyed_and_leaves_nothing_behind(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await suspended(ledger, reaches, "gone")
    await ledger.destroy(machine)
    await reaches(machine, "destroyed")
    assert not holders_of("gone")


async def test_a_driver_that_cannot_suspend_lets_the_machine_run_and_says_why(
    workers: Workers, ledger: Ledger, reaches: Reaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_driver: ProcessDriver, _run: Run) -> None:
        raise CannotSuspend("this driver cannot suspend machines: stop it instead")

    monkeypatch.setattr(ProcessDriver, "suspend", refuse)
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="cannot"))
    await reaches(machine, "started")
    await ledger.suspend(machine)
    await eventually(lambda: "not_suspended" in ledger.kinds(machine))
    await reaches(machine, "started")
    assert ledger.seen(machine, "not_suspended")[0].not_suspended.reason.endswith("stop it instead")
    assert ledger.kinds(machine) == ["started", "not_suspended"]
    await ledger.stop(machine)
    await reaches(machine, "stopped")
