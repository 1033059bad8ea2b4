"""Logs, traces and metrics: JSON log lines with trace ids on stderr, OpenTelemetry spans, Prometheus metrics.

Trace ids exist whether or not traces are exported. Every service of a process has a tracer of its own, so a trace shows
the services and not the processes they happen to share.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags
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

_trace_context = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()
_ids = RandomIdGenerator()
_HIGHEST_PORTION = 1.0


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
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


def current_trace_id() -> str:
    """The trace id of the current call, 32 hex digits; all zeros outside of one."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def current_traceparent() -> str:
    """The W3C traceparent of the current span; its ids are zeros outside of one."""
    return traceparent(trace.get_current_span().get_span_context())


def traceparent(span: SpanContext) -> str:
    """The W3C traceparent header of a span."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def extract(carrier: Mapping[str, str]) -> Context:
    """The context (parent span and baggage) that `carrier`, headers or metadata with lower-case keys, names."""
    if not carrier.get("traceparent"):
        context = Context()
    else:
        context = _trace_context.extract(carrier, Context())
    return _baggage.extract(carrier, context) if "baggage" in carrier else context


def inject_baggage(carrier: MutableMapping[str, str]) -> None:
    """Add the baggage of the current context to `carrier`, if there is any."""
    _baggage.inject(carrier)


class Tracer:
    """Starts the spans of one service."""

    def __init__(self, service: str) -> None:
        self.exports = False
        self.bind(service)

    def bind(self, service: str) -> None:
        """Follow the latest `setup`."""
        self.exports = _chosen.processor is not None
        self._tracer: trace.Tracer = trace.NoOpTracer()
        if _chosen.processor is not None:
            attributes = {"service.name": service, "skerry.region": _chosen.region}
            provider = TracerProvider(
                sampler=ParentBased(TraceIdRatioBased(_chosen.portion)), resource=Resource.create(attributes)
            )
            provider.add_span_processor(_chosen.processor)
            self._tracer = provider.get_tracer("skerry")

    def start(
        self, name: str, kind: SpanKind, parent: Context | None = None, attributes: Mapping[str, str] | None = None
    ) -> Span:
        """Start a span, a child of the one in `parent` (default: the current context). The caller ends it.

        While nothing is exported, it only carries ids: the trace's, new ones where it begins here.
        """
        if self.exports:
            return self._tracer.start_span(name, parent, kind, attributes)
        above = trace.get_current_span(parent).get_span_context()
        trace_id = above.trace_id or _ids.generate_trace_id()
        return NonRecordingSpan(SpanContext(trace_id, _ids.generate_span_id(), False, TraceFlags(above.trace_flags)))


def tracer(service: str) -> Tracer:
    """The tracer of `service`; it follows a later `setup`."""
    if service not in _chosen.tracers:
        _chosen.tracers[service] = Tracer(service)
    return _chosen.tracers[service]


def attach(span: Span, context: Context | None = None) -> None:
    """Make `span` the current one for the rest of this task (its context is not restored)."""
    otel_context.attach(trace.set_span_in_context(span, context))


def _otlp_processor(endpoint: str) -> SpanProcessor:
    # Imported here: it takes a tenth of a second, and most processes export nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:")))


def _add_origin(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event.setdefault("service", serving.get() or _chosen.service)
    event.setdefault("region", _chosen.region)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", f"{span.trace_id:032x}")
    return event


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _redacted(key, value) for key, value in event.items()}


def _redacted(key: str, value: Any) -> Any:
    if key.lower() in _SECRET_KEYS:
        return REDACTED
    if isinstance(value, Mapping):
        return {inner: _redacted(str(inner), content) for inner, content in value.items()}
    return value


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
