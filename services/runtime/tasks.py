"""Background work whose end does not go unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Never

from services.runtime.telemetry import log


class TaskDied(Exception):
    """A background task ended by itself; its error, if there was one, is the cause."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the background task {name} died")
        self.name = name


async def run_forever(**work: Coroutine[Any, Any, Any]) -> Never:
    """Run named background work until this call is cancelled.

    Work that raises, or that returns (background work does not), is logged as `task_died`; all the rest is then
    cancelled and waited for, and TaskDied raised.
    """
    tasks = {asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        dead = min(done, key=lambda task: task.get_name())
        error = None if dead.cancelled() else dead.exception()
        if not isinstance(error, TaskDied):
            log.error("task_died", task=dead.get_name(), exc_info=error)
        raise TaskDied(dead.get_name()) from error
    finally:
        await cancel(*tasks)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and wait until they have ended; what they raise on the way is logged."""
    for task in tasks:
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, TaskDied):
            log.warning("task_ended_with_error", task=task.get_name(), exc_info=outcome)
