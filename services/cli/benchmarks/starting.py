"""How fast machines start under the process driver: from the request to `started`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.cli.benchmarks import bed
from services.cli.benchmarks.statistics import quantile

_CONFIG: dict[str, Any] = {
    "image": "docker.io/library/busybox:1",
    "init": {"exec": ["/bin/sleep", "3600"]},
    "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
}
SERIAL = {"concurrency": 1, "rounds": 1, "each": 100}
CONCURRENT = {"concurrency": 16, "rounds": 1, "each": 400}
WARM_UP = {"concurrency": 1, "rounds": 1, "each": 20}


def bench_start(tell: Callable[[str], None]) -> dict[str, float]:
    """per_second at concurrency 16; p50_ms and p99_ms at concurrency 1, over REST. Raises CommandError."""
    with bed.temporary_folder() as folder:
        tell("starting a set")
        with bed.mesh_in(folder) as mesh:
            tell("starting machines")
            targets = {"start": bed.rest_target(mesh, {"config": _CONFIG}, wait="started")}
            phases = bed.generate(
                {
                    "targets": targets,
                    "phases": [{"targets": ["start"], **phase} for phase in (WARM_UP, SERIAL, CONCURRENT)],
                }
            )
    serial, concurrent = phases[1]["start"], phases[2]["start"]
    return {
        "per_second": round(len(concurrent["latencies_ms"]) / concurrent["seconds"], 1),
        "p50_ms": round(quantile(serial["latencies_ms"], 0.5), 3),
        "p99_ms": round(quantile(serial["latencies_ms"], 0.99), 3),
    }
