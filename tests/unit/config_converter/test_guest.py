from __future__ import annotations

from typing import Any

import pytest
from skerry.types.v1.spec_pb2 import CPU_KIND_PERFORMANCE, CPU_KIND_SHARED

from services.config_converter.part import Facts, Limits
from services.config_converter.parts.guest import KINDS, PART, PRESETS
from tests.unit.config_converter.judging import accept, refuse

MIB = 1 << 20


def test_without_guest_or_size_a_machine_is_the_smallest_preset() -> None:
    assert accept(PART, {}) == accept(PART, {"size": "shared-cpu-1x"})
    spec = accept(PART, {})
    assert (spec.cpu_kind, spec.cpu_millicores) == (CPU_KIND_SHARED, 1000)
    assert (spec.memory_bytes, spec.max_memory_bytes, spec.gpus) == (256 * MIB, 256 * MIB, 0)


@pytest.mark.parametrize(
    ("size", "kind", "cpus", "memory_mb", "gpus"),
    [
        *((f"shared-cpu-{n}x", CPU_KIND_SHARED, n, 256 * n, 0) for n in (1, 2, 4, 6, 8)),
        *((f"performance-{n}x", CPU_KIND_PERFORMANCE, n, 2048 * n, 0) for n in (1, 2, 4, 6, 8, 10, 12, 14, 16)),
        *((name, CPU_KIND_PERFORMANCE, 8, 32768, 1) for name in ("a10", "l40s", "a100-40gb", "a100-80gb")),
    ],
)
def test_a_size_is_its_preset(size: str, kind: int, cpus: int, memory_mb: int, gpus: int) -> None:
    spec = accept(PART, {"size": size})
    assert (spec.cpu_kind, spec.cpu_millicores, spec.memory_bytes) == (kind, cpus * 1000, memory_mb * MIB)
    assert (spec.gpus, spec.gpu_kind) == (gpus, size if gpus else "")


@pytest.mark.parametrize("size", PRESETS)
def test_a_preset_is_within_the_bounds_of_its_kind(size: str) -> None:
    preset = PRESETS[size]
    written_out: dict[str, Any] = {
        "cpu_kind": preset.kind.name,
        "cpus": preset.cpus,
        "memory_mb": preset.memory_mb,
    }
    if preset.gpus:
        written_out |= {"gpu_kind": preset.gpu_kind, "gpus": preset.gpus}
    assert accept(PART, {"guest": written_out}) == accept(PART, {"size": size})


def test_an_unknown_size_is_refused_with_all_sizes() -> None:
    why = refuse(PART, {"size": "huge-9x"})["size"]
    assert "shared-cpu-1x" in why
    assert "a100-80gb" in why
    assert '"huge-9x"' in why


def test_guest_and_size_exclude_each_other() -> None:
    assert list(refuse(PART, {"size": "shared-cpu-1x", "guest": {"cpus": 1}})) == ["size"]


@pytest.mark.parametrize("guest", [{}, {"cpu_kind": "", "kernel_args": []}, {"persist_rootfs": "always"}])
def test_a_guest_that_says_nothing_about_cpus_goes_with_a_size(guest: dict[str, Any]) -> None:
    assert accept(PART, {"size": "performance-2x", "guest": guest}) == accept(PART, {"size": "performance-2x"})


@pytest.mark.parametrize(
    ("guest", "kind", "cpus", "memory_mb"),
    [
        ({}, "shared", 1, 256),
        ({"cpus": 4}, "shared", 4, 1024),
        ({"cpu_kind": "performance"}, "performance", 1, 2048),
        ({"cpu_kind": "performance", "cpus": 16}, "performance", 16, 32768),
        ({"memory_mb": 2048}, "shared", 1, 2048),
        ({"gpu_kind": "l40s"}, "performance", 8, 32768),
        ({"gpu_kind": "a10", "cpus": 4}, "performance", 4, 8192),
    ],
)
def test_what_a_guest_leaves_out_follows_from_its_kind(
    guest: dict[str, Any], kind: str, cpus: int, memory_mb: int
) -> None:
    spec = accept(PART, {"guest": guest})
    assert spec.cpu_kind == KINDS[kind].value
    assert (spec.cpu_millicores, spec.memory_bytes) == (cpus * 1000, memory_mb * MIB)


