"""The queue and its one writer, without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from services.machine_store.group_commit import GroupCommit
from services.runtime.errors import DependencyDown
from services.runtime.tasks import cancel
from tests.support import eventually


class Bench:
    """A group commit whose commits wait until they are let through."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = 0.0
        self.up = True
        self.asked = 0
        self.commits: GroupCommit[str, str] = GroupCommit(
            self._commit,
            prepare=self._prepare,
            monotonic=lambda: self.now,
            largest=4,
            queue=6,
            patience=5.0,
        )

    async def _commit(self, items: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(items))
        await self.gate.wait()
        if "lost" in items:
            raise ConnectionError("lost")
        return [ValueError(item) if item == "bad" else item.upper() for item in items]

    async def _prepare(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        return self.up


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.commits.run())
    yield bench
    await cancel(task)


async def until_taken(bench: Bench, batches: int) -> None:
    await eventually(lambda: len(bench.batches) >= batches, interval=0)


async def test_what_arrives_meanwhile_shares_the_next_commit(bench: Bench) -> None:
    bench.gate.clear()
    first = asyncio.create_task(bench.commits.submit("a"))
    await until_taken(bench, 1)
    rest = [asyncio.create_task(bench.commits.submit(item)) for item in "bcdefg"]
    await asyncio.sleep(0)
    bench.gate.set()
    assert await asyncio.gather(first, *rest) == list("ABCDEFG")
    assert bench.batches == [["a"], ["b", "c", "d", "e"], ["f", "g"]]


async def test_an_outcome_that_is_an_error_is_one_item_s(bench: Bench) -> None:
    outcomes = await asyncio.gather(*map(bench.commits.submit, ["a", "bad", "c"]), return_exceptions=True)
    assert outcomes[0] == "A"
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == "C"


async def test_a_commit_that_raises_fails_its_items_and_no_others(bench: Bench) -> None:
    lost = await asyncio.gather(*map(bench.commits.submit, ["a", "lost"]), return_exceptions=True)
    assert all(isinstance(outcome, ConnectionError) for outcome in lost)
    assert await bench.commits.submit("b") == "B"


async def test_a_cancelled_caller_takes_back_what_was_not_taken(bench: Bench) -> None:
    bench.gate.clear()
    taken = asyncio.create_task(bench.commits.submit("taken"))
    await until_taken(bench, 1)
    waiting = asyncio.create_task(bench.commits.submit("waiting"))
    kept = asyncio.create_task(bench.commits.submit("kept"))
    await asyncio.sleep(0)
    taken.cancel()
    waiting.cancel()
    bench.gate.set()
    assert await kept == "KEPT"
    assert bench.batches == [["taken"], ["kept"]]


async def test_a_full_queue_refuses_at_once(bench: Bench) -> None:
    bench.gate.clear()
    tasks = [asyncio.create_task(bench.commits.submit("x"))]
    await until_taken(bench, 1)
    tasks += [asyncio.create_task(bench.commits.submit("y")) for _ in range(6)]
    await asyncio.sleep(0)
    with pytest.raises(DependencyDown, match="wait already"):
        await bench.commits.submit("z")
    bench.gate.set()
    assert await asyncio.gather(*tasks) == ["X"] + ["Y"] * 6


async def test_what_waited_too_long_for_a_server_fails_and_the_rest_is_written_when_it_is_back(bench: Bench) -> None:
    bench.up = False
    old = asyncio.create_task(bench.commits.submit("old"))
    await eventually(lambda: bench.asked, interval=0)
    bench.now = 4.0
    young = asyncio.create_task(bench.commits.submit("young"))
    await asyncio.sleep(0)
    bench.now = 6.0
    with pytest.raises(DependencyDown, match="5 s"):
        await old
    bench.up = True
    assert await young == "YOUNG"
    assert bench.batches == [["young"]]


async def test_a_writer_that_ends_lets_nobody_wait() -> None:
    stopped = Bench()
    stopped.gate.clear()
    task = asyncio.create_task(stopped.commits.run())
    under_way = asyncio.create_task(stopped.commits.submit("a"))
    await until_taken(stopped, 1)
    waiting = asyncio.create_task(stopped.commits.submit("b"))
    await asyncio.sleep(0)
    await cancel(task)
    for caller in (under_way, waiting):
        with pytest.raises(DependencyDown, match="stopped"):
            await caller
    with pytest.raises(DependencyDown, match="stopping"):
        await stopped.commits.submit("c")
