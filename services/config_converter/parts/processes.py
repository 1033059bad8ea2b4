"""The part processes: what the machine runs instead of the image's one process.

A container's process has the same rules.
"""

from __future__ import annotations

from collections.abc import Container

from skerry.types.v1.config_pb2 import ContainerConfig, MachineConfig, MachineProcess
from skerry.types.v1.spec_pb2 import (
    MACHINE_FIELD_APP_NAME,
    MACHINE_FIELD_ID,
    MACHINE_FIELD_IMAGE,
    MACHINE_FIELD_PRIVATE_IP,
    MACHINE_FIELD_REGION,
    MACHINE_FIELD_VERSION,
    ProcessesSpec,
    ProcessSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.parts.env import fill_env
from services.config_converter.rules import command, listed, one_of, shown, variable_name

MACHINE_FIELDS = {
    "id": MACHINE_FIELD_ID,
    "version": MACHINE_FIELD_VERSION,
    "app_name": MACHINE_FIELD_APP_NAME,
    "private_ip": MACHINE_FIELD_PRIVATE_IP,
    "region": MACHINE_FIELD_REGION,
    "image": MACHINE_FIELD_IMAGE,
}

_NONE = ProcessesSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> ProcessesSpec:
    """Processes keep the user's order."""
    processes = config.processes
    if not processes:
        return _NONE
    spec = ProcessesSpec()
    for i, process in enumerate(processes):
        target = spec.processes.add()
        fill_process(target, process, problems.below(f"processes[{i}]"))
        target.ignore_app_secrets = process.ignore_app_secrets
    return spec


def fill_process(spec: ProcessSpec, process: MachineProcess | ContainerConfig, problems: Problems) -> None:
    """What runs, as whom and in which environment.."""
    command(process.exec, "exec", problems)
    command(process.entrypoint, "entrypoint", problems)
    spec.exec.extend(process.exec)
    spec.entrypoint.extend(process.entrypoint)
    spec.cmd.extend(process.cmd)
    spec.user = process.user
    fill_env(spec.env, process.env, "env", problems)
    for i, secret in enumerate(process.secrets):
        at = f"secrets[{i}]"
        _check_variable(secret.env_var, f"{at}.env_var", spec.secrets, problems)
        spec.secrets[secret.env_var] = secret.name or secret.env_var
    for i, source in enumerate(process.env_from):
        at = f"env_from[{i}]"
        _check_variable(source.env_var, f"{at}.env_var", spec.env_from, problems)
        if not source.field_ref:
            problems.add(f"{at}.field_ref", f"is required: {listed(MACHINE_FIELDS)}")
        spec.env_from[source.env_var] = one_of(
            source.field_ref, MACHINE_FIELDS, MACHINE_FIELD_ID, f"{at}.field_ref", problems
        )


def _check_variable(name: str, field: str, taken: Container[str], problems: Problems) -> None:
    variable_name(name, field, problems)
    if name in taken:
        problems.add(field, f"must be unique in its list, is {shown(name)} again")


PART = Part("processes", owns=("processes",), converters={1: convert})
