"""Following the store's log: a watch that is kept open for ever, and that misses nothing when it is cut."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Never, Protocol

from skerry.store.v1 import store_pb2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import (
    Conflict,
    DependencyDown,
    Internal,
    RateLimited,
    RevisionTooOld,
    WaitTimeout,
)
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1 import store_pb2_grpc

WATCH_SECONDS = 600.0
"""How long one watch is kept open before the next one takes its place."""

SHORTEST_WAIT = 0.05
"""Seconds, at most, before a watch that was cut goes on."""

_PASSING = (DependencyDown, Internal, RateLimited, WaitTimeout, Conflict)


class Follower(Protocol):
    """What takes in a watch: a view of the store."""

    def __call__(self, response: store_pb2.WatchResponse) -> None:
        """Take in a message, in order. After `reset` the whole state comes first, then what happened after it."""
        ...

    def reset(self) -> None:
        """A state begins anew: what is not in it, up to the message with `snapshot_complete`, is gone."""
        ...


async def follow(
    store: store_pb2_grpc.MachineStoreAsyncStub,
    filter: store_pb2.WatchFilter | None,
    apply: Follower,
    *,
    on_caught_up: Callable[[], None] = lambda: None,
    clock: Clock | None = None,
    random: Random | None = None,
) -> Never:
    """Feed `apply` from the store's log until cancelled.

    The state comes first; after a cut the watch goes on from the last revision, waiting longer (with jitter) while the
    store does not answer; when the log no longer reaches back that far, the state comes again. `on_caught_up` is called
    once, when everything that had been written is in.
    Raises what `apply` raises, and errors that do not pass by waiting (Unauthenticated, say).
    """
    clock, random = clock or SystemClock(), random or Random()
    watch = _Watch(store, filter, apply, on_caught_up, random)
    while True:
        attempts = AsyncRetrying(
            sleep=clock.sleep,
            wait=wait_random_exponential(multiplier=SHORTEST_WAIT, max=2.0),
            retry=retry_if_exception_type(_PASSING),
            before_sleep=_log_waiting,
        )
        # A watch that got further ends its attempts, so that the wait after the next cut is short again.
        async for attempt in attempts:
            with attempt:
                await watch.once()
        await clock.sleep(random.uniform(0, SHORTEST_WAIT))


class _Watch:
    def __init__(
        self,
        store: Any,
        filter: store_pb2.WatchFilter | None,
        apply: Follower,
        on_caught_up: Callable[[], None],
        random: Random,
    ) -> None:
        self._store = store
        self._filter = filter
        self._apply = apply
        self._on_caught_up = on_caught_up
        self._random = random
        self._revision: int | None = None
        self._caught_up = False

    async def once(self) -> None:
        """Watch until the watch is cut. Returns if it got further; else raises why it ended."""
        request = store_pb2.WatchRequest(filter=self._filter, from_revision=self._revision)
        if self._revision is None:
            self._apply.reset()
        before = self._revision
        responses = self._store.Watch(request, timeout=WATCH_SECONDS * self._random.uniform(0.8, 1.2))
        try:
            async for response in responses:
                self._take(response)
        except RevisionTooOld:
            log.info("watch_begins_anew", revision=self._revision)
            self._revision = None
            return
        except _PASSING as error:
            if self._revision == before:
                raise
            log.info("watch_cut", revision=self._revision, why=error.message)
        finally:
            responses.cancel()
        if self._revision == before:
            raise DependencyDown(
                "the machine-store ended a watch without a word", metadata={"dependency": "machine-store"}
            )

    def _take(self, response: store_pb2.WatchResponse) -> None:
        self._apply(response)
        if response.snapshot and not response.snapshot_complete:
            return
        self._revision = response.revision
        if not self._caught_up and response.revision >= response.newest_revision:
            self._caught_up = True
            self._on_caught_up()


def _log_waiting(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("watch_waits_for_store", attempt=state.attempt_number, why=str(error))
