"""The part guest: CPUs, memory and GPUs, from a preset or written out, and the price of spot capacity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from skerry.types.v1.config_pb2 import MachineConfig, MachineGuest
from skerry.types.v1.spec_pb2 import CPU_KIND_PERFORMANCE, CPU_KIND_SHARED, CPUKind, GuestSpec

from services.config_converter.part import Facts, Limits, Part, Problems
from services.config_converter.rules import MIB, bounded, listed, one_of, shown

MEMORY_STEP_MB = 256
MOST_GPUS = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of CPU allows; memory in MB a CPU."""

    name: str
    value: CPUKind.ValueType
    cpus: tuple[int, ...]
    least_memory: int
    most_memory: int


SHARED = Kind("shared", CPU_KIND_SHARED, (1, 2, 4, 6, 8), 256, 2048)
PERFORMANCE = Kind("performance", CPU_KIND_PERFORMANCE, (1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192)
KINDS = {kind.name: kind for kind in (SHARED, PERFORMANCE)}

GPU_KINDS = {
    "a10": "a10",
    "l40s": "l40s",
    "a100-40gb": "a100-40gb",
    "a100-80gb": "a100-80gb",
    # What clients send for the two when they write a preset out.
    "a100-pcie-40gb": "a100-40gb",
    "a100-sxm4-80gb": "a100-80gb",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """CPUs, memory and GPUs under one name."""

    kind: Kind
    cpus: int
    memory_mb: int
    gpu_kind: str = ""
    gpus: int = 0


GPU_PRESETS = {name: Preset(PERFORMANCE, 8, 32768, name, 1) for name in ("a10", "l40s", "a100-40gb", "a100-80gb")}
PRESETS = {
    **{f"shared-cpu-{n}x": Preset(SHARED, n, n * SHARED.least_memory) for n in SHARED.cpus},
    **{f"performance-{n}x": Preset(PERFORMANCE, n, n * PERFORMANCE.least_memory) for n in PERFORMANCE.cpus},
    **GPU_PRESETS,
}
DEFAULT_PRESET = PRESETS["shared-cpu-1x"]


def convert(config: MachineConfig, facts: Facts, problems: Problems) -> GuestSpec:
    """`size` is a preset and excludes `guest`; with neither it is DEFAULT_PRESET."""
    spec = GuestSpec()
    size = config.size
    if size:
        preset = PRESETS.get(size)
        if preset is None:
            problems.add("size", f"must be {listed(PRESETS)}, is {shown(size)}")
        elif config.HasField("guest") and _is_set(config.guest):
            problems.add("size", f"excludes guest: leave one of them out, is {shown(size)}")
        else:
            _fill(spec, preset.kind, preset.cpus, preset.memory_mb)
            spec.gpus = preset.gpus
            spec.gpu_kind = preset.gpu_kind
    elif config.HasField("guest"):
        _convert_guest(config.guest, spec, problems)
    else:
        _fill(spec, DEFAULT_PRESET.kind, DEFAULT_PRESET.cpus, DEFAULT_PRESET.memory_mb)
    if config.HasField("spot"):
        fraction = config.spot.max_price_fraction
        if 0 <= fraction <= 1:
            spec.spot_max_price_fraction = fraction
        else:
            problems.add("spot.max_price_fraction", f"must be 0..1, is {fraction}")
    if facts.limits != _NO_LIMITS:
        _check_limits(spec, facts.limits, "size" if size else "guest", problems)
    return spec


_NO_LIMITS = Limits()


def _is_set(guest: MachineGuest) -> bool:
    return any(field.name != "persist_rootfs" for field, _ in guest.ListFields())


def _fill(spec: GuestSpec, kind: Kind, cpus: int, memory_mb: int) -> None:
    spec.cpu_kind = kind.value
    spec.cpu_millicores = cpus * 1000
    spec.memory_bytes = spec.max_memory_bytes = memory_mb * MIB


def _convert_guest(guest: MachineGuest, spec: GuestSpec, problems: Problems) -> None:
    gpu_kind = guest.gpu_kind
    gpu = GPU_PRESETS[one_of(gpu_kind, GPU_KINDS, "a10", "guest.gpu_kind", problems)] if gpu_kind else None

    kind = one_of(guest.cpu_kind, KINDS, PERFORMANCE if gpu else SHARED, "guest.cpu_kind", problems)
    if gpu and kind is not PERFORMANCE:
        problems.add("guest.cpu_kind", f"must be performance for a machine with GPUs, is {shown(kind.name)}")
    cpus = guest.cpus if guest.HasField("cpus") else gpu.cpus if gpu else 1
    if cpus not in kind.cpus:
        problems.add("guest.cpus", f"must be {listed(map(str, kind.cpus))} for cpu_kind {kind.name}, is {cpus}")
        return
    if guest.HasField("memory_mb"):
        memory = _memory(guest.memory_mb, kind, cpus, "guest.memory_mb", problems)
    else:
        memory = gpu.memory_mb if gpu and cpus == gpu.cpus else cpus * kind.least_memory
    _fill(spec, kind, cpus, memory)
    if guest.HasField("max_memory_mb"):
        most = _memory(guest.max_memory_mb, kind, cpus, "guest.max_memory_mb", problems)
        if most < memory:
            problems.add("guest.max_memory_mb", f"must be at least memory_mb, which is {memory}, is {most}")
        spec.max_memory_bytes = most * MIB
    _fill_gpus(guest, gpu, spec, problems)
    spec.host_dedication_id = guest.host_dedication_id
    spec.kernel_args.extend(guest.kernel_args)


def _fill_gpus(guest: MachineGuest, gpu: Preset | None, spec: GuestSpec, problems: Problems) -> None:
    if gpu:
        spec.gpu_kind = gpu.gpu_kind
        spec.gpus = bounded(guest.gpus, 1, MOST_GPUS, "guest.gpus", problems) if guest.HasField("gpus") else 1
    elif guest.gpus:
        problems.add("guest.gpus", f"must be 0 without gpu_kind ({listed(GPU_PRESETS)}), is {guest.gpus}")


def _memory(memory: int, kind: Kind, cpus: int, field: str, problems: Problems) -> int:
    least, most = cpus * kind.least_memory, cpus * kind.most_memory
    if least <= memory <= most and not memory % MEMORY_STEP_MB:
        return memory
    what = f"{cpus} {kind.name} CPU{'s' if cpus > 1 else ''}"
    problems.add(field, f"must be {least}..{most} in steps of {MEMORY_STEP_MB} for {what}, is {memory}")
    return least


def _check_limits(spec: GuestSpec, limits: Limits, source: str, problems: Problems) -> None:
    for name, most, value in (
        ("cpus", limits.cpus, spec.cpu_millicores // 1000),
        ("memory_mb", limits.memory_mb, spec.max_memory_bytes // MIB),
        ("gpus", limits.gpus, spec.gpus),
    ):
        if most is not None and value > most:
            field = source if source == "size" else f"guest.{name}"
            problems.add(field, f"must have {name} {most} at most, the organization's limit, has {value}")


def _facts_used(_config: MachineConfig, facts: Facts) -> Iterator[tuple[str, str]]:
    limits = facts.limits
    for name, most in (("cpus", limits.cpus), ("memory_mb", limits.memory_mb), ("gpus", limits.gpus)):
        if most is not None:
            yield name, str(most)


PART = Part("guest", owns=("guest", "size", "spot"), converters={1: convert}, facts_used=_facts_used)
