"""Watches over REST: responses of a gRPC stream as server-sent events, which browsers and most HTTP clients read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from skerry.machines.v1 import machines_pb2 as api
from starlette.types import Receive, Send

from gateway.rest.codec import dump
from gateway.rest.writing import encoder_of
from services.runtime.clock import Clock
from services.runtime.errors import SkerryError

HEARTBEAT_SECONDS = 15.0
"""The longest silence: a comment, which clients do not see, breaks it, so that nothing on the way gives up."""
SEND_SECONDS = 30.0
"""How long a client may take to read what is sent; nothing more is read for it from the log meanwhile."""
RETRY_MILLISECONDS = 1_000
"""How soon a client comes again after a cut."""
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]

_encode_machine = encoder_of(api.Machine.DESCRIPTOR)


def event(name: str, document: Any, revision: int = 0) -> bytes:
    """One event; with a `revision`, it is what a client that comes again sends as Last-Event-ID."""
    return b"%sevent: %s\ndata: %s\n\n" % (b"id: %d\n" % revision if revision else b"", name.encode(), dump(document))


def events_of(response: api.WatchMachinesResponse) -> bytes:
    """The events that tell of a response of a watch; nothing for one that only tells the revision."""
    told = b""
    if response.HasField("machine"):
        told = event("machine", _encode_machine(response.machine), response.revision)
    if response.caught_up:
        told += event("caught_up", {"revision": response.revision}, response.revision)
    return told


class EventStream:
    """The answer to a watch. `first` is its first response, `rest` are the others."""

    def __init__(self, first: Any, rest: AsyncIterator[Any], end: Callable[[], object], clock: Clock) -> None:
        """`end` breaks the call behind the stream off."""
        self._first = first
        self._rest = rest
        self._end = end
        self._clock = clock

    async def send(self, send: Send, receive: Receive, closing: asyncio.Event) -> None:
        """Send events until the stream ends, the client is gone or too slow, or `closing` is set.

        The start of the response, with its headers, has been sent before.
        """
        telling = asyncio.ensure_future(self._tell(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        closed = asyncio.ensure_future(closing.wait())
        try:
            await asyncio.wait({telling, gone, closed}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        except TimeoutError:
            # Without the end of its body, a client that was too slow knows that it did not get everything.
            return
        finally:
            for task in (telling, gone, closed):
                task.cancel()
            await asyncio.gather(telling, gone, closed, return_exceptions=True)
            self._end()
        if not gone.done() or gone.cancelled():
            await _send(send, b"", more=False)

    async def _tell(self, send: Send) -> None:
        await _send(send, b"retry: %d\n\n%s" % (RETRY_MILLISECONDS, events_of(self._first) if self._first else b""))
        silent_since = self._clock.monotonic()
        try:
            async for response in self._rest:
                told = events_of(response)
                now = self._clock.monotonic()
                if not told:
                    if now - silent_since < HEARTBEAT_SECONDS:
                        continue
                    # The revision goes along: a client that comes again has less to go through.
                    told = b": heartbeat\nid: %d\n\n" % response.revision
                await _send(send, told)
                silent_since = now
        except SkerryError as error:
            await _send(send, event("error", {"error": error.message, "status": error.reason}))


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
