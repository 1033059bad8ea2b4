"""Admission control: when a region is saturated it turns calls away early, the least important first.

Two things tell that too much is asked. Where a queue stands: delays are judged as by CoDel (K. Nichols and V. Jacobson,
"Controlling Queue Delay", ACM Queue 10(5), 2012; RFC 8289), by the least one within an interval, since a burst makes
the greatest one grow and only a queue that does not drain makes the least one. And how many calls are under way at
once, for what is slow without keeping the event loop busy.

What is turned away goes by importance, as in WeChat's DAGOR (H. Zhou et al., "Overload Control for Scaling WeChat
Microservices", SoCC 2018): a level rises through the classes while a queue stands, and sinks when none does. It rises
faster than it sinks, does neither in between, and turns a part of one class away at a time: so it does not flap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any, Final

from prometheus_client import Counter, Gauge

from gateway.auth import WITHOUT_TOKEN
from gateway.settings import AdmissionSettings
from services.runtime.clock import Clock
from services.runtime.errors import DependencyDown
from services.runtime.registry import Registry, ServerCall
from services.runtime.telemetry import metrics

SAMPLE_SECONDS: Final = 0.05
"""How often the lag of the event loop is looked at."""
INTERVAL_SECONDS: Final = 0.5
"""The least delay within it is what counts."""
RISE: Final = 0.5
"""Classes that are turned away in addition after each interval in which a queue stands, from the second one on."""
FALL: Final = 0.25
"""Classes that are let in again after each interval without."""
RETRY_SECONDS: Final = 1.0
"""After which a call that is turned away may come again; more, the higher the level is."""


class Importance(IntEnum):
    """Classes of calls, in the order in which they are turned away."""

    CREATE = 0
    """New load, which nobody has yet."""
    LIST = 1
    """What reads much."""
    CHANGE = 2
    """Of what exists, and somebody relies on."""
    GET = 3
    """What reads little."""
    RELIEF = 4
    """What makes load less, or costs nothing: deleting, stopping, waiting. Never turned away for a delay."""


_BY_NAME: Final = {
    "StopMachine": Importance.RELIEF,
    "SuspendMachine": Importance.RELIEF,
    "ReleaseMachineLease": Importance.RELIEF,
    "WaitMachine": Importance.RELIEF,
}
_BY_BEGINNING: Final = {
    "Create": Importance.CREATE,
    "List": Importance.LIST,
    "Watch": Importance.LIST,
    "Simulate": Importance.LIST,
    "Execute": Importance.LIST,
    "Get": Importance.GET,
    "Locate": Importance.GET,
    "Delete": Importance.RELIEF,
}
_LONG: Final = frozenset({"WaitMachine", "WatchMachines", "ExecMachine"})
"""Methods whose calls are many and last long without any work: they are not counted as under way."""

_shed = Counter(
    "skerry_admission_shed", "Calls that were turned away because the region is saturated.", ["class"], registry=metrics
)
_SHED: Final = {importance: _shed.labels(importance.name.lower()) for importance in Importance}
_level_gauge = Gauge("skerry_admission_level", "Classes of calls that are turned away, from 0 to 4.", registry=metrics)
_in_flight_gauge = Gauge("skerry_admission_in_flight", "Calls under way, without waits and watches.", registry=metrics)


@cache
def importance_of(method: str) -> Importance:
    """The class of a method of the public API, by its full name."""
    name = method.rpartition("/")[2]
    if name in _BY_NAME:
        return _BY_NAME[name]
    return next((kind for beginning, kind in _BY_BEGINNING.items() if name.startswith(beginning)), Importance.CHANGE)


_SHARES: Final = {
    Importance.CREATE: 0.5,
    Importance.LIST: 0.6,
    Importance.CHANGE: 0.75,
    Importance.GET: 0.9,
    Importance.RELIEF: 1.0,
}
"""Of the calls that may be under way at once, how many there may be for one more of a class to be let in."""


class _Delay:
    """The least delay of the present interval, and whether a queue stands."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._least: float | None = None
        self._above = 0

    def add(self, seconds: float) -> None:
        if self._least is None or seconds < self._least:
            self._least = seconds

    def judge(self) -> int:
        """End an interval: 1 when a queue stands, for the second time at least, -1 when none does, else 0."""
        least, self._least = self._least, None
        if least is not None and least > self._bound:
            self._above += 1
            return 1 if self._above > 1 else 0
        self._above = 0
        return -1 if least is None or least <= self._bound / 2 else 0


