"""Saying why a machine has no place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


_SHORT = frozenset(reason for reason, how in _REASONS.items() if how.amount is not None)
"""Reasons that are about an amount."""


class _Kind(NamedTuple):
    """What machines there can be of one kind of CPU; memory is in MB for each CPU."""

    cpus: tuple[int, ...]
    least_mb: int
    most_mb: int


_SHARED = _Kind((1, 2, 4, 6, 8), 256, 2048)
_PERFORMANCE = _Kind((1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192)
_STEP_MB = 256


def no_other_zone(taken: Iterable[str], refusal: NoCapacity | None) -> NoCapacity:
    """The error for a volume that may be in none of the `taken` zones.

    `refusal` says why the others have no room; None is for a region that has no others.
    """
    named = f"the app has such volumes in zone {', '.join(sorted(taken))} already"
    if refusal is None:
        advice = "leave require_unique_zone out, or create it in another region"
        return NoCapacity(f"{named}, and the region has no other: {advice}", metadata={"constraint": "zone"})
    return NoCapacity(
        f"{named}, and in no other zone a worker has room: {refusal.message}; or leave require_unique_zone out",
        metadata={**refusal.metadata, "constraint": "zone"},
    )


def no_capacity(region: str, need: Resources, placed: PlaceResponse) -> NoCapacity:
    """The error for a machine with `need` for which the scheduler found no worker: why, per reason, and what to do."""
    if not placed.workers:
        return NoCapacity(f"region {region} has no worker yet; try again once one has registered, or in another region")
    counts = "; ".join(_counts(need, placed))
    reasons = {rejection.reason: str(rejection.workers) for rejection in placed.rejections}
    metadata = {**reasons, "constraint": _constraint(placed)}
    advice = "Ask for less, or for another region"
    if placed.HasField("nearest"):
        closest = nearest_guest(need, placed.nearest)
        metadata |= {f"nearest_{name}": f"{amount:g}" for name, amount in closest.items()}
        advice = (
            f"The nearest that would fit: {_guest(need, closest)}" if closest else "No smaller one would fit either"
        )
        advice += "; or ask for another region"
    return NoCapacity(
        f"no worker of region {region} has room for this machine: of {placed.workers} workers, {counts}. {advice}",
        metadata=metadata,
    )


def nearest_guest(need: Resources, free: Resources) -> Mapping[str, float]:
    """The largest machine up to `need` that fits into `free`: its cpus, memory_mb and gpus, where it asks for them.

    Its disk_gb only if that is less than what is needed. Empty when no machine of that kind fits, however small.
    """
    kind = _PERFORMANCE if need.performance_cpu_millicores else _SHARED
    guest: dict[str, float] = {}
    if need.shared_cpu_millicores or need.performance_cpu_millicores:
        cpus_free = (free.performance_cpu_millicores or free.shared_cpu_millicores) // 1000
        memory_free = free.memory_bytes >> 20
        for cpus in reversed(kind.cpus):
            memory = min(memory_free // _STEP_MB * _STEP_MB, cpus * kind.most_mb)
            if cpus <= cpus_free and memory >= cpus * kind.least_mb:
                guest = {"cpus": cpus, "memory_mb": memory}
                break
        else:
            return {}
    if _gpus(need):
        guest["gpus"] = _gpus(free)
    if free.disk_bytes < need.disk_bytes:
        guest["disk_gb"] = free.disk_bytes / (1 << 30)
    return guest


def _guest(need: Resources, guest: Mapping[str, float]) -> str:
    kind = "performance" if need.performance_cpu_millicores else "shared"
    forms = {"cpus": f"{kind} CPUs", "memory_mb": "MB of memory", "gpus": "GPUs", "disk_gb": "GB of disk"}
    return ", ".join(f"{amount:g} {forms[name]}" if amount else f"no {forms[name]}" for name, amount in guest.items())


def _constraint(placed: PlaceResponse) -> str:
    """The reason that leaves out most of the workers that are left out for want of something; else, of all."""
    short = [rejection for rejection in placed.rejections if rejection.reason in _SHORT]
    most = max(short or placed.rejections, key=lambda rejection: rejection.workers, default=None)
    return most.reason if most is not None else ""


def _counts(need: Resources, placed: PlaceResponse) -> Iterable[str]:
    for rejection in placed.rejections:
        reason = _REASONS.get(rejection.reason, _Reason(rejection.reason.replace("_", " ")))
        text = f"{rejection.workers} {reason.text}"
        if reason.amount is not None and reason.need is not None:
            text += f" (needed {reason.amount(reason.need(need))}, most free {reason.amount(rejection.most_free)})"
        yield text
