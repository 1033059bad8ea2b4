"""The service behind both kinds of channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from skerry.converter.v1.converter_pb2 import ConvertRequest
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterStub
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.conversion import convert
from services.config_converter.service import ConfigConverterService
from services.runtime.channels import connect, local
from services.runtime.component import Component
from services.runtime.errors import InvalidConfig
from services.runtime.registry import Registry
from services.runtime.server import Server

if TYPE_CHECKING:
    from skerry.converter.v1.converter_pb2_grpc import ConfigConverterAsyncStub

CALLER = "001/gateway"


@asynccontextmanager
async def over_a_socket() -> AsyncIterator[grpc.aio.Channel]:
    registry = registered()
    server = Server(registry, "127.0.0.1:0")
    port = await server.start()
    channel = connect([f"127.0.0.1:{port}"], caller=CALLER, callee="config-converter", secret=None)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(0)


@asynccontextmanager
async def in_the_process() -> AsyncIterator[grpc.aio.Channel]:
    channel = local(registered(), caller=CALLER, callee="config-converter", secret=None)
    try:
        yield channel
    finally:
        await channel.close()


def registered() -> Registry:
    registry = Registry(service="config-converter")
    ConfigConverterService().register(registry)
    return registry


@pytest.fixture(params=[over_a_socket, in_the_process])
async def stub(request: pytest.FixtureRequest) -> AsyncIterator[ConfigConverterAsyncStub]:
    async with request.param() as channel:
        yield ConfigConverterStub(channel)


async def test_a_conversion_comes_back_as_it_was_made(stub: ConfigConverterAsyncStub) -> None:
    config = MachineConfig(image="nginx", size="performance-2x", env={"A": "1"})
    answer = await stub.Convert(ConvertRequest(config=config, app_name="web", region="syd"))
    assert answer.result == convert(config)


async def test_every_field_that_is_wrong_comes_back_by_its_path(stub: ConfigConverterAsyncStub) -> None:
    config = MachineConfig(schedule="fortnightly", size="huge-9x")
    with pytest.raises(InvalidConfig) as refusal:
        await stub.Convert(ConvertRequest(config=config))
    assert [violation.field for violation in refusal.value.violations] == [
        "config.image",
        "config.size",
        "config.schedule",
    ]
    assert "config.image is required" in refusal.value.message


async def test_the_callers_own_path_stands_before_the_fields(stub: ConfigConverterAsyncStub) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        await stub.Convert(ConvertRequest(config=MachineConfig(), field_prefix="machine.config"))
    assert refusal.value.violations[0].field == "machine.config.image"


@pytest.mark.parametrize("text", ["p", "ü" * 100, "p" * 1000])
async def test_an_answer_to_thousands_of_wrong_fields_arrives(stub: ConfigConverterAsyncStub, text: str) -> None:
    config = MachineConfig(image="nginx")
    for _ in range(5000):
        config.services.add(internal_port=80, protocol=text)
    with pytest.raises(InvalidConfig) as refusal:
        await stub.Convert(ConvertRequest(config=config), timeout=30)
    assert refusal.value.violations[9].field == "config.services[9].protocol"
    assert "more fields" in refusal.value.message


async def test_the_component_is_ready_at_once_and_runs_until_it_is_cancelled() -> None:
    component: Component = ConfigConverterService()
    ready = asyncio.Event()
    running: Callable[[Callable[[], None]], Awaitable[None]] = component.run
    task = asyncio.ensure_future(running(ready.set))
    await asyncio.wait_for(ready.wait(), 5)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
