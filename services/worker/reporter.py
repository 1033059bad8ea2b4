"""The worker's word to the store: that it is there, that it lives, and what it saw, once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from random import Random
from typing import Protocol

from skerry.store.v1.store_pb2 import (
    HeartbeatRequest,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    ReportObservationsRequest,
    ReportObservationsResponse,
)

from services.runtime.clock import Clock
from services.runtime.errors import NotFound, SkerryError
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log
from services.worker.journal import Journal
from services.worker.settings import WorkerSettings

_BATCH = 256
_FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 2.0


class Ledger(Protocol):
    """What of the store the reporter talks to. Each raises SkerryError."""

    async def register(self, request: RegisterWorkerRequest) -> RegisterWorkerResponse: ...

    async def heartbeat(self, request: HeartbeatRequest, timeout: float) -> None: ...

    async def report(self, request: ReportObservationsRequest) -> ReportObservationsResponse: ...


class Reporter:
    """Registers a worker, keeps it alive in the store's eyes and empties its journal's outbox."""

    def __init__(
        self,
        settings: WorkerSettings,
        journal: Journal,
        ledger: Ledger,
        *,
        address: Callable[[], str],
        driver: str,
        clock: Clock,
        random: Random,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`address` tells where the worker's own service listens; `on_progress` is called when the outbox shrinks."""
        self._settings = settings
        self._journal = journal
        self._ledger = ledger
        self._address = address
        self._driver = driver
        self._clock = clock
        self._random = random
        self._on_progress = on_progress
        self._something = asyncio.Event()
        self._must_register = asyncio.Event()
        self._must_register.set()
        self.registered = asyncio.Event()
        """Set while the store knows this worker and its journal."""

    def wake(self) -> None:
        """Something was put into the outbox."""
        self._something.set()

    async def run(self) -> None:
        """Work until cancelled. Raises OSError if what the journal has cannot be brought to the disk."""
        self.wake()
        await run_forever(presence=self._be_present(), reports=self._report())

    async def _be_present(self) -> None:
        waits = 0
        while True:
            try:
                if self._must_register.is_set():
                    await self._register()
                else:
                    await self._beat()
                waits = 0
            except NotFound:
                self._register_again()
            except SkerryError as error:
                if waits == 0:
                    log.warning("store_not_reached", worker=self._settings.id, why=error.message)
                waits += 1
            except OSError as error:
                log.warning("journal_not_renewed", worker=self._settings.id, why=str(error))
                waits += 1
            if self._must_register.is_set():
                await self._clock.sleep(self._backoff(waits))
            else:
                await self._sleep_until_due()

    async def _register(self) -> None:
        settings, journal = self._settings, self._journal
        for _ in range(2):
            answer = await self._ledger.register(
                RegisterWorkerRequest(
                    worker_id=settings.id,
                    zone=settings.zone,
                    address=self._address(),
                    capacity=settings.capacity,
                    host_dedication_id=settings.host_dedication_id,
                    journal_id=journal.id,
                    driver=self._driver,
                )
            )
            if journal.agrees_with(answer.last_sequence):
                break
            # One of the two lost its end: what is in the outbox goes out again, as another journal's.
            log.warning(
                "journal_renewed", worker=settings.id, store_has=answer.last_sequence, next=journal.next_sequence
            )
            journal.renew()
        journal.acknowledge(answer.last_sequence)
        self._must_register.clear()
        self.registered.set()
        self._on_progress()
        log.info("worker_registered", worker=settings.id, number=answer.worker.number)

    async def _beat(self) -> None:
        request = HeartbeatRequest(worker_id=self._settings.id, journal_id=self._journal.id)
        await self._ledger.heartbeat(request, max(1.0, self._settings.heartbeat_seconds))

    async def _report(self) -> None:
        failures = 0
        while True:
            if not self._journal.outbox:
                self._something.clear()
                await self._something.wait()
            await self.registered.wait()
            # The store must not know more of this journal than its disk does.
            await self._journal.sync()
            batch = list(islice(self._journal.outbox, _BATCH))
            if not batch:
                continue
            request = ReportObservationsRequest(
                worker_id=self._settings.id, journal_id=self._journal.id, observations=batch
            )
            try:
                answer = await self._ledger.report(request)
            except SkerryError as error:
                log.warning(
                    "report_waits", worker=self._settings.id, waiting=len(self._journal.outbox), why=error.message
                )
                if isinstance(error, NotFound):
                    self._register_again()
                failures += 1
            else:
                if request.journal_id != self._journal.id:
                    continue
                self._journal.acknowledge(answer.last_sequence)
                self._on_progress()
                failures = 0 if answer.last_sequence >= batch[0].sequence else failures + 1
                if failures:
                    self._register_again()
            if failures:
                await self._clock.sleep(self._backoff(failures))

    def _register_again(self) -> None:
        self.registered.clear()
        self._must_register.set()

    async def _sleep_until_due(self) -> None:
        nap = asyncio.ensure_future(self._clock.sleep(self._settings.heartbeat_seconds))
        needed = asyncio.ensure_future(self._must_register.wait())
        try:
            await asyncio.wait((nap, needed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            nap.cancel()
            needed.cancel()

    def _backoff(self, failures: int) -> float:
        longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(failures, 20))
        return self._random.uniform(longest / 2, longest)
