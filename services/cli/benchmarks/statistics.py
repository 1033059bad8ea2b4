"""Figures of a list of latencies."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which about `part` (0..1) of `values` lie. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no values, no quantile")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def summary(latencies_ms: Sequence[float], seconds: float) -> dict[str, float]:
    """per_second, p50_ms and p99_ms of calls that took `seconds` together."""
    return {
        "per_second": round(len(latencies_ms) / seconds, 1),
        "p50_ms": round(quantile(latencies_ms, 0.5), 3),
        "p99_ms": round(quantile(latencies_ms, 0.99), 3),
    }
