"""The part restart: what happens when the main process ends. Containers have restarts by the same rules."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig, MachineRestart
from skerry.types.v1.spec_pb2 import (
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_NO,
    RESTART_POLICY_ON_FAILURE,
    RestartPolicy,
    RestartSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import LARGEST_COUNT, bounded, one_of

POLICIES = {"no": RESTART_POLICY_NO, "on-failure": RESTART_POLICY_ON_FAILURE, "always": RESTART_POLICY_ALWAYS}
DEFAULT_MAX_RETRIES = 10


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> RestartSpec:
    """Without a policy: on-failure, but no for a machine that is destroyed when it ended or that a schedule starts."""
    spec = RestartSpec()
    auto_destroy = config.auto_destroy
    default = RESTART_POLICY_NO if auto_destroy or config.schedule else RESTART_POLICY_ON_FAILURE
    fill_restart(spec, config.restart, default, problems.below("restart"))
    spec.auto_destroy = auto_destroy
    return spec


def fill_restart(
    spec: RestartSpec, restart: MachineRestart, default: RestartPolicy.ValueType, problems: Problems
) -> None:
    """Policy and retries; retries count only for on-failure, and 0 of them is what the user said."""
    policy = one_of(restart.policy, POLICIES, default, "policy", problems)
    retries = DEFAULT_MAX_RETRIES
    if restart.HasField("max_retries"):
        retries = bounded(restart.max_retries, 0, LARGEST_COUNT, "max_retries", problems)
    spec.policy = policy
    if policy == RESTART_POLICY_ON_FAILURE:
        spec.max_retries = retries


PART = Part("restart", owns=("restart", "auto_destroy"), reads=("schedule",), converters={1: convert})
