"""Leading a duty of a cell: of all instances, the one that holds the store's lease of it does the work.

What a leader writes carries the term of its lead, and the store refuses an older one: so an instance that was paused,
and does not know that it lost the lead, does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Never

from google.protobuf.duration_pb2 import Duration
from prometheus_client import Gauge
from skerry.store.v1.store_pb2 import AcquireDutyRequest

from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.errors import SkerryError
from services.runtime.tasks import cancel
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

_GIVE_UP_SECONDS = 0.5

_leads = Gauge("skerry_leads", "1 while this instance leads the duty.", ["cell", "duty"], registry=telemetry.metrics)


@dataclass(frozen=True, slots=True)
class LeadTimes:
    """Times of a lead, in seconds."""

    lease: float = 5.0
    keep_every: float = 1.5


class Duty:
    """One duty, as one instance sees it."""

    def __init__(
        self,
        name: str,
        store: MachineStoreAsyncStub,
        *,
        cell: str,
        holder: str,
        clock: Clock,
        random: Random,
        times: LeadTimes | None = None,
    ) -> None:
        """`holder` is what the store knows this instance by: no other one, also no earlier one, may have it."""
        self.name = name
        self._store = store
        self._cell = cell
        self._holder = holder
        self._clock = clock
        self._random = random
        self._times = times or LeadTimes()
        self._term: int | None = None
        self._until = 0.0

    @property
    def term(self) -> int | None:
        """The term this instance leads under; None while it does not, as far as it knows."""
        return self._term if self._clock.monotonic() < self._until else None

    async def run(self, work: Callable[[int], Awaitable[None]]) -> Never:
        """Take the lead when it can be had, and do `work(term)` while it lasts, until cancelled; then give it up.

        Work that outlives the lead is cancelled; work that returns begins anew under the next lead or the next time the
        lead is kept. Raises what the work raises.
        """
        running: asyncio.Task[None] | None = None
        term: int | None = None
        try:
            while True:
                asked = self._clock.monotonic()
                await self._ask()
                if running is not None and (self.term != term or running.done()):
                    await _end(running)
                    running = None
                term = self.term
                if running is None and term is not None:
                    running = asyncio.create_task(_do(work, term), name=f"{self.name}-term-{term}")
                pause = self._times.keep_every * self._random.uniform(0.8, 1.2)
                await self._pause(max(0.0, pause - (self._clock.monotonic() - asked)), running)
        finally:
            if running is not None:
                await cancel(running)
            if self.term is not None:
                await self._give_up()

    async def _pause(self, seconds: float, running: asyncio.Task[None] | None) -> None:
        """Wait until the lead is to be kept; less when the work ends by an error."""
        if running is None:
            await self._clock.sleep(seconds)
            return
        pause = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({pause, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and (running.cancelled() or running.exception() is None):
                await pause
        finally:
            pause.cancel()

    async def _ask(self) -> None:
        asked = self._clock.monotonic()
        try:
            answer = await self._store.AcquireDuty(self._request(self._times.lease), timeout=self._times.keep_every)
        except SkerryError as error:
            log.warning("duty_cannot_be_asked_for", duty=self.name, why=error.message)
            if self._term is not None and self.term is None:
                self._lose("it ran out")
            return
        if not answer.acquired:
            self._lose(f"{answer.holder} leads")
            return
        if self._term != answer.term:
            log.info("duty_leads", duty=self.name, holder=self._holder, term=answer.term)
        self._term, self._until = answer.term, asked + self._times.lease
        _leads.labels(self._cell, self.name).set(1)

    def _lose(self, why: str) -> None:
        if self._term is not None:
            log.info("duty_no_longer_leads", duty=self.name, holder=self._holder, term=self._term, why=why)
        self._term = None
        _leads.labels(self._cell, self.name).set(0)

    async def _give_up(self) -> None:
        try:
            await self._store.AcquireDuty(self._request(0), timeout=_GIVE_UP_SECONDS)
        except SkerryError as error:
            log.info("duty_runs_out", duty=self.name, why=error.message)
        self._lose("the process ends")

    def _request(self, lease: float) -> AcquireDutyRequest:
        length = Duration()
        length.FromNanoseconds(round(lease * 1e9))
        return AcquireDutyRequest(duty=self.name, holder=self._holder, lease=length)


async def _do(work: Callable[[int], Awaitable[None]], term: int) -> None:
    await work(term)


async def _end(running: asyncio.Task[None]) -> None:
    if running.done():
        running.result()
    else:
        await cancel(running)
