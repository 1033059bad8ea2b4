"""The clock that tests move."""

from __future__ import annotations

import asyncio
import time

from services.runtime.clock import FakeClock, SystemClock


async def test_sleepers_wake_in_the_order_of_their_moments() -> None:
    clock = FakeClock(1000.0)
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3.0), ("early", 1.0), ("later", 3.5)):
            group.create_task(sleep(name, seconds))
        await asyncio.sleep(0)
        assert clock.sleepers == 3
        await clock.advance(3.2)
        assert woken == [("early", 1001.0), ("late", 1003.0)]
        assert clock.now() == 1003.2
        await clock.advance(1)
    assert woken[-1] == ("later", 1003.5)


async def test_a_sleeper_that_sleeps_again_is_woken_again_by_the_same_advance() -> None:
    clock = FakeClock()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await clock.sleep(1)
            ticks += 1

    task = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await clock.advance(5.5)
    assert ticks == 5
    task.cancel()


async def test_a_cancelled_sleeper_does_not_count() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.sleepers == 0
    await clock.advance(2)
    assert clock.monotonic() == 2


async def test_no_time_passes_by_itself() -> None:
    clock = FakeClock(5.0)
    await clock.sleep(0)
    assert (clock.now(), clock.monotonic()) == (5.0, 0.0)


async def test_the_systems_clock_tells_the_time() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() - before >= 0.001
    assert abs(clock.now() - time.time()) < 5
