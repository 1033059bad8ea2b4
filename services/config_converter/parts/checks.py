"""The part checks: health checks that belong to no service.

Services and containers build theirs with the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from skerry.types.v1.config_pb2 import MachineCheck, MachineConfig, MachineHTTPHeader, MachineServiceCheck
from skerry.types.v1.spec_pb2 import (
    CHECK_KIND_INFORMATIONAL,
    CHECK_KIND_READINESS,
    CHECK_TYPE_HTTP,
    CHECK_TYPE_TCP,
    CheckSpec,
    ChecksSpec,
    HeaderSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import (
    duration,
    header_name,
    header_value,
    host_name,
    http_path,
    is_ip,
    listed,
    member,
    one_of,
    port,
    shown,
)
from services.runtime.durations import SECOND

DEFAULT_INTERVAL = 15 * SECOND
DEFAULT_TIMEOUT = 10 * SECOND
DEFAULT_GRACE_PERIOD = 5 * SECOND
DEFAULT_METHOD = "GET"
DEFAULT_PATH = "/"

TYPES = {"tcp": CHECK_TYPE_TCP, "http": CHECK_TYPE_HTTP}
KINDS = {"informational": CHECK_KIND_INFORMATIONAL, "readiness": CHECK_KIND_READINESS}
METHODS = {name: name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
TLS = {"http": False, "https": True}

_NONE = ChecksSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> ChecksSpec:
    """A check of its own needs a port; it is informational unless the user says otherwise."""
    checks = config.checks
    if not checks:
        return _NONE
    spec = ChecksSpec()
    for name in sorted(checks):
        check, target, here = checks[name], spec.checks[name], problems.below(member("checks", name))
        if not name:
            here.add("", "must have a name")
        fill_check(target, check, here)
        target.kind = one_of(check.kind, KINDS, CHECK_KIND_INFORMATIONAL, "kind", here)
        if check.HasField("port"):
            target.port = port(check.port, "port", here)
        else:
            here.add("port", "is required for a check that belongs to no service: 1..65535")
    return spec


def fill_check(spec: CheckSpec, check: MachineCheck | MachineServiceCheck, problems: Problems) -> None:
    """Everything but `kind` and `port`, which depend on where the check stands.

    What only an HTTP check uses is judged in any check, and left out of the spec of a TCP check.
    """
    kind = TYPES.get(check.type)
    if kind is None:
        why = f"must be {listed(TYPES)}, is {shown(check.type)}" if check.type else f"is required: {listed(TYPES)}"
        problems.add("type", why)
        kind = CHECK_TYPE_TCP
    spec.type = kind
    duration(check.interval, DEFAULT_INTERVAL, spec.interval, "interval", problems, zero=False)
    duration(check.timeout, DEFAULT_TIMEOUT, spec.timeout, "timeout", problems, zero=False)
    duration(check.grace_period, DEFAULT_GRACE_PERIOD, spec.grace_period, "grace_period", problems)
    if kind == CHECK_TYPE_HTTP:
        _fill_request(spec, check, problems)
    elif check.method or check.path or check.protocol or check.tls_server_name or check.headers:
        _fill_request(CheckSpec(), check, problems)


def _fill_request(spec: CheckSpec, check: MachineCheck | MachineServiceCheck, problems: Problems) -> None:
    spec.method = http_method(check.method, "method", problems)
    spec.path = http_path(check.path, DEFAULT_PATH, "path", problems)
    if check.protocol:
        spec.tls = one_of(check.protocol, TLS, False, "protocol", problems)
    if check.tls_skip_verify:
        spec.tls_skip_verify = True
    if check.tls_server_name:
        spec.tls_server_name = server_name(check.tls_server_name, "tls_server_name", problems)
    if check.headers:
        fill_headers(spec.headers, check.headers, problems)


def http_method(method: str, field: str, problems: Problems) -> str:
    """An HTTP method, which clients write in any case; GET when empty."""
    return one_of(method.upper(), METHODS, DEFAULT_METHOD, field, problems)


def server_name(name: str, field: str, problems: Problems) -> str:
    """A name for TLS: of a host, or an address."""
    if not is_ip(name):
        host_name(name, field, problems)
    return name


def fill_headers(
    target: RepeatedCompositeFieldContainer[HeaderSpec],
    headers: Iterable[MachineHTTPHeader],
    problems: Problems,
) -> None:
    """Headers of a request, in the user's order."""
    for i, header in enumerate(headers):
        header_name(header.name, f"headers[{i}].name", problems)
        for j, value in enumerate(header.values):
            header_value(value, f"headers[{i}].values[{j}]", problems)
        target.add(name=header.name, values=header.values)


PART = Part("checks", owns=("checks",), converters={1: convert})
