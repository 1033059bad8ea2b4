"""Logs, traces and metrics of a process."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry import baggage
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import generate_latest

from services.runtime import channels, telemetry
from services.runtime.errors import NotFound
from services.runtime.registry import Registry
from services.runtime.telemetry import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    telemetry.shutdown()
    telemetry.setup("tests", "")
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    telemetry.setup("set", "syd", processor=SimpleSpanProcessor(exporter))
    return exporter


def _events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup("scheduler", "syd")
    log.info("placed", machine="001a", note="two\nlines")
    (event,) = _events(capsys)
    assert event.pop("timestamp")
    assert event == {
        "event": "placed",
        "machine": "001a",
        "note": "two\nlines",
        "level": "info",
        "service": "scheduler",
        "region": "syd",
    }


@pytest.mark.parametrize("key", ["token", "Authorization", "secret", "value"])
def test_what_must_not_be_logged_is_not(capsys: pytest.CaptureFixture[str], key: str) -> None:
    telemetry.setup("gateway", "syd")
    log.warning("refused", **{key: "hunter2"}, headers={key: "hunter2", "accept": "*/*"})
    (event,) = _events(capsys)
    assert event[key] == telemetry.REDACTED
    assert event["headers"] == {key: telemetry.REDACTED, "accept": "*/*"}


def test_an_exception_is_logged_with_its_traceback_and_without_its_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry.setup("gateway", "syd")

    def fail() -> None:
        password = "hunter" + "2"
        raise ValueError(f"a password of {len(password)} characters")

    try:
        fail()
    except ValueError as error:
        log.error("failed", exc_info=error)
    (event,) = _events(capsys)
    assert "in fail" in event["exception"]
    assert "hunter2" not in json.dumps(event)


def test_the_level_decides_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup("gateway", "syd", log_level="warning")
    log.info("unimportant")
    log.warning("important")
    assert [event["event"] for event in _events(capsys)] == ["important"]


def test_a_log_that_nobody_takes_any_more_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.setup("gateway", "syd")
    reading, writing = os.pipe()
    os.close(reading)
    broken = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stderr", broken)
    for _ in range(3):
        log.error("unread")
    with pytest.raises(BrokenPipeError):
        broken.close()
    log.error("after it was closed")


def test_a_line_that_was_torn_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        """Takes a piece of the second event, and then everything again."""

        left = 2

        def write(self, text: str) -> int:
            self.left -= 1
            if self.left == 0:
                super().write(text[:20])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    full = Full()
    monkeypatch.setattr(sys, "stderr", full)
    telemetry.setup("gateway", "syd")
    for event in ("first", "torn", "third", "fourth"):
        log.info(event)
    lines = full.getvalue().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], *lines[2:])] == ["first", "third", "fourth"]


def test_libraries_log_as_we_do(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup("gateway", "syd")
    logging.getLogger("library").error("broken %s", "pipe")
    (event,) = _events(capsys)
    assert (event["event"], event["logger"], event["service"]) == ("broken pipe", "library", "gateway")


def test_an_event_in_a_request_carries_its_trace_id(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup("gateway", "syd")

    async def request() -> str:
        telemetry.tracer("gateway").serve("GET", {}, {})
        log.info("inside")
        return telemetry.current_trace_id()

    trace_id = asyncio.run(request())
    log.info("outside")
    inside, outside = _events(capsys)
    assert len(trace_id) == 32
    assert inside["trace_id"] == trace_id
    assert "trace_id" not in outside


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-" + "0" * 32 + "-0123456789abcdef-01",
        "00-0123456789abcdef0123456789abcdef-" + "0" * 16 + "-01",
        "00-0123456789ABCDEF0123456789abcdef-0123456789abcdef-01",
        "ff-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\n{}",
    ],
)
def test_a_traceparent_that_is_none_begins_a_new_trace(header: str) -> None:
    async def request() -> tuple[str, str]:
        telemetry.tracer("gateway").serve("GET", {"traceparent": header}, {})
        return telemetry.current_traceparent(), telemetry.current_trace_id()

    traceparent, trace_id = asyncio.run(request())
    assert traceparent != header
    assert traceparent[3:35] == trace_id
    assert int(trace_id, 16) > 0


async def _ask(method: str, *, carrier: dict[str, str] | None = None) -> None:
    """A gateway serves a request, and calls the store, both in this process."""

    async def get(request: StringValue, _: object) -> StringValue:
        if request.value == "missing":
            raise NotFound("no such machine")
        return StringValue(value=str(baggage.get_baggage("tenant")))

    registry = Registry(service="machine-store")
    handler = grpc.unary_unary_rpc_method_handler(get, StringValue.FromString, StringValue.SerializeToString)
    registry.add_registered_method_handlers("skerry.test.Store", {"Get": handler})
    channel: Any = channels.local(registry, caller="001/gateway", callee="machine-store", secret=None)
    stub = channel.unary_unary("/skerry.test.Store/Get", StringValue.SerializeToString, StringValue.FromString)

    async def request() -> None:
        tracer = telemetry.tracer("gateway")
        span = tracer.serve("GET /machines", carrier or {}, {})
        with tracer.span("look up"):
            try:
                answer = await stub(StringValue(value=method))
                assert answer.value == ("acme" if carrier else "None")
            except NotFound:
                assert method == "missing"
        if span is not None:
            span.end()

    await asyncio.create_task(request())
    await channel.close()


async def test_a_trace_shows_services_and_not_processes(spans: InMemorySpanExporter) -> None:
    await _ask("present")
    finished = {(span.name, span.kind): span for span in spans.get_finished_spans()}
    request = finished["GET /machines", SpanKind.SERVER]
    step = finished["look up", SpanKind.INTERNAL]
    call = finished["skerry.test.Store/Get", SpanKind.CLIENT]
    served = finished["skerry.test.Store/Get", SpanKind.SERVER]
    for child, parent in ((step, request), (call, step), (served, call)):
        assert child.parent is not None
        assert parent.context is not None
        assert child.parent.span_id == parent.context.span_id
        assert child.parent.trace_id == parent.context.trace_id
    assert request.resource.attributes["service.name"] == "gateway"
    assert served.resource.attributes["service.name"] == "machine-store"
    assert served.attributes is not None
    assert served.attributes["rpc.method"] == "Get"
    assert served.attributes["rpc.grpc.status_code"] == 0


async def test_a_failed_call_is_a_failed_span_on_both_sides(spans: InMemorySpanExporter) -> None:
    await _ask("missing")
    calls = [span for span in spans.get_finished_spans() if span.name == "skerry.test.Store/Get"]
    assert {span.kind for span in calls} == {SpanKind.CLIENT, SpanKind.SERVER}
    for span in calls:
        assert not span.status.is_ok
        assert span.attributes is not None
        assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("exported", [True, False])
async def test_baggage_goes_on_through_calls(exported: bool) -> None:
    processor = SimpleSpanProcessor(InMemorySpanExporter()) if exported else None
    telemetry.setup("set", "syd", processor=processor)
    header = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    await _ask("present", carrier={"traceparent": header, "baggage": "tenant=acme"})


async def test_a_trace_that_began_elsewhere_unsampled_is_not_exported(spans: InMemorySpanExporter) -> None:
    header = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"
    await _ask("present", carrier={"traceparent": header, "baggage": "tenant=acme"})
    assert spans.get_finished_spans() == ()


async def test_calls_are_counted_by_method_caller_and_code() -> None:
    def sample(name: str, **labels: str) -> float:
        labels = {"grpc_service": "skerry.test.Store", "grpc_method": "Get", **labels}
        return telemetry.metrics.get_sample_value(name, labels) or 0.0

    def counts() -> tuple[float, float, float]:
        handled, seconds = "grpc_server_handled_total", "grpc_server_handling_seconds_count"
        return (
            sample(handled, caller="", grpc_code="OK"),
            sample(handled, caller="", grpc_code="NOT_FOUND"),
            sample(seconds),
        )

    good, missing, timed = counts()
    for method in ("present", "missing", "missing"):
        await _ask(method)
    assert counts() == (good + 1, missing + 2, timed + 3)
    assert b"grpc_server_handling_seconds_bucket" in generate_latest(telemetry.metrics)
