"""Logs, traces and metrics: JSON log lines with trace ids on stderr, OpenTelemetry spans, Prometheus metrics.

Trace ids exist whether or not traces are exported. Every service of a process has a tracer of its own, so a trace shows
the services and not the processes they happen to share.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from random import getrandbits
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

log: structlog.stdlib.BoundLogger = structlog.get_logger()
"""The logger of everything: `log.info("machine_created", machine=id)`, one JSON object a line."""

metrics = CollectorRegistry()
"""Where every metric of this process registers."""
ProcessCollector(registry=metrics)
PlatformCollector(registry=metrics)

REDACTED = "[redacted]"
_SECRET_KEYS = frozenset({"token", "authorization", "secret", "value", "password", "dsn"})

serving: ContextVar[str] = ContextVar("serving", default="")
"""The service on whose behalf the current task works; empty outside of a call."""

_traceparent: ContextVar[str] = ContextVar("traceparent", default="")
_baggage_header: ContextVar[str] = ContextVar("baggage", default="")
_trace_context = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()
_OWN_BAGGAGE = "skerry."
"""How members of the baggage begin that are read as text, and by nobody else."""
_HIGHEST_PORTION = 1.0
_VALID_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class _Telemetry:
    """What `setup` chose for this process."""

    def __init__(self) -> None:
        self.service = "skerry"
        self.region = ""
        self.processor: SpanProcessor | None = None
        self.portion = _HIGHEST_PORTION
        self.tracers: dict[str, Tracer] = {}


_chosen = _Telemetry()


def setup(
    service: str,
    region: str,
    *,
    otlp: str | None = None,
    log_level: str = "info",
    portion: float = _HIGHEST_PORTION,
    processor: SpanProcessor | None = None,
) -> None:
    """Choose where logs and traces of this process go. Called once, first thing.

    `otlp` is the endpoint of an OTLP gRPC collector ("http://127.0.0.1:4317"); without one, nothing is exported.
    `portion` (0..1) of the traces that begin here are sampled; traces that began elsewhere follow their parent.
    `processor` takes the place of the exporter.
    """
    _chosen.service, _chosen.region, _chosen.portion = service, region, portion
    _chosen.processor = processor or (_otlp_processor(otlp) if otlp else None)
    for name, tracer in _chosen.tracers.items():
        tracer.bind(name)
    level = logging.getLevelNamesMapping()[log_level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_origin,
            structlog.processors.format_exc_info,
            _redact,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )
    library = logging.StreamHandler(sys.stderr)
    library.setFormatter(_LibraryFormatter())
    logging.basicConfig(handlers=[library], level=max(level, logging.WARNING), force=True)


def shutdown() -> None:
    """Export what is still buffered, and stop exporting."""
    if _chosen.processor is not None:
        _chosen.processor.shutdown()
        _chosen.processor = None


def current_traceparent() -> str:
    """The W3C traceparent of what the current task serves; empty outside of a request."""
    return _traceparent.get()


def current_trace_id() -> str:
    """The trace id of what the current task serves, 32 hex digits; empty outside of a request."""
    return _traceparent.get()[3:35]


class Tracer:
    """Begins the spans of one service; it follows a later `setup`.

    While nothing is exported there are no spans: a request then only carries its traceparent, or one that begins here.
    """

    def __init__(self, service: str) -> None:
        self.exports = False
        self._tracer: trace.Tracer = trace.NoOpTracer()
        self.bind(service)

    def bind(self, service: str) -> None:
        """Follow the latest `setup`."""
        self.exports = _chosen.processor is not None
        if _chosen.processor is not None:
            resource = Resource.create({"service.name": service, "skerry.region": _chosen.region})
            provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(_chosen.portion)), resource=resource)
            provider.add_span_processor(_chosen.processor)
            self._tracer = provider.get_tracer("skerry")

    def serve(self, name: str, carrier: Mapping[str, str], attributes: Mapping[str, str]) -> Span | None:
        """Begin to serve a request that came with `carrier` (headers or metadata, keys in lower case).

        Its trace and baggage are the current ones for the rest of this task. While traces are exported, returns the
        span, for the caller to end.
        """
        if not self.exports:
            header = carrier.get("traceparent", "")
            _traceparent.set(header if _VALID_TRACEPARENT.fullmatch(header) else _new_traceparent())
            header = carrier.get("baggage", "")
            _baggage_header.set(header)
            if header and not _is_own_baggage(header):
                otel_context.attach(_baggage.extract(carrier, Context()))
            return None
        parent = _baggage.extract(carrier, _trace_context.extract(carrier, Context()))
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        otel_context.attach(trace.set_span_in_context(span, parent))
        _baggage_header.set(carrier.get("baggage", ""))
        _traceparent.set(traceparent_of(span))
        return span

    def call(self, name: str, attributes: Mapping[str, str]) -> Span | None:
        """Begin a call of another service. While traces are exported, returns the span, for the caller to end."""
        return self._tracer.start_span(name, None, SpanKind.CLIENT, attributes) if self.exports else None

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, str] | None = None) -> Iterator[None]:
        """A step of what the current task does, as a span of its own while traces are exported."""
        if not self.exports:
            yield
            return
        with self._tracer.start_as_current_span(name, attributes=attributes) as span:
            token = _traceparent.set(traceparent_of(span))
            try:
                yield
            finally:
                _traceparent.reset(token)


def tracer(service: str) -> Tracer:
    """The tracer of `service`."""
    if service not in _chosen.tracers:
        _chosen.tracers[service] = Tracer(service)
    return _chosen.tracers[service]


def traceparent_of(span: Span) -> str:
    """The W3C traceparent that makes `span` the parent of what is called."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_baggage() -> str:
    """The W3C baggage that the current request takes along, as a header's value; empty if there is none."""
    return _baggage_header.get()


