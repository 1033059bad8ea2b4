"""Workers, their signs of life and their status; who leads a duty, and what only a leader does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.store_pb2 import DutyTerm, RegisterWorkerRequest, WorkerRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_UNSPECIFIED, HostStatus

from services.machine_store.database import Database
from services.machine_store.queries import load
from services.machine_store.records import check_text, checked_amounts, storable, worker_record
from services.runtime.errors import InvalidConfig, NotFound, Violation

_SQL = load("workers")
_AT_A_TIME = 5_000
_LONGEST_AGE = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Lead:
    """Who leads a duty, and whether that is who asked."""

    acquired: bool
    holder: str
    term: int


@dataclass(frozen=True, slots=True)
class Purged:
    """How much was forgotten."""

    log_entries: int
    keys: int
    machines: int


class Workers:
    """The workers of the cell."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, request: RegisterWorkerRequest) -> tuple[WorkerRecord, int]:
        """Make a worker known; it, and the last sequence of its journal that took effect.

        Raises InvalidConfig for less capacity than is reserved, DependencyDown.
        """
        check_text(
            worker_id=request.worker_id,
            zone=request.zone,
            address=request.address,
            driver=request.driver,
            host_dedication_id=request.host_dedication_id,
            journal_id=request.journal_id,
        )
        for field in ("worker_id", "journal_id"):
            if not getattr(request, field):
                raise InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
        capacity = checked_amounts(request.capacity, "capacity")
        short: Sequence[str] = await self._database.fetchval(
            _SQL["register_worker"],
            request.worker_id,
            request.zone,
            request.address,
            request.driver,
            request.host_dedication_id,
            request.journal_id,
            capacity,
        )
        if short:
            raise InvalidConfig(
                f"worker {request.worker_id} offers less {', '.join(short)} than is reserved on it: "
                "move machines away first, or offer more",
                violations=[Violation(f"capacity.{name}", "is less than what is reserved") for name in short],
            )
        row = await self._database.fetchrow(_SQL["get_worker"], request.worker_id)
        if row is None:
            raise NotFound(f"worker {request.worker_id} does not exist")
        return worker_record(row), row["last_sequence"]

    async def heartbeat(self, worker_id: str, journal_id: str) -> None:
        """Note that a worker lives. Raises NotFound for a worker or journal that is not registered, DependencyDown."""
        if await self._database.fetchval(_SQL["heartbeat"], storable(worker_id), storable(journal_id)) is None:
            raise NotFound(f"worker {worker_id} with journal {journal_id} is not registered: register it first")

    async def list(self) -> tuple[list[WorkerRecord], datetime]:
        """Workers by id, and the time that their heartbeats are to be compared with. Raises DependencyDown."""
        rows = await self._database.fetch(_SQL["list_workers"])
        now = rows[0]["now"] if rows else await self._database.fetchval(_SQL["get_time"])
        return [worker_record(row) for row in rows], now

    async def acquire(self, duty: str, holder: str, lease: Duration) -> Lead:
        """Take or keep the lead of a duty. Raises InvalidConfig, DependencyDown."""
        check_text(duty=duty, holder=holder)
        for field, text in (("duty", duty), ("holder", holder)):
            if not text:
                raise InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
        length = age(lease, "lease")
        row = await self._database.fetchrow(_SQL["acquire_duty"], duty, holder, length)
        if row is not None:
            return Lead(acquired=True, holder=row["holder"], term=row["term"])
        row = await self._database.fetchrow(_SQL["get_duty"], duty)
        return Lead(acquired=False, holder=row["holder"] if row else "", term=row["term"] if row else 0)

    async def set_status(self, term: DutyTerm, worker_id: str, status: HostStatus.ValueType) -> WorkerRecord:
        """Say whether a worker can be reached. Raises InvalidConfig, NotFound, Conflict (the term), DependencyDown."""
        if status == HOST_STATUS_UNSPECIFIED or status not in HostStatus.values():
            why = "is missing" if status == HOST_STATUS_UNSPECIFIED else f"is {status}: there is no such status"
            raise InvalidConfig(f"status {why}", violations=[Violation("status", why)])
        known = await self._database.fetchval(
            _SQL["set_worker_status"], storable(term.duty), term.term, storable(worker_id), status
        )
        row = await self._database.fetchrow(_SQL["get_worker"], storable(worker_id)) if known else None
        if row is None:
            raise NotFound(f"worker {worker_id} does not exist")
        return worker_record(row)

    async def repair_reservations(self, term: DutyTerm) -> Sequence[str]:
        """Let reservations add up; the workers where they did not. Raises Conflict (the term), DependencyDown."""
        rows = await self._database.fetch(_SQL["repair_reservations"], storable(term.duty), term.term)
        return [row["worker_id"] for row in rows]

    async def purge(self, term: DutyTerm, log_age: timedelta, key_age: timedelta, destroyed_age: timedelta) -> Purged:
        """Forget what is older than these ages, piece by piece. Raises Conflict (the term), DependencyDown."""
        purged = Purged(
            log_entries=await self._purge("purge_log", term, log_age),
            keys=await self._purge("purge_keys", term, key_age),
            machines=await self._purge("purge_machines", term, destroyed_age),
        )
        await self._purge("purge_volumes", term, destroyed_age)
        return purged

    async def _purge(self, statement: str, term: DutyTerm, older_than: timedelta) -> int:
        total = 0
        while True:
            gone: int = await self._database.fetchval(
                _SQL[statement], storable(term.duty), term.term, older_than, _AT_A_TIME
            )
            total += gone
            if gone < _AT_A_TIME:
                return total


def age(duration: Duration, field: str) -> timedelta:
    """A duration as the database takes it. Raises InvalidConfig for one that is negative."""
    if duration.seconds < 0 or duration.nanos < 0:
        raise InvalidConfig(f"{field} is negative", violations=[Violation(field, "is negative")])
    return min(timedelta(seconds=min(duration.seconds, 2**32), microseconds=duration.nanos // 1000), _LONGEST_AGE)
