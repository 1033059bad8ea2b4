"""The scheduler on the wire: Place, and the component that keeps its view and reconciles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import Counter, Gauge
from skerry.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from skerry.store.v1 import store_pb2_grpc

from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.duty import LeadTimes
from services.runtime.errors import DependencyDown
from services.runtime.following import follow
from services.runtime.ids import AppId, WorkerId
from services.runtime.resources import from_vector, to_vector
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log
from services.scheduler.fleet import Need
from services.scheduler.leader import Leader
from services.scheduler.placement import Present, count_room, explain, nearest, rank
from services.scheduler.reconcile import ReconcileSettings
from services.scheduler.view import FILTER, View

if TYPE_CHECKING:
    import grpc

    from services.runtime.registry import Registry

_CANDIDATES = 3
_MOST_CANDIDATES = 100

_placements = Counter(
    "skerry_placements_total", "Placements answered.", ["cell", "outcome"], registry=telemetry.metrics
)
_staleness = Gauge(
    "skerry_fleet_view_staleness_seconds",
    "Seconds since the store last said how far the log is.",
    ["cell"],
    registry=telemetry.metrics,
)


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """Times of the scheduler, in seconds."""

    expect_for: float = 1.0
    """How long a placement that was answered counts before the log tells of it."""
    stale_after: float = 5.0
    """A view that has heard nothing for longer says so in the log."""
    lead: LeadTimes = field(default_factory=LeadTimes)
    reconcile: ReconcileSettings = field(default_factory=ReconcileSettings)


class SchedulerService(scheduler_pb2_grpc.SchedulerServicer):
    """skerry.scheduler.v1.Scheduler, and the component behind it."""

    name = "scheduler"

    def __init__(
        self,
        store: grpc.aio.Channel,
        *,
        cell: str,
        instance: str,
        clock: Clock,
        random: Random,
        settings: SchedulerSettings | None = None,
    ) -> None:
        """`store` is a channel to the machine-store of `cell`, which knows this scheduler as `instance`."""
        self._settings = settings or SchedulerSettings()
        self._store = store_pb2_grpc.MachineStoreStub(store)
        self._cell = cell
        self._clock = clock
        self._random = random
        self._generator = np.random.default_rng(random.getrandbits(64))
        self._view = View(clock, random)
        self._caught_up = False
        self._leader = Leader(
            self._store,
            self._view,
            cell=cell,
            # An instance that was started again is not the one before: that one may still be there, paused.
            holder=f"{instance}-{random.getrandbits(32):08x}",
            clock=clock,
            random=random,
            lead=self._settings.lead,
            settings=self._settings.reconcile,
        )

    def register(self, registry: Registry) -> None:
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Follow the log and reconcile until cancelled; `ready()` is called when the view has caught up."""

        def caught_up() -> None:
            self._caught_up = True
            log.info("fleet_view_caught_up", workers=len(self._view.fleet), revision=self._view.revision)
            ready()

        _staleness.labels(self._cell).set_function(lambda: self._view.staleness)
        await run_forever(
            follow=follow(
                self._store, FILTER, self._view, on_caught_up=caught_up, clock=self._clock, random=self._random
            ),
            reconcile=self._leader.run(),
            staleness=self._tell_of_staleness(),
        )

    async def Place(
        self,
        request: scheduler_pb2.PlaceRequest,
        context: Any,
    ) -> scheduler_pb2.PlaceResponse:
        """Rank workers for a machine. Raises DependencyDown until the view has caught up."""
        self._check_caught_up()
        fleet, now = self._view.fleet, self._clock.monotonic()
        need = Need(
            app_id=AppId(request.app_id),
            amounts=tuple(to_vector(request.need)),
            host_dedication_id=request.host_dedication_id,
            required_worker_id=request.required_worker_id,
            excluded_worker_ids=frozenset(request.excluded_worker_ids),
        )
        fleet.expire(now)
        limit = min(request.limit or _CANDIDATES, _MOST_CANDIDATES)
        candidates = rank(fleet, need, random=self._generator, limit=limit)
        response = scheduler_pb2.PlaceResponse(workers=len(fleet), revision=self._view.revision)
        if candidates:
            if need.columns and not request.dry_run:
                fleet.expect(need, candidates[0].worker_id, now + self._settings.expect_for)
            for candidate in candidates:
                response.candidates.add(worker_id=candidate.worker_id, score=candidate.score, reasons=candidate.reasons)
        if not candidates or request.dry_run:
            present = _present(request)
            for rejection in explain(fleet, need, present):
                response.rejections.add(
                    reason=rejection.reason, workers=rejection.workers, most_free=rejection.most_free
                )
            if not candidates and (closest := nearest(fleet, need, present)) is not None:
                response.nearest.CopyFrom(from_vector(closest))
        if not request.dry_run:
            _placements.labels(self._cell, "placed" if candidates else "no_capacity").inc()
        return response

    async def CountRoom(
        self,
        request: scheduler_pb2.CountRoomRequest,
        context: Any,
    ) -> scheduler_pb2.CountRoomResponse:
        """Say how many equal machines would find room. Raises DependencyDown until the view has caught up."""
        self._check_caught_up()
        need = Need(
            app_id=AppId(""),
            amounts=tuple(to_vector(request.need)),
            host_dedication_id=request.host_dedication_id,
        )
        room = count_room(self._view.fleet, need, most=request.most)
        return scheduler_pb2.CountRoomResponse(machines=room.machines, workers=room.workers)

    def _check_caught_up(self) -> None:
        if not self._caught_up:
            raise DependencyDown(
                "the scheduler's fleet view has not caught up with the store yet; try again in a moment",
                metadata={"dependency": "fleet view"},
                retry_after=1.0,
            )

    async def _tell_of_staleness(self) -> None:
        stale = False
        while True:
            await self._clock.sleep(1.0)
            staleness = self._view.staleness
            if staleness > self._settings.stale_after:
                if not stale:
                    log.warning("fleet_view_stale", seconds=round(staleness, 1), revision=self._view.revision)
                stale = True
            elif stale:
                log.info("fleet_view_fresh", revision=self._view.revision)
                stale = False


def _present(request: scheduler_pb2.PlaceRequest) -> Present | None:
    if not request.present_worker_id:
        return None
    return Present(WorkerId(request.present_worker_id), tuple(to_vector(request.present_reserved)))
