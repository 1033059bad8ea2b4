"""The part stop: how the machine is stopped. Containers are stopped by the same rules."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig, StopConfig
from skerry.types.v1.spec_pb2 import StopSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import duration, one_of
from services.runtime.durations import SECOND

DEFAULT_SIGNAL = "SIGINT"
DEFAULT_TIMEOUT = 5 * SECOND
SIGNALS = {name: name for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM")}


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> StopSpec:
    """A signal, then SIGKILL after the timeout; a timeout of 0s kills at once."""
    spec = StopSpec()
    fill_stop(spec, config.stop_config, problems.below("stop_config"))
    return spec


def fill_stop(spec: StopSpec, stop: StopConfig, problems: Problems) -> None:
    """Signal and timeout with their defaults."""
    spec.signal = one_of(stop.signal, SIGNALS, DEFAULT_SIGNAL, "signal", problems)
    duration(stop.timeout, DEFAULT_TIMEOUT, spec.timeout, "timeout", problems)


PART = Part("stop", owns=("stop_config",), converters={1: convert})
