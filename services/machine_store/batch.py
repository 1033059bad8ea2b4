"""The one writer of a process: what gathers while a commit is under way is the next call of one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter

import asyncpg
from prometheus_client import Counter, Histogram
from skerry.store.v1.store_pb2 import Change, MachineRecord
from skerry.types.v1.machine_pb2 import MachineEvent

from services.machine_store.database import Database, OutcomeUnknown, as_error, is_away, is_full
from services.machine_store.group_commit import GroupCommit
from services.machine_store.queries import load
from services.machine_store.steps import Create, Outcome, Unit, Version, complete
from services.runtime.clock import Clock
from services.runtime.telemetry import log, metrics

Item = Create | Unit
Heard = Callable[[Sequence[Change], Sequence[Version]], None]

_VERSION = attrgetter("instance_id", "config", "spec", "parts")
_COMMIT = load("machines")["commit_batch_under_plan"]

_sizes = Histogram(
    "skerry_store_batch_size",
    "New machines and steps that shared a commit.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    registry=metrics,
)
_seconds = Histogram(
    "skerry_store_commit_seconds",
    "How long a commit took.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
    registry=metrics,
)
_outcomes = Counter(
    "skerry_store_write_outcomes", "New machines and steps by what became of them.", ["outcome"], registry=metrics
)
_counter_of = cache(_outcomes.labels)


class BatchWriter:
    """Everything that changes machines goes through `submit`.

    `heard` is told the changes that a commit made, in the order of their revisions, and the versions that came with
    them.
    """

    def __init__(self, database: Database, *, clock: Clock, heard: Heard, command_timeout: float = 10.0) -> None:
        self._database = database
        self._clock = clock
        self._heard = heard
        self._command_timeout = command_timeout
        self._connection: asyncpg.Connection | None = None
        self._statement: asyncpg.prepared_stmt.PreparedStatement | None = None
        self._attempt = 0
        self._commits: GroupCommit[Item, list[Outcome]] = GroupCommit(
            self._commit, prepare=self._prepare, monotonic=clock.monotonic
        )

    async def submit(self, item: Item) -> list[Outcome]:
        """Commit `item` and complete its records; one outcome for a new machine, one for each step of a unit.

        Raises OutcomeUnknown when the connection was lost meanwhile, DependencyDown when nothing was written.
        """
        return await self._commits.submit(item)

    async def run(self) -> None:
        """Write until cancelled."""
        try:
            await self._prepare()
            await self._commits.run()
        finally:
            self._drop_connection()

    async def _prepare(self) -> bool:
        if self._connection is not None and not self._connection.is_closed():
            return True
        self._drop_connection()
        try:
            self._connection = await self._database.connect("writer", command_timeout=self._command_timeout)
            self._statement = await self._connection.prepare(_COMMIT)
        except Exception as error:
            self._drop_connection()
            if not is_away(error):
                raise
            if self._attempt == 0:
                log.warning("postgres_away", wanted_by="writer", error=str(error))
            await self._database.back_off(self._attempt)
            self._attempt += 1
            return False
        if self._attempt:
            log.info("postgres_back", wanted_by="writer", attempts=self._attempt)
        self._attempt = 0
        return True

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = self._statement = None

    async def _commit(self, items: Sequence[Item]) -> Sequence[list[Outcome] | Exception]:
        try:
            return await self._write(items)
        except Exception as error:
            if is_full(error):
                # The server answers, and says that it has written nothing: there is nothing to find out.
                raise (as_error(error) or error) from error
            if is_away(error):
                self._drop_connection()
                raise OutcomeUnknown(str(as_error(error)), retry_after=1.0) from error
            if len(items) == 1:
                log.error("write_refused", exc_info=error)
                return [error]
        # Nothing of the batch was written, because of one of it: each is tried alone, so that only that one fails.
        answers: list[list[Outcome] | Exception] = []
        for item in items:
            try:
                answers.extend(await self._commit([item]))
            except OutcomeUnknown as error:
                answers.append(error)
        return answers

    async def _write(self, items: Sequence[Item]) -> list[list[Outcome] | Exception]:
        if self._connection is None or self._statement is None:
            raise ConnectionError("the writer's connection was lost")
        creates = [item for item in items if isinstance(item, Create)]
        units = [item for item in items if isinstance(item, Unit)]
        steps = [step._replace(unit=number) for number, unit in enumerate(units) for step in unit.steps]
        started = self._clock.monotonic()
        rows = await self._statement.fetch(
            [create.row for create in creates],
            steps,
            [create.plan_epoch for create in creates],
            [unit.plan_epoch for unit in units for _ in unit.steps],
        )
        _seconds.observe(self._clock.monotonic() - started)
        _sizes.observe(len(rows))

        outcomes = iter([Outcome(*row) for row in rows])
        versions = [Version(*_VERSION(create.row)) for create in creates]
        versions += [Version(*_VERSION(step)) for step in steps if step.config is not None]
        changes: list[Change] = []
        answers: dict[int, list[Outcome] | Exception] = {}
        for create in creates:
            answers[id(create)] = [_finish(next(outcomes), create.record, create.event, changes)]
        for unit in units:
            answers[id(unit)] = [
                _finish(next(outcomes), record, event, changes)
                for record, event in zip(unit.records, unit.events, strict=True)
            ]
        if changes:
            self._heard(changes, versions)
        return [answers[id(item)] for item in items]


def _finish(
    outcome: Outcome, record: MachineRecord | None, event: MachineEvent | None, changes: list[Change]
) -> Outcome:
    """Complete the record of a write that is done, and note the change."""
    _counter_of(outcome.outcome).inc()
    if outcome.outcome == "done" and record is not None:
        complete(record, outcome)
        changes.append(Change(revision=record.revision, machine=record, events=() if event is None else (event,)))
    return outcome
