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
        numbers = _collector.of(service, method)
        self._good, self._bad, self._durations = numbers.good, numbers.bad, numbers.durations

    def ended(self, caller: str, code: grpc.StatusCode, seconds: float | None) -> None:
        """Count a call; `seconds` is None where a duration says nothing, as with streams."""
        if code is grpc.StatusCode.OK:
            self._good[caller] = self._good.get(caller, 0) + 1
        else:
            self._bad[caller, code] = self._bad.get((caller, code), 0) + 1
        if seconds is not None:
            durations = self._durations
            durations.buckets[bisect_left(BUCKETS, seconds)] += 1
            durations.sum += seconds


class _Durations:
    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def cumulative(self) -> list[tuple[str, float]]:
        total = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self.buckets, strict=True):
            total += count
            rows.append((bound, total))
        return rows


class _Numbers:
    def __init__(self) -> None:
        # Apart, since a status code is slow to hash and most calls end well.
        self.good: dict[str, int] = {}
        self.bad: dict[tuple[str, grpc.StatusCode], int] = {}
        self.durations = _Durations()


class _RpcCollector(Collector):
    def __init__(self) -> None:
        self._methods: dict[tuple[str, str], _Numbers] = {}

    def of(self, service: str, method: str) -> _Numbers:
        return self._methods.setdefault((service, method), _Numbers())

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
        # Copied first: scrapes come from another thread.
        for (service, method), numbers in list(self._methods.items()):
            for caller, count in list(numbers.good.items()):
                handled.add_metric([service, method, caller, "OK"], count)
            for (caller, code), count in list(numbers.bad.items()):
                handled.add_metric([service, method, caller, code.name], count)
            seconds.add_metric([service, method], numbers.durations.cumulative(), numbers.durations.sum)
        yield handled
        yield seconds


_collector = _RpcCollector()
telemetry.metrics.register(_collector)
