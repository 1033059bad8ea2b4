"""The guest: presets and what is written out, and what limits leave of it."""

from __future__ import annotations

import re

from services.central.legacy.values import (
    MB,
    Json,
    Wrong,
    either,
    get_choice,
    get_dict,
    get_int,
    get_str,
    get_strs,
    in_range,
    is_set,
    note,
    quoted,
)

CPU_KINDS = {
    # kind: allowed CPUs, least and most memory a CPU in MB
    "shared": ((1, 2, 4, 6, 8), 256, 2048),
    "performance": ((1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192),
}
GPU_KINDS = {
    "a10": "a10",
    "l40s": "l40s",
    "a100-40gb": "a100-40gb",
    "a100-pcie-40gb": "a100-40gb",
    "a100-80gb": "a100-80gb",
    "a100-sxm4-80gb": "a100-80gb",
}
GUEST_FIELDS = (
    "cpu_kind",
    "cpus",
    "memory_mb",
    "max_memory_mb",
    "gpus",
    "gpu_kind",
    "host_dedication_id",
    "kernel_args",
)
GPU_CPUS = 8
GPU_MEMORY = 32768


def guest_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    size = get_str(config, "size", "size", wrong)
    asked = get_dict(config, "guest", "guest", wrong)
    if size:
        if any(is_set(asked, key) for key in GUEST_FIELDS):
            note(wrong, "size", f"cannot be given together with guest, is {quoted(size)}")
        spec = preset(size, wrong)
    else:
        spec = written_out(asked, wrong)
    fraction = get_dict(config, "spot", "spot", wrong).get("max_price_fraction")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            note(wrong, "spot.max_price_fraction", f"must be between 0 and 1, is {quoted(fraction)}")
        else:
            spec["spot_max_price_fraction"] = fraction
    check_limits(spec, facts.get("limits") or {}, size, wrong)
    return spec


def sized(kind: str, cpus: int, memory: int) -> Json:
    return {
        "cpu_kind": "CPU_KIND_" + kind.upper(),
        "cpu_millicores": cpus * 1000,
        "memory_bytes": memory * MB,
        "max_memory_bytes": memory * MB,
    }


def preset(size: str, wrong: Wrong) -> Json:
    if size in ("a10", "l40s", "a100-40gb", "a100-80gb"):
        return {**sized("performance", GPU_CPUS, GPU_MEMORY), "gpu_kind": size, "gpus": 1}
    match = re.match(r"(shared-cpu|performance)-([0-9]+)x\Z", size)
    if match:
        kind = match.group(1).removesuffix("-cpu")
        cpus, least, _ = CPU_KINDS[kind]
        if match.group(2) in map(str, cpus):
            return sized(kind, int(match.group(2)), int(match.group(2)) * least)
    note(wrong, "size", f"must be a preset such as shared-cpu-1x, is {quoted(size)}")
    return sized("shared", 1, 256)


def written_out(asked: Json, wrong: Wrong) -> Json:
    gpu = get_choice(asked, "gpu_kind", GPU_KINDS, "", "guest.gpu_kind", wrong)
    has_gpu = is_set(asked, "gpu_kind")
    kind = get_choice(
        asked, "cpu_kind", tuple(CPU_KINDS), "performance" if has_gpu else "shared", "guest.cpu_kind", wrong
    )
    if has_gpu and kind != "performance":
        note(wrong, "guest.cpu_kind", f"must be performance for GPUs, is {kind}")
    cpus = get_int(asked, "cpus", "guest.cpus", wrong)
    if cpus is None:
        cpus = GPU_CPUS if has_gpu else 1
    allowed, least, most = CPU_KINDS[kind]
    if cpus not in allowed:
        note(wrong, "guest.cpus", f"must be one of {either(map(str, allowed))} for {kind}, is {cpus}")
        return sized("shared", 1, 256)

    def memory_of(key: str) -> int | None:
        memory = get_int(asked, key, f"guest.{key}", wrong)
        if memory is None or (least * cpus <= memory <= most * cpus and memory % 256 == 0):
            return memory
        low, high = least * cpus, most * cpus
        note(wrong, f"guest.{key}", f"must be between {low} and {high} and a multiple of 256, is {memory}")
        return low

    memory = memory_of("memory_mb")
    if memory is None:
        memory = GPU_MEMORY if has_gpu and cpus == GPU_CPUS else least * cpus
    spec = sized(kind, cpus, memory)
    growth = memory_of("max_memory_mb")
    if growth is not None:
        if growth < memory:
            note(wrong, "guest.max_memory_mb", f"must not be below memory_mb ({memory}), is {growth}")
        spec["max_memory_bytes"] = growth * MB
    gpus = get_int(asked, "gpus", "guest.gpus", wrong)
    if has_gpu:
        spec["gpu_kind"] = gpu
        spec["gpus"] = 1 if gpus is None else in_range(gpus, 1, 8, "guest.gpus", wrong)
    elif gpus:
        note(wrong, "guest.gpus", f"must be 0 without gpu_kind, is {gpus}")
    spec["host_dedication_id"] = get_str(asked, "host_dedication_id", "guest.host_dedication_id", wrong)
    spec["kernel_args"] = get_strs(asked, "kernel_args", "guest.kernel_args", wrong)
    return spec


def check_limits(spec: Json, limits: Json, size: str, wrong: Wrong) -> None:
    has = {
        "cpus": spec["cpu_millicores"] // 1000,
        "memory_mb": spec["max_memory_bytes"] // MB,
        "gpus": spec.get("gpus", 0),
    }
    for name, value in has.items():
        most = limits.get(name)
        if most is not None and value > most:
            note(
                wrong,
                "size" if size else f"guest.{name}",
                f"must keep to the organization's {most} {name}, has {value}",
            )
