import asyncio
from typing import Any

import pytest

from services.cli.benchmarks import creating, load
from services.cli.benchmarks.http_client import HttpConnection, request_bytes
from services.cli.benchmarks.statistics import quantile, summary


def test_quantiles_are_values_of_the_list() -> None:
    values = [float(value) for value in range(1, 101)]
    assert quantile(values, 0.5) == 51.0
    assert quantile(values, 0.99) == 100.0
    assert quantile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_summary_counts_calls_over_the_whole_time() -> None:
    assert summary([1.0, 2.0, 3.0, 4.0], 2.0) == {"per_second": 2.0, "p50_ms": 3.0, "p99_ms": 4.0}


async def test_the_http_client_reads_answers_that_arrive_in_pieces() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b"first", b"second one"):
            seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
            await writer.drain()
            writer.write(b"ngth: %d\r\n\r\n" % len(body) + body[:3])
            await writer.drain()
            writer.write(body[3:])
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = await HttpConnection.open("127.0.0.1", port)
        request = request_bytes("POST", "127.0.0.1", port, "/v1/apps", "a-token", b"{}")
        assert await connection.request(request, 5) == (200, b"first")
        assert await connection.request(request, 5) == (200, b"second one")
        with pytest.raises(ConnectionError):
            await connection.request(request, 5)
    assert b"authorization: Bearer a-token\r\n" in seen[0]


class Counting:
    """A caller that counts how many of its kind are in a call at once."""

    now = most = calls = 0

    def __init__(self, target: dict[str, Any]) -> None:
        self.closed = False

    async def call(self) -> None:
        Counting.now += 1
        Counting.most = max(Counting.most, Counting.now)
        await asyncio.sleep(0)
        Counting.now -= 1
        Counting.calls += 1

    async def close(self) -> None:
        self.closed = True


async def test_the_load_generator_makes_as_many_calls_as_asked_and_no_more_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(load.KINDS, "counting", Counting)
    spec = {
        "targets": {"a": {"kind": "counting"}, "b": {"kind": "counting"}},
        "phases": [{"targets": ["a", "b"], "concurrency": 4, "rounds": 3, "each": 10}],
    }
    [phase] = (await load.generate(spec))["phases"]
    assert Counting.calls == 60
    assert Counting.most == 4
    assert {name: len(result["latencies_ms"]) for name, result in phase.items()} == {"a": 30, "b": 30}


def test_the_report_divides_by_the_floor_of_each_wiring() -> None:
    def measured(latency: float) -> dict[str, Any]:
        return {"latencies_ms": [latency] * 10, "seconds": latency / 100}

    creates = {f"{wiring} {via}": measured(3.0) for wiring in ("set", "apart") for via in ("grpc", "rest")}
    serial = {"echo": measured(0.5), "commit": measured(1.0), **creates}
    report = creating.report(serial=serial, concurrent=creates)
    assert report["floor"] == {"echo_ms": 0.5, "commit_ms": 1.0}
    ratios = {(run["wiring"], run["via"], run["concurrency"]): run["ratio"] for run in report["runs"]}
    assert len(ratios) == 8
    assert ratios["set", "grpc", 1] == 2.0
    assert ratios["apart", "rest", 1] == 1.0
    assert ratios["set", "grpc", 32] is None
