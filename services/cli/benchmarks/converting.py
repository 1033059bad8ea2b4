"""How fast a configuration is converted, without the calls around it."""

from __future__ import annotations

import time
from collections.abc import Callable

from google.protobuf import json_format
from skerry.types.v1.config_pb2 import MachineConfig

from services.cli.benchmarks.bed import APP, REGION, WEB_CONFIG
from services.cli.benchmarks.statistics import summary
from services.config_converter.conversion import Context, convert

_WARM_UP = 200


def bench_convert(seconds: float, tell: Callable[[str], None]) -> dict[str, float]:
    """per_second, p50_ms and p99_ms of converting a usual web server's configuration, for `seconds` serially."""
    tell("converting")
    config = json_format.ParseDict(WEB_CONFIG, MachineConfig())
    context = Context(app_name=APP, region=REGION)
    for _ in range(_WARM_UP):
        convert(config, context)
    latencies_ms: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        at = time.perf_counter()
        convert(config, context)
        latencies_ms.append((time.perf_counter() - at) * 1e3)
    return summary(latencies_ms, time.perf_counter() - began)
