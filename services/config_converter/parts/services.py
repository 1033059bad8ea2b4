"""The part services: the ports that the region's proxy routes to the machine, and how it wakes and stops it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.struct_pb2 import Value
from skerry.types.v1.config_pb2 import (
    HTTPOptions,
    MachineConfig,
    MachinePort,
    MachineService,
    MachineServiceConcurrency,
)
from skerry.types.v1.spec_pb2 import (
    AUTOSTOP_OFF,
    AUTOSTOP_STOP,
    AUTOSTOP_SUSPEND,
    CHECK_KIND_READINESS,
    TRANSPORT_PROTOCOL_TCP,
    TRANSPORT_PROTOCOL_UDP,
    HTTPHandlerSpec,
    PortSpec,
    ServiceSpec,
    ServicesSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.parts.checks import fill_check
from services.config_converter.rules import (
    LARGEST_COUNT,
    LARGEST_SECONDS,
    bounded,
    header_name,
    header_value,
    listed,
    member,
    one_of,
    port,
    shown,
)

PROTOCOLS = {"tcp": TRANSPORT_PROTOCOL_TCP, "udp": TRANSPORT_PROTOCOL_UDP}
AUTOSTOPS = {"off": AUTOSTOP_OFF, "stop": AUTOSTOP_STOP, "suspend": AUTOSTOP_SUSPEND}
HANDLERS = ("http", "tls", "pg_tls", "proxy_proto", "edge_http")
TCP_HANDLERS = frozenset(HANDLERS) - {"proxy_proto"}
CONCURRENCY_TYPES = {"connections": "connections", "requests": "requests"}
DEFAULT_CONCURRENCY_TYPE = "connections"
TLS_VERSIONS = {"TLSv1.2": "TLSv1.2", "TLSv1.3": "TLSv1.3"}
PROXY_PROTO_VERSIONS = {"v1": "v1", "v2": "v2"}
DEFAULT_PROXY_PROTO_VERSION = "v1"
REPLAY_CACHE_TYPES = {"cookie": "cookie", "header": "header"}
LONGEST_ALPN = 255

_HANDLER_SET = frozenset(HANDLERS)
_NONE = ServicesSpec(machine_autostart=True)
_NONE_WITHOUT_AUTOSTART = ServicesSpec(machine_autostart=False)


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> ServicesSpec:
    """Services keep the user's order."""
    services = config.services
    if not services:
        return _NONE_WITHOUT_AUTOSTART if config.disable_machine_autostart else _NONE
    spec = ServicesSpec()
    spec.machine_autostart = not config.disable_machine_autostart
    for i, service in enumerate(services):
        _fill_service(spec.services.add(), service, problems.below(f"services[{i}]"))
    return spec


def _fill_service(spec: ServiceSpec, service: MachineService, problems: Problems) -> None:
    protocol = one_of(service.protocol, PROTOCOLS, TRANSPORT_PROTOCOL_TCP, "protocol", problems)
    spec.protocol = protocol
    internal_port = service.internal_port
    if service.HasField("internal_port"):
        internal_port = port(internal_port, "internal_port", problems)
    else:
        problems.add("internal_port", "is required: the port inside the machine, 1..65535")
    spec.internal_port = internal_port
    spec.autostop = one_of(service.autostop, AUTOSTOPS, AUTOSTOP_OFF, "autostop", problems)
    spec.autostart = service.autostart or not service.HasField("autostart")
    if service.min_machines_running:
        spec.min_machines_running = bounded(
            service.min_machines_running, 0, LARGEST_COUNT, "min_machines_running", problems
        )
    if service.force_instance_key:
        spec.force_instance_key = service.force_instance_key
    if service.force_instance_description:
        spec.force_instance_description = service.force_instance_description
    for i, public in enumerate(service.ports):
        _fill_port(spec.ports.add(), public, protocol == TRANSPORT_PROTOCOL_UDP, problems.below(f"ports[{i}]"))
    for i, check in enumerate(service.checks):
        target, here = spec.checks.add(), problems.below(f"checks[{i}]")
        fill_check(target, check, here)
        target.kind = CHECK_KIND_READINESS
        target.port = port(check.port, "port", here) if check.HasField("port") else internal_port
    if service.HasField("concurrency"):
        _fill_concurrency(spec, service.concurrency, problems.below("concurrency"))
    else:
        spec.concurrency_type = DEFAULT_CONCURRENCY_TYPE


def _fill_concurrency(spec: ServiceSpec, concurrency: MachineServiceConcurrency, problems: Problems) -> None:
    spec.concurrency_type = one_of(concurrency.type, CONCURRENCY_TYPES, DEFAULT_CONCURRENCY_TYPE, "type", problems)
    hard = bounded(concurrency.hard_limit, 0, LARGEST_COUNT, "hard_limit", problems)
    soft = bounded(concurrency.soft_limit, 0, LARGEST_COUNT, "soft_limit", problems)
    if hard and soft > hard:
        problems.add("soft_limit", f"must be at most hard_limit, which is {hard}, is {soft}")
    spec.hard_limit = hard
    spec.soft_limit = soft


