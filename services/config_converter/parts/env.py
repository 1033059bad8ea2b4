"""The part env: the environment of every process of the machine."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import EnvSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import member, variable_name

_NONE = EnvSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> EnvSpec:
    """Values may be empty; they stay."""
    env = config.env
    if not env:
        return _NONE
    spec = EnvSpec()
    fill_env(spec.variables, env, "env", problems)
    return spec


def fill_env(target: MutableMapping[str, str], env: Mapping[str, str], field: str, problems: Problems) -> None:
    """Copy an environment of names to values."""
    for name in sorted(env):
        if not name or "=" in name:
            variable_name(name, member(field, name), problems)
        target[name] = env[name]


PART = Part("env", owns=("env",), converters={1: convert})
