"""Helpers that every kind of test uses."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar, overload

from services.cli.ports import choose

T = TypeVar("T")


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], seconds: float = ..., interval: float = ...) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], seconds: float = ..., interval: float = ...) -> T: ...
async def eventually(predicate: Callable[[], Any], seconds: float = 10.0, interval: float = 0.02) -> Any:
    """Poll `predicate` (which may be async) until it is truthy; returns what it gave.

    Raises AssertionError after `seconds`. An AssertionError that the predicate raises counts as "not yet", and the last
    one is the cause of the one that is raised in the end.
    """
    deadline = time.monotonic() + seconds
    last: AssertionError | None = None
    while True:
        try:
            outcome = predicate()
            value = await outcome if inspect.isawaitable(outcome) else outcome
            if value:
                return value
            last = None
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{predicate} did not come true within {seconds} s") from last
        await asyncio.sleep(interval)


def free_port() -> int:
    """A port to listen on, now and again: below those that outgoing connections take meanwhile."""
    return choose(1, (), Random())[0]
