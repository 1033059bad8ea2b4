"""Following the log through cuts, refusals and a log that was trimmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import grpc
import pytest
from skerry.store.v1 import store_pb2, store_pb2_grpc

from services.runtime import channels
from services.runtime.clock import FakeClock
from services.runtime.errors import DependencyDown, RevisionTooOld, SkerryError, Unauthenticated
from services.runtime.following import follow
from services.runtime.registry import Registry
from tests.support import eventually


class Log:
    """A store whose log is a list, cut and trimmed by the test."""

    def __init__(self) -> None:
        self.newest = 0
        self.oldest = 1
        self.requests: list[int | None] = []
        self.failure: SkerryError | None = None
        self.cut_after: int | None = None
        self.cuts = 0
        self._grown = asyncio.Event()

    def write(self, count: int = 1) -> None:
        self.newest += count
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def Watch(self, request: store_pb2.WatchRequest, context: Any) -> AsyncIterator[store_pb2.WatchResponse]:
        begin = request.from_revision if request.HasField("from_revision") else None
        self.requests.append(begin)
        if self.failure is not None:
            raise self.failure
        if begin is None:
            begin = self.newest
            # The state, in two messages.
            middle = begin // 2
            yield self._message(1, middle, begin, snapshot=True)
            self._maybe_cut()
            yield self._message(middle + 1, begin, begin, snapshot=True, snapshot_complete=True)
        elif begin + 1 < self.oldest:
            raise RevisionTooOld(f"the log begins at {self.oldest}")
        while True:
            if begin < self.newest:
                begin += 1
                yield self._message(begin, begin, begin)
                self._maybe_cut()
            else:
                await self._grown.wait()

    def _message(self, first: int, last: int, revision: int, **kwargs: bool) -> store_pb2.WatchResponse:
        changes = [store_pb2.Change(revision=number) for number in range(first, last + 1)]
        return store_pb2.WatchResponse(changes=changes, revision=revision, newest_revision=self.newest, **kwargs)

    def _maybe_cut(self) -> None:
        if self.cut_after is not None:
            self.cut_after -= 1
            if self.cut_after < 0:
                self.cut_after = None
                self.cuts += 1
                raise DependencyDown("cut")


class View:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.resets = 0
        self.complete = False
        self.broken: Exception | None = None

    def __call__(self, response: store_pb2.WatchResponse) -> None:
        if self.broken is not None:
            raise self.broken
        self.seen.extend(change.revision for change in response.changes)
        self.complete = self.complete or response.snapshot_complete

    def reset(self) -> None:
        self.seen.clear()
        self.complete = False
        self.resets += 1


class Fixture:
    def __init__(self) -> None:
        self.log = Log()
        self.view = View()
        self.clock = FakeClock()
        self.caught_up: list[int] = []
        registry = Registry(service="machine-store")
        handler: Any = grpc.unary_stream_rpc_method_handler(
            self.log.Watch, store_pb2.WatchRequest.FromString, store_pb2.WatchResponse.SerializeToString
        )
        registry.add_registered_method_handlers("skerry.store.v1.MachineStore", {"Watch": handler})
        self.channel = channels.local(registry, caller="001/scheduler", callee="machine-store", secret=None)

    async def follow(self) -> None:
        await follow(
            store_pb2_grpc.MachineStoreStub(self.channel),
            store_pb2.WatchFilter(app_id="a"),
            self.view,
            on_caught_up=lambda: self.caught_up.append(len(self.view.seen)),
            clock=self.clock,
            random=Random(1),
        )

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for `predicate`, letting the follower's waits pass."""

        async def advanced() -> bool:
            await self.clock.advance(2)
            return predicate()

        await eventually(advanced)


@pytest.fixture
async def following() -> AsyncIterator[Fixture]:
    fixture = Fixture()
    fixture.log.write(10)
    task = asyncio.create_task(fixture.follow())
    yield fixture
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fixture.channel.close()


async def test_the_state_comes_first_and_then_what_happens(following: Fixture) -> None:
    await eventually(lambda: following.caught_up == [10])
    following.log.write(3)
    await eventually(lambda: following.view.seen == list(range(1, 14)))
    assert following.view.resets == 1
    assert following.log.requests == [None]


async def test_a_follower_that_is_cut_sees_every_revision_once(following: Fixture) -> None:
    await eventually(lambda: following.view.complete)
    for cut in (0, 2, 1, 0, 3):
        following.log.cut_after = cut
        following.log.write(5)
        await following.until(lambda: following.view.seen == list(range(1, following.log.newest + 1)))
    assert following.log.cuts == 5
    assert len(following.log.requests) == 6
    assert following.view.resets == 1
    assert len(following.caught_up) == 1


async def test_a_state_that_is_cut_in_the_middle_begins_anew() -> None:
    fixture = Fixture()
    fixture.log.write(10)
    fixture.log.cut_after = 0
    task = asyncio.create_task(fixture.follow())
    await eventually(lambda: fixture.log.cuts == 1)
    assert fixture.caught_up == []
    await fixture.until(lambda: fixture.view.seen == list(range(1, 11)))
    assert fixture.view.resets == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_log_that_was_trimmed_is_listed_again(following: Fixture) -> None:
    await eventually(lambda: following.view.complete)
    following.log.cut_after = 0
    following.log.write(5)
    await eventually(lambda: following.log.cuts == 1)
    following.log.write(20)
    following.log.oldest = 30
    await following.until(lambda: following.view.seen == list(range(1, 36)))
    assert following.view.resets == 2
    assert following.log.requests[-1] is None


async def test_a_follower_waits_longer_while_the_store_is_down(following: Fixture) -> None:
    await eventually(lambda: following.view.complete)
    following.log.failure = DependencyDown("PostgreSQL is away")
    following.log.cut_after = 0
    following.log.write()
    await following.until(lambda: len(following.log.requests) > 8)
    before = len(following.log.requests)
    await eventually(lambda: following.clock.sleepers == 1)
    assert len(following.log.requests) <= before + 1
    following.log.failure = None
    await following.until(lambda: following.view.seen == list(range(1, 12)))


@pytest.mark.parametrize("error", [Unauthenticated("the secret is wrong"), ValueError("a fault of the view")])
async def test_what_does_not_pass_by_waiting_ends_the_follower(error: Exception) -> None:
    fixture = Fixture()
    if isinstance(error, SkerryError):
        fixture.log.failure = error
    else:
        fixture.view.broken = error
    with pytest.raises(type(error), match=str(error)):
        await asyncio.wait_for(fixture.follow(), 5)
