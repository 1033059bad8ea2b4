from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from skerry.types.v1.spec_pb2 import (
    CHECK_KIND_INFORMATIONAL,
    CHECK_KIND_READINESS,
    CHECK_TYPE_HTTP,
    CHECK_TYPE_TCP,
    CheckSpec,
)

from services.config_converter.parts.checks import PART
from tests.unit.config_converter.judging import accept, refuse


def check_of(**fields: Any) -> CheckSpec:
    spec: CheckSpec = accept(PART, {"checks": {"c": {"type": "http", "port": 80, **fields}}}).checks["c"]
    return spec


def problems_of(**fields: Any) -> dict[str, str]:
    return refuse(PART, {"checks": {"c": {"type": "http", "port": 80, **fields}}})


def test_a_check_has_defaults_for_all_but_type_and_port() -> None:
    check = check_of()
    assert (check.type, check.kind, check.port) == (CHECK_TYPE_HTTP, CHECK_KIND_INFORMATIONAL, 80)
    assert (check.interval.seconds, check.timeout.seconds, check.grace_period.seconds) == (15, 10, 5)
    assert (check.method, check.path, check.tls) == ("GET", "/", False)


def test_a_check_over_tcp_has_nothing_of_http() -> None:
    check = check_of(type="tcp", method="GET", path="/", protocol="https", tls_skip_verify=True)
    assert check.type == CHECK_TYPE_TCP
    assert (check.method, check.path, check.tls, check.tls_skip_verify) == ("", "", False, False)


def test_durations_are_exact_to_the_nanosecond() -> None:
    check = check_of(interval="1m30s", timeout="500ms", grace_period="1.000000001s")
    assert check.interval == Duration(seconds=90)
    assert check.timeout == Duration(nanos=500_000_000)
    assert check.grace_period == Duration(seconds=1, nanos=1)


def test_a_grace_period_of_zero_is_kept() -> None:
    check = check_of(grace_period="0s")
    assert check.HasField("grace_period")
    assert check.grace_period == Duration()


def test_everything_of_http_is_kept() -> None:
    check = check_of(
        kind="readiness",
        method="post",
        path="/healthz?deep=1",
        protocol="https",
        tls_skip_verify=True,
        tls_server_name="app.example",
        headers=[{"name": "X-A", "values": ["1", "2"]}, {"name": "Host", "values": ["a.example"]}],
    )
    assert (check.kind, check.method, check.path) == (CHECK_KIND_READINESS, "POST", "/healthz?deep=1")
    assert (check.tls, check.tls_skip_verify, check.tls_server_name) == (True, True, "app.example")
    assert [(header.name, list(header.values)) for header in check.headers] == [
        ("X-A", ["1", "2"]),
        ("Host", ["a.example"]),
    ]


def test_no_checks_are_none() -> None:
    assert dict(accept(PART, {}).checks) == {}


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"type": "icmp"}, "type", 'must be tcp or http, is "icmp"'),
        ({"type": ""}, "type", "is required: tcp or http"),
        ({"kind": "vital"}, "kind", "informational or readiness"),
        ({"port": 70000}, "port", "must be 1..65535, is 70000"),
        ({"interval": "fifteen"}, "interval", 'such as "15s"'),
        ({"interval": "15"}, "interval", "unit"),
        ({"interval": "0s"}, "interval", "longer than 0s"),
        ({"timeout": "-2s"}, "timeout", "must not be negative"),
        ({"timeout": "0"}, "timeout", "longer than 0s"),
        ({"grace_period": "3000000h"}, "grace_period", "must not be longer than"),
        ({"method": "fetch"}, "method", 'must be GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, is "FETCH"'),
        ({"path": "healthz"}, "path", 'must begin with "/"'),
        ({"path": "/a b"}, "path", "no spaces"),
        ({"path": "/a\r\nHost: b"}, "path", "control characters"),
        ({"protocol": "gopher"}, "protocol", "http or https"),
        ({"tls_server_name": "a_b"}, "tls_server_name", "host name"),
        ({"headers": [{"name": "X A"}]}, "headers[0].name", "header's name"),
        ({"headers": [{"values": ["1"]}]}, "headers[0].name", "header's name"),
        ({"headers": [{"name": "A", "values": ["1", "\n"]}]}, "headers[0].values[1]", "line breaks"),
        ({"type": "tcp", "path": "x"}, "path", 'must begin with "/"'),
    ],
)
def test_what_a_check_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str, why: str) -> None:
    problems = problems_of(**fields)
    assert list(problems) == [f"checks.c.{field}"]
    assert why in problems[f"checks.c.{field}"]


def test_a_check_of_its_own_needs_a_port_and_a_name() -> None:
    problems = refuse(PART, {"checks": {"": {"type": "tcp", "port": 1}, "z": {"type": "tcp"}}})
    assert list(problems) == ['checks[""]', "checks.z.port"]


def test_checks_are_judged_in_the_order_of_their_names() -> None:
    names = ["z", "a b", "b", "a"]
    problems = refuse(PART, {"checks": {name: {"type": "x", "port": 1} for name in names}})
    assert list(problems) == ["checks.a.type", 'checks["a b"].type', "checks.b.type", "checks.z.type"]