@pytest.mark.parametrize(
    ("guest", "field", "why"),
    [
        ({"cpu_kind": "dedicated"}, "cpu_kind", 'must be shared or performance, is "dedicated"'),
        ({"cpus": 3}, "cpus", "must be 1, 2, 4, 6 or 8 for cpu_kind shared, is 3"),
        ({"cpus": 0}, "cpus", "is 0"),
        ({"cpus": -1}, "cpus", "is -1"),
        ({"cpus": 16}, "cpus", "is 16"),
        ({"cpu_kind": "performance", "cpus": 18}, "cpus", "14 or 16"),
        ({"memory_mb": 300}, "memory_mb", "256..2048 in steps of 256 for 1 shared CPU, is 300"),
        ({"memory_mb": 0}, "memory_mb", "256..2048"),
        ({"memory_mb": 2304}, "memory_mb", "256..2048"),
        ({"cpus": 2, "memory_mb": 256}, "memory_mb", "512..4096 in steps of 256 for 2 shared CPUs"),
        ({"cpu_kind": "performance", "memory_mb": 1024}, "memory_mb", "2048..8192"),
        ({"memory_mb": 2**63 - 1}, "memory_mb", "256..2048"),
        ({"memory_mb": 512, "max_memory_mb": 256}, "max_memory_mb", "at least memory_mb, which is 512"),
        ({"max_memory_mb": 700}, "max_memory_mb", "steps of 256"),
        ({"max_memory_mb": 4096}, "max_memory_mb", "256..2048"),
        ({"gpu_kind": "h100"}, "gpu_kind", "a10, l40s, a100-40gb"),
        ({"gpu_kind": "a10", "cpu_kind": "shared"}, "cpu_kind", "must be performance"),
        ({"gpu_kind": "a10", "gpus": 0}, "gpus", "must be 1..8, is 0"),
        ({"gpu_kind": "a10", "gpus": 9}, "gpus", "must be 1..8, is 9"),
        ({"gpus": 1}, "gpus", "must be 0 without gpu_kind"),
        ({"gpus": -1}, "gpus", "must be 0 without gpu_kind"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_bounds(guest: dict[str, Any], field: str, why: str) -> None:
    problems = refuse(PART, {"guest": guest})
    assert list(problems) == [f"guest.{field}"]
    assert why in problems[f"guest.{field}"]


def test_every_field_of_a_guest_that_is_wrong_is_named() -> None:
    problems = refuse(PART, {"guest": {"memory_mb": 1, "max_memory_mb": 3, "gpus": 2}})
    assert list(problems) == ["guest.memory_mb", "guest.max_memory_mb", "guest.gpus"]


def test_a_guest_keeps_its_largest_memory_hosts_and_kernel_arguments() -> None:
    guest = {"memory_mb": 512, "max_memory_mb": 1024, "host_dedication_id": "hd_1", "kernel_args": ["a=b", "c"]}
    spec = accept(PART, {"guest": guest})
    assert (spec.memory_bytes, spec.max_memory_bytes) == (512 * MIB, 1024 * MIB)
    assert (spec.host_dedication_id, list(spec.kernel_args)) == ("hd_1", ["a=b", "c"])


@pytest.mark.parametrize(("sent", "kind"), [("a100-pcie-40gb", "a100-40gb"), ("a100-sxm4-80gb", "a100-80gb")])
def test_the_long_names_of_gpus_mean_the_short_ones(sent: str, kind: str) -> None:
    assert accept(PART, {"guest": {"gpu_kind": sent, "gpus": 2}}).gpu_kind == kind


@pytest.mark.parametrize("fraction", [0, 0.5, 1])
def test_the_price_of_spot_capacity_is_a_fraction(fraction: float) -> None:
    assert accept(PART, {"spot": {"max_price_fraction": fraction}}).spot_max_price_fraction == fraction


@pytest.mark.parametrize("fraction", [-0.1, 1.01, "NaN", "Infinity"])
def test_a_price_of_spot_capacity_that_is_no_fraction_is_refused(fraction: Any) -> None:
    assert list(refuse(PART, {"spot": {"max_price_fraction": fraction}})) == ["spot.max_price_fraction"]


def test_the_organizations_limits_bound_a_machine() -> None:
    facts = Facts(limits=Limits(cpus=2, memory_mb=1024, gpus=0))
    accept(PART, {"guest": {"cpus": 2, "memory_mb": 1024}}, facts)
    problems = refuse(PART, {"guest": {"cpus": 4, "memory_mb": 2048}}, facts)
    assert list(problems) == ["guest.cpus", "guest.memory_mb"]
    assert "2 at most" in problems["guest.cpus"]
    assert list(refuse(PART, {"size": "a10"}, facts)) == ["size"]
