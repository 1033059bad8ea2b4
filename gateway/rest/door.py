"""The door through which REST comes in: uvicorn, run as a component of the process."""

from __future__ import annotations

import asyncio
import contextvars
import math
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from random import Random

import grpc
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.auth import Admission
from gateway.limits import Foresee
from gateway.rest.app import MAX_BODY_BYTES, RestApp
from services.runtime.clock import Clock
from services.runtime.registry import Registry

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
DRAIN_SECONDS = 5.0


class RestDoor:
    """Serves the public API over REST on one address. `port` is 0 until it listens."""

    name = "rest"

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        host: str,
        port: int,
        ready: Callable[[], bool],
        clock: Clock,
        random: Random,
        max_body_bytes: int = MAX_BODY_BYTES,
        grace: float = DRAIN_SECONDS,
        admit: Admission | None = None,
        foresee: Foresee | None = None,
    ) -> None:
        """`channel` leads to the public services; `ready` is what `GET /healthz` tells; port 0 is any free one.

        `admit` judges every request before anything else is done with it (see `gateway.auth.admission`), `foresee`
        before it is parsed (see `gateway.limits.foreseeing`). Requests that run when the process ends get `grace`
        seconds.
        """
        self.port = 0
        self._address = (host, port)
        self._app = RestApp(
            channel,
            ready=ready,
            clock=clock,
            random=random,
            max_body_bytes=max_body_bytes,
            admit=admit,
            foresee=foresee,
        )
        self._grace = grace

    def register(self, registry: Registry) -> None:
        """Nothing: it has no gRPC service of its own."""

    def listen(self) -> socket.socket:
        """Take the address, before anything is served; `run` does it where it was not done. Raises OSError."""
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Named, not implied: asyncio lets small writes go out at once only on sockets that say that they are TCP.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # A port whose connections have just ended can be had at once; one that a process listens on cannot.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise OSError(
                error.errno, f"cannot listen on {host}:{port} ({error.strerror}); is another process there?"
            ) from error
        self.port = listener.getsockname()[1]
        return listener

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled; then give running requests a moment to finish, and close."""
        listener = self.listen()
        config = uvicorn.Config(
            self._app,
            http=_protocol_of(self._app),
            ws="none",
            lifespan="off",
            loop="none",
            backlog=BACKLOG,
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(self._grace),
        )
        server = _Server(config, on_start=ready)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        finally:
            self._app.close()
            server.should_exit = True
            await serving
            listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its handlers of signals, which are the process's own business."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()


def _protocol_of(app: RestApp) -> type[HttpToolsProtocol]:
    class Protocol(HttpToolsProtocol):
        """HTTP whose answer to what is no HTTP has the form of every other answer."""

        def send_400_response(self, msg: str) -> None:
            answer, headers = contextvars.Context().run(app.answer_to_no_request, msg)
            lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in headers), b"connection: close"]
            self.transport.write(b"\r\n".join([*lines, b"", answer.body]))
            self.transport.close()

    return Protocol
