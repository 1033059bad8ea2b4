"""Leading a duty: one at a time, with a term that the store knows, and no work without the lead."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from skerry.store.v1.catalog_store_pb2 import SetCursorRequest
from skerry.store.v1.store_pb2 import DutyTerm

from services.central_sync.marks import Marks
from services.runtime.clock import SystemClock
from services.runtime.duty import Duty, LeadTimes
from services.runtime.errors import Conflict
from services.runtime.tasks import cancel
from tests.integration.central_sync.cells import NUMBER, Cell
from tests.support import eventually

NAME = "sweep"


class PausedClock(SystemClock):
    """The system's clock, for a process that can be stopped for a while."""

    def __init__(self) -> None:
        self.goes = asyncio.Event()
        self.goes.set()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.goes.wait()


class Worker:
    """Work under a lead, with a note of its terms."""

    def __init__(self, cell: Cell, holder: str) -> None:
        self.clock = PausedClock()
        self.duty = Duty(
            NAME,
            cell.store,
            cell=NUMBER,
            holder=holder,
            clock=self.clock,
            random=Random(holder),
            times=LeadTimes(lease=0.6, keep_every=0.15),
        )
        self.terms: list[int] = []
        self.works = False
        self.task = asyncio.create_task(self.duty.run(self.work))

    async def work(self, term: int) -> None:
        self.terms.append(term)
        self.works = True
        try:
            await asyncio.sleep(3600)
        finally:
            self.works = False


async def test_one_works_and_another_takes_over_when_it_ends(cell: Cell) -> None:
    first = Worker(cell, "first")
    await eventually(lambda: first.works)
    second = Worker(cell, "second")
    await asyncio.sleep(0.5)
    assert not second.works
    assert second.duty.term is None
    await cancel(first.task)
    assert not first.works
    await eventually(lambda: second.works, seconds=0.5)
    assert second.terms == [first.terms[0] + 1]
    await cancel(second.task)


async def test_one_that_is_paused_loses_the_lead_and_its_writes_are_refused(cell: Cell) -> None:
    paused = Worker(cell, "paused")
    await eventually(lambda: paused.works)
    (old,) = paused.terms
    paused.clock.goes.clear()
    other = Worker(cell, "other")
    await eventually(lambda: other.works)
    assert paused.duty.term is None, "it knows, for its lease ran out by its own clock"
    with pytest.raises(Conflict):
        await cell.catalog.SetCursor(SetCursorRequest(term=DutyTerm(duty=NAME, term=old), value=1))
    paused.clock.goes.set()
    await eventually(lambda: not paused.works)
    await cancel(paused.task, other.task)


async def test_work_that_fails_ends_it_and_work_that_returns_begins_anew(cell: Cell) -> None:
    done = 0

    async def returns(_: int) -> None:
        nonlocal done
        done += 1

    async def fails(_: int) -> None:
        raise RuntimeError("broken")

    def run(work: Callable[[int], Awaitable[None]]) -> asyncio.Task[None]:
        times = LeadTimes(lease=0.6, keep_every=0.05)
        duty = Duty(NAME, cell.store, cell=NUMBER, holder="one", clock=SystemClock(), random=Random(1), times=times)
        return asyncio.create_task(duty.run(work))

    task = run(returns)
    await eventually(lambda: done >= 3)
    await cancel(task)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(run(fails), 5)


async def test_any_instance_sets_a_mark_and_all_read_it(cell: Cell) -> None:
    one, two = (Marks(cell.store, cell.catalog, name) for name in ("one", "two"))
    assert await one.get("here") == 0
    await one.set("here", 7)
    await two.set("here", 8)
    assert await one.get("here") == 8
