"""Counts and durations of served calls: plain numbers, turned into Prometheus metrics when those are scraped.

A call is counted in half a microsecond, on the event loop; a locked counter and a histogram cost eight times that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import grpc
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.runtime import telemetry

BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds in seconds."""


class MethodMetrics:
    """What one method of a process has served."""

    def __init__(self, service: str, method: str) -> None:
        self._counts, self._durations = _collector.of(service, method)

    def ended(self, caller: str, code: grpc.StatusCode, seconds: float | None) -> None:
        """Count a call; `seconds` is None where a duration says nothing, as with streams."""
        key = (caller, code)
        self._counts[key] = self._counts.get(key, 0) + 1
        if seconds is not None:
            self._durations.add(seconds)


class _Durations:
    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.buckets, strict=True):
            total += count
            rows.append((bound, total))
        return rows


_Counts = dict[tuple[str, grpc.StatusCode], int]


class _RpcCollector(Collector):
    def __init__(self) -> None:
        self._methods: dict[tuple[str, str], tuple[_Counts, _Durations]] = {}

    def of(self, service: str, method: str) -> tuple[_Counts, _Durations]:
        return self._methods.setdefault((service, method), ({}, _Durations()))

    def collect(self) -> Iterator[Metric]:
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "Calls that ended, by method, caller and code.",
            labels=["grpc_service", "grpc_method", "caller", "grpc_code"],
        )
        seconds = HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "How long calls with one answer took.",
            labels=["grpc_service", "grpc_method"],
        )
        for (service, method), (counts, durations) in list(self._methods.items()):
            for (caller, code), count in list(counts.items()):
                handled.add_metric([service, method, caller, code.name], count)
            seconds.add_metric([service, method], durations.cumulative(), durations.sum)
        yield handled
        yield seconds


_collector = _RpcCollector()
telemetry.metrics.register(_collector)
