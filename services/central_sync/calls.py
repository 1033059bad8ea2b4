"""Calls of the centre: each class behind its breaker, with a bound on how many, how long and how often.

What the centre answers is an answer, a refusal too. What is not an answer (no connection, no end within the deadline,
an error of the centre itself) is a failure: the breaker counts it, and the caller gets DependencyDown.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, Never, TypeVar

from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from services.central_sync.breaker import Breaker, Changed, State
from services.central_sync.settings import CallClass, CallSettings
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown
from services.runtime.registry import remaining
from services.runtime.telemetry import log

_RETRY_AFTER = 1.0
_BACKOFF = 0.02
_STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}

_state = Gauge(
    "skerry_breaker_state",
    "State of the breaker of a class of calls of the centre: 0 closed, 1 half-open, 2 open.",
    ["cell", "call_class"],
    registry=telemetry.metrics,
)
_changes = Counter(
    "skerry_breaker_changes_total",
    "Changes of a breaker, by the state it came into.",
    ["cell", "call_class", "state"],
    registry=telemetry.metrics,
)
_calls = Counter(
    "skerry_central_calls_total",
    "Attempts at calls of the centre: answered, slow (answered), failed, cut_short, refused (breaker), no_place.",
    ["cell", "call_class", "outcome"],
    registry=telemetry.metrics,
)
_seconds = Histogram(
    "skerry_central_call_seconds",
    "How long attempts at calls of the centre take.",
    ["cell", "call_class"],
    registry=telemetry.metrics,
)

T = TypeVar("T")
Attempt = Callable[[float], Awaitable[T]]
"""Makes the call, within so many seconds. Raises Failure, and Refusal for an answer that is a no."""


class Refusal(Exception):
    """The centre answered no: `code` is for programs, `message` for people."""

    def __init__(self, code: str, message: str, extensions: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.extensions = dict(extensions or {})


class Failure(Exception):
    """There is no answer. `why` is for people; `repeat` says whether another attempt may fare better."""

    def __init__(self, why: str, *, repeat: bool) -> None:
        super().__init__(why)
        self.why = why
        self.repeat = repeat


class RetryBudget:
    """Whether calls may be repeated: a failure costs a token, an answer gives a tenth back; not below half of them."""

    def __init__(self, tokens: float = 10.0) -> None:
        self._most = self._tokens = tokens

    @property
    def allows(self) -> bool:
        """Whether a call may be repeated now."""
        return self._tokens > self._most / 2

    def spend(self) -> None:
        """A call failed."""
        self._tokens = max(0.0, self._tokens - 1)

    def earn(self) -> None:
        """A call was answered."""
        self._tokens = min(self._most, self._tokens + 0.1)


class Places:
    """Places for calls that are under way, handed on first come, first served. The queue for them is bounded."""

    def __init__(self, places: int, waiting: int) -> None:
        self._free = places
        self._most_waiting = waiting
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> bool:
        """Wait for a place; False when too many wait already. The taker gives it back."""
        if self._free:
            self._free -= 1
            return True
        if len(self._waiting) >= self._most_waiting:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                self._waiting.remove(turn)
            raise
        return True

    def give_back(self) -> None:
        """Hand the place to whoever waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Calls:
    """All calls of one class."""

    def __init__(
        self,
        call_class: CallClass,
        settings: CallSettings,
        *,
        cell: str,
        clock: Clock,
        random: Random,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the breaker changes its state."""
        self.breaker = Breaker(call_class.value, settings.breaker, clock=clock, random=random, on_change=self._changed)
        self.budget = RetryBudget()
        self._class = call_class.value
        self._settings = settings
        self._cell = cell
        self._clock = clock
        self._random = random
        self._on_change = on_change
        self._places = Places(settings.concurrency, settings.waiting)
        self._closed = asyncio.Event()
        self._closed.set()
        self._opened = asyncio.Event()
        _state.labels(cell, self._class).set(_STATES[State.CLOSED])

    async def run(self, attempt: Attempt[T], *, idempotent: bool, patience: float = 0.0) -> T:
        """The centre's answer. `patience`, in seconds, is how much longer than others this call may take.

        Raises DependencyDown when there is none: at once while the breaker is open. Raises Refusal.
        """
        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            stop=stop_after_attempt(self._settings.attempts if idempotent else 1),
            retry=retry_if_exception(self._may_repeat),
            wait=self._back_off,
            reraise=True,
        )
        try:
            return await retrying(self._once, attempt, patience)
        except Failure as error:
            raise self.down(error.why) from error

    async def until_closed(self) -> None:
        """Wait until calls go through."""
        await self._closed.wait()

    async def keep_probing(self, probe: Attempt[Any]) -> Never:
        """Probe while the breaker is open, as often as it says, until cancelled."""
        while True:
            await self._opened.wait()
            while (seconds := self.breaker.seconds_to_probe) > 0:
                await self._clock.sleep(seconds)
            self.breaker.begin_probing()
            while self.breaker.state is State.HALF_OPEN:
                await self._probe(probe)

    def down(self, why: str) -> DependencyDown:
        """The error for a call that the centre does not answer."""
        breaker = self.breaker
        since = datetime.fromtimestamp(breaker.failing_since, UTC).isoformat(timespec="milliseconds")
        since = since.replace("+00:00", "Z")
        retry_after = max(breaker.seconds_to_probe, _RETRY_AFTER)
        return DependencyDown(
            f"{CENTRAL} does not answer calls of the class {self._class} since {since} ({why}); "
            f"try again in {retry_after:.0f} s",
            metadata={"dependency": CENTRAL, "since": since, "call_class": self._class},
            retry_after=retry_after,
        )

    async def _once(self, attempt: Attempt[T], patience: float) -> T:
        settings, left = self._settings, remaining()
        deadline = settings.deadline + patience
        seconds = deadline if left is None else min(deadline, left)
        end = self._clock.monotonic() + seconds
        self._admit()
        if not await self._take_place(seconds):
            self._count("no_place")
            raise Failure("as many calls as may be under way are", repeat=False)
        try:
            era = self._admit()
            return await self._counted(attempt, era, max(end - self._clock.monotonic(), 0.0), patience)
        finally:
            self._places.give_back()

    def _admit(self) -> int:
        if not self.breaker.lets_through:
            self._count("refused")
            raise Failure(self.breaker.last_failure or "its calls are slow", repeat=False)
        return self.breaker.era

    async def _take_place(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._places.take()
        except TimeoutError:
            return False

    async def _counted(self, attempt: Attempt[T], era: int, seconds: float, patience: float) -> T:
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(seconds):
                answer = await attempt(seconds)
        except Refusal:
            self._answered(era, began, patience)
            raise
        except Failure as error:
            self._failed(era, began, error.why, patience)
            raise
        except (TimeoutError, asyncio.CancelledError) as error:
            took = self._clock.monotonic() - began
            if took < self._settings.slow_after + patience:
                # Its caller gave it little time, or gave it up: that says nothing about the centre.
                self._count("cut_short")
                why = "the caller's deadline ran out"
            else:
                why = f"no answer within {took:.1f} s"
                self._failed(era, began, why, patience)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Failure(why, repeat=False) from None
        self._answered(era, began, patience)
        return answer

    def _answered(self, era: int, began: float, patience: float) -> None:
        self.budget.earn()
        self._ended(era, began, "", patience)

    def _failed(self, era: int, began: float, why: str, patience: float) -> None:
        self.budget.spend()
        self._ended(era, began, why, patience)

    def _ended(self, era: int, began: float, failed: str, patience: float) -> None:
        took = self._clock.monotonic() - began
        slow = took >= self._settings.slow_after + patience
        _seconds.labels(self._cell, self._class).observe(took)
        self._count("failed" if failed else "slow" if slow else "answered")
        self.breaker.record(era, failed=failed, slow=slow)

    async def _probe(self, probe: Attempt[Any]) -> None:
        began = self._clock.monotonic()
        failed = ""
        try:
            async with asyncio.timeout(self._settings.deadline):
                await probe(self._settings.deadline)
        except Refusal:
            pass
        except TimeoutError:
            failed = f"no answer within {self._settings.deadline:g} s"
        except Failure as error:
            failed = error.why
        slow = self._clock.monotonic() - began >= self._settings.slow_after
        self.breaker.record_probe(failed=failed, slow=slow)

    def _may_repeat(self, error: BaseException) -> bool:
        return isinstance(error, Failure) and error.repeat and self.budget.allows and self.breaker.lets_through

    def _back_off(self, state: RetryCallState) -> float:
        doubled: float = _BACKOFF * 2 ** (state.attempt_number - 1)
        return doubled * self._random.uniform(0.5, 1.5)

    def _count(self, outcome: str) -> None:
        _calls.labels(self._cell, self._class, outcome).inc()

    def _changed(self, change: Changed) -> None:
        if change.after is State.CLOSED:
            self._closed.set()
            self._opened.clear()
        else:
            self._closed.clear()
            self._opened.set()
        _state.labels(self._cell, self._class).set(_STATES[change.after])
        _changes.labels(self._cell, self._class, change.after.value).inc()
        event = {
            "call_class": change.breaker,
            "before": change.before.value,
            "after": change.after.value,
            "why": change.why,
            "failure_rate": round(change.failure_rate, 3),
            "slow_call_rate": round(change.slow_call_rate, 3),
        }
        (log.warning if change.after is State.OPEN else log.info)("breaker_changed", **event)
        trace.get_current_span().add_event("breaker_changed", event)
        self._on_change()
