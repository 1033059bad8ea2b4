from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from skerry.types.v1.spec_pb2 import (
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_NO,
    RESTART_POLICY_ON_FAILURE,
    RESTART_POLICY_UNSPECIFIED,
    RestartSpec,
)

from services.worker.restart import (
    FIRST_DELAY_SECONDS,
    LONGEST_DELAY_SECONDS,
    RAN_WELL_SECONDS,
    Restart,
    after_exit,
    delay_before,
)

ON_FAILURE = RestartSpec(policy=RESTART_POLICY_ON_FAILURE, max_retries=3)


def asked(spec: RestartSpec, code: int, *, ran: float = 1.0, attempts: int = 0) -> Restart | None:
    return after_exit(spec, exit_code=code, ran_seconds=ran, attempts=attempts, random=Random(1))


def test_the_policies_say_which_exits_are_restarted() -> None:
    table = {
        RESTART_POLICY_UNSPECIFIED: (False, False, False),
        RESTART_POLICY_NO: (False, False, False),
        RESTART_POLICY_ON_FAILURE: (False, True, True),
        RESTART_POLICY_ALWAYS: (True, True, True),
    }
    for policy, answers in table.items():
        spec = RestartSpec(policy=policy, max_retries=3)
        assert tuple(asked(spec, code) is not None for code in (0, 1, -1)) == answers


def test_on_failure_gives_up_after_its_retries_and_always_does_not() -> None:
    assert asked(ON_FAILURE, 1, attempts=2) is not None
    assert asked(ON_FAILURE, 1, attempts=3) is None
    assert asked(RestartSpec(policy=RESTART_POLICY_ALWAYS, max_retries=3), 1, attempts=1000) is not None


def test_a_machine_that_ran_well_begins_its_attempts_again() -> None:
    restart = asked(ON_FAILURE, 1, ran=RAN_WELL_SECONDS, attempts=3)
    assert restart is not None
    assert restart.attempt == 1
    assert restart.delay < 2 * FIRST_DELAY_SECONDS
    assert asked(ON_FAILURE, 1, ran=RAN_WELL_SECONDS - 1, attempts=3) is None


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_delays_grow_to_a_bound_with_jitter(attempts: int, random: Random) -> None:
    delay = delay_before(attempts, random)
    nominal = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(attempts, 10))
    assert 0.75 * nominal <= delay <= min(LONGEST_DELAY_SECONDS, 1.25 * nominal)
