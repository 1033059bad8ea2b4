"""The dependency guard between services: over channels as they are, locally and over sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from skerry.runtime.v1 import introspection_pb2
from skerry.runtime.v1.introspection_pb2_grpc import IntrospectionStub

from services.runtime import introspection
from services.runtime.channels import connect, local
from services.runtime.edges import counts_of
from services.runtime.errors import ForbiddenDependency
from services.runtime.registry import Registry, ServerCall
from services.runtime.server import Server
from services.runtime.telemetry import current_baggage

SECRET = "of-the-set"
METHOD = "/tests.Relay/Go"

Work = Callable[[], Awaitable[str]]


def relay(service: str, place: str, work: Work, *, secret: str | None = SECRET, guard: bool = True) -> Registry:
    """A service that answers with what `work` says."""
    named = (_take_the_centre_at_its_word,) if secret is None else ()
    registry = Registry(service=service, place=place, secret=secret, guard=guard, interceptors=named)

    async def go(_request: Empty, _context: object) -> StringValue:
        return StringValue(value=await work())

    handler = grpc.unary_unary_rpc_method_handler(
        go, request_deserializer=Empty.FromString, response_serializer=StringValue.SerializeToString
    )
    registry.add_registered_method_handlers("tests.Relay", {"Go": handler})
    return registry


async def _take_the_centre_at_its_word(call: ServerCall) -> None:
    if call.metadata.get("authorization") == "Bearer centre":
        call.caller = "central"


def ask(channel: grpc.aio.Channel, **options: str) -> Work:
    """Work that calls the relay behind `channel`."""
    call = channel.unary_unary(
        METHOD, request_serializer=Empty.SerializeToString, response_deserializer=StringValue.FromString
    )
    metadata = tuple(options.items())

    async def work() -> str:
        answer: StringValue = await call(Empty(), metadata=metadata)
        return answer.value

    return work


async def baggage() -> str:
    return current_baggage()


@pytest_asyncio.fixture(params=["local", "network"])
async def channel(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Awaitable[grpc.aio.Channel]]]:
    """Makes channels to a registry."""
    servers: list[Server] = []
    channels: list[grpc.aio.Channel] = []

    async def to(
        registry: Registry, caller: str, *, secret: str | None = SECRET, regional: bool = False
    ) -> grpc.aio.Channel:
        if request.param == "local":
            made = local(registry, caller=caller, callee=registry.service, secret=secret, regional=regional)
        else:
            server = Server(registry, "127.0.0.1:0")
            servers.append(server)
            address = f"127.0.0.1:{await server.start()}"
            made = connect([address], caller=caller, callee=registry.service, secret=secret, regional=regional)
        channels.append(made)
        return made

    yield to
    for each in channels:
        await each.close()
    for server in servers:
        await server.stop(0)


async def test_every_service_is_on_the_path_and_other_baggage_goes_along(
    channel: Callable[..., Awaitable[grpc.aio.Channel]],
) -> None:
    store = relay("machine-store", "syd-1", baggage)
    scheduler = relay("scheduler", "syd-1", ask(await channel(store, "syd-1/scheduler")))
    gateway = relay("gateway", "syd-1", ask(await channel(scheduler, "syd-1/gateway")), secret=None)
    outside = await channel(gateway, "syd-1/rest", secret=None)
    path = "skerry.path=syd-1/rest>syd-1/gateway>syd-1/scheduler>syd-1/machine-store"
    assert await ask(outside)() == path
    assert await ask(outside, baggage="tenant=acme")() == path.replace("syd-1/rest>", "") + ",tenant=acme"


async def test_a_call_that_nobody_asked_for_begins_a_path(channel: Callable[..., Awaitable[grpc.aio.Channel]]) -> None:
    store = relay("machine-store", "syd-1", baggage)
    assert await ask(await channel(store, "syd-1/scheduler"))() == "skerry.path=syd-1/scheduler>syd-1/machine-store"


@pytest.mark.parametrize("tells", [True, False])
async def test_a_circle_through_the_centre_is_refused_in_its_first_request(
    channel: Callable[..., Awaitable[grpc.aio.Channel]], tells: bool
) -> None:
    way_back: list[Work] = []

    async def centre() -> str:
        """The centre, which calls a gateway in the context of what it was asked."""
        return await way_back[0]()

    sync = relay("central-sync", "syd-1", centre)
    converter = relay("config-converter", "syd-1", ask(await channel(sync, "syd-1/config-converter")))
    gateway = relay("gateway", "syd-1", ask(await channel(converter, "syd-1/gateway")), secret=None)
    told = "skerry.path=syd-1/gateway>syd-1/config-converter>syd-1/central-sync" if tells else "skerry.path=x"
    to_gateway = await channel(gateway, "central", secret=None)
    way_back.append(ask(to_gateway, authorization="Bearer centre", baggage=told))
    with pytest.raises(ForbiddenDependency) as caught:
        await ask(await channel(gateway, "client", secret=None), baggage="")()
    told_chain = "syd-1/gateway > syd-1/config-converter > syd-1/central-sync" if tells else "x"
    assert caught.value.metadata["chain"] == f"{told_chain} > central > syd-1/gateway"


async def test_without_the_guard_the_same_circle_is_not_seen(
    channel: Callable[..., Awaitable[grpc.aio.Channel]],
) -> None:
    gateway = relay("gateway", "syd-1", baggage, secret=None, guard=False)
    to_gateway = await channel(gateway, "central", secret=None)
    assert await ask(to_gateway, authorization="Bearer centre", baggage="skerry.path=syd-1/gateway")()


async def test_a_caller_that_the_table_does_not_have_is_refused_whatever_it_says_of_its_path(
    channel: Callable[..., Awaitable[grpc.aio.Channel]],
) -> None:
    scheduler = relay("scheduler", "syd-1", baggage)
    work = ask(await channel(scheduler, "syd-1/worker"), baggage="skerry.path=syd-1/gateway")
    with pytest.raises(ForbiddenDependency, match="worker must not call scheduler"):
        await work()


async def test_what_serves_a_regional_call_cannot_leave_the_region(
    channel: Callable[..., Awaitable[grpc.aio.Channel]],
) -> None:
    elsewhere = Server(relay("outside", "", baggage, secret=None), "127.0.0.1:0")
    address = f"127.0.0.1:{await elsewhere.start()}"
    leaving = connect([address], caller="syd-1/machine-store", callee="outside", secret=None, leaves_region=True)
    async with leaving:
        store = relay("machine-store", "syd-1", ask(leaving))
        scheduler = relay("scheduler", "syd-1", ask(await channel(store, "syd-1/scheduler")))
        path = "skerry.path=syd-1/gateway>syd-1/scheduler>syd-1/machine-store"
        assert await ask(await channel(scheduler, "syd-1/gateway"))() == path
        with pytest.raises(ForbiddenDependency, match="must not leave its region"):
            await ask(await channel(scheduler, "syd-1/gateway", regional=True))()
    await elsewhere.stop(0)


async def test_a_process_tells_which_edges_it_has_seen(channel: Callable[..., Awaitable[grpc.aio.Channel]]) -> None:
    store = relay("machine-store", "syd-1", baggage)
    await ask(await channel(store, "syd-1/scheduler"))()
    registry = Registry(service=introspection.NAME, place="syd-1", secret=SECRET)
    introspection.register(registry)
    stub = IntrospectionStub(await channel(registry, "syd-1/cli"))
    answer = await stub.ListSeenEdges(introspection_pb2.ListSeenEdgesRequest())
    seen = {(edge.caller, edge.callee): edge.calls for edge in answer.edges}
    assert seen["scheduler", "machine-store"] >= 1
    assert seen["cli", "introspection"] >= 1


async def test_hanging_up_on_a_watch_is_no_error_of_its_edge(
    channel: Callable[..., Awaitable[grpc.aio.Channel]],
) -> None:
    ended = asyncio.Event()
    store = Registry(service="machine-store", place="syd-1", secret=SECRET)

    async def watch(_request: Empty, _context: object) -> AsyncIterator[StringValue]:
        try:
            yield StringValue(value="as it is")
            await asyncio.Event().wait()
        finally:
            ended.set()

    handler = grpc.unary_stream_rpc_method_handler(
        watch, request_deserializer=Empty.FromString, response_serializer=StringValue.SerializeToString
    )
    store.add_registered_method_handlers("tests.Watched", {"Watch": handler})
    watched = (await channel(store, "syd-1/config-converter")).unary_stream(
        "/tests.Watched/Watch",
        request_serializer=Empty.SerializeToString,
        response_deserializer=StringValue.FromString,
    )
    counts = counts_of("config-converter", "machine-store")
    calls, errors = counts.calls, counts.errors
    responses = watched(Empty())
    assert (await anext(aiter(responses))).value == "as it is"
    responses.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    await asyncio.sleep(0)
    assert (counts.calls, counts.errors) == (calls + 1, errors)
