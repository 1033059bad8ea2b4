"""The part metrics: where the machine's metrics are scraped."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MetricsSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import http_path, port

DEFAULT_PATH = "/metrics"

_NONE = MetricsSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> MetricsSpec:
    """Nothing is scraped unless the user says where."""
    if not config.HasField("metrics") or not config.metrics.ByteSize():
        return _NONE
    metrics = config.metrics
    spec = MetricsSpec()
    if metrics.HasField("port"):
        spec.port = port(metrics.port, "metrics.port", problems)
    else:
        problems.add("metrics.port", "is required: the port inside the machine, 1..65535")
    spec.path = http_path(metrics.path, DEFAULT_PATH, "metrics.path", problems)
    spec.https = metrics.https
    return spec


PART = Part("metrics", owns=("metrics",), converters={1: convert})
