"""The part init: how the main process is started."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import InitSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import LARGEST_MB, MIB, bounded, command

_DEFAULT = InitSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> InitSpec:
    """`exec` replaces entrypoint and command of the image; without any of it the image says what runs."""
    if not config.HasField("init"):
        return _DEFAULT
    init = config.init
    spec = InitSpec()
    if init.exec:
        command(init.exec, "init.exec", problems)
        spec.exec.extend(init.exec)
    if init.entrypoint:
        command(init.entrypoint, "init.entrypoint", problems)
        spec.entrypoint.extend(init.entrypoint)
    if init.cmd:
        spec.cmd.extend(init.cmd)
    if init.tty:
        spec.tty = True
    if init.swap_size_mb:
        spec.swap_bytes = bounded(init.swap_size_mb, 0, LARGEST_MB, "init.swap_size_mb", problems) * MIB
    if init.kernel_args:
        spec.kernel_args.extend(init.kernel_args)
    return spec


PART = Part("init", owns=("init",), converters={1: convert})
