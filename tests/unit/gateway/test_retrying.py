"""Repeating calls: only those that failed for a dependency, within the budget and the deadline."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from gateway.retrying import BUDGET, Retries
from services.runtime.clock import FakeClock
from services.runtime.errors import DependencyDown, NameTaken
from tests.support import eventually


class Calls:
    """Fails so often, then answers."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or DependencyDown("machine-store cannot be reached")
        self.made = 0

    async def __call__(self) -> int:
        self.made += 1
        if self.made <= self.failures:
            raise self.error
        return self.made


async def finish(clock: FakeClock, task: asyncio.Task[int]) -> None:
    while not task.done():
        await eventually(lambda: task.done() or clock.sleepers > 0)
        await clock.advance(1)


async def test_a_call_that_succeeds_is_made_once() -> None:
    calls = Calls(0)
    assert await Retries(FakeClock(), Random(1))(calls) == 1


async def test_a_call_is_repeated_while_its_dependency_is_away() -> None:
    clock, calls = FakeClock(), Calls(5)
    task = asyncio.create_task(Retries(clock, Random(1))(calls))
    await finish(clock, task)
    assert await task == 6


async def test_an_error_that_is_an_answer_is_not_repeated() -> None:
    calls = Calls(5, NameTaken("taken"))
    with pytest.raises(NameTaken):
        await Retries(FakeClock(), Random(1))(calls)
    assert calls.made == 1


async def test_the_centre_is_not_asked_again_for_it_has_a_breaker_of_its_own() -> None:
    calls = Calls(5, DependencyDown("the centre is away", metadata={"dependency": "central"}))
    with pytest.raises(DependencyDown):
        await Retries(FakeClock(), Random(1))(calls)
    assert calls.made == 1


async def test_the_budget_ends_repetitions_for_all_and_successes_refill_it() -> None:
    clock = FakeClock()
    retries, hopeless = Retries(clock, Random(1)), Calls(10**6)
    task = asyncio.create_task(retries(hopeless))
    await finish(clock, task)
    with pytest.raises(DependencyDown):
        await task
    assert hopeless.made == BUDGET + 1
    spent = Calls(1)
    with pytest.raises(DependencyDown):
        await retries(spent)
    assert spent.made == 1
    for _ in range(11):
        await retries(Calls(0))
    task = asyncio.create_task(retries(Calls(1)))
    await finish(clock, task)
    assert await task == 2


async def test_what_asks_to_be_left_alone_for_long_is_not_asked_again() -> None:
    calls = Calls(5, DependencyDown("its disk is full", retry_after=30.0))
    with pytest.raises(DependencyDown):
        await Retries(FakeClock(), Random(1))(calls)
    assert calls.made == 1
