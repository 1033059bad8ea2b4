"""What a machine finds around itself, and what others see of it: files, volumes, users, logs, checks, the service."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.store_pb2 import ChecksChanged
from skerry.types.v1.spec_pb2 import (
    CHECK_TYPE_HTTP,
    CHECK_TYPE_TCP,
    PERSIST_ROOTFS_ALWAYS,
    PERSIST_ROOTFS_NEVER,
    PERSIST_ROOTFS_RESTART,
    RESTART_POLICY_ALWAYS,
    CheckSpec,
    MachineSpec,
    PersistRootfs,
)
from skerry.worker.v1 import worker_pb2_grpc
from skerry.worker.v1.worker_pb2 import ListInstancesRequest, ReadLogRequest

from services.runtime import channels
from services.runtime.errors import NotFound
from services.runtime.registry import Registry
from services.runtime.server import Server
from services.worker import agent
from tests.integration.worker.conftest import Workers, leaders_of, machine_spec
from tests.integration.worker.ledger import Ledger, Served
from tests.support import eventually, free_port

Reaches = Callable[..., Awaitable[None]]


def root_of(workers: Workers, machine: str) -> Path:
    return workers.data / "machines" / machine / "root"


async def test_files_and_volumes_are_where_the_environment_says(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    spec = machine_spec("sh", "-c", 'cat "$MACHINE_ROOT/etc/motd"; echo kept > "$MACHINE_ROOT/data/file"; sleep 100')
    spec.files.files.add(path="/etc/motd", content=b"hello\n")
    spec.mounts.mounts.add(volume_id="vol_001abc", path="/data")
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    await eventually(lambda: (workers.data / "machines" / machine / "log").read_text() == "hello\n")
    kept = workers.data / "volumes" / "vol_001abc" / "file"
    await eventually(lambda: kept.exists() and kept.read_text() == "kept\n")
    await ledger.destroy(machine)
    await reaches(machine, "destroyed")
    assert kept.read_text() == "kept\n", "a volume outlives its machine"


@pytest.mark.parametrize(
    ("persist", "after_restart", "after_update"),
    [
        (PERSIST_ROOTFS_NEVER, False, False),
        (PERSIST_ROOTFS_RESTART, True, False),
        (PERSIST_ROOTFS_ALWAYS, True, True),
    ],
)
async def test_what_survives_of_the_root_is_as_the_spec_says(
    workers: Workers,
    ledger: Ledger,
    reaches: Reaches,
    persist: PersistRootfs.ValueType,
    after_restart: bool,
    after_update: bool,
) -> None:
    await workers.start()
    spec = machine_spec("sleep", "100")
    spec.rootfs.persist = persist
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    left = root_of(workers, machine) / "left" / "behind"

    async def survives(**fields: str) -> bool:
        left.parent.mkdir(exist_ok=True)
        left.touch()
        await ledger.start(machine, restart=True, **fields)
        await reaches(machine, "started")
        return left.exists()

    assert await survives() is after_restart
    assert await survives(instance_id="v2") is after_update


async def test_a_process_runs_as_its_user(workers: Workers, ledger: Ledger, reaches: Reaches) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may run processes as others")
    await workers.start()
    workers.data.parent.chmod(0o755)
    for parent in workers.data.parents:
        if parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    spec = machine_spec()
    spec.processes.processes.add(exec=["sh", "-c", "id -u; touch mine; sleep 100"], user="nobody")
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    log = workers.data / "machines" / machine / "log"
    await eventually(lambda: log.read_text() == "65534\n")
    await eventually((root_of(workers, machine) / "mine").exists)
    stranger = machine_spec()
    stranger.processes.processes.add(exec=["true"], user="no-such-user")
    failing = await ledger.create(stranger)
    await reaches(failing, "failed")
    assert "no user 'no-such-user'" in ledger.seen(failing, "failed")[0].failed.reason


async def test_known_images_are_served_by_a_small_http_server(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start()
    port = free_port()
    spec = machine_spec(PORT=str(port))
    spec.image.registry, spec.image.repository, spec.image.tag = "docker.io", "library/nginx", "latest"
    machine = await ledger.create(spec)
    await reaches(machine, "started")

    def page() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/any", timeout=2) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    text = await eventually(lambda: asyncio.to_thread(page))
    assert machine in text
    assert "docker.io/library/nginx:latest" in text


async def test_checks_follow_what_the_machine_does(workers: Workers, ledger: Ledger) -> None:
    await workers.start()
    port = free_port()
    spec = machine_spec("python3", "-m", "http.server", str(port), "--bind", "127.0.0.1", marker="checked")
    spec.rootfs.persist = PERSIST_ROOTFS_ALWAYS
    often = Duration(nanos=100_000_000)
    spec.services.services.add(internal_port=port).checks.add(
        type=CHECK_TYPE_HTTP, path="/page", interval=often, timeout=Duration(seconds=2)
    )
    alive = CheckSpec(type=CHECK_TYPE_TCP, port=port, interval=often, grace_period=Duration(seconds=20))
    spec.checks.checks["alive"].CopyFrom(alive)
    machine = await ledger.create(spec)
    service = f"servicecheck-00-http-{port}"

    def status() -> dict[str, str]:
        return {check.name: check.status for check in ledger.records[machine].checks}

    await eventually(lambda: status() == {"alive": "passing", service: "critical"})
    (root_of(workers, machine) / "page").touch()
    await eventually(lambda: status() == {"alive": "passing", service: "passing"})
    (root_of(workers, machine) / "page").unlink()
    await eventually(lambda: status() == {"alive": "passing", service: "critical"})
    output = {check.name: check.output for check in ledger.records[machine].checks}
    assert output[service] == "GET /page: 404 File not found"


async def test_while_the_store_is_away_changes_of_checks_do_not_pile_up(
    workers: Workers, ledger: Ledger, served: Served, reaches: Reaches
) -> None:
    service, _ = await workers.start()
    port = free_port()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    spec = machine_spec("sleep", "100")
    spec.checks.checks["alive"].CopyFrom(CheckSpec(type=CHECK_TYPE_TCP, port=port, interval=Duration(nanos=50_000_000)))
    machine = await ledger.create(spec)
    await reaches(machine, "started")

    def status(told: ChecksChanged | None = None) -> str:
        checks = ledger.records[machine].checks if told is None else told.checks
        return checks[0].status if checks else ""

    await eventually(lambda: status() == "passing")
    await served.stop()
    journal = service._agents[0]._here()
    server.close()
    await eventually(lambda: [status(one.checks_changed) for one in journal.outbox] == ["critical"])
    tries: list[None] = []

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(None)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    # At 20 tries a second, this is longer than the worker keeps a change to itself.
    await eventually(lambda: len(tries) > 25)
    assert len(journal.outbox) == 1
    await served.start()
    await eventually(lambda: status() == "passing" and not journal.outbox)
    server.close()


async def test_a_log_that_grows_is_rotated_while_it_is_written(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    await workers.start(log_bytes=4096, log_files=2)
    script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.001; done"
    machine = await ledger.create(machine_spec("sh", "-c", script))
    await reaches(machine, "started")
    folder = workers.data / "machines" / machine
    await eventually((folder / "log.2").exists, 15)
    assert not (folder / "log.3").exists()
    grown = (folder / "log").stat().st_size
    await eventually(lambda: (folder / "log").stat().st_size != grown)


async def test_the_service_lists_what_runs_and_reads_its_log(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    service, _ = await workers.start()
    registry = Registry(service="worker")
    service.register(registry)
    server = Server(registry, "127.0.0.1:0")
    address = f"127.0.0.1:{await server.start()}"
    channel: grpc.aio.Channel = channels.connect([address], caller="001/test", callee="worker", secret=None)
    stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
    machine = await ledger.create(machine_spec("sh", "-c", "echo one; sleep 0.3; echo two; sleep 100", marker="listed"))
    await reaches(machine, "started")
    (instance,) = (await stub.ListInstances(ListInstancesRequest())).instances
    assert (instance.machine_id, instance.generation, instance.instance_id) == (machine, 1, "v1")
    assert [instance.pid] == leaders_of("listed")
    assert instance.worker_id == "w1"
    read = b""
    async for piece in stub.ReadLog(ReadLogRequest(machine_id=machine, follow=True)):
        read += piece.data
        if b"two" in read:
            break
    assert read == b"one\ntwo\n"
    tail = [piece.data async for piece in stub.ReadLog(ReadLogRequest(machine_id=machine, tail_bytes=4))]
    assert tail == [b"two\n"]
    with pytest.raises(NotFound, match="is on no worker"):
        [piece async for piece in stub.ReadLog(ReadLogRequest(machine_id="../etc"))]
    with pytest.raises(NotFound, match="not of this process"):
        await stub.ListInstances(ListInstancesRequest(worker_id="other"))
    await channel.close()
    await server.stop(0)


async def test_a_worker_that_starts_before_its_store_waits_for_it_and_sends_signs_of_life(
    workers: Workers, ledger: Ledger, served: Served
) -> None:
    await served.stop()
    starting = asyncio.create_task(workers.start())
    await asyncio.sleep(0)
    await served.start()
    await starting
    assert ledger.registrations[-1].worker_id == "w1"
    assert ledger.registrations[-1].driver == "process"
    assert ledger.registrations[-1].address == "127.0.0.1:1"
    assert ledger.registrations[-1].capacity.memory_bytes == 1 << 34
    before = ledger.heartbeats
    await eventually(lambda: ledger.heartbeats > before + 2)
    ledger.journals.clear()
    registrations = len(ledger.registrations)
    await eventually(lambda: len(ledger.registrations) > registrations, 5)


async def test_without_a_store_a_restarted_worker_still_keeps_its_machines_up(
    workers: Workers, ledger: Ledger, served: Served, reaches: Reaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "_WAIT_FOR_STORE_SECONDS", 0.2)
    _, task = await workers.start()
    spec = machine_spec("sleep", "100", marker="kept-up")
    spec.restart.policy = RESTART_POLICY_ALWAYS
    machine = await ledger.create(spec)
    await reaches(machine, "started")
    await workers.end(task)
    await served.stop()
    service = workers.service()
    running = asyncio.create_task(service.run(lambda: None))
    try:
        before = leaders_of("kept-up")
        await eventually(lambda: service._agents[0].instances())
        os.kill(before[0], 9)
        await eventually(lambda: leaders_of("kept-up") not in ([], before))
        await served.start()
        await eventually(lambda: ledger.kinds(machine) == ["started", "exited", "started"], 15)
    finally:
        await workers.end(running)


async def test_a_hundred_machines_start_and_stop(workers: Workers, ledger: Ledger) -> None:
    service, _ = await workers.start()
    spec: MachineSpec = machine_spec("sleep", "100", marker="hundred")
    machines = [await ledger.create(spec) for _ in range(100)]
    await eventually(lambda: all(ledger.state(machine) == "started" for machine in machines), 30)
    assert len(leaders_of("hundred")) == 100
    for machine in machines:
        await ledger.destroy(machine)
    await eventually(lambda: all(ledger.state(machine) == "destroyed" for machine in machines), 30)
    assert not leaders_of("hundred")
    assert not list((workers.data / "machines").iterdir())
    assert service._agents[0].instances() == []


async def test_nothing_is_left_of_the_limits_of_a_machine_that_has_stopped(
    workers: Workers, ledger: Ledger, reaches: Reaches
) -> None:
    service, _ = await workers.start()
    cgroups = service._agents[0]._driver._cgroups  # type: ignore[attr-defined]
    if cgroups is None:
        pytest.skip("no cgroup is writable here")
    single = await ledger.create(machine_spec("sleep", "100"))
    spec = machine_spec()
    for _ in range(2):
        spec.processes.processes.add(exec=["sleep", "100"])
    several = await ledger.create(spec)
    for machine in (single, several):
        await reaches(machine, "started")
        assert all((folder / machine).is_dir() for folder in cgroups.folders)
        await ledger.stop(machine)
        await reaches(machine, "stopped")
    left = [folder / machine for folder in cgroups.folders for machine in (single, several)]
    await eventually(lambda: not any(folder.exists() for folder in left))
