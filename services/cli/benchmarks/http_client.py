"""An HTTP/1.1 client that costs little: one keep-alive connection, one request at a time, no parsing of bodies."""

from __future__ import annotations

import asyncio
from typing import Self, cast

import httptools


class HttpConnection(asyncio.Protocol):
    """Make one with `open`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connect. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def request(self, head_and_body: bytes, seconds: float) -> tuple[int, bytes]:
        """Send a request, made by `request_bytes`; returns status and body.

        Raises ConnectionError when the connection ends, TimeoutError after `seconds`.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._body.clear()
        self._transport.write(head_and_body)
        async with asyncio.timeout(seconds):
            return await self._answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A TCP connection's is one, though uvloop's class does not say so.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self._parser = httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


def request_bytes(method: str, host: str, port: int, path: str, token: str, body: bytes = b"") -> bytes:
    """A whole request as it goes over the wire."""
    head = (
        f"{method} {path} HTTP/1.1\r\n"
        f"host: {host}:{port}\r\n"
        f"authorization: Bearer {token}\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        "\r\n"
    )
    return head.encode() + body
