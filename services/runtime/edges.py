"""Who may call whom: the one table of allowed edges, and what was seen of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.runtime import telemetry

GATEWAY = "gateway"
CENTRAL = "central"
CLIENT = "client"
"""Whoever calls the public API from outside."""
VOLUME_COPY = "volume-copy"
"""A worker that copies a volume from another: no request waits for it, and so no worker depends on a worker."""
CLI = "cli"
"""The operator's own commands."""

ALLOWED: Mapping[str, frozenset[str]] = {
    CLIENT: frozenset({GATEWAY}),
    CLI: frozenset({"machine-store", "config-converter", "scheduler", "central-sync", "worker", "introspection"}),
    # A gateway may call the gateways of other cells alone; what guards that is the path.
    GATEWAY: frozenset({"config-converter", "scheduler", "machine-store", "central-sync", "worker", GATEWAY}),
    "config-converter": frozenset({"central-sync", "machine-store"}),
    "scheduler": frozenset({"machine-store"}),
    "worker": frozenset({"machine-store"}),
    VOLUME_COPY: frozenset({"worker"}),
    "central-sync": frozenset({"machine-store", CENTRAL}),
    CENTRAL: frozenset(),
}
"""Callees by caller. What is not here is refused."""


def is_allowed(caller: str, callee: str) -> bool:
    """Whether the service `caller` may call the service `callee`."""
    return callee in ALLOWED.get(caller, ())


def allowed_edges() -> list[tuple[str, str]]:
    """All allowed edges, caller and callee, sorted."""
    return sorted((caller, callee) for caller, callees in ALLOWED.items() for callee in callees)


@dataclass(slots=True)
class Counts:
    """What happened on an edge. Refused calls are errors too."""

    calls: int = 0
    errors: int = 0


class SeenEdge(NamedTuple):
    """An edge that this process has seen calls on."""

    caller: str
    callee: str
    calls: int
    errors: int


def counts_of(caller: str, callee: str) -> Counts:
    """Where the calls of an edge are counted in this process, for whoever serves them.

    A caller of something that is not of ours, and so does not count, counts them itself.
    """
    return _collector.counts.setdefault((caller, callee), Counts())


def seen_edges() -> list[SeenEdge]:
    """The edges that this process has seen calls on, sorted."""
    return sorted(
        SeenEdge(caller, callee, counts.calls, counts.errors)
        for (caller, callee), counts in list(_collector.counts.items())
        if counts.calls
    )


def count_refusal(caller: str, callee: str, why: str) -> None:
    """Count a call that the guard refused; `why` is one of a few words."""
    key = (caller, callee, why)
    _collector.refusals[key] = _collector.refusals.get(key, 0) + 1


class _EdgeCollector(Collector):
    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counts] = {}
        self.refusals: dict[tuple[str, str, str], int] = {}

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("skerry_edge_calls", "Calls by caller and callee.", labels=["caller", "callee"])
        errors = CounterMetricFamily(
            "skerry_edge_errors", "Calls that failed, by caller and callee.", labels=["caller", "callee"]
        )
        refused = CounterMetricFamily(
            "skerry_guard_refusals",
            "Calls that the dependency guard refused, by caller, callee and reason.",
            labels=["caller", "callee", "reason"],
        )
        for edge in seen_edges():
            calls.add_metric([edge.caller, edge.callee], edge.calls)
            errors.add_metric([edge.caller, edge.callee], edge.errors)
        for labels, count in list(self.refusals.items()):
            refused.add_metric([*labels], count)
        yield calls
        yield errors
        yield refused


_collector = _EdgeCollector()
telemetry.metrics.register(_collector)
