"""Repeating calls that may be repeated, while what they ask is away: with jitter, within a budget and the deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from services.runtime.clock import Clock
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown
from services.runtime.registry import remaining

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 0.5
BUDGET = 50.0
"""Repetitions that may follow each other when nothing succeeds."""
EARNED_BY_SUCCESS = 0.1
LONGEST_ABSENCE_SECONDS = 5.0
"""What asks to be left alone for longer is not asked again here, but by whoever called."""
LEFT_FOR_THE_ANSWER = 0.1
"""Seconds before the deadline in which nothing is repeated: the answer has to get out."""


class Retries:
    """Repeats calls that end with DependencyDown. One for a process: its calls share the budget."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self._budget = BUDGET

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns. Raises what it raised last, once the budget or the served call's deadline is spent."""
        try:
            result = await call()
        except DependencyDown as error:
            if not _may_help(error) or not self._may_go_on(FIRST_WAIT_SECONDS):
                raise
        else:
            self._earn()
            return result
        await self._clock.sleep(self._random.uniform(0, FIRST_WAIT_SECONDS))
        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
            retry=retry_if_exception(_may_help),
            stop=self._ends,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                result = await call()
        self._earn()
        return result

    def _ends(self, state: RetryCallState) -> bool:
        return not self._may_go_on(state.upcoming_sleep)

    def _may_go_on(self, wait: float) -> bool:
        left = remaining()
        if self._budget < 1 or (left is not None and left < wait + LEFT_FOR_THE_ANSWER):
            return False
        self._budget -= 1
        return True

    def _earn(self) -> None:
        self._budget = min(BUDGET, self._budget + EARNED_BY_SUCCESS)


def _may_help(error: BaseException) -> bool:
    """Whether asking again may. The centre is behind a breaker of its own, which decides when it is asked again."""
    if not isinstance(error, DependencyDown) or error.metadata.get("dependency") == CENTRAL:
        return False
    return error.retry_after is None or error.retry_after <= LONGEST_ABSENCE_SECONDS
