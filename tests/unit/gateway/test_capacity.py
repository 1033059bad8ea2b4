"""Saying why a machine has no place."""

from __future__ import annotations

from skerry.scheduler.v1.scheduler_pb2 import PlaceResponse, Rejection
from skerry.types.v1.resources_pb2 import Resources

from gateway.capacity import no_capacity

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
    assert error.metadata == {"memory": "3", "disk": "1", "shared_cpu": "1", "cordoned": "1", "on_fire": "1"}


def test_a_region_without_workers_says_so() -> None:
    assert "has no worker yet" in no_capacity("syd", Resources(), PlaceResponse()).message
