"""Group commit: what arrives while a commit is under way shares the next one.

Nothing waits on purpose. One writer takes what has gathered, up to a limit, and commits it as one; each item gets an
outcome of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from services.runtime.errors import DependencyDown

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class GroupCommit(Generic[Item, Outcome]):
    """A bounded queue and its one writer.

    `commit` is given 1 to `largest` items and answers, in their order, an outcome or an exception for each; raising
    fails all of them. Before items are taken `prepare` is asked, again and again, until it says that they can be (a
    server that is away); what has waited longer than `patience` seconds by then fails with DependencyDown.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        *,
        prepare: Callable[[], Awaitable[bool]],
        monotonic: Callable[[], float],
        largest: int = 64,
        queue: int = 2048,
        patience: float = 5.0,
    ) -> None:
        self._commit = commit
        self._prepare = prepare
        self._monotonic = monotonic
        self._largest = largest
        self._queue_limit = queue
        self._patience = patience
        self._queue: deque[tuple[Item, asyncio.Future[Outcome], float]] = deque()
        self._filled = asyncio.Event()
        self._stopped = False

    async def submit(self, item: Item) -> Outcome:
        """The outcome of `item`.

        A caller that is cancelled before its item was taken takes it back; afterwards it is committed all the same.
        Raises DependencyDown when the queue is full, when the item was not taken in time and when the writer has
        stopped, and what `commit` raised or answered.
        """
        if self._stopped:
            raise DependencyDown("machine-store: it is stopping; repeat the request", retry_after=1.0)
        if len(self._queue) >= self._queue_limit:
            raise DependencyDown(
                f"machine-store: {self._queue_limit} writes wait already; repeat the request later", retry_after=1.0
            )
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future, self._monotonic()))
        self._filled.set()
        return await future

    async def run(self) -> None:
        """Write until cancelled. What still waits then fails with DependencyDown."""
        batch: list[tuple[Item, asyncio.Future[Outcome], float]] = []
        try:
            while True:
                if not self._queue:
                    self._filled.clear()
                    await self._filled.wait()
                if not await self._prepare():
                    self._expire()
                    continue
                batch = self._take()
                if batch:
                    await self._write(batch)
        finally:
            self._stopped = True
            for _, future, _ in (*batch, *self._queue):
                if not future.done():
                    future.set_exception(
                        DependencyDown("machine-store: it stopped; repeat the request", retry_after=1.0)
                    )
            self._queue.clear()

    def _take(self) -> list[tuple[Item, asyncio.Future[Outcome], float]]:
        batch: list[tuple[Item, asyncio.Future[Outcome], float]] = []
        while self._queue and len(batch) < self._largest:
            waiting = self._queue.popleft()
            if not waiting[1].done():
                batch.append(waiting)
        return batch

    async def _write(self, batch: list[tuple[Item, asyncio.Future[Outcome], float]]) -> None:
        try:
            outcomes = await self._commit([item for item, _, _ in batch])
        except Exception as error:
            outcomes = [error] * len(batch)
        for (_, future, _), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _expire(self) -> None:
        oldest = self._monotonic() - self._patience
        kept = deque(waiting for waiting in self._queue if not waiting[1].done())
        self._queue.clear()
        for item, future, since in kept:
            if since < oldest:
                future.set_exception(
                    DependencyDown(
                        f"machine-store: PostgreSQL has been away for {self._patience:g} s; repeat the request",
                        retry_after=1.0,
                    )
                )
            else:
                self._queue.append((item, future, since))