class Controller:
    """Which calls are let in. Pure: it is told what happens, and when."""

    def __init__(self, bounds: AdmissionSettings) -> None:
        self._most = [int(bounds.in_flight * _SHARES[importance]) for importance in Importance]
        self._loop = _Delay(bounds.loop_seconds)
        self._create = _Delay(bounds.create_seconds)
        self._interval_began: float | None = None
        self._owed = [0.0] * len(Importance)
        self.level = 0.0
        """How many classes are turned away, from 0 to 4; the part that is not whole, of the next class."""
        self.in_flight = 0
        """Calls under way."""

    def admits(self, importance: Importance) -> bool:
        """Whether to let a call in."""
        if self.in_flight >= self._most[importance]:
            return False
        part = self.level - importance
        if part <= 0:
            return True
        # Evenly: of so many calls in a row, that part.
        self._owed[importance] += min(part, 1.0)
        if self._owed[importance] < 1.0:
            return True
        self._owed[importance] -= 1.0
        return False

    def create_waited(self, seconds: float) -> None:
        """A create waited so long until the store answered."""
        self._create.add(seconds)

    def loop_lagged(self, seconds: float, now: float) -> None:
        """The event loop came so much too late; `now` is in seconds, and never goes back."""
        self._loop.add(seconds)
        if self._interval_began is None:
            self._interval_began = now
        if now - self._interval_began < INTERVAL_SECONDS:
            return
        self._interval_began = now
        loop, create = self._loop.judge(), self._create.judge()
        if loop > 0:
            self.level = min(self.level + RISE, float(Importance.RELIEF))
        elif create > 0:
            # Of what waits for the store, creates are what can be left out; and they alone tell that it is better.
            self.level = max(self.level, min(self.level + RISE, float(Importance.LIST)))
        elif loop < 0 and create < 0:
            self.level = max(self.level - FALL, 0.0)
        if self.level == 0.0:
            self._owed = [0.0] * len(Importance)


class AdmissionControl:
    """The admission control of a process, as a component and as an interceptor of the public registry."""

    name = "admission"

    def __init__(self, clock: Clock, bounds: AdmissionSettings) -> None:
        self._clock = clock
        self._controller = Controller(bounds)

    @property
    def create_waited(self) -> Callable[[float], None]:
        """Tell how many seconds a create waited until the store answered."""
        return self._controller.create_waited

    def register(self, registry: Registry) -> None:
        """Nothing: it has no methods."""

    async def run(self, ready: Callable[[], None]) -> None:
        """Watch the event loop until cancelled."""
        ready()
        clock, controller = self._clock, self._controller
        while True:
            before = clock.monotonic()
            await clock.sleep(SAMPLE_SECONDS)
            now = clock.monotonic()
            controller.loop_lagged(max(0.0, now - before - SAMPLE_SECONDS), now)
            _level_gauge.set(controller.level)
            _in_flight_gauge.set(controller.in_flight)

    async def __call__(self, call: ServerCall) -> None:
        """Let the call in, and count it until it ends. Raises DependencyDown, with the seconds to wait."""
        method = call.method
        if method.startswith(WITHOUT_TOKEN):
            return
        importance = importance_of(method)
        if not self._controller.admits(importance):
            _SHED[importance].inc()
            raise DependencyDown(
                "this region has more to do than it can, and takes no more of such calls for now; try again later",
                metadata={"dependency": "region", "class": importance.name.lower()},
                retry_after=RETRY_SECONDS + self._controller.level,
            )
        if method.rpartition("/")[2] in _LONG:
            return
        task = asyncio.current_task()
        assert task is not None
        self._controller.in_flight += 1
        # A call has a task of its own, which ends with it however it ends.
        task.add_done_callback(self._ended)

    def _ended(self, _task: asyncio.Task[Any]) -> None:
        self._controller.in_flight -= 1
