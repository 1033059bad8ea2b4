"""A circuit breaker: after too many failed or slow calls it refuses calls for a while, then finds out by probes.

Why not a library: purgatory, pybreaker, aiobreaker and circuitbreaker count failures in a row (none looks at a rate
over a window, or at slow calls) and read the system's clock. interlock-cb has both rates and takes a clock, but lets
the first call after the open time through as its probe, so that a user pays for it, and all instances of a region,
opened together, probe together. Here nobody's call is a probe: who owns the breaker makes them; and the open time is
jittered.

Pure: it is told what happened, and does not call anything itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random

from services.runtime.clock import Clock

LONGEST_OPEN = 10.0
"""No breaker stays open longer than this without a probe, in seconds."""


class State(Enum):
    """What a breaker does with calls."""

    CLOSED = "closed"
    """It lets them through."""
    OPEN = "open"
    """It refuses them."""
    HALF_OPEN = "half-open"
    """It refuses them while probes are made."""


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.CLOSED: frozenset({State.OPEN}),
    State.OPEN: frozenset({State.HALF_OPEN}),
    State.HALF_OPEN: frozenset({State.CLOSED, State.OPEN}),
}


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens, and for how long. Times in seconds, rates 0..1."""

    window: float = 30.0
    """Calls that ended longer ago do not count."""
    window_calls: int = 50
    """Nor do more than the last so many, so that a long good past does not hide that the present is bad."""
    minimum_calls: int = 10
    """With fewer calls in the window it stays closed."""
    failure_rate: float = 0.5
    slow_call_rate: float = 0.8
    open_for: float = 1.0
    """How long it is open at first; twice as long after each round of probes that failed."""
    longest_open: float = LONGEST_OPEN
    probes: int = 2
    """Probes that must succeed in a row for it to close."""

    def __post_init__(self) -> None:
        if not 0 < self.open_for <= self.longest_open <= LONGEST_OPEN:
            raise ValueError(f"open_for and longest_open must rise from above 0 to {LONGEST_OPEN:g} s at most")
        if not 0 < self.failure_rate <= 1 or not 0 < self.slow_call_rate <= 1:
            raise ValueError("failure_rate and slow_call_rate must be above 0, and 1 at most")
        if not 1 <= self.minimum_calls <= self.window_calls or self.window <= 0 or self.probes < 1:
            raise ValueError("minimum_calls must be 1..window_calls, window above 0, and probes 1 at least")


@dataclass(frozen=True, slots=True)
class Changed:
    """A breaker went from one state to another, and why."""

    breaker: str
    before: State
    after: State
    why: str
    failure_rate: float
    slow_call_rate: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A call ended: at a moment of the monotonic clock."""

    at: float
    failed: bool
    slow: bool


class Breaker:
    """One breaker. Not for several threads."""

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        clock: Clock,
        random: Random,
        on_change: Callable[[Changed], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.state = State.CLOSED
        self.since = clock.now()
        """When it came into its state, in unix seconds."""
        self.last_failure = ""
        """Why the last call failed, for people."""
        self.era = 0
        """Changes with each state. A call is recorded with the era it was let through in."""
        self._settings = settings
        self._clock = clock
        self._random = random
        self._on_change = on_change
        self._ended: deque[Ended] = deque()
        self._failed = 0
        self._slow = 0
        self._failing_since: float | None = None
        self._bad_since = 0.0
        self._failed_rounds = 0
        self._good_probes = 0
        self._probe_at = 0.0

    @property
    def lets_through(self) -> bool:
        """Whether a call may be made."""
        return self.state is State.CLOSED

    @property
    def failing_since(self) -> float:
        """Unix time of the first failure after the last success; without one, of when it opened, or closed."""
        if self._failing_since is not None:
            return self._failing_since
        return self.since if self.state is State.CLOSED else self._bad_since

    @property
    def failure_rate(self) -> float:
        """Failed calls in the window, 0..1; of an open breaker, those that opened it."""
        self._forget()
        return self._failed / len(self._ended) if self._ended else 0.0

    @property
    def slow_call_rate(self) -> float:
        """Slow calls in the window, 0..1; of an open breaker, those that opened it."""
        self._forget()
        return self._slow / len(self._ended) if self._ended else 0.0

    @property
    def seconds_to_probe(self) -> float:
        """Seconds until an open breaker is to be probed; 0 for another."""
        return max(0.0, self._probe_at - self._clock.monotonic()) if self.state is State.OPEN else 0.0

    def record(self, era: int, *, failed: str = "", slow: bool = False) -> None:
        """Take in how a call ended that was let through in `era`: `failed` says why, for people, or is empty.

        Of a call that was let through in another state than the present one nothing is learned.
        """
        if era != self.era or self.state is not State.CLOSED:
            return
        self._note(failed)
        self._ended.append(Ended(self._clock.monotonic(), bool(failed), slow))
        self._failed += bool(failed)
        self._slow += slow
        self._forget()
        calls, settings = len(self._ended), self._settings
        if calls < settings.minimum_calls:
            return
        if self._failed >= settings.failure_rate * calls:
            self._open(f"{self._failed} of the last {calls} calls failed: {self.last_failure}")
        elif self._slow >= settings.slow_call_rate * calls:
            self._open(f"{self._slow} of the last {calls} calls were slow")

    def begin_probing(self) -> None:
        """Go from open to half-open. The owner calls this when `seconds_to_probe` is 0, and makes the probes."""
        self._good_probes = 0
        self._to(State.HALF_OPEN, "it is time for a probe")

    def record_probe(self, *, failed: str = "", slow: bool = False) -> None:
        """Take in how a probe ended: a bad one opens the breaker again, enough good ones in a row close it."""
        if self.state is not State.HALF_OPEN:
            return
        if failed or not slow:
            self._note(failed)
        if failed or slow:
            self._failed_rounds += 1
            self._open(f"a probe failed: {failed}" if failed else "a probe was slow")
            return
        self._good_probes += 1
        if self._good_probes >= self._settings.probes:
            self._failed_rounds = 0
            self._ended.clear()
            self._failed = self._slow = 0
            self._to(State.CLOSED, f"{self._good_probes} probes went well")

    def _note(self, failed: str) -> None:
        if not failed:
            self._failing_since = None
            return
        self.last_failure = failed
        if self._failing_since is None:
            self._failing_since = self._clock.now()

    def _open(self, why: str) -> None:
        settings = self._settings
        rounds = min(self._failed_rounds, 16)
        longest = min(settings.open_for * 2**rounds, settings.longest_open)
        self._probe_at = self._clock.monotonic() + longest * self._random.uniform(0.5, 1.0)
        self._to(State.OPEN, why)

    def _to(self, state: State, why: str) -> None:
        before = self.state
        if state not in TRANSITIONS[before]:
            raise ValueError(f"the breaker {self.name} does not go from {before.value} to {state.value}")
        # The rates are those that led here: an open breaker keeps showing them.
        changed = Changed(self.name, before, state, why, self.failure_rate, self.slow_call_rate)
        self.state = state
        self.since = self._clock.now()
        if before is State.CLOSED:
            self._bad_since = self.since
        self.era += 1
        self._on_change(changed)

    def _forget(self) -> None:
        if self.state is not State.CLOSED:
            return
        oldest = self._clock.monotonic() - self._settings.window
        while self._ended and (self._ended[0].at < oldest or len(self._ended) > self._settings.window_calls):
            gone = self._ended.popleft()
            self._failed -= gone.failed
            self._slow -= gone.slow
