"""The life of a process: serve, run the components, tell health, and on SIGTERM drain before stopping."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from prometheus_client import start_http_server

from services.runtime import telemetry
from services.runtime.component import Component
from services.runtime.server import Server
from services.runtime.tasks import TaskDied, cancel, run_forever
from services.runtime.telemetry import log


async def run_process(
    components: Sequence[Component],
    *,
    servers: Sequence[Server] = (),
    background: Mapping[str, Coroutine[Any, Any, Any]] | None = None,
    after: Mapping[str, str] | None = None,
    metrics: str | None = None,
    grace: float = 5.0,
    on_listening: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[], Awaitable[None]] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Run a process until SIGTERM, SIGINT or `stop`; returns its exit status: 0, or 1 when background work died.

    The components are registered with the servers' registries already. `background` is further work, by name, that runs
    as long. `after` names, by component, another one that is ready before it begins. `metrics` is the "host:port" of
    the Prometheus endpoint. Health, on every server, knows each component by its name, and the whole by "": SERVING
    once it, or all of them, are ready.
    `on_listening` is awaited when the ports are open, `on_ready` when all are SERVING. `grace` is in seconds.
    Raises OSError when an address cannot be had; nothing runs then.
    """
    stop = stop or asyncio.Event()
    background = background or {}
    after = after or {}
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    scrapes: Callable[[], None] | None = None
    work: asyncio.Task[Any] | None = None
    try:
        scrapes = _serve_metrics(metrics) if metrics else None
        for server in servers:
            await server.start()
        readiness = _Readiness([component.name for component in components], servers, on_ready)
        await readiness.begin()
        if on_listening is not None:
            await on_listening()
        log.info("process_started", components=[component.name for component in components])
        running = {each.name: readiness.run(each, after.get(each.name)) for each in components}
        work = asyncio.create_task(run_forever(readiness=readiness.tell(), **running, **background))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await cancel(stopping)
        died = work.done()
        log.info("process_stopping", grace=grace)
        await asyncio.gather(*(server.stop(grace) for server in servers))
        return 1 if died else 0
    finally:
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        else:
            for coroutine in background.values():
                coroutine.close()
        await asyncio.gather(*(server.stop(0) for server in servers))
        if scrapes is not None:
            scrapes()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        telemetry.shutdown()


class _Readiness:
    """Which components are ready, and telling health so."""

    def __init__(
        self, names: Sequence[str], servers: Sequence[Server], on_ready: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._waiting = set(names)
        self._was_ready = {name: asyncio.Event() for name in names}
        self._servers = servers
        self._on_ready = on_ready
        # Bounded by the number of components, each of which is put in once.
        self._newly: asyncio.Queue[str] = asyncio.Queue()

    async def begin(self) -> None:
        for server in self._servers:
            for name in self._waiting:
                await server.set_serving(False, name)

    async def run(self, component: Component, after: str | None) -> None:
        """Run a component, once the one that is named `after` is ready."""
        if after is not None:
            await self._was_ready[after].wait()
        name = component.name

        def ready() -> None:
            if name in self._waiting:
                self._waiting.discard(name)
                self._was_ready[name].set()
                self._newly.put_nowait(name)

        await component.run(ready)

    async def tell(self) -> None:
        told = False
        while True:
            if not self._waiting and self._newly.empty() and not told:
                told = True
                for server in self._servers:
                    await server.set_serving(True)
                log.info("process_ready")
                if self._on_ready is not None:
                    await self._on_ready()
            name = await self._newly.get()
            for server in self._servers:
                await server.set_serving(True, name)
            log.info("component_ready", component=name)


def _serve_metrics(address: str) -> Callable[[], None]:
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=telemetry.metrics)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


__all__ = ["TaskDied", "run_process"]