def carry_baggage(header: str) -> None:
    """Let the current request take `header` along from here on, in the place of the baggage that it came with."""
    _baggage_header.set(header)


@lru_cache(1024)
def _is_own_baggage(header: str) -> bool:
    return all(member.lstrip().startswith(_OWN_BAGGAGE) for member in header.split(","))


def _new_traceparent() -> str:
    return f"00-{getrandbits(128) or 1:032x}-{getrandbits(64) or 1:016x}-00"


def _otlp_processor(endpoint: str) -> SpanProcessor:
    # Imported here: it takes a tenth of a second, and most processes export nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:")))


def _add_origin(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.setdefault("service", serving.get() or _chosen.service)
    event.setdefault("region", _chosen.region)
    if trace_id := current_trace_id():
        event.setdefault("trace_id", trace_id)
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: str, value: Any) -> Any:
    if key.lower() in _SECRET_KEYS:
        return REDACTED
    if isinstance(value, Mapping):
        return {inner: _redacted(str(inner), content) for inner, content in value.items()}
    return value


class _Stderr:
    """Writes to what is stderr at that moment. That nobody takes a line any more is no reason to fail."""

    _torn: Any = None
    """The stderr that did not take all of a line: the next event begins a line there all the same."""

    def msg(self, line: str) -> None:
        stderr = sys.stderr
        try:
            stderr.write(f"\n{line}\n" if _Stderr._torn is stderr else f"{line}\n")
            stderr.flush()
            _Stderr._torn = None
        except (OSError, ValueError):
            _Stderr._torn = stderr

    log = debug = info = warn = warning = error = critical = fatal = exception = msg


class _LibraryFormatter(logging.Formatter):
    """Log records of libraries, as events of ours."""

    def format(self, record: logging.LogRecord) -> str:
        event: MutableMapping[str, Any] = {
            "event": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return str(
            structlog.processors.JSONRenderer(default=str)(None, "", _redact(None, "", _add_origin(None, "", event)))
        )
