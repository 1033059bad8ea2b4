"""Background work whose end does not go unnoticed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.runtime.tasks import TaskDied, cancel, run_forever


async def _forever(ended: asyncio.Event | None = None) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.set()


async def test_work_that_raises_ends_all_of_it_and_is_logged(logs: list[Any]) -> None:
    ended = asyncio.Event()
    cause = RuntimeError("no more")

    async def fail() -> None:
        raise cause

    with pytest.raises(TaskDied) as raised:
        await run_forever(heartbeat=fail(), watch=_forever(ended))
    assert raised.value.name == "heartbeat"
    assert raised.value.__cause__ is cause
    assert ended.is_set()
    entries = [entry for entry in logs if entry["event"] == "task_died"]
    assert [(entry["task"], entry["exc_info"]) for entry in entries] == [("heartbeat", cause)]


async def test_work_that_returns_is_dead_too(logs: list[Any]) -> None:
    with pytest.raises(TaskDied, match="quick"):
        await run_forever(quick=asyncio.sleep(0), watch=_forever())
    assert logs[0]["event"] == "task_died"


async def test_a_death_inside_is_logged_once(logs: list[Any]) -> None:
    with pytest.raises(TaskDied, match="outer"):
        await run_forever(outer=run_forever(inner=asyncio.sleep(0)))
    assert [entry["task"] for entry in logs] == ["inner"]


async def test_cancelling_waits_for_the_work_to_end(logs: list[Any]) -> None:
    ended = asyncio.Event()
    task = asyncio.create_task(run_forever(watch=_forever(ended)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await cancel(task)
    assert ended.is_set()
    assert task.cancelled()
    assert logs == []


async def test_an_error_while_being_cancelled_is_logged(logs: list[Any]) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise OSError("the file is gone")

    task = asyncio.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await cancel(task)
    assert [(entry["event"], entry["task"]) for entry in logs] == [("task_ended_with_error", "stubborn")]
