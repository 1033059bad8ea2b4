"""The life of a process: ready, draining, dead."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.process import run_process
from services.runtime.registry import Registry
from services.runtime.server import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Worker:
    """A component that is ready, and dies, when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.caught_up = asyncio.Event()
        self.die = asyncio.Event()
        self.ended = asyncio.Event()

    def register(self, registry: Registry) -> None:
        pass

    async def run(self, ready: Callable[[], None]) -> None:
        try:
            await self.caught_up.wait()
            ready()
            ready()
            await self.die.wait()
            raise RuntimeError("the disk is full")
        finally:
            self.ended.set()


class Process:
    def __init__(self, *names: str, **kwargs: Any) -> None:
        self.components = [Worker(name) for name in names]
        self.server = Server(Registry(service="set"), "127.0.0.1:0")
        self.stop = asyncio.Event()
        self.listening = asyncio.Event()
        self.ready = asyncio.Event()
        self._kwargs = kwargs

    async def run(self) -> int:
        async def listening() -> None:
            self.listening.set()

        async def ready() -> None:
            self.ready.set()

        return await run_process(
            self.components,
            servers=[self.server],
            grace=1,
            stop=self.stop,
            on_listening=listening,
            on_ready=ready,
            **self._kwargs,
        )

    async def health(self, service: str = "") -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.port}") as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            return int((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status)


async def test_a_process_serves_once_all_of_its_components_are_ready() -> None:
    process = Process("machine-store", "scheduler")
    running = asyncio.create_task(process.run())
    await asyncio.wait_for(process.listening.wait(), 5)
    store, scheduler = process.components
    assert await process.health("machine-store") == NOT_SERVING
    store.caught_up.set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{process.server.port}") as channel:
        request = health_pb2.HealthCheckRequest(service="machine-store")
        async for status in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=5):
            if status.status == SERVING:
                break
    assert await process.health() == NOT_SERVING
    assert not process.ready.is_set()
    scheduler.caught_up.set()
    await asyncio.wait_for(process.ready.wait(), 5)
    assert [await process.health(name) for name in ("", "machine-store", "scheduler")] == [SERVING] * 3
    process.stop.set()
    assert await asyncio.wait_for(running, 5) == 0
    assert store.ended.is_set()
    assert scheduler.ended.is_set()


async def test_a_component_that_dies_ends_the_process() -> None:
    process = Process("machine-store", "scheduler")
    running = asyncio.create_task(process.run())
    for component in process.components:
        component.caught_up.set()
    await asyncio.wait_for(process.ready.wait(), 5)
    process.components[0].die.set()
    assert await asyncio.wait_for(running, 5) == 1
    assert process.components[1].ended.is_set()


async def test_background_work_that_dies_ends_the_process() -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    assert await asyncio.wait_for(Process("scheduler", background={"postgres": fail()}).run(), 5) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_process_in_good_order(number: signal.Signals) -> None:
    process = Process("scheduler")
    running = asyncio.create_task(process.run())
    process.components[0].caught_up.set()
    await asyncio.wait_for(process.ready.wait(), 5)
    os.kill(os.getpid(), number)
    assert await asyncio.wait_for(running, 5) == 0


async def test_an_address_that_is_taken_ends_the_process_before_it_begins() -> None:
    first = Process("scheduler")
    running = asyncio.create_task(first.run())
    await asyncio.wait_for(first.listening.wait(), 5)
    begun = asyncio.Event()

    async def begin() -> None:
        begun.set()

    second = Process("scheduler", background={"postgres": begin()})
    second.server = Server(Registry(service="set"), f"127.0.0.1:{first.server.port}")
    with pytest.raises(OSError, match=str(first.server.port)):
        await second.run()
    assert not second.components[0].ended.is_set()
    assert not begun.is_set()
    first.stop.set()
    assert await asyncio.wait_for(running, 5) == 0


async def test_metrics_can_be_scraped(unused_tcp_port: int) -> None:
    process = Process("scheduler", metrics=f"127.0.0.1:{unused_tcp_port}")
    running = asyncio.create_task(process.run())
    await asyncio.wait_for(process.listening.wait(), 5)

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=5) as response:
            return str(response.read().decode())

    assert "process_resident_memory_bytes" in await asyncio.to_thread(scrape)
    process.stop.set()
    assert await asyncio.wait_for(running, 5) == 0
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(scrape)


async def test_a_component_begins_once_the_one_that_it_needs_is_ready() -> None:
    process = Process("machine-store", "scheduler", after={"scheduler": "machine-store"})
    store, scheduler = process.components
    running = asyncio.create_task(process.run())
    scheduler.caught_up.set()
    await asyncio.wait_for(process.listening.wait(), 5)
    assert await process.health("scheduler") == NOT_SERVING
    assert not process.ready.is_set()
    store.caught_up.set()
    await asyncio.wait_for(process.ready.wait(), 5)
    assert await process.health("scheduler") == SERVING
    process.stop.set()
    assert await asyncio.wait_for(running, 5) == 0
    assert scheduler.ended.is_set()
