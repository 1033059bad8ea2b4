"""What a centre that is dead, slow or flaky changes for a region that converts everything itself: pairs of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from services.cli import central, processes, up
from services.cli.benchmarks import bed
from services.cli.benchmarks.statistics import quantile
from services.cli.mesh import CENTRAL, Mesh

CREATES = 200
"""In each run, at concurrency 1 over REST."""
WARM_UP = 300
SLOW_MS = 5000
ERROR_RATE = 0.3


def bench_outage(pairs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run `pairs` pairs, the centre well and not, for each way of being unwell.

    Returns creates (in each run) and states, each with state, pairs, p50_ms_well, p50_ms, p50_ratio, p99_ms_well,
    p99_ms and p99_ratio: medians over the runs, and of the ratios of the pairs. Raises CommandError for a create that
    fails.
    """
    with bed.temporary_folder() as folder:
        tell("starting a set and the centre")
        with bed.mesh_in(folder) as mesh:
            _run(mesh, WARM_UP)
            states = [_pairs(mesh, name, pairs, tell) for name in _STATES]
    return {"creates": CREATES, "states": states}


def _dead(mesh: Mesh) -> None:
    alive = processes.running(mesh)
    processes.kill([alive[process] for process in mesh.processes(CENTRAL) if process in alive])


def _alive(mesh: Mesh) -> None:
    with mesh.exclusively():
        up.start(mesh, [])


def _slow(mesh: Mesh) -> None:
    central.fault(mesh, slow_ms=SLOW_MS)


def _flaky(mesh: Mesh) -> None:
    central.fault(mesh, error_rate=ERROR_RATE)


def _without_faults(mesh: Mesh) -> None:
    central.fault(mesh, slow_ms=0, error_rate=0.0)


_STATES: Mapping[str, tuple[Callable[[Mesh], None], Callable[[Mesh], None]]] = {
    "dead": (_dead, _alive),
    "slow": (_slow, _without_faults),
    "flaky": (_flaky, _without_faults),
}
"""How to make the centre unwell, and well again."""


def _pairs(mesh: Mesh, name: str, pairs: int, tell: Callable[[str], None]) -> dict[str, Any]:
    fall_ill, recover = _STATES[name]
    well: list[list[float]] = []
    unwell: list[list[float]] = []
    for number in range(pairs):
        tell(f"{name}: pair {number + 1} of {pairs}")
        # What came first is no advantage: the order changes from pair to pair.
        if number % 2:
            fall_ill(mesh)
            unwell.append(_run(mesh, CREATES))
            recover(mesh)
            well.append(_run(mesh, CREATES))
        else:
            well.append(_run(mesh, CREATES))
            fall_ill(mesh)
            unwell.append(_run(mesh, CREATES))
            recover(mesh)
    figures: dict[str, Any] = {"state": name, "pairs": pairs}
    for label, part in (("p50", 0.5), ("p99", 0.99)):
        before = [quantile(run, part) for run in well]
        after = [quantile(run, part) for run in unwell]
        figures[f"{label}_ms_well"] = round(median(before), 3)
        figures[f"{label}_ms"] = round(median(after), 3)
        figures[f"{label}_ratio"] = round(median(b / a for a, b in zip(before, after, strict=True)), 3)
    return figures


def _run(mesh: Mesh, creates: int) -> list[float]:
    """Latencies, in ms, of creates one after another. Raises CommandError when one fails."""
    targets = {"create": bed.rest_target(mesh, {"config": bed.WEB_CONFIG, "skip_launch": True})}
    phase = {"targets": ["create"], "concurrency": 1, "rounds": 1, "each": creates}
    latencies: list[float] = bed.generate({"targets": targets, "phases": [phase]})[0]["create"]["latencies_ms"]
    return latencies
