"""The server: health, reflection, its port, and the drain before it stops."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime import channels
from services.runtime.errors import DependencyDown
from services.runtime.registry import Registry
from services.runtime.server import Server


class Slow:
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()

    async def Get(self, request: StringValue, context: object) -> StringValue:
        self.entered.set()
        await self.go_on.wait()
        return request


def _registry(slow: Slow, **kwargs: Any) -> Registry:
    registry = Registry(service="slow", **kwargs)
    handler = grpc.unary_unary_rpc_method_handler(slow.Get, StringValue.FromString, StringValue.SerializeToString)
    registry.add_registered_method_handlers("skerry.test.Slow", {"Get": handler})
    return registry


def _stub(channel: Any) -> Any:
    return channel.unary_unary("/skerry.test.Slow/Get", StringValue.SerializeToString, StringValue.FromString)


async def test_health_tells_of_each_service_and_of_the_whole() -> None:
    server = Server(_registry(Slow()), "127.0.0.1:0")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            return int(answer.status)

        assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving(True, "scheduler")
        assert await status("scheduler") == health_pb2.HealthCheckResponse.SERVING
        assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving(True)
        assert await status("") == health_pb2.HealthCheckResponse.SERVING
    await server.stop(0)


async def test_reflection_lists_what_is_served() -> None:
    server = Server([_registry(Slow())], "127.0.0.1:0")
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in reflection.ServerReflectionInfo(iter([request]), timeout=5):
            names = {service.name for service in answer.list_services_response.service}
    assert names == {"skerry.test.Slow", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    await server.stop(0)


async def test_a_port_is_never_shared() -> None:
    server = Server(_registry(Slow()), "127.0.0.1:0")
    port = await server.start()
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        await Server(_registry(Slow()), f"127.0.0.1:{port}").start()
    await server.stop(0)


async def test_a_server_that_stops_drains_first() -> None:
    slow = Slow()
    server = Server(_registry(slow), "127.0.0.1:0")
    port = await server.start()
    await server.set_serving(True)
    channel = channels.connect([f"127.0.0.1:{port}"], caller="001/tests", callee="slow", secret=None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as watching:
        watch = health_pb2_grpc.HealthStub(watching).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = asyncio.ensure_future(_stub(channel)(StringValue(value="x"), timeout=10))
        await asyncio.wait_for(slow.entered.wait(), 5)
        stopping = asyncio.create_task(server.stop(10))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        slow.go_on.set()
        assert (await call).value == "x"
        await asyncio.wait_for(stopping, 5)
        with pytest.raises(DependencyDown):
            await _stub(channel)(StringValue(value="y"), timeout=1)
    await channel.close()


async def test_a_drain_ends_with_its_grace() -> None:
    slow = Slow()
    server = Server(_registry(slow), "127.0.0.1:0")
    port = await server.start()
    channel = channels.connect([f"127.0.0.1:{port}"], caller="001/tests", callee="slow", secret=None)
    call = asyncio.ensure_future(_stub(channel)(StringValue(value="x"), timeout=30))
    await asyncio.wait_for(slow.entered.wait(), 5)
    await asyncio.wait_for(server.stop(0.1), 5)
    with pytest.raises(DependencyDown):
        await call
    await channel.close()


@pytest.mark.parametrize("kind", ["real", "local"])
async def test_a_call_without_a_deadline_is_given_one(kind: str) -> None:
    slow = Slow()
    registry = _registry(slow, default_deadline=0.1)
    server = Server(registry, "127.0.0.1:0")
    port = await server.start()
    if kind == "real":
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    else:
        from services.runtime.local_channel import LocalChannel

        channel = LocalChannel([registry])
    call = _stub(channel)(StringValue(value="x"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(call, 5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await channel.close()
    await server.stop(0)


def test_a_service_is_registered_once() -> None:
    registry = _registry(Slow())
    with pytest.raises(ValueError, match=r"skerry\.test\.Slow is registered twice"):
        registry.add_registered_method_handlers("skerry.test.Slow", {})
    with pytest.raises(TypeError, match="listens nowhere"):
        registry.add_insecure_port("127.0.0.1:0")