def _fill_port(spec: PortSpec, public: MachinePort, udp: bool, problems: Problems) -> None:
    if public.HasField("port"):
        if public.HasField("start_port") or public.HasField("end_port"):
            problems.add("port", "excludes start_port and end_port: leave it or them out")
        spec.start_port = spec.end_port = port(public.port, "port", problems)
    else:
        _fill_range(spec, public, problems)
    handlers = public.handlers
    if handlers:
        _fill_handlers(spec, handlers, udp, problems)
    if public.force_https:
        spec.force_https = True
    if public.HasField("tls_options"):
        tls = public.tls_options
        for i, name in enumerate(tls.alpn):
            if not 1 <= len(name.encode()) <= LONGEST_ALPN:
                problems.add(f"tls_options.alpn[{i}]", f"must have 1..{LONGEST_ALPN} bytes, is {shown(name)}")
        for i, version in enumerate(tls.versions):
            if version not in TLS_VERSIONS:
                problems.add(f"tls_options.versions[{i}]", f"must be {listed(TLS_VERSIONS)}, is {shown(version)}")
        spec.tls_alpn.extend(tls.alpn)
        spec.tls_versions.extend(tls.versions)
        spec.tls_default_self_signed = tls.default_self_signed
    if public.HasField("proxy_proto_options") and public.proxy_proto_options.version:
        spec.proxy_proto_version = one_of(
            public.proxy_proto_options.version,
            PROXY_PROTO_VERSIONS,
            DEFAULT_PROXY_PROTO_VERSION,
            "proxy_proto_options.version",
            problems,
        )
    elif "proxy_proto" in handlers:
        spec.proxy_proto_version = DEFAULT_PROXY_PROTO_VERSION
    if public.HasField("http_options") and public.http_options.ByteSize():
        _fill_http(spec.http, public.http_options, problems.below("http_options"))


def _fill_range(spec: PortSpec, public: MachinePort, problems: Problems) -> None:
    has_start, has_end = public.HasField("start_port"), public.HasField("end_port")
    if not has_start and not has_end:
        problems.add("port", "is required: 1..65535, or start_port and end_port for a range")
        return
    if not has_start:
        problems.add("start_port", "is required with end_port: 1..65535")
    if not has_end:
        problems.add("end_port", "is required with start_port: 1..65535")
    start = port(public.start_port, "start_port", problems)
    end = port(public.end_port, "end_port", problems)
    if has_start and has_end and end < start:
        problems.add("end_port", f"must be at least start_port, which is {start}, is {end}")
    spec.start_port = start
    spec.end_port = end


def _fill_handlers(spec: PortSpec, handlers: Sequence[str], udp: bool, problems: Problems) -> None:
    for i, handler in enumerate(handlers):
        if handler not in _HANDLER_SET:
            problems.add(f"handlers[{i}]", f"must be {listed(HANDLERS)}, is {shown(handler)}")
        elif udp and handler in TCP_HANDLERS:
            problems.add(f"handlers[{i}]", f"must not be {shown(handler)} on a UDP service; only proxy_proto may")
    spec.handlers.extend(handlers)


def _fill_http(spec: HTTPHandlerSpec, options: HTTPOptions, problems: Problems) -> None:
    spec.compress = options.compress
    spec.h2_backend = options.h2_backend
    spec.pristine = options.response.pristine
    headers = options.response.headers
    for name in sorted(headers):
        header_field = member("response.headers", name)
        header_name(name, header_field, problems)
        _fill_response_header(spec, name, headers[name], header_field, problems)
    if options.idle_timeout:
        spec.idle_timeout.seconds = options.idle_timeout
    if options.headers_read_timeout:
        spec.headers_read_timeout.seconds = options.headers_read_timeout
    for i, cache in enumerate(options.replay_cache):
        target, here = spec.replay_cache.add(), problems.below(f"replay_cache[{i}]")
        if not cache.path_prefix:
            here.add("path_prefix", 'is required, such as "/"')
        target.path_prefix = cache.path_prefix
        target.ttl.seconds = bounded(cache.ttl_seconds, 1, LARGEST_SECONDS, "ttl_seconds", here)
        if not cache.type:
            here.add("type", f"is required: {listed(REPLAY_CACHE_TYPES)}")
        target.type = one_of(cache.type, REPLAY_CACHE_TYPES, "", "type", here)
        header_name(cache.name, "name", here)
        target.name = cache.name
        target.allow_bypass = cache.allow_bypass


def _fill_response_header(spec: HTTPHandlerSpec, name: str, value: Value, field: str, problems: Problems) -> None:
    """A string or a list of strings to set, false to remove; null is not set."""
    kind = value.WhichOneof("kind")
    if kind == "bool_value" and not value.bool_value:
        spec.response_headers[name].bool_value = False
    elif kind == "string_value":
        _set_header(spec, name, (value.string_value,), field, problems)
    elif kind == "list_value" and all(entry.HasField("string_value") for entry in value.list_value.values):
        _set_header(spec, name, (entry.string_value for entry in value.list_value.values), field, problems)
    elif kind not in (None, "null_value"):
        problems.add(field, "must be a string, a list of strings, or false to remove the header")


def _set_header(spec: HTTPHandlerSpec, name: str, values: Iterable[str], field: str, problems: Problems) -> None:
    target = spec.response_headers[name].list_value
    target.SetInParent()
    for value in values:
        header_value(value, field, problems)
        target.values.add(string_value=value)


PART = Part("services", owns=("services", "disable_machine_autostart"), converters={1: convert})
