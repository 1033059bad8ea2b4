"""What is killed, cut off or forged, and what must come of it: nothing runs twice, no exit is lost or told twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from skerry.types.v1.spec_pb2 import RESTART_POLICY_ON_FAILURE

from services.worker import agent
from services.worker.drivers.shim import start_time, stat_fields
from services.worker.service import WorkerService
from tests.integration.worker.conftest import Workers, heeds, holders_of, leaders_of, machine_spec
from tests.integration.worker.ledger import Ledger, Served
from tests.support import eventually

Reaches = Callable[..., Awaitable[None]]

START_POINTS = (
    "the intent is in the journal",
    "the plan is on the disk",
    "the fork was asked for",
    "the process was forked",
    "the start is in the journal",
    "the report was taken",
)
EXIT_POINTS = ("the exit was seen", "the exit is in the journal", "the report was taken")


@pytest.mark.parametrize("point", START_POINTS)
async def test_a_worker_that_is_killed_while_it_starts_a_machine_starts_it_once(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path, point: str
) -> None:
    starts = tmp_path / "starts"
    machine = await ledger.create(machine_spec("sh", "-c", f"echo $$ >> {starts}; exec sleep 100", marker=point))
    first = await workers.spawn(DIE_AT=point)
    assert await asyncio.wait_for(first.wait(), 15) == -signal.SIGKILL
    await workers.spawn()
    await reaches(machine, "started")
    await eventually(starts.exists)
    assert len(leaders_of(point)) == 1
    assert starts.read_text().split() == [str(leaders_of(point)[0])]
    assert ledger.kinds(machine) == ["started"]


@pytest.mark.parametrize("point", EXIT_POINTS)
async def test_a_worker_that_is_killed_while_a_machine_ends_tells_its_exit_once(
    workers: Workers, ledger: Ledger, reaches: Reaches, point: str
) -> None:
    machine = await ledger.create(machine_spec("sh", "-c", "sleep 0.2; exit 5"))
    first = await workers.spawn(DIE_AT=point)
    assert await asyncio.wait_for(first.wait(), 15) == -signal.SIGKILL
    await workers.spawn()
    await reaches(machine, "stopped")
    # Whatever would be told twice has been told before this one.
    other = await ledger.create(machine_spec("sleep", "100", marker="other"))
    await reaches(other, "started")
    assert ledger.kinds(machine) == ["started", "exited"]
    assert ledger.seen(machine, "exited")[0].exited.exit.exit_code == 5


async def test_a_restarted_worker_adopts_what_runs(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    first = await workers.spawn()
    machine = await ledger.create(machine_spec("sleep", "100", marker="adopted"))
    await reaches(machine, "started")
    before = leaders_of("adopted")
    first.kill()
    await first.wait()
    assert leaders_of("adopted") == before
    await workers.start()
    assert leaders_of("adopted") == before
    assert ledger.kinds(machine) == ["started"]
    await ledger.destroy(machine)
    await reaches(machine, "destroyed")
    assert not leaders_of("adopted")


async def test_an_exit_while_no_worker_watches_is_told_once_by_the_next(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    _, task = await workers.start()
    machine = await ledger.create(
        machine_spec("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.02; done", marker="alone")
    )
    await reaches(machine, "started")
    await eventually(lambda: heeds("alone", signal.SIGTERM))
    await workers.end(task)
    os.kill(leaders_of("alone")[0], signal.SIGTERM)
    await eventually(lambda: not leaders_of("alone"))
    await workers.start()
    await reaches(machine, "stopped")
    assert ledger.kinds(machine) == ["started", "exited"]
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert (exit.exit_code, exit.requested_stop) == (9, False)


async def test_a_machine_outlives_its_shim_and_its_end_is_then_of_unknown_status(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="shimless"))
    await reaches(machine, "started")
    pid = leaders_of("shimless")[0]
    os.kill(_parent(pid), signal.SIGKILL)
    await eventually(lambda: _parent(pid) == 1 or stat_fields(f"/proc/{_parent(pid)}")[:1] != [b"Z"])
    assert leaders_of("shimless") == [pid]
    assert ledger.kinds(machine) == ["started"]
    os.kill(pid, signal.SIGKILL)
    await reaches(machine, "stopped")
    assert ledger.seen(machine, "exited")[0].exited.exit.exit_code == -1


async def test_without_its_fork_server_a_worker_makes_another(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="before"))
    await reaches(machine, "started")
    server = _fork_server_of(leaders_of("before")[0])
    os.kill(server, signal.SIGKILL)
    later = await ledger.create(machine_spec("sleep", "100", marker="after"))
    await reaches(later, "started")
    assert len(leaders_of("before")) == 1
    assert len(leaders_of("after")) == 1
    assert ledger.kinds(machine) == ["started"]


async def test_a_fork_server_that_is_killed_with_a_request_in_its_hands_starts_nothing_twice(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    starts = tmp_path / "starts"
    first = await ledger.create(machine_spec("sleep", "100", marker="first"))
    await reaches(first, "started")
    server = _fork_server_of(leaders_of("first")[0])
    os.kill(server, signal.SIGSTOP)
    machine = await ledger.create(machine_spec("sh", "-c", f"echo >> {starts}; exec sleep 100", marker="in-hand"))
    await eventually(lambda: list((workers.data / "machines" / machine / "run").glob("*.plan")))
    os.kill(server, signal.SIGKILL)
    await reaches(machine, "started")
    await eventually(starts.exists)
    assert starts.read_text() == "\n"
    assert len(leaders_of("in-hand")) == 1


async def test_a_process_that_got_the_number_of_a_machines_process_is_not_taken_for_it(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    _, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="original"))
    await reaches(machine, "started")
    await workers.end(task)
    pid = leaders_of("original")[0]
    shim = _parent(pid)
    os.kill(shim, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not start_time(pid) and not start_time(shim))
    stranger = await asyncio.create_subprocess_exec("sleep", "100", start_new_session=True)
    try:
        for state in (workers.data / "machines" / machine / "run").glob("*.state"):
            content = json.loads(state.read_text())
            state.write_text(json.dumps({**content, "pid": stranger.pid, "shim": stranger.pid}))
        await workers.start()
        await reaches(machine, "stopped")
        assert ledger.seen(machine, "exited")[0].exited.exit.exit_code == -1
        await ledger.destroy(machine)
        await reaches(machine, "destroyed")
        assert stranger.returncode is None
        assert start_time(stranger.pid)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_after_a_boot_of_the_host_machines_start_again_without_an_exit(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    _, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="rebooted"))
    await reaches(machine, "started")
    await workers.end(task)
    pid = leaders_of("rebooted")[0]
    shim = _parent(pid)
    os.kill(shim, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not start_time(pid) and not start_time(shim))
    for state in (workers.data / "machines" / machine / "run").glob("*.state"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "boot": "another"}))
    await workers.start()
    await eventually(lambda: leaders_of("rebooted"))
    assert "exited" not in ledger.kinds(machine)


async def test_a_worker_that_lost_its_journal_finds_its_machines_by_what_lies_on_the_disk(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    _, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="found"))
    await reaches(machine, "started")
    before = leaders_of("found")
    await workers.end(task)
    (workers.data / "journal").unlink()
    await workers.start()
    other = await ledger.create(machine_spec("sleep", "100", marker="after-found"))
    await reaches(other, "started")
    assert leaders_of("found") == before
    assert len(ledger.journals) == 2


async def test_a_report_whose_answer_is_lost_takes_effect_once(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    ledger.lose_acknowledgements = 3
    await workers.start()
    machine = await ledger.create(machine_spec("sh", "-c", "exit 3"))
    await reaches(machine, "stopped")
    await eventually(lambda: ledger.lose_acknowledgements == 0)
    assert ledger.kinds(machine) == ["started", "exited"]


async def test_while_the_store_is_away_machines_go_on_and_everything_is_told_afterwards(
    workers: Workers, ledger: Ledger, served: Served, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    spec = machine_spec("sh", "-c", f"echo >> {tmp_path}/starts; sleep 0.1; exit 1")
    spec.restart.policy, spec.restart.max_retries = RESTART_POLICY_ON_FAILURE, 1
    machine = await ledger.create(spec)
    steady = await ledger.create(machine_spec("sleep", "100", marker="steady"))
    await reaches(steady, "started")
    await reaches(machine, "started")
    await served.stop()
    await eventually(lambda: (tmp_path / "starts").read_text() == "\n\n", 15)
    assert len(leaders_of("steady")) == 1
    await served.start()
    await reaches(machine, "stopped", 20)
    assert ledger.kinds(machine) == ["started", "exited", "started", "exited"]
    assert ledger.kinds(steady) == ["started"]


async def test_a_store_that_was_set_back_is_told_again(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    _, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="set-back"))
    await reaches(machine, "started")
    await workers.end(task)
    for journal in ledger.journals:
        ledger.journals[journal] = 0
    await workers.start()
    other = await ledger.create(machine_spec("sleep", "100", marker="after-set-back"))
    await reaches(other, "started")
    assert len(ledger.journals) == 2, "what is numbered from 1 again is another journal's"


async def test_a_machine_that_the_store_no_longer_has_here_is_cleaned_up(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    _, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="unknown"))
    await reaches(machine, "started")
    await workers.end(task)
    del ledger.records[machine]
    await workers.start()
    await eventually(lambda: not (workers.data / "machines" / machine).exists())
    assert not leaders_of("unknown")


@pytest.mark.parametrize("running", [True, False])
async def test_machines_that_went_down_with_their_worker_come_back_with_it_without_an_exit(
    workers: Workers, ledger: Ledger, reaches: Reaches, running: bool
) -> None:
    service, task = await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="down"))
    deaf = await ledger.create(
        machine_spec("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", marker="down-deaf")
    )
    await reaches(machine, "started")
    await reaches(deaf, "started")
    await eventually(lambda: heeds("down-deaf", signal.SIGTERM))
    if not running:
        await workers.end(task)
        service = workers.service()
    await service.stop_machines(0.5)
    assert not holders_of("down")
    assert not holders_of("down-deaf")
    if running:
        await workers.end(task)
    await workers.start()
    await eventually(lambda: leaders_of("down") and leaders_of("down-deaf"))
    assert "exited" not in ledger.kinds(machine) + ledger.kinds(deaf)
    assert {seen.generation for seen in ledger.seen(machine)} == {1}
    assert ledger.state(machine) == "started"


async def test_two_workers_never_share_their_data(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_LOCK_SECONDS", 0.2)
    await workers.start()
    second: WorkerService = workers.service()
    with pytest.raises(Exception, match="background task"):
        await second.run(lambda: None)
    with pytest.raises(agent.DataInUse, match="another process works on"):
        await second.stop_machines(1)


def _parent(pid: int) -> int:
    fields = stat_fields(f"/proc/{pid}")
    return int(fields[1]) if fields else 0


def _fork_server_of(pid: int) -> int:
    return _parent(_parent(pid))


async def test_a_worker_that_is_killed_at_random_again_and_again_neither_doubles_nor_loses_anything(
    workers: Workers, ledger: Ledger, tmp_path: Path
) -> None:
    random = Random(11)
    starts = tmp_path / "starts"
    starts.mkdir()

    def count(name: str) -> str:
        return f"echo >> {starts}/{name}"

    ends, stays = [], []
    for round in range(8):
        worker = await workers.spawn()
        for number in range(5):
            name = f"{round}-{number}"
            nap = random.uniform(0.0, 0.6)
            ends.append(
                (name, await ledger.create(machine_spec("sh", "-c", f"{count(name)}; sleep {nap:.2f}; exit 3")))
            )
            marker = f"stays-{name}"
            spec = machine_spec("sh", "-c", f"{count(marker)}; exec sleep 100", marker=marker)
            stays.append((marker, await ledger.create(spec)))
        await asyncio.sleep(random.uniform(0.3, 0.9))
        worker.kill()
        await worker.wait()
    await workers.start()
    await eventually(lambda: all(ledger.state(machine) == "stopped" for _, machine in ends), 30)
    await eventually(lambda: all(ledger.state(machine) == "started" for _, machine in stays), 30)
    for name, machine in ends:
        assert ledger.kinds(machine) == ["started", "exited"], name
        assert ledger.seen(machine, "exited")[0].exited.exit.exit_code == 3
        assert (starts / name).read_text() == "\n"
    for marker, machine in stays:
        assert ledger.kinds(machine) == ["started"], marker
        assert len(leaders_of(marker)) == 1
        assert (starts / marker).read_text() == "\n"
