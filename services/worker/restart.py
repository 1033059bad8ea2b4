"""When a machine whose process has ended is started again."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from skerry.types.v1.spec_pb2 import RESTART_POLICY_ALWAYS, RESTART_POLICY_ON_FAILURE, RestartSpec

FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 60.0
RAN_WELL_SECONDS = 60.0
"""A process that ran this long ran well: restarts before it no longer count."""

_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again after `delay` seconds; it is the attempt number `attempt` (from 1) since it last ran well."""

    delay: float
    attempt: int


def after_exit(
    spec: RestartSpec, *, exit_code: int, ran_seconds: float, attempts: int, random: Random
) -> Restart | None:
    """What the policy says when the process ended with `exit_code` after `ran_seconds`; None: it stays ended.

    `attempts` is the number of restarts since it last ran well, before this exit. `max_retries` counts those, so that a
    process that fails once a week is not given up some day.
    """
    if ran_seconds >= RAN_WELL_SECONDS:
        attempts = 0
    if spec.policy == RESTART_POLICY_ALWAYS:
        again = True
    elif spec.policy == RESTART_POLICY_ON_FAILURE:
        again = exit_code != 0 and attempts < spec.max_retries
    else:
        again = False
    return Restart(delay_before(attempts, random), attempts + 1) if again else None


def delay_before(attempts: int, random: Random) -> float:
    """Seconds to wait before the next start after `attempts` restarts: exponential, with jitter, bounded."""
    delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(attempts, 30))
    return min(LONGEST_DELAY_SECONDS, delay * random.uniform(1 - _JITTER, 1 + _JITTER))
