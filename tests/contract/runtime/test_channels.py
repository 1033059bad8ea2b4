"""What a channel promises, whether a socket is in between or not. Every test here runs over both kinds."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue

from services.runtime import channels, telemetry
from services.runtime.errors import (
    ERRORS,
    DependencyDown,
    Internal,
    NotFound,
    SkerryError,
    TooLarge,
    Unauthenticated,
    Violation,
)
from services.runtime.local_channel import MAX_MESSAGE_BYTES
from services.runtime.registry import Registry, ServerCall, current_call, remaining
from services.runtime.server import Server
from tests.support import eventually

Context = grpc.aio.ServicerContext[StringValue, StringValue]

SECRET = "the set's secret"
SERVICE = "skerry.test.Echo"
LATEST = StringValue(value="latest")

leaked: ContextVar[str] = ContextVar("leaked", default="nothing")


class Echo:
    """A servicer with a method for each thing that may happen."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.cleaned_up = asyncio.Event()
        self.go_on = asyncio.Event()
        self.produced = 0
        self.error: BaseException = ValueError("the disk is full of hunter2")
        self.kept: StringValue | None = None
        self.onward: Callable[[], Awaitable[Any]] | None = None

    async def Unary(self, request: StringValue, context: Context) -> StringValue:
        self.seen.append(request.value)
        return StringValue(value=request.value.upper())

    async def Keep(self, request: StringValue, context: Context) -> StringValue:
        request.value += " (changed by the servicer)"
        self.kept = StringValue(value="as answered")
        return self.kept

    async def Fail(self, request: StringValue, context: Context) -> StringValue:
        context.set_trailing_metadata((("note", "kept"),))
        raise self.error

    async def SetCode(self, request: StringValue, context: Context) -> StringValue:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such thing")
        return StringValue(value="not to be seen")

    async def Abort(self, request: StringValue, context: Context) -> StringValue:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you", (("why", "rules"),))

    async def Wait(self, request: StringValue, context: Context) -> StringValue:
        self.seen.append(context.time_remaining())
        self.entered.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def Metadata(self, request: StringValue, context: Context) -> StringValue:
        metadata = context.invocation_metadata() or ()
        self.seen.append({key: value for key, value in metadata if key.startswith(("x-", "skerry-caller"))})
        await context.send_initial_metadata((("x-early", "1"), ("x-raw-bin", b"\x00\xff")))
        self.entered.set()
        await self.go_on.wait()
        context.set_trailing_metadata((("x-late", "2"), ("x-late", "3")))
        return request

    async def Prelude(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        await context.send_initial_metadata((("x-early", "1"),))
        await self.go_on.wait()
        yield request

    async def Twice(self, request: StringValue, context: Context) -> StringValue:
        await context.send_initial_metadata((("x-early", "1"),))
        await context.send_initial_metadata((("x-early", "2"),))
        return request

    async def Surroundings(self, request: StringValue, context: Context) -> StringValue:
        call = current_call()
        assert call is not None
        found = {
            "leaked": leaked.get(),
            "caller": call.caller,
            "method": call.method,
            "trace": telemetry.current_trace_id(),
            "remaining": remaining(),
        }
        leaked.set("by the servicer")
        return StringValue(value=json.dumps(found))

    async def Onward(self, request: StringValue, context: Context) -> StringValue:
        assert self.onward is not None
        answer: StringValue = await self.onward()
        return answer

    async def Count(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        try:
            for number in range(int(request.value)):
                self.produced += 1
                yield StringValue(value=str(number))
            if self.go_on.is_set():
                raise self.error
        finally:
            self.cleaned_up.set()

    async def Flood(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        try:
            while True:
                self.produced += 1
                yield StringValue(value="x" * 65_536)
        finally:
            self.cleaned_up.set()

    async def Written(self, request: StringValue, context: Context) -> None:
        for number in range(int(request.value)):
            await context.write(StringValue(value=str(number)))

    async def Join(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        words: list[str] = []
        async for request in requests:
            if request.value == "enough":
                break
            words.append(request.value)
            self.seen.append(request.value)
            self.entered.set()
        return StringValue(value=" ".join(words))

    async def Never(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return StringValue()

    async def Chat(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        try:
            async for request in requests:
                yield StringValue(value=f"re: {request.value}")
            yield StringValue(value="bye")
        finally:
            self.cleaned_up.set()

    async def Turns(self, _: AsyncIterator[StringValue], context: grpc.aio.ServicerContext[Any, StringValue]) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(StringValue(value=f"re: {request.value}"))

    def NotYet(self, request: StringValue, context: Context) -> StringValue:
        # As generated servicers have it.
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("Method not implemented!")
        raise NotImplementedError("Method not implemented!")


_FACTORIES = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}
_KINDS = {
    "Count": "unary_stream",
    "Flood": "unary_stream",
    "Prelude": "unary_stream",
    "Written": "unary_stream",
    "Join": "stream_unary",
    "Never": "stream_unary",
    "Chat": "stream_stream",
    "Turns": "stream_stream",
}


def _handlers(echo: Echo) -> dict[str, Any]:
    names = [name for name in vars(Echo) if not name.startswith("_")]
    return {
        name: _FACTORIES[_KINDS.get(name, "unary_unary")](
            getattr(echo, name),
            request_deserializer=StringValue.FromString,
            response_serializer=StringValue.SerializeToString,
        )
        for name in names
    }


class Stub:
    """What generated code makes of a channel: `await stub.Unary("text")`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel: Any = channel

    def __getattr__(self, name: str) -> Callable[..., Any]:
        make = getattr(self._channel, _KINDS.get(name, "unary_unary"))
        callable_ = make(
            f"/{SERVICE}/{name}",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=StringValue.FromString,
            _registered_method=True,
        )

        def call(request: Any = None, **kwargs: Any) -> Any:
            return callable_(StringValue(value=request) if isinstance(request, str) else request, **kwargs)

        return call


class Wiring:
    """A served Echo, and channels to it."""

    def __init__(self, kind: str, echo: Echo, registry: Registry, port: int) -> None:
        self.kind = kind
        self.echo = echo
        self.registry = registry
        self._port = port
        self.channels: list[grpc.aio.Channel] = []

    def channel(self, **kwargs: Any) -> grpc.aio.Channel:
        arguments = {"caller": "001/tests", "callee": "echo", "secret": SECRET, **kwargs}
        if self.kind == "local":
            made = channels.local(self.registry, **arguments)
        else:
            made = channels.connect([f"127.0.0.1:{self._port}"], **arguments)
        self.channels.append(made)
        return made

    def stub(self, **kwargs: Any) -> Any:
        return Stub(self.channel(**kwargs))


@pytest.fixture(params=["real", "local"])
async def wiring(request: pytest.FixtureRequest) -> AsyncIterator[Wiring]:
    echo = Echo()
    registry = Registry(service="echo", secret=SECRET, default_deadline=0.2)
    registry.add_registered_method_handlers(SERVICE, _handlers(echo))
    server = Server(registry, "127.0.0.1:0")
    port = await server.start() if request.param == "real" else 0
    wired = Wiring(request.param, echo, registry, port)
    yield wired
    for channel in wired.channels:
        await channel.close()
    await server.stop(0)


@pytest.fixture
def echo(wiring: Wiring) -> Echo:
    return wiring.echo


@pytest.fixture
def stub(wiring: Wiring) -> Any:
    return wiring.stub()


async def _collect(responses: Any) -> list[str]:
    return [response.value async for response in responses]


# One request, one answer.


async def test_a_call_is_answered(stub: Any, echo: Echo) -> None:
    assert (await stub.Unary("hello")).value == "HELLO"
    assert echo.seen == ["hello"]


async def test_many_calls_at_once_each_get_their_own_answer(stub: Any) -> None:
    answers = await asyncio.gather(*(stub.Unary(f"n{number}") for number in range(200)))
    assert [answer.value for answer in answers] == [f"N{number}" for number in range(200)]


async def test_nobody_shares_a_message(stub: Any, echo: Echo) -> None:
    request = StringValue(value="as asked")
    answer = await stub.Keep(request)
    assert echo.kept is not None
    echo.kept.value = "changed afterwards"
    assert request.value == "as asked"
    assert answer.value == "as answered"


async def test_a_call_that_was_awaited_can_be_awaited_again(stub: Any) -> None:
    call = stub.Unary("once")
    assert (await call).value == (await call).value == "ONCE"
    assert call.done()
    assert not call.cancelled()
    assert await call.code() is grpc.StatusCode.OK


async def test_a_finished_call_tells_its_callbacks(stub: Any) -> None:
    told = asyncio.Event()
    call = stub.Unary("x")
    call.add_done_callback(lambda _: told.set())
    await call
    await asyncio.wait_for(told.wait(), 5)


async def test_a_message_that_is_too_large_is_refused_both_ways(stub: Any, echo: Echo) -> None:
    with pytest.raises(TooLarge):
        await stub.Unary("x" * (MAX_MESSAGE_BYTES + 1))
    assert echo.seen == []
    assert (await stub.Unary("x" * (MAX_MESSAGE_BYTES - 100))).value.startswith("X")


# Metadata.


async def test_metadata_crosses_in_both_directions(stub: Any, echo: Echo) -> None:
    call = stub.Metadata("x", metadata=(("x-text", "some text"), ("x-raw-bin", b"\x01\x00")), timeout=5)
    await asyncio.wait_for(echo.entered.wait(), 5)
    echo.go_on.set()
    await call
    early = dict(await call.initial_metadata())
    late = [(key, value) for key, value in await call.trailing_metadata() if key.startswith("x-")]
    assert echo.seen == [{"x-text": "some text", "x-raw-bin": b"\x01\x00", "skerry-caller": "001/tests"}]
    assert early["x-early"] == "1"
    assert early["x-raw-bin"] == b"\x00\xff"
    assert late == [("x-late", "2"), ("x-late", "3")]


async def test_initial_metadata_of_a_stream_comes_before_its_first_answer(stub: Any, echo: Echo) -> None:
    call = stub.Prelude("x", timeout=5)
    early = dict(await call.initial_metadata())
    assert early["x-early"] == "1"
    assert not call.done()
    echo.go_on.set()
    assert await _collect(call) == ["x"]


async def test_initial_metadata_is_sent_once(stub: Any, echo: Echo) -> None:
    echo.go_on.set()
    await stub.Metadata("x", timeout=5)
    with pytest.raises(Internal):
        await stub.Twice("x", timeout=5)


@pytest.mark.parametrize(
    ("wrong", "error"), [(("X-Upper", "v"), grpc.aio.InternalError), (("x-raw-bin", "text"), TypeError)]
)
async def test_metadata_that_cannot_be_sent_is_refused(
    stub: Any, echo: Echo, wrong: tuple[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await stub.Unary("x", metadata=(wrong,), timeout=5)
    assert echo.seen == []


# Errors.


@pytest.mark.parametrize("kind", list(ERRORS.values()), ids=lambda kind: kind.reason)
async def test_an_error_arrives_as_it_was_raised(stub: Any, echo: Echo, kind: type[SkerryError]) -> None:
    echo.error = kind(
        "what is wrong, in one sentence",
        violations=[Violation("config.guest.cpus", "must be 1, 2, 4 or 8"), Violation("config.image", "is missing")],
        metadata={"holder": "somebody"},
        retry_after=1.25,
    )
    call = stub.Fail("x", timeout=5)
    with pytest.raises(kind) as raised:
        await call
    assert raised.value == echo.error
    assert await call.code() is kind.code
    assert await call.details() == "what is wrong, in one sentence"
    assert ("note", "kept") in list(await call.trailing_metadata())


async def test_a_servicer_that_raises_tells_its_caller_a_trace_id_and_its_log_the_rest(
    stub: Any, echo: Echo, logs: list[Any]
) -> None:
    with pytest.raises(Internal) as raised:
        await stub.Fail("x")
    trace_id = raised.value.metadata["trace_id"]
    assert len(trace_id) == 32
    assert trace_id in raised.value.message
    assert "hunter2" not in str(raised.value)
    entry = next(entry for entry in logs if entry["event"] == "call_failed")
    assert entry["exc_info"] is echo.error
    assert entry["method"] == f"/{SERVICE}/Fail"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DependencyDown("PostgreSQL cannot be asked"), [("dependency_down", "PostgreSQL cannot be asked")]),
        (NotFound("there is no such machine"), []),
    ],
)
async def test_what_fails_for_no_fault_of_its_caller_is_in_the_log(
    stub: Any, echo: Echo, logs: list[Any], error: SkerryError, told: list[tuple[str, str]]
) -> None:
    echo.error = error
    with pytest.raises(type(error)):
        await stub.Fail("x")
    entries = [entry for entry in logs if entry["event"] == "call_refused"]
    assert [(entry["status"], entry["why"]) for entry in entries] == told
    assert all(entry["method"] == f"/{SERVICE}/Fail" for entry in entries)


async def test_a_log_that_cannot_be_written_does_not_keep_the_caller_from_its_answer(stub: Any) -> None:
    def full(*_: Any) -> Any:
        raise OSError("no space left on device")

    processors = structlog.get_config()["processors"]
    structlog.configure(processors=[full])
    try:
        with pytest.raises(Internal, match="trace id"):
            await asyncio.wait_for(stub.Fail("x", timeout=30), 5)
    finally:
        structlog.configure(processors=processors)


async def test_a_servicer_that_raises_cancelled_error_by_itself_does_not_leave_its_caller_waiting(
    stub: Any, echo: Echo
) -> None:
    echo.error = asyncio.CancelledError()
    with pytest.raises(Internal):
        await asyncio.wait_for(stub.Fail("x", timeout=30), 5)


async def test_a_code_that_a_servicer_sets_is_an_error(stub: Any) -> None:
    with pytest.raises(NotFound, match="no such thing"):
        await stub.SetCode("x")


async def test_an_abort_of_a_servicer_is_an_error(stub: Any) -> None:
    call = stub.Abort("x")
    with pytest.raises(ERRORS["forbidden"], match="not you"):
        await call
    assert ("why", "rules") in list(await call.trailing_metadata())


@pytest.mark.parametrize("method", ["NotYet", "Missing"])
async def test_an_unimplemented_method_says_so(stub: Any, method: str) -> None:
    call = getattr(stub, method)("x")
    with pytest.raises(Internal, match=f"echo does not know /{SERVICE}/{method}"):
        await call
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


# Who calls.


@pytest.mark.parametrize("secret", ["another secret", "", None])
async def test_a_caller_without_the_secret_is_refused(wiring: Wiring, echo: Echo, secret: str | None) -> None:
    with pytest.raises(Unauthenticated) as raised:
        await wiring.stub(secret=secret).Unary("x")
    assert SECRET not in str(raised.value)
    with pytest.raises(Unauthenticated):
        await _collect(wiring.stub(secret=secret).Count("3"))
    assert echo.seen == []
    assert echo.produced == 0


async def test_a_servicer_knows_its_caller(wiring: Wiring) -> None:
    found = json.loads((await wiring.stub(caller="0ab/gateway").Surroundings("x")).value)
    assert found["caller"] == "0ab/gateway"
    assert found["method"] == f"/{SERVICE}/Surroundings"


async def test_interceptors_run_before_the_servicer_and_may_refuse(wiring: Wiring, echo: Echo) -> None:
    async def refuse(call: ServerCall) -> None:
        leaked.set("by the interceptor")
        if call.method.endswith("/Unary"):
            raise ERRORS["forbidden"]("not this one")

    wiring.registry.interceptors = (refuse,)
    with pytest.raises(ERRORS["forbidden"], match="not this one"):
        await wiring.stub().Unary("x")
    assert echo.seen == []
    assert json.loads((await wiring.stub().Surroundings("x")).value)["leaked"] == "by the interceptor"


# Context and traces.


async def test_context_variables_leak_neither_way(stub: Any) -> None:
    leaked.set("by the caller")
    for _ in range(2):
        assert json.loads((await stub.Surroundings("x")).value)["leaked"] == "nothing"
    assert leaked.get() == "by the caller"


async def test_a_trace_goes_on_through_every_call(wiring: Wiring, echo: Echo) -> None:
    stub = wiring.stub()
    echo.onward = lambda: stub.Surroundings("x")
    header = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"
    found = json.loads((await stub.Onward("x", metadata=(("traceparent", header),))).value)
    assert found["trace"] == "0123456789abcdef0123456789abcdef"


async def test_a_trace_that_is_none_is_replaced(stub: Any) -> None:
    answer = await stub.Surroundings("x", metadata=(("traceparent", "00-nonsense-01"),))
    trace = json.loads(answer.value)["trace"]
    assert len(trace) == 32
    assert int(trace, 16) > 0


# Deadlines.


async def test_a_call_that_takes_too_long_is_given_up_on_both_sides(stub: Any, echo: Echo) -> None:
    call = stub.Wait("x", timeout=0.1)
    with pytest.raises(DependencyDown, match="echo did not answer in time") as raised:
        await call
    assert raised.value.metadata["dependency"] == "echo"
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_the_default_timeout_is_that_of_calls_that_set_none(wiring: Wiring, echo: Echo) -> None:
    with pytest.raises(DependencyDown):
        await wiring.stub(default_timeout=0.1).Wait("x")
    assert 0 < echo.seen[0] < 0.2


async def test_a_servicer_sees_the_time_that_its_caller_gives_it(stub: Any) -> None:
    left = json.loads((await stub.Surroundings("x", timeout=20)).value)["remaining"]
    assert 15 < left < 21


async def test_a_call_lasts_no_longer_than_the_call_on_whose_behalf_it_is_made(wiring: Wiring, echo: Echo) -> None:
    stub = wiring.stub()
    echo.onward = lambda: stub.Wait("x", timeout=60)
    with pytest.raises(DependencyDown):
        await stub.Onward("x", timeout=0.3)
    assert 0 < echo.seen[0] < 0.4
    await asyncio.wait_for(echo.cancelled.wait(), 5)


# Giving up.


async def test_a_caller_that_is_cancelled_stops_the_servicer(stub: Any, echo: Echo) -> None:
    async def ask() -> None:
        await stub.Wait("x", timeout=30)

    task = asyncio.create_task(ask())
    await asyncio.wait_for(echo.entered.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_a_call_can_be_cancelled_once(stub: Any, echo: Echo) -> None:
    call = stub.Wait("x", timeout=30)
    await asyncio.wait_for(echo.entered.wait(), 5)
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED
    await asyncio.wait_for(echo.cancelled.wait(), 5)


async def test_a_call_whose_answer_nobody_awaits_goes_on(stub: Any, echo: Echo) -> None:
    ended = asyncio.Event()
    stub.Wait("x", timeout=30).add_done_callback(lambda _: ended.set())
    await asyncio.wait_for(echo.entered.wait(), 5)
    gc.collect()
    echo.go_on.set()
    await asyncio.wait_for(ended.wait(), 5)
    assert not echo.cancelled.is_set()


async def test_a_stream_that_is_dropped_is_cancelled(stub: Any, echo: Echo) -> None:
    call = stub.Flood("x", timeout=30)
    await call.read()
    del call
    await eventually(lambda: gc.collect() >= 0 and echo.cleaned_up.is_set())


async def test_a_channel_that_is_closed_ends_its_calls_and_takes_no_more(wiring: Wiring, echo: Echo) -> None:
    channel = wiring.channel()
    stub = Stub(channel)
    call = stub.Wait("x", timeout=30)
    await asyncio.wait_for(echo.entered.wait(), 5)
    await channel.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(echo.cancelled.wait(), 5)
    with pytest.raises(grpc.aio.UsageError):
        await stub.Unary("x")


# Many answers.


@pytest.mark.parametrize("method", ["Count", "Written"])
async def test_a_stream_of_answers_arrives_whole_and_in_order(stub: Any, method: str) -> None:
    call = getattr(stub, method)("300")
    assert await _collect(call) == [str(number) for number in range(300)]
    assert await call.code() is grpc.StatusCode.OK


async def test_a_stream_can_be_read_until_its_end_is_told_over_and_over(stub: Any) -> None:
    call = stub.Count("2")
    assert (await call.read()).value == "0"
    assert (await call.read()).value == "1"
    assert await call.read() is grpc.aio.EOF
    assert await call.read() is grpc.aio.EOF


async def test_a_stream_without_answers_ends(stub: Any) -> None:
    assert await _collect(stub.Count("0")) == []


async def test_an_error_in_the_middle_of_a_stream_comes_after_what_was_sent(stub: Any, echo: Echo) -> None:
    echo.go_on.set()
    echo.error = ERRORS["revision_too_old"]("the log begins at 17", metadata={"oldest": "17"})
    responses = stub.Count("3")
    assert [(await responses.read()).value for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(ERRORS["revision_too_old"]) as raised:
        await responses.read()
    assert raised.value.metadata == {"oldest": "17"}


async def test_a_reader_that_leaves_ends_the_stream(stub: Any, echo: Echo) -> None:
    async for _ in stub.Flood("x", timeout=30):
        break
    await eventually(lambda: gc.collect() >= 0 and echo.cleaned_up.is_set())


async def test_a_stream_that_is_cancelled_ends_on_both_sides(stub: Any, echo: Echo) -> None:
    call = stub.Flood("x", timeout=30)
    await call.read()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await _read_all(call)
    await asyncio.wait_for(echo.cleaned_up.wait(), 5)


async def test_the_deadline_of_a_stream_ends_it_on_both_sides(stub: Any, echo: Echo) -> None:
    responses = stub.Flood("x", timeout=0.2)
    with pytest.raises(DependencyDown):
        await _collect(responses)
    await asyncio.wait_for(echo.cleaned_up.wait(), 5)


async def test_a_writer_waits_for_a_slow_reader(stub: Any, echo: Echo) -> None:
    call = stub.Flood("x", timeout=30)
    await call.read()
    counts: list[int] = []

    def stalled() -> bool:
        counts.append(echo.produced)
        return len(counts) > 10 and len(set(counts[-10:])) == 1

    await eventually(stalled)
    assert echo.produced < 2_000
    before = echo.produced
    for _ in range(before + 50):
        await call.read()
    assert echo.produced > before
    call.cancel()


async def test_a_stream_is_iterated_over_or_read_but_not_both(stub: Any) -> None:
    call = stub.Count("5")
    await call.read()
    with pytest.raises(grpc.aio.UsageError):
        await anext(aiter(call))


# Many requests.


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_requests_of_an_iterator_arrive_whole_and_in_order(stub: Any, asynchronous: bool) -> None:
    words = [StringValue(value=str(number)) for number in range(100)]

    async def slowly() -> AsyncIterator[StringValue]:
        for word in words:
            yield word

    answer = await stub.Join(slowly() if asynchronous else iter(words))
    assert answer.value == " ".join(str(number) for number in range(100))


async def test_requests_can_be_written_one_by_one(stub: Any) -> None:
    call = stub.Join()
    for word in ("one", "two"):
        await call.write(StringValue(value=word))
    await call.done_writing()
    assert (await call).value == "one two"
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(StringValue(value="three"))


async def test_a_servicer_may_answer_before_it_has_read_everything(stub: Any) -> None:
    call = stub.Join(timeout=5)
    for word in ("one", "enough"):
        await call.write(StringValue(value=word))
    assert (await call).value == "one"


async def test_requests_that_fail_to_come_cancel_the_call(stub: Any, echo: Echo) -> None:
    async def broken() -> AsyncIterator[StringValue]:
        yield StringValue(value="one")
        await echo.entered.wait()
        raise RuntimeError("no more words")

    with pytest.raises(asyncio.CancelledError):
        await stub.Join(broken(), timeout=5)
    assert echo.seen == ["one"]


async def test_a_sender_waits_for_a_servicer_that_does_not_read(stub: Any, echo: Echo) -> None:
    sent = 0

    async def flood() -> AsyncIterator[StringValue]:
        nonlocal sent
        while True:
            sent += 1
            yield StringValue(value="x" * 65_536)

    call = stub.Never(flood(), timeout=30)
    counts: list[int] = []

    def stalled() -> bool:
        counts.append(sent)
        return sent > 0 and len(counts) > 10 and len(set(counts[-10:])) == 1

    await eventually(stalled)
    assert sent < 2_000
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 5)


# Both.


@pytest.mark.parametrize("method", ["Chat", "Turns"])
async def test_both_sides_take_turns(stub: Any, method: str) -> None:
    call = getattr(stub, method)(timeout=5)
    for word in ("one", "two", "three"):
        await call.write(StringValue(value=word))
        assert (await call.read()).value == f"re: {word}"
    await call.done_writing()
    rest = [response.value async for response in _until_end(call)]
    assert rest == (["bye"] if method == "Chat" else [])


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def _until_end(call: Any) -> AsyncIterator[StringValue]:
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


async def test_a_conversation_of_iterators_runs_to_its_end(stub: Any) -> None:
    words = [StringValue(value=str(number)) for number in range(100)]
    assert await _collect(stub.Chat(iter(words))) == [*(f"re: {number}" for number in range(100)), "bye"]


async def test_a_caller_that_leaves_a_conversation_ends_it(stub: Any, echo: Echo) -> None:
    call = stub.Chat(timeout=30)
    await call.write(StringValue(value="one"))
    await call.read()
    call.cancel()
    await asyncio.wait_for(echo.cleaned_up.wait(), 5)


async def test_iterated_requests_cannot_also_be_written(stub: Any) -> None:
    call = stub.Chat(iter([StringValue(value="one")]), timeout=5)
    with pytest.raises(grpc.aio.UsageError):
        await call.write(StringValue(value="two"))
    call.cancel()
