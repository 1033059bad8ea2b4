"""Saying why a machine has no place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from skerry.scheduler.v1.scheduler_pb2 import PlaceResponse
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.errors import NoCapacity


class _Reason(NamedTuple):
    """How a reason of the scheduler reads: what is wrong with workers, and, of what is short, amounts and the need."""

    text: str
    amount: Callable[[int], str] | None = None
    need: Callable[[Resources], int] | None = None


def _mb(amount: int) -> str:
    return f"{amount >> 20} MB"


def _gb(amount: int) -> str:
    return f"{amount / (1 << 30):g} GB"


def _cpus(amount: int) -> str:
    return f"{amount / 1000:g} CPUs"


def _gpus(need: Resources) -> int:
    return need.gpus_a10 + need.gpus_l40s + need.gpus_a100_40gb + need.gpus_a100_80gb


_REASONS: dict[str, _Reason] = {
    "memory": _Reason("too little memory", _mb, lambda need: need.memory_bytes),
    "shared_cpu": _Reason("too little shared CPU", _cpus, lambda need: need.shared_cpu_millicores),
    "performance_cpu": _Reason("too little performance CPU", _cpus, lambda need: need.performance_cpu_millicores),
    "disk": _Reason("too little disk", _gb, lambda need: need.disk_bytes),
    "gpu": _Reason("too few GPUs of that kind", str, _gpus),
    "cordoned": _Reason("cordoned"),
    "worker_lost": _Reason("not reachable"),
    "host_dedication": _Reason("not among the dedicated hosts asked for"),
    "excluded": _Reason("full since a moment ago"),
}


def no_capacity(region: str, need: Resources, placed: PlaceResponse) -> NoCapacity:
    """The error for a machine with `need` for which the scheduler found no worker: why, per reason, and what to do."""
    if not placed.workers:
        return NoCapacity(f"region {region} has no worker yet; try again once one has registered, or in another region")
    counts = "; ".join(_counts(need, placed))
    return NoCapacity(
        f"no worker of region {region} has room for this machine: of {placed.workers} workers, {counts}. "
        "Ask for less, or for another region",
        metadata={rejection.reason: str(rejection.workers) for rejection in placed.rejections},
    )


def _counts(need: Resources, placed: PlaceResponse) -> Iterable[str]:
    for rejection in placed.rejections:
        reason = _REASONS.get(rejection.reason, _Reason(rejection.reason.replace("_", " ")))
        text = f"{rejection.workers} {reason.text}"
        if reason.amount is not None and reason.need is not None:
            text += f" (needed {reason.amount(reason.need(need))}, most free {reason.amount(rejection.most_free)})"
        yield text
