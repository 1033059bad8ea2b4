"""What only channels over the network do: finding servers, repeating calls, spreading them."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from skerry.store.v1 import store_pb2, store_pb2_grpc

from services.runtime import channels
from services.runtime.errors import DependencyDown
from services.runtime.registry import Registry
from services.runtime.server import Server
from tests.support import eventually, free_port


class Store:
    """Fails `failures` times as a server that is going away, then answers."""

    def __init__(self, name: str = "", failures: int = 0) -> None:
        self.name = name
        self.failures = failures
        self.calls = 0

    async def _answer(self, context: Any) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async def GetMachine(self, request: Any, context: Any) -> store_pb2.GetMachineResponse:
        await self._answer(context)
        return store_pb2.GetMachineResponse(machine=store_pb2.MachineRecord(id=self.name))

    async def CreateMachine(self, request: Any, context: Any) -> store_pb2.CreateMachineResponse:
        await self._answer(context)
        return store_pb2.CreateMachineResponse()


class Refusing(Store):
    async def _answer(self, context: Any) -> None:
        self.calls += 1
        raise DependencyDown("PostgreSQL is away", metadata={"dependency": "postgresql"}, retry_after=2)


async def _serve(store: Store, address: str = "127.0.0.1:0") -> tuple[Server, int]:
    registry = Registry(service="machine-store")
    handlers: dict[str, Any] = {
        "GetMachine": grpc.unary_unary_rpc_method_handler(
            store.GetMachine,
            store_pb2.GetMachineRequest.FromString,
            store_pb2.GetMachineResponse.SerializeToString,
        ),
        "CreateMachine": grpc.unary_unary_rpc_method_handler(
            store.CreateMachine,
            store_pb2.CreateMachineRequest.FromString,
            store_pb2.CreateMachineResponse.SerializeToString,
        ),
    }
    registry.add_registered_method_handlers("skerry.store.v1.MachineStore", handlers)
    server = Server(registry, address)
    return server, await server.start()


def _connect(*ports: int) -> grpc.aio.Channel:
    addresses = [f"127.0.0.1:{port}" for port in ports]
    return channels.connect(addresses, caller="001/tests", callee="machine-store", secret=None)


GET = store_pb2.GetMachineRequest()


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        (["127.0.0.1:1"], "ipv4:127.0.0.1:1"),
        (["127.0.0.1:1", "10.0.0.1:2"], "ipv4:127.0.0.1:1,10.0.0.1:2"),
        (["[::1]:1", "[::2]:1"], "ipv6:[::1]:1,[::2]:1"),
        (["store.internal:7000"], "dns:///store.internal:7000"),
        (["unix:/run/skerry.sock"], "unix:/run/skerry.sock"),
    ],
)
def test_addresses_make_one_target(addresses: list[str], target: str) -> None:
    assert channels.target_of(addresses) == target


@pytest.mark.parametrize(
    "addresses", [[], ["a.internal:1", "b.internal:1"], ["127.0.0.1:1", "[::1]:1"], ["127.0.0.1"], ["host:port"]]
)
def test_addresses_that_make_none_are_refused(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match="address"):
        channels.target_of(addresses)


def test_only_idempotent_calls_are_repeated() -> None:
    (config,) = channels.service_config("skerry.store.v1.MachineStore")["methodConfig"]
    repeated = {name["method"] for name in config["name"]}
    assert {"GetMachine", "ListMachines", "Watch", "LookupIdempotencyKey"} <= repeated
    assert not {"CreateMachine", "UpdateMachine", "ApplyVerb", "DeleteApp"} & repeated


async def test_an_idempotent_call_is_repeated_while_no_server_takes_it() -> None:
    store = Store(failures=2)
    server, port = await _serve(store)
    channel = _connect(port)
    await store_pb2_grpc.MachineStoreStub(channel).GetMachine(GET)
    assert store.calls == 3
    await channel.close()
    await server.stop(0)


async def test_a_call_that_changes_something_is_not_repeated() -> None:
    store = Store(failures=1)
    server, port = await _serve(store)
    channel = _connect(port)
    with pytest.raises(DependencyDown, match="machine-store cannot be reached"):
        await store_pb2_grpc.MachineStoreStub(channel).CreateMachine(store_pb2.CreateMachineRequest())
    assert store.calls == 1
    await channel.close()
    await server.stop(0)


async def test_an_answer_is_not_repeated_even_where_it_says_that_something_is_down() -> None:
    store = Refusing()
    server, port = await _serve(store)
    channel = _connect(port)
    with pytest.raises(DependencyDown, match="PostgreSQL is away") as raised:
        await store_pb2_grpc.MachineStoreStub(channel).GetMachine(GET)
    assert store.calls == 1
    assert raised.value.retry_after == 2
    await channel.close()
    await server.stop(0)


async def test_repeating_stops_when_its_budget_is_spent() -> None:
    store = Store(failures=10**6)
    server, port = await _serve(store)
    channel = _connect(port)
    stub = store_pb2_grpc.MachineStoreStub(channel)

    async def failed() -> int:
        before = store.calls
        with pytest.raises(DependencyDown):
            await stub.GetMachine(GET, timeout=10)
        return store.calls - before

    assert await failed() > 1
    attempts = [await failed() for _ in range(10)]
    assert attempts[-1] == 1
    await channel.close()
    await server.stop(0)


async def test_calls_are_spread_over_all_addresses() -> None:
    stores = [Store("a"), Store("b")]
    served = [await _serve(store) for store in stores]
    channel = _connect(*(port for _, port in served))
    stub = store_pb2_grpc.MachineStoreStub(channel)

    async def both() -> bool:
        answers = [(await stub.GetMachine(GET)).machine.id for _ in range(10)]
        return answers.count("a") == answers.count("b")

    await eventually(both)
    await served[0][0].stop(0)
    assert {(await stub.GetMachine(GET)).machine.id for _ in range(10)} == {"b"}
    await channel.close()
    await served[1][0].stop(0)


async def test_a_server_that_comes_back_on_its_port_is_found_again() -> None:
    server, port = await _serve(Store("old"), f"127.0.0.1:{free_port()}")
    channel = _connect(port)
    stub = store_pb2_grpc.MachineStoreStub(channel)
    assert (await stub.GetMachine(GET)).machine.id == "old"
    await server.stop(0)
    with pytest.raises(DependencyDown):
        await stub.GetMachine(GET, timeout=1)
    server, _ = await _serve(Store("new"), f"127.0.0.1:{port}")

    async def back() -> bool:
        try:
            return bool((await stub.GetMachine(GET, timeout=1)).machine.id == "new")
        except DependencyDown:
            return False

    await eventually(back, seconds=5)
    await channel.close()
    await server.stop(0)


async def test_a_call_carries_a_deadline_even_if_it_sets_none() -> None:
    left: list[float | None] = []

    async def get(request: StringValue, context: Any) -> StringValue:
        left.append(context.time_remaining())
        return request

    registry = Registry(service="echo")
    handler = grpc.unary_unary_rpc_method_handler(get, StringValue.FromString, StringValue.SerializeToString)
    registry.add_registered_method_handlers("skerry.test.Echo", {"Get": handler})
    channel: Any = channels.local(registry, caller="001/tests", callee="echo", secret=None, default_timeout=3)
    await channel.unary_unary("/skerry.test.Echo/Get", StringValue.SerializeToString, StringValue.FromString)(
        StringValue()
    )
    assert left[0] is not None
    assert 2 < left[0] <= 3
    await asyncio.wait_for(channel.close(), 5)
