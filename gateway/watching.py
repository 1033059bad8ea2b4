"""Watching the machines of an app: the region's log, as far as it is about them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store

from gateway.public import public_machine
from gateway.surroundings import Surroundings
from services.runtime.errors import DependencyDown, InvalidConfig, RateLimited, Violation
from services.runtime.registry import remaining

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WATCHES = 2_000
"""Watches that one gateway keeps open. Each holds few changes; a reader that is too slow is cut by the store."""
LONGEST_SECONDS = 1_800.0
"""After which a watch ends well, so that a client comes again, to whatever gateway there is then."""
TIME_TO_END = 1.0
"""Seconds before the deadline of a call at which its watch ends."""
RETRY_AFTER_SECONDS = 1.0


class Watches:
    """The watches of a process, counted."""

    def __init__(self, most: int = MOST_WATCHES) -> None:
        self._most = most
        self._open = 0

    def __len__(self) -> int:
        return self._open

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Counts a watch until the end of the block. Raises RateLimited when there are too many."""
        if self._open >= self._most:
            raise RateLimited(
                f"this gateway keeps {self._most} watches, which is the most it does: try again, or another gateway",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


async def watch_machines(
    around: Surroundings, watches: Watches, request: api.WatchMachinesRequest
) -> AsyncGenerator[api.WatchMachinesResponse, None]:
    """The machines of an app as they are, unless `from_revision` is set, and then what happens to them.

    Ends well before the deadline of the served call. Raises NotFound for the app, also when it is not reached any more,
    InvalidConfig of `from_revision`, RevisionTooOld, RateLimited, DependencyDown when the reader is too slow.
    """
    if request.HasField("from_revision") and request.from_revision < 1:
        why = "must be 1 or more: revisions begin there"
        raise InvalidConfig(f"from_revision {why}", violations=[Violation("from_revision", why)])
    app = await around.apps.resolve(request.app_name)
    left = remaining()
    seconds = LONGEST_SECONDS if left is None else min(LONGEST_SECONDS, max(TIME_TO_END, left - TIME_TO_END))
    wanted = store.WatchRequest(
        filter=store.WatchFilter(kinds=[store.RECORD_KIND_MACHINE], app_id=app.id, view=store.MACHINE_VIEW_FULL)
    )
    if request.HasField("from_revision"):
        wanted.from_revision = request.from_revision
    ends = around.clock.monotonic() + seconds
    with watches.one_more():
        responses: Any = around.store.Watch(wanted, timeout=seconds + TIME_TO_END)
        try:
            caught_up = False
            async for response in responses:
                # Whoever loses the app loses the watch: there is a message every second at least.
                app = await around.apps.resolve(request.app_name)
                for change in response.changes:
                    yield api.WatchMachinesResponse(
                        machine=public_machine(change.machine, app, cell=around.cell),
                        revision=0 if response.snapshot else change.revision,
                    )
                if response.snapshot and not response.snapshot_complete:
                    continue
                is_news = not caught_up and response.revision >= response.newest_revision
                caught_up = caught_up or is_news
                if is_news or not response.changes:
                    yield api.WatchMachinesResponse(revision=response.revision, caught_up=is_news)
                if around.clock.monotonic() >= ends:
                    return
        except DependencyDown as error:
            # A store that is restarted and a reader that was cut are the same to a client: it goes on from there.
            raise DependencyDown(
                f"the watch was cut: {error.message}; watch again from the last revision",
                metadata=error.metadata,
                retry_after=error.retry_after or RETRY_AFTER_SECONDS,
            ) from error
        finally:
            responses.cancel()
