"""Calls of one class on a clock that the tests move: bounds, repeats, probes, and what an open breaker says."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from services.central_sync.breaker import BreakerSettings, State
from services.central_sync.calls import Calls, Failure, Places, Refusal, RetryBudget
from services.central_sync.settings import CallClass, CallSettings
from services.runtime.clock import FakeClock
from services.runtime.errors import DependencyDown
from services.runtime.tasks import cancel
from tests.support import eventually

BREAKER = BreakerSettings(minimum_calls=3, open_for=2.0)


def made(clock: FakeClock, **changed: object) -> Calls:
    settings = CallSettings(deadline=2.0, slow_after=0.5, concurrency=2, waiting=1, breaker=BREAKER)
    settings = settings.model_copy(update=changed)
    return Calls(CallClass.APPS, settings, cell="001", clock=clock, random=Random(1))


class Centre:
    """Answers what it is told, in order; then "fine"."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self.outcomes = [*outcomes]
        self.attempts = 0

    async def __call__(self, seconds: float) -> str:
        self.attempts += 1
        outcome = self.outcomes.pop(0) if self.outcomes else "fine"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def opened(clock: FakeClock) -> Calls:
    calls = made(clock)
    for _ in range(3):
        with pytest.raises(DependencyDown):
            await calls.run(Centre(Failure("HTTP 500", repeat=False)), idempotent=True)
    assert calls.breaker.state is State.OPEN
    return calls


async def test_a_refusal_is_an_answer_and_never_opens_the_breaker() -> None:
    calls = made(FakeClock())
    for _ in range(20):
        with pytest.raises(Refusal):
            await calls.run(Centre(Refusal("NOT_FOUND", "no")), idempotent=True)
    assert calls.breaker.lets_through
    assert calls.breaker.failure_rate == 0


async def test_an_open_breaker_says_who_since_when_and_for_how_long_and_calls_nobody() -> None:
    clock = FakeClock(1_700_000_000.0)
    calls = await opened(clock)
    await clock.advance(0.5)
    centre = Centre()
    with pytest.raises(DependencyDown) as caught:
        await calls.run(centre, idempotent=True)
    assert centre.attempts == 0
    error = caught.value
    assert error.metadata == {"dependency": "central", "since": "2023-11-14T22:13:20.000Z", "call_class": "apps"}
    assert error.retry_after is not None
    assert 1.0 <= error.retry_after <= 2.0
    assert "HTTP 500" in error.message


async def test_only_what_is_idempotent_is_repeated() -> None:
    clock = FakeClock()
    for idempotent, attempts in ((True, 2), (False, 1)):
        calls, centre = made(clock), Centre(Failure("broken off", repeat=True))
        running = asyncio.create_task(calls.run(centre, idempotent=idempotent))
        if idempotent:
            await eventually(lambda: clock.sleepers == 1)
            await clock.advance(0.1)
            assert await running == "fine"
        else:
            with pytest.raises(DependencyDown):
                await running
        assert centre.attempts == attempts


async def test_repeats_end_when_the_budget_is_spent() -> None:
    budget = RetryBudget(4)
    assert budget.allows
    budget.spend()
    assert budget.allows
    budget.spend()
    assert not budget.allows
    for _ in range(10):
        budget.earn()
    assert budget.allows


async def test_a_call_beyond_the_bound_waits_its_turn_and_one_more_is_refused() -> None:
    calls = made(FakeClock())
    release = asyncio.Event()
    running = 0
    most = 0

    async def slow(_: float) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        return "fine"

    three = [asyncio.create_task(calls.run(slow, idempotent=False)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(DependencyDown, match="as many calls"):
        await calls.run(slow, idempotent=False)
    release.set()
    assert await asyncio.gather(*three) == ["fine"] * 3
    assert most == 2
    assert calls.breaker.failure_rate == 0, "that it is busy here says nothing about the centre"


async def test_places_are_handed_on_in_order_also_when_one_who_waits_gives_up() -> None:
    places = Places(1, 3)
    assert await places.take()
    order: list[str] = []

    async def take(name: str) -> None:
        assert await places.take()
        order.append(name)
        places.give_back()

    first, second, third = (asyncio.create_task(take(name)) for name in ("first", "second", "third"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    places.give_back()
    await asyncio.gather(first, third)
    assert order == ["first", "third"]
    assert await places.take()


async def test_a_place_given_to_one_who_is_cancelled_at_that_moment_is_not_lost() -> None:
    places = Places(1, 1)
    assert await places.take()
    waiting = asyncio.create_task(places.take())
    await asyncio.sleep(0)
    places.give_back()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.wait_for(places.take(), 1)


async def test_no_answer_within_the_deadline_is_a_failure() -> None:
    # The deadline is of the event loop; the clock only measures, and is moved as much.
    clock = FakeClock()
    calls = made(clock, deadline=0.05, slow_after=0.04)

    async def never(seconds: float) -> None:
        await clock.advance(seconds)
        await asyncio.sleep(60)

    with pytest.raises(DependencyDown, match="no answer within"):
        await calls.run(never, idempotent=True)
    assert calls.breaker.failure_rate == 1.0


async def test_one_who_gives_up_early_teaches_nothing_about_the_centre() -> None:
    calls = made(FakeClock())
    running = asyncio.create_task(calls.run(lambda _: asyncio.sleep(60), idempotent=True))
    await asyncio.sleep(0.01)
    await cancel(running)
    assert calls.breaker.failure_rate == 0
    assert calls.breaker.slow_call_rate == 0
    assert await calls.run(Centre(), idempotent=True) == "fine", "its place is free again"


async def test_the_breaker_is_probed_by_its_owner_until_the_centre_is_well() -> None:
    clock = FakeClock()
    calls = await opened(clock)
    probe = Centre(Failure("still dead", repeat=False))
    probing = asyncio.create_task(calls.keep_probing(probe))
    await eventually(lambda: clock.sleepers == 1)
    await clock.advance(2.0)
    assert probe.attempts == 1
    assert calls.breaker.state is State.OPEN
    user = Centre()
    with pytest.raises(DependencyDown):
        await calls.run(user, idempotent=True)
    assert user.attempts == 0
    waiting = asyncio.create_task(calls.until_closed())
    await clock.advance(4.0)
    await asyncio.wait_for(waiting, 1)
    assert probe.attempts == 3, "two that went well"
    assert await calls.run(user, idempotent=True) == "fine"
    await clock.advance(60.0)
    assert probe.attempts == 3, "a closed breaker is not probed"
    await cancel(probing)
