"""A machine's life on a worker: real processes, a store in memory behind real gRPC."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.store_pb2 import StopOverride
from skerry.types.v1.machine_pb2 import MACHINE_STATE_CREATED
from skerry.types.v1.spec_pb2 import RESTART_POLICY_ALWAYS, RESTART_POLICY_ON_FAILURE

from tests.integration.worker.conftest import Workers, heeds, holders_of, leaders_of, machine_spec
from tests.integration.worker.ledger import Ledger
from tests.support import eventually

Reaches = Callable[..., Awaitable[None]]


async def test_a_machine_that_is_assigned_runs_as_one_process_group(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="assigned"))
    await reaches(machine, "started")
    assert len(leaders_of("assigned")) == 1
    assert holders_of("assigned") == leaders_of("assigned"), "neither shim nor fork server have its environment"
    assert ledger.kinds(machine) == ["started"]


async def test_a_destroyed_machine_leaves_nothing_behind(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="destroyed"))
    await reaches(machine, "started")
    await ledger.destroy(machine)
    await reaches(machine, "destroyed")
    assert not leaders_of("destroyed")
    assert not (workers.data / "machines" / machine).exists()
    assert ledger.kinds(machine) == ["started", "exited", "destroyed"]


async def test_a_machine_is_stopped_by_its_signal_and_started_again(
    workers: Workers, ledger: Ledger, reaches: Reaches, tmp_path: Path
) -> None:
    await workers.start()
    script = f"trap 'echo term >> {tmp_path}/out; exit 3' TERM; while :; do sleep 0.02; done"
    machine = await ledger.create(machine_spec("sh", "-c", script, marker="stopped"))
    await reaches(machine, "started")
    await eventually(lambda: heeds("stopped", signal.SIGTERM))
    await ledger.stop(machine)
    await reaches(machine, "stopped")
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert (exit.exit_code, exit.requested_stop, exit.restarting) == (3, True, False)
    assert (tmp_path / "out").read_text() == "term\n"
    await ledger.start(machine)
    await reaches(machine, "started")
    assert len(leaders_of("stopped")) == 1
    assert [seen.generation for seen in ledger.seen(machine)] == [1, 1, 2]


async def test_a_machine_that_ignores_its_signal_is_killed_after_the_timeout(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", marker="deaf"))
    await reaches(machine, "started")
    await eventually(lambda: heeds("deaf", signal.SIGTERM))
    await ledger.stop(machine, StopOverride(timeout=Duration(nanos=200_000_000)))
    await reaches(machine, "stopped", 5)
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert (exit.exit_code, exit.signal, exit.requested_stop) == (137, 9, True)
    assert not holders_of("deaf")


async def test_a_second_stop_with_a_shorter_timeout_does_not_wait_for_the_first(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", marker="twice"))
    await reaches(machine, "started")
    await eventually(lambda: heeds("twice", signal.SIGTERM))
    await ledger.stop(machine, StopOverride(timeout=Duration(seconds=3600)))
    await ledger.stop(machine, StopOverride(timeout=Duration(nanos=100_000_000)))
    await reaches(machine, "stopped", 5)


async def test_a_restart_ends_the_old_process_before_the_new_one_begins(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="restarted"))
    await reaches(machine, "started")
    before = leaders_of("restarted")
    await ledger.start(machine, restart=True)
    await eventually(lambda: len(ledger.seen(machine, "started")) == 2)
    after = leaders_of("restarted")
    assert len(after) == 1
    assert after != before
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert exit.requested_stop
    assert exit.restarting


async def test_a_machine_that_was_created_to_rest_is_left_alone(workers: Workers, ledger: Ledger) -> None:
    await workers.start()
    resting = await ledger.create(machine_spec("true"), started=False, state=MACHINE_STATE_CREATED)
    running = await ledger.create(machine_spec("sleep", "100", marker="after-rest"))
    await eventually(lambda: ledger.state(running) == "started")
    assert ledger.kinds(resting) == []


async def test_a_stop_that_overtakes_the_start_still_settles(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    machine = await ledger.create(machine_spec("sleep", "100", marker="overtaken"))
    await ledger.stop(machine)
    await workers.start()
    await reaches(machine, "stopped")
    assert not leaders_of("overtaken")


async def test_a_version_that_is_not_to_be_launched_stops_the_old_one_and_settles(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="old-version"))
    await reaches(machine, "started")
    await ledger.change(machine, generation=2, instance_id="v2")
    await ledger.stop(machine)
    await reaches(machine, "stopped")
    assert not leaders_of("old-version")
    assert ledger.kinds(machine) == ["started", "exited"]


async def test_a_machine_that_moves_away_is_let_go_and_one_that_moves_here_waits(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    leaving = await ledger.create(machine_spec("sleep", "100", marker="leaving"))
    await reaches(leaving, "started")
    await ledger.change(leaving, worker_id="w2", leaving_worker_id="w1", generation=2)
    coming = await ledger.create(machine_spec("sleep", "100", marker="coming"), leaving_worker_id="w2")
    await eventually(lambda: "left" in ledger.kinds(leaving))
    assert not leaders_of("leaving")
    assert not leaders_of("coming")
    await ledger.change(coming, leaving_worker_id="")
    await reaches(coming, "started")
    assert len(leaders_of("coming")) == 1


async def test_what_the_main_process_leaves_behind_ends_with_it(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    script = "setsid sleep 100 & sleep 100 & sleep 0.3; exit 0"
    machine = await ledger.create(machine_spec("sh", "-c", script, marker="family"))
    await reaches(machine, "stopped")
    assert not holders_of("family")


async def test_a_command_that_does_not_exist_fails_with_advice_and_is_not_restarted(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    spec = machine_spec("no-such-command")
    spec.restart.policy = RESTART_POLICY_ALWAYS
    machine = await ledger.create(spec)
    await reaches(machine, "failed")
    reason = ledger.seen(machine, "failed")[0].failed.reason
    assert "'no-such-command' was not found on this worker" in reason
    assert "config.init.exec" in reason
    assert ledger.kinds(machine) == ["failed"]


async def test_a_failing_machine_is_restarted_by_its_policy_and_then_given_up(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    spec = machine_spec("sh", "-c", "exit 7")
    spec.restart.policy, spec.restart.max_retries = RESTART_POLICY_ON_FAILURE, 1
    machine = await ledger.create(spec)
    await reaches(machine, "stopped", 15)
    assert ledger.kinds(machine) == ["started", "exited", "started", "exited"]
    exits = [seen.exited for seen in ledger.seen(machine, "exited")]
    assert [exit.exit.restarting for exit in exits] == [True, False]
    assert [exit.restart_count for exit in exits] == [0, 1]
    assert exits[0].exit.exit_code == 7


async def test_a_machine_that_takes_too_much_memory_is_killed_for_it(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    for cgroups in ("auto", "off"):
        _, task = await workers.start(cgroups=cgroups)
        machine = await ledger.create(
            machine_spec("python3", "-c", "x = bytearray(200 << 20); import time; time.sleep(100)")
        )
        await reaches(machine, "stopped", 15)
        exit = ledger.seen(machine, "exited")[0].exited.exit
        assert exit.oom_killed, cgroups
        assert exit.exit_code == 137
        await workers.end(task)


async def test_a_machine_knows_who_it_is(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sh", "-c", "env; pwd; ulimit -n; sleep 100", GREETING="grüß dich"))
    await reaches(machine, "started")
    log = workers.data / "machines" / machine / "log"
    await eventually(lambda: log.read_text().strip().rpartition("\n")[2].isdigit())
    lines = log.read_text().splitlines()
    root = f"{workers.data}/machines/{machine}/root"
    assert root in lines
    for line in (
        "GREETING=grüß dich",
        f"MACHINE_ROOT={root}",
        f"HOME={root}",
        "FLY_APP_NAME=demo",
        f"FLY_MACHINE_ID={machine}",
        f"FLY_ALLOC_ID={machine}",
        "FLY_MACHINE_VERSION=v1",
        "FLY_REGION=syd",
        "FLY_VM_MEMORY_MB=64",
        f"PATH={os.environ['PATH']}",
    ):
        assert line in lines
    assert any(line.startswith("FLY_PRIVATE_IP=fdaa:") for line in lines)


async def test_several_processes_end_together(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    await workers.start()
    spec = machine_spec(marker="several")
    spec.processes.processes.add(exec=["sh", "-c", "sleep 0.4; exit 4"], env={"PART": "a"})
    spec.processes.processes.add(exec=["sleep", "100"], env={"PART": "b"})
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    assert len(leaders_of("several")) == 2
    await reaches(machine, "stopped")
    assert not holders_of("several")
    assert ledger.seen(machine, "exited")[0].exited.exit.exit_code == 4


async def test_a_killed_process_is_reported_with_its_signal(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    await workers.start()
    machine = await ledger.create(machine_spec("sleep", "100", marker="killed"))
    await reaches(machine, "started")
    os.kill(leaders_of("killed")[0], signal.SIGKILL)
    await reaches(machine, "stopped")
    exit = ledger.seen(machine, "exited")[0].exited.exit
    assert (exit.exit_code, exit.signal, exit.guest_signal, exit.oom_killed) == (137, 9, 9, False)
