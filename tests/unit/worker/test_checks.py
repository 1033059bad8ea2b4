"""Health checks against real sockets; their pace against a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.types.v1.machine_pb2 import MachineCheckStatus
from skerry.types.v1.spec_pb2 import CHECK_TYPE_HTTP, CHECK_TYPE_TCP, CheckSpec, MachineSpec

from services.runtime.clock import FakeClock
from services.worker.checks import (
    CRITICAL,
    PASSING,
    WARNING,
    CheckKeeper,
    Checks,
    Result,
    Status,
    checks_of,
    judge,
    try_once,
)
from tests.support import eventually

Serve = Callable[[bytes], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[tuple[Serve, list[bytes]]]:
    """Serves an answer on a free port, and keeps what was asked."""
    servers: list[asyncio.Server] = []
    asked: list[bytes] = []

    async def start(answer: bytes) -> int:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                if answer != b"silence":
                    writer.write(answer)
                    await writer.drain()
                    writer.close()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    yield start, asked
    for server in servers:
        server.close()


def check(port: int, type: int = CHECK_TYPE_HTTP, **fields: object) -> CheckSpec:
    spec = CheckSpec(type=type, port=port, **fields)  # type: ignore[arg-type]
    spec.timeout.CopyFrom(Duration(nanos=200_000_000))
    return spec


@pytest.mark.parametrize(
    ("answer", "passing", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", True, "200 OK"),
        (b"HTTP/1.0 204 No Content\r\n\r\n", True, "204"),
        (b"HTTP/1.1 302 Found\r\n\r\n", False, "302 Found"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", False, "500 Oops"),
        (b"SSH-2.0-x\r\n\r\n", False, "not HTTP"),
        (b"", False, "127.0.0.1"),
        (b"HTTP/1.1 200 " + b"x" * 100_000, False, "127.0.0.1"),
        (b"silence", False, "did not answer within 0.2 s"),
    ],
)
async def test_an_http_check_passes_with_a_2xx_answer_only(
    serve: tuple[Serve, list[bytes]], answer: bytes, passing: bool, says: str
) -> None:
    port = await serve[0](answer)
    result = await try_once(check(port), "127.0.0.1")
    assert result.passing is passing
    assert says in result.output
    assert len(result.output) < 300


async def test_an_http_check_asks_as_it_was_told(serve: tuple[Serve, list[bytes]]) -> None:
    port = await serve[0](b"HTTP/1.1 200 OK\r\n\r\n")
    spec = check(port, method="HEAD", path="/health?deep=1")
    spec.headers.add(name="Host", values=["app.example"])
    spec.headers.add(name="X-Two", values=["a", "b"])
    assert (await try_once(spec, "127.0.0.1")).passing
    lines = serve[1][0].decode().split("\r\n")
    assert lines[0] == "HEAD /health?deep=1 HTTP/1.1"
    assert [line for line in lines if line.lower().startswith("host")] == ["Host: app.example"]
    assert [line for line in lines if line.startswith("X-Two")] == ["X-Two: a", "X-Two: b"]


async def test_a_header_with_a_line_break_is_not_sent(serve: tuple[Serve, list[bytes]]) -> None:
    port = await serve[0](b"HTTP/1.1 200 OK\r\n\r\n")
    spec = check(port)
    spec.headers.add(name="X", values=["a\r\nInjected: 1"])
    assert not (await try_once(spec, "127.0.0.1")).passing
    assert not any(b"Injected" in request for request in serve[1])


async def test_a_tcp_check_passes_when_something_listens(serve: tuple[Serve, list[bytes]]) -> None:
    port = await serve[0](b"")
    assert (await try_once(check(port, CHECK_TYPE_TCP), "127.0.0.1")).passing
    closed = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    free = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    refused = await try_once(check(free, CHECK_TYPE_TCP), "127.0.0.1")
    assert not refused.passing
    assert "refused" in refused.output


async def test_tls_that_cannot_be_verified_fails(serve: tuple[Serve, list[bytes]]) -> None:
    port = await serve[0](b"HTTP/1.1 400 plain\r\n\r\n")
    result = await try_once(check(port, tls=True), "127.0.0.1")
    assert not result.passing


def test_checks_of_services_are_named_after_their_place_kind_and_port() -> None:
    spec = MachineSpec()
    spec.checks.checks["alive"].CopyFrom(CheckSpec(type=CHECK_TYPE_TCP, port=1))
    one = spec.services.services.add(internal_port=8080)
    one.checks.add(type=CHECK_TYPE_HTTP)
    one.checks.add(type=CHECK_TYPE_TCP, port=9)
    spec.services.services.add(internal_port=81).checks.add(type=CHECK_TYPE_TCP)
    named = checks_of(spec)
    assert {name: check.port for name, check in named.items()} == {
        "alive": 1,
        "servicecheck-00-http-8080": 8080,
        "servicecheck-01-tcp-9": 9,
        "servicecheck-02-tcp-81": 81,
    }


def test_failures_do_not_count_within_the_grace_period() -> None:
    unknown = Status(WARNING, "no result yet", 1.0)
    failed, passed = Result(False, "no"), Result(True, "yes")
    assert judge(unknown, failed, in_grace=True, now=2.0) is unknown
    assert judge(unknown, failed, in_grace=False, now=2.0) == Status(CRITICAL, "no", 2.0)
    passing = judge(unknown, passed, in_grace=True, now=2.0)
    assert passing == Status(PASSING, "yes", 2.0)
    assert judge(passing, passed, in_grace=False, now=3.0) is passing


class Tries:
    """Answers tries as it is told."""

    def __init__(self) -> None:
        self.passing = False
        self.error: Exception | None = None
        self.count = 0

    async def __call__(self, check: CheckSpec, host: str) -> Result:
        self.count += 1
        if self.error is not None:
            raise self.error
        return Result(self.passing, "answer" if self.passing else "nothing")


async def test_a_check_is_tried_often_until_it_passes_and_then_at_its_interval() -> None:
    clock, tries = FakeClock(), Tries()
    spec = CheckSpec(port=1, interval=Duration(seconds=30), grace_period=Duration(seconds=10))
    changes: list[str] = []
    checks = Checks(
        {"alive": spec},
        changed=lambda: changes.append(checks.statuses()[0].status),
        clock=clock,
        random=Random(1),
        probe=tries,
    )
    task = asyncio.create_task(checks.run())
    await eventually(lambda: clock.sleepers)
    assert changes == [WARNING]
    await clock.advance(3.5)
    assert tries.count == 4
    assert changes == [WARNING]
    tries.passing = True
    await clock.advance(1)
    assert changes == [WARNING, PASSING]
    await clock.advance(29)
    assert tries.count == 5
    tries.passing = False
    await clock.advance(1)
    assert tries.count == 6
    assert changes == [WARNING, PASSING, CRITICAL]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_was_known_before_is_not_news() -> None:
    clock, tries = FakeClock(), Tries()
    tries.passing = True
    spec = CheckSpec(port=1, interval=Duration(seconds=30))
    first = Checks({"alive": spec}, changed=lambda: None, clock=clock, random=Random(1), probe=tries)
    task = asyncio.create_task(first.run())
    await eventually(lambda: clock.sleepers)
    await clock.advance(1)
    known = first.statuses()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert known[0].status == PASSING
    news: list[None] = []
    again = Checks(
        {"alive": spec},
        changed=lambda: news.append(None),
        clock=clock,
        random=Random(1),
        probe=tries,
        age=100.0,
        known=known,
    )
    task = asyncio.create_task(again.run())
    await eventually(lambda: clock.sleepers)
    await clock.advance(60)
    assert tries.count > 2
    assert not news
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Told:
    """What a keeper told of its machines, while it may."""

    def __init__(self) -> None:
        self.may = True
        self.statuses: list[tuple[str, str]] = []

    def __call__(self, machine_id: str, statuses: list[MachineCheckStatus]) -> bool:
        if self.may:
            self.statuses.append((machine_id, statuses[0].status))
        return self.may


@pytest.fixture
async def kept() -> AsyncIterator[tuple[CheckKeeper, FakeClock, Tries, Told]]:
    """A keeper at work, its clock, what it tries and what it told."""
    clock, tries, told = FakeClock(), Tries(), Told()
    keeper = CheckKeeper(clock, Random(1), told, probe=tries)
    task = asyncio.create_task(keeper.run())
    yield keeper, clock, tries, told
    await keeper.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def checked_each_second() -> MachineSpec:
    spec = MachineSpec()
    spec.checks.checks["alive"].CopyFrom(CheckSpec(port=1, interval=Duration(seconds=1)))
    return spec


async def test_what_a_worker_could_not_tell_of_checks_is_told_later_as_it_is_then(
    kept: tuple[CheckKeeper, FakeClock, Tries, Told],
) -> None:
    keeper, clock, tries, told = kept
    told.may = False
    keeper.begin("m1", checked_each_second(), age=0.0)
    await eventually(lambda: clock.sleepers)
    await clock.advance(5)
    tries.passing = True
    await clock.advance(5)
    assert told.statuses == []
    told.may = True
    keeper.tell_again()
    await clock.advance(5)
    assert told.statuses == [("m1", PASSING)]


async def test_checks_that_die_are_begun_again(kept: tuple[CheckKeeper, FakeClock, Tries, Told]) -> None:
    keeper, clock, tries, told = kept
    tries.passing = True
    keeper.begin("m1", checked_each_second(), age=0.0)
    await eventually(lambda: clock.sleepers)
    tries.error = RuntimeError("the probe is broken")
    await clock.advance(3)
    tries.error = None
    before = tries.count
    await clock.advance(10)
    assert tries.count > before
    assert told.statuses[-1] == ("m1", PASSING)


async def test_a_machine_whose_checks_ended_is_tried_and_told_of_no_more(
    kept: tuple[CheckKeeper, FakeClock, Tries, Told],
) -> None:
    keeper, clock, tries, told = kept
    told.may = False
    for machine_id in ("m1", "m2"):
        keeper.begin(machine_id, checked_each_second(), age=0.0)
    await eventually(lambda: clock.sleepers)
    await clock.advance(3)
    keeper.end("m1")
    keeper.end("m2")
    tried, told.may = tries.count, True
    keeper.tell_again()
    await clock.advance(10)
    assert (tries.count, told.statuses) == (tried, [])
