"""Saying why a machine has no place."""

from __future__ import annotations

import pytest
from skerry.scheduler.v1.scheduler_pb2 import PlaceResponse, Rejection
from skerry.types.v1.resources_pb2 import Resources

from gateway.capacity import nearest_guest, no_capacity, no_other_zone
from services.runtime.errors import NoCapacity

GIB = 1 << 30


def test_every_reason_is_counted_with_what_is_needed_and_what_there_is() -> None:
    placed = PlaceResponse(
        workers=7,
        rejections=[
            Rejection(reason="memory", workers=3, most_free=GIB // 2),
            Rejection(reason="disk", workers=1, most_free=GIB),
            Rejection(reason="shared_cpu", workers=1, most_free=500),
            Rejection(reason="cordoned", workers=1),
            Rejection(reason="on_fire", workers=1),
        ],
    )
    error = no_capacity("syd", Resources(memory_bytes=2 * GIB, disk_bytes=8 * GIB, shared_cpu_millicores=1500), placed)
    assert error.message == (
        "no worker of region syd has room for this machine: of 7 workers, 3 too little memory (needed 2048 MB, most "
        "free 512 MB); 1 too little disk (needed 8 GB, most free 1 GB); 1 too little shared CPU (needed 1.5 CPUs, most "
        "free 0.5 CPUs); 1 cordoned; 1 on fire. Ask for less, or for another region"
    )
    assert error.metadata == {
        "memory": "3",
        "disk": "1",
        "shared_cpu": "1",
        "cordoned": "1",
        "on_fire": "1",
        "constraint": "memory",
    }


def test_the_nearest_machine_that_would_fit_is_named() -> None:
    placed = PlaceResponse(
        workers=2,
        rejections=[Rejection(reason="memory", workers=2, most_free=3 * GIB)],
        nearest=Resources(memory_bytes=3 * GIB + 77, shared_cpu_millicores=7_500),
    )
    error = no_capacity("syd", Resources(memory_bytes=8 * GIB, shared_cpu_millicores=8_000), placed)
    end = "The nearest that would fit: 6 shared CPUs, 3072 MB of memory; or ask for another region"
    assert error.message.endswith(end)
    assert error.metadata == {"memory": "2", "constraint": "memory", "nearest_cpus": "6", "nearest_memory_mb": "3072"}


@pytest.mark.parametrize(
    ("kind", "need", "free", "expected"),
    [
        # CPUs and GiB; they bound each other.
        ("shared", (8, 4), (8, 1), {"cpus": 4, "memory_mb": 1024}),
        ("shared", (8, 16), (1, 16), {"cpus": 1, "memory_mb": 2048}),
        ("performance", (4, 8), (4, 5), {"cpus": 2, "memory_mb": 5120}),
        ("performance", (1, 2), (1, 1), {}),
        ("shared", (1, 1), (0, 1), {}),
    ],
)
def test_what_would_fit_is_a_machine_that_there_can_be(
    kind: str, need: tuple[int, int], free: tuple[int, int], expected: dict[str, int]
) -> None:
    def resources(cpus: int, memory: int) -> Resources:
        return Resources(memory_bytes=memory * GIB, **{f"{kind}_cpu_millicores": cpus * 1000})

    assert nearest_guest(resources(*need), resources(*free)) == expected


def test_what_would_fit_names_gpus_and_disk_where_they_are_asked_for() -> None:
    need = Resources(performance_cpu_millicores=8000, memory_bytes=32 * GIB, gpus_a10=2, disk_bytes=8 * GIB)
    free = Resources(performance_cpu_millicores=8000, memory_bytes=32 * GIB, gpus_a10=1, disk_bytes=3 * GIB // 2)
    assert nearest_guest(need, free) == {"cpus": 8, "memory_mb": 32768, "gpus": 1, "disk_gb": 1.5}


def test_where_not_even_the_smallest_would_fit_that_is_said() -> None:
    placed = PlaceResponse(workers=1, rejections=[Rejection(reason="memory", workers=1)], nearest=Resources())
    error = no_capacity("syd", Resources(memory_bytes=GIB, shared_cpu_millicores=1000), placed)
    assert error.message.endswith("No smaller one would fit either; or ask for another region")


def test_a_region_without_workers_says_so() -> None:
    assert "has no worker yet" in no_capacity("syd", Resources(), PlaceResponse()).message


def test_a_volume_that_has_no_zone_left_says_whether_another_one_is_full_or_there_is_none() -> None:
    none = no_other_zone({"b", "a"}, None)
    assert none.message == (
        "the app has such volumes in zone a, b already, and the region has no other: leave require_unique_zone out, or "
        "create it in another region"
    )
    full = no_other_zone({"a"}, NoCapacity("3 too little disk", metadata={"disk": "3"}))
    assert "in no other zone a worker has room: 3 too little disk; or leave" in full.message
    assert (none.metadata["constraint"], full.metadata) == ("zone", {"disk": "3", "constraint": "zone"})
