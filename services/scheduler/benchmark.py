"""How fast placement is, beside a plain sort over all workers."""

from __future__ import annotations

import math
import time
from random import Random

import numpy as np
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_OK, MACHINE_STATE_DESTROYED, MACHINE_STATE_STARTED
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.ids import AppId, WorkerId
from services.runtime.resources import RESOURCE_FIELDS, from_vector
from services.scheduler.fleet import Fleet, Need
from services.scheduler.placement import Candidate, rank

_GIB = 1 << 30
_WORKER_SIZES = ((16, 64), (32, 128), (64, 256))
_MACHINE_SIZES = ((1, 256), (1, 512), (2, 1024), (4, 2048))
_APPS = 500
_FULL = 0.6


def fleet_of(workers: int, random: Random, *, full: float = _FULL) -> Fleet:
    """A fleet of `workers` of three sizes, each about `full` (0..1) of machines of 500 apps; 1 in 50 is cordoned."""
    fleet = Fleet(random)
    for number in range(workers):
        cpus, gib = random.choice(_WORKER_SIZES)
        fleet.put_worker(
            WorkerRecord(
                id=f"w-{number}",
                capacity=Resources(
                    shared_cpu_millicores=cpus * 16_000,
                    performance_cpu_millicores=cpus * 500,
                    memory_bytes=gib * _GIB,
                    disk_bytes=gib * 10 * _GIB,
                ),
                status=HOST_STATUS_OK,
                cordoned=random.random() < 0.02,
            )
        )
        _fill(fleet, f"w-{number}", gib, random, full)
    return fleet


def bench_place(workers: int, seconds: float, random: Random) -> dict[str, float | int]:
    """Place machines in a fleet of `workers` for about `seconds`, each with what the log brings of it afterwards.

    Answers workers; per_second, placements with their log entries; p50_ms and p99_ms of a placement alone; and
    yardstick_per_second, sorts of all workers by their free memory. Both are measured in turns, so that what else the
    machine does falls on both.
    """
    fleet = fleet_of(workers, random)
    generator = np.random.default_rng(random.getrandbits(64))
    needs = [_need(random) for _ in range(256)]
    memory = RESOURCE_FIELDS.index("memory_bytes")
    durations: list[float] = []
    placing, placed, sorting, sorted_ = 0.0, 0, 0.0, 0
    until = time.perf_counter() + seconds
    while not placed or time.perf_counter() < until:
        batch = [needs[random.randrange(len(needs))] for _ in range(64)]
        answers: list[tuple[Need, list[Candidate]]] = []
        for need in batch:
            began = time.perf_counter()
            candidates = rank(fleet, need, random=generator)
            if candidates:
                fleet.expect(need, candidates[0].worker_id, math.inf)
            took = time.perf_counter() - began
            durations.append(took)
            placing += took
            answers.append((need, candidates))
        log = [
            _machine(f"m-{number}", need, candidates[0].worker_id)
            for number, (need, candidates) in enumerate(answers)
            if candidates
        ]
        began = time.perf_counter()
        for record in log:
            fleet.put_machine(record)
        placing += time.perf_counter() - began
        placed += len(answers)
        for record in log:
            # The fleet stays as full as it is.
            fleet.put_machine(MachineRecord(id=record.id, state=MACHINE_STATE_DESTROYED))
        for _ in range(16):
            began = time.perf_counter()
            np.argsort(fleet.usable[memory, : len(fleet)])
            sorting += time.perf_counter() - began
            sorted_ += 1
    in_order = sorted(durations)
    return {
        "workers": workers,
        "per_second": round(placed / placing, 1),
        "p50_ms": round(in_order[len(in_order) // 2] * 1e3, 4),
        "p99_ms": round(in_order[min(len(in_order) - 1, len(in_order) * 99 // 100)] * 1e3, 4),
        "yardstick_per_second": round(sorted_ / sorting, 1),
    }


def _fill(fleet: Fleet, worker_id: str, gib: int, random: Random, full: float) -> None:
    """One machine that takes what several would: how many hold the memory makes no difference to placement."""
    part = min(0.98, max(0.0, random.gauss(full, 0.2)))
    fleet.put_machine(
        MachineRecord(
            id=f"fill-{worker_id}",
            app_id=f"app-{random.randrange(_APPS)}",
            worker_id=worker_id,
            state=MACHINE_STATE_STARTED,
            reserved=Resources(
                shared_cpu_millicores=int(part * gib * 4_000),
                memory_bytes=int(part * gib) * _GIB,
                disk_bytes=int(part * gib * 10) * _GIB,
            ),
        )
    )


def _need(random: Random) -> Need:
    cpus, mib = random.choice(_MACHINE_SIZES)
    amounts = dict.fromkeys(RESOURCE_FIELDS, 0)
    kind = "performance_cpu_millicores" if random.random() < 0.1 else "shared_cpu_millicores"
    amounts |= {kind: cpus * 1_000, "memory_bytes": mib << 20, "disk_bytes": 8 * _GIB}
    return Need(AppId(f"app-{random.randrange(_APPS)}"), tuple(amounts.values()))


def _machine(machine_id: str, need: Need, worker_id: WorkerId) -> MachineRecord:
    return MachineRecord(
        id=machine_id,
        app_id=need.app_id,
        worker_id=worker_id,
        state=MACHINE_STATE_STARTED,
        reserved=from_vector(need.amounts),
    )
