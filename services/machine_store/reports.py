"""What workers report of their machines: each observation takes effect once."""

from __future__ import annotations

from collections.abc import Sequence

from skerry.store.v1.store_pb2 import MachineRecord, Observation
from skerry.types.v1.machine_pb2 import MachineEvent
from skerry.types.v1.spec_pb2 import MachineSpec

from services.machine_store.batch import BatchWriter
from services.machine_store.database import Database, OutcomeUnknown, Row
from services.machine_store.events import Events
from services.machine_store.observations import SOURCE, Effect, Known, plan
from services.machine_store.queries import load
from services.machine_store.records import from_timestamp, machine_record, storable, timestamp
from services.machine_store.steps import Unit
from services.runtime.errors import Conflict, DependencyDown, NotFound

_SQL = load("machines")
_ATTEMPTS = 20
_STEPS = 32
_PATIENCE = 5.0


class Reports:
    """Takes in what workers report, in pieces that share commits with everything else."""

    def __init__(self, database: Database, writer: BatchWriter, *, events: Events) -> None:
        self._database = database
        self._writer = writer
        self._events = events

    async def report(self, worker_id: str, journal_id: str, observations: Sequence[Observation]) -> int:
        """Let each observation of a worker take effect once; the last sequence of the journal that did.

        Raises NotFound for a worker or journal that is not the registered one, Conflict for a gap in the sequence,
        DependencyDown.
        """
        remaining = observations
        last = -1
        fruitless = 0
        while fruitless < _ATTEMPTS:
            chunk = remaining[:_STEPS]
            rows = await self._read(worker_id, journal_id, chunk, patience=_PATIENCE if fruitless else 0.0)
            known = int(rows[0]["last_sequence"])
            fruitless = fruitless + 1 if known == last else 0
            last = known
            remaining = [observation for observation in remaining if observation.sequence > last]
            if not remaining:
                return last
            chunk = [observation for observation in chunk if observation.sequence > last]
            if not chunk:
                continue
            _check_sequence(worker_id, last, chunk)
            try:
                outcomes = await self._writer.submit(self._plan(worker_id, journal_id, last, chunk, rows))
            except OutcomeUnknown:
                fruitless += 1
                continue
            if outcomes[-1].outcome == "done" and len(chunk) == len(remaining):
                return chunk[-1].sequence
        raise DependencyDown(
            "machine-store: the machines of this report change too often just now; repeat it", retry_after=0.1
        )

    async def _read(
        self, worker_id: str, journal_id: str, observations: Sequence[Observation], *, patience: float
    ) -> Sequence[Row]:
        rows = await self._database.fetch(
            _SQL["observed_machines"],
            storable(worker_id),
            storable(journal_id),
            sorted({storable(observation.machine_id) for observation in observations}),
            patience=patience,
        )
        if not rows:
            raise NotFound(f"worker {worker_id} with journal {journal_id} is not registered: register it first")
        return rows

    def _plan(
        self, worker_id: str, journal_id: str, last: int, observations: Sequence[Observation], rows: Sequence[Row]
    ) -> Unit:
        ended = {observation.machine_id for observation in observations if observation.WhichOneof("seen") == "exited"}
        machines = {
            row["id"]: Known(
                machine_record(row),
                auto_destroy=row["id"] in ended and MachineSpec.FromString(row["spec"]).restart.auto_destroy,
            )
            for row in rows
            if row["id"] is not None
        }
        return plan(worker_id, journal_id, last, observations, machines, touch=self._events.touch, stamp=self._observed)

    def _observed(self, record: MachineRecord, effect: Effect, observation: Observation) -> MachineEvent:
        event = self._events.happen(record, effect.event_type, SOURCE, effect.event_status)
        if observation.HasField("at"):
            event.timestamp.CopyFrom(timestamp(from_timestamp(observation.at)))
        if effect.request is not None:
            event.request.CopyFrom(effect.request)
        return event


def _check_sequence(worker_id: str, last: int, observations: Sequence[Observation]) -> None:
    for expected, observation in enumerate(observations, last + 1):
        if observation.sequence != expected:
            raise Conflict(
                f"observation {observation.sequence} of worker {worker_id} stands where {expected} is expected: "
                "send them in order, without gaps"
            )
