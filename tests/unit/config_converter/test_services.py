from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from skerry.types.v1.spec_pb2 import (
    AUTOSTOP_OFF,
    AUTOSTOP_STOP,
    AUTOSTOP_SUSPEND,
    CHECK_KIND_READINESS,
    CHECK_TYPE_HTTP,
    TRANSPORT_PROTOCOL_TCP,
    TRANSPORT_PROTOCOL_UDP,
    ServiceSpec,
)

from services.config_converter.parts.services import PART
from tests.unit.config_converter.judging import accept, refuse


def service_of(**fields: Any) -> ServiceSpec:
    spec: ServiceSpec = accept(PART, {"services": [{"internal_port": 8080, **fields}]}).services[0]
    return spec


def problems_of(**fields: Any) -> dict[str, str]:
    return refuse(PART, {"services": [{"internal_port": 8080, **fields}]})


def port_problems(**fields: Any) -> dict[str, str]:
    return problems_of(ports=[fields])


def test_a_service_has_defaults_for_all_but_its_port() -> None:
    spec = service_of()
    assert (spec.protocol, spec.internal_port, spec.autostop) == (TRANSPORT_PROTOCOL_TCP, 8080, AUTOSTOP_OFF)
    assert (spec.autostart, spec.min_machines_running) == (True, 0)
    assert (spec.concurrency_type, spec.soft_limit, spec.hard_limit) == ("connections", 0, 0)


def test_the_proxy_may_start_the_machine_unless_that_is_disabled() -> None:
    assert accept(PART, {}).machine_autostart
    assert not accept(PART, {"disable_machine_autostart": True}).machine_autostart
    services = [{"internal_port": 1}]
    assert accept(PART, {"services": services}).machine_autostart
    assert not accept(PART, {"services": services, "disable_machine_autostart": True}).machine_autostart


def test_services_keep_their_order() -> None:
    spec = accept(PART, {"services": [{"internal_port": n} for n in (3, 1, 2)]})
    assert [service.internal_port for service in spec.services] == [3, 1, 2]


@pytest.mark.parametrize(
    ("written", "expected"), [("off", AUTOSTOP_OFF), ("stop", AUTOSTOP_STOP), ("suspend", AUTOSTOP_SUSPEND)]
)
def test_autostop_is_one_of_three(written: str, expected: int) -> None:
    assert service_of(autostop=written).autostop == expected


def test_autostart_may_be_turned_off() -> None:
    assert not service_of(autostart=False).autostart


def test_a_forced_instance_and_its_reason_are_kept() -> None:
    spec = service_of(force_instance_key="k", force_instance_description="why", min_machines_running=2)
    assert (spec.force_instance_key, spec.force_instance_description, spec.min_machines_running) == ("k", "why", 2)


@pytest.mark.parametrize("number", [1, 80, 65535])
def test_a_port_is_1_to_65535(number: int) -> None:
    assert service_of(internal_port=number).internal_port == number
    assert service_of(ports=[{"port": number}]).ports[0].start_port == number


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 65536, 70000, 2**63 - 1])
def test_any_other_port_is_refused(number: int) -> None:
    assert problems_of(internal_port=number) == {"services[0].internal_port": f"must be 1..65535, is {number}"}
    assert port_problems(port=number) == {"services[0].ports[0].port": f"must be 1..65535, is {number}"}


def test_an_internal_port_is_required() -> None:
    assert "is required" in refuse(PART, {"services": [{}]})["services[0].internal_port"]


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"protocol": "icmp"}, "protocol", 'must be tcp or udp, is "icmp"'),
        ({"autostop": "sleep"}, "autostop", 'must be off, stop or suspend, is "sleep"'),
        ({"min_machines_running": -1}, "min_machines_running", "is -1"),
        ({"concurrency": {"type": "users"}}, "concurrency.type", 'must be connections or requests, is "users"'),
        ({"concurrency": {"soft_limit": -1}}, "concurrency.soft_limit", "is -1"),
        ({"concurrency": {"hard_limit": 2**40}}, "concurrency.hard_limit", f"is {2**40}"),
        (
            {"concurrency": {"soft_limit": 26, "hard_limit": 25}},
            "concurrency.soft_limit",
            "must be at most hard_limit, which is 25, is 26",
        ),
    ],
)
def test_what_a_service_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str, why: str) -> None:
    problems = problems_of(**fields)
    assert list(problems) == [f"services[0].{field}"]
    assert why in problems[f"services[0].{field}"]


def test_a_soft_limit_may_equal_the_hard_one_or_stand_alone() -> None:
    both = service_of(concurrency={"type": "requests", "soft_limit": 60, "hard_limit": 60})
    assert (both.concurrency_type, both.soft_limit, both.hard_limit) == ("requests", 60, 60)
    assert service_of(concurrency={"soft_limit": 60}).soft_limit == 60


def test_a_range_of_ports_is_kept_and_one_port_is_a_range_of_one() -> None:
    spec = service_of(protocol="udp", ports=[{"start_port": 27960, "end_port": 27990}, {"port": 9}])
    assert spec.protocol == TRANSPORT_PROTOCOL_UDP
    assert [(port.start_port, port.end_port) for port in spec.ports] == [(27960, 27990), (9, 9)]
    assert service_of(ports=[{"start_port": 5, "end_port": 5}]).ports[0].end_port == 5


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({}, "port", "is required"),
        ({"start_port": 5010, "end_port": 5000}, "end_port", "at least start_port, which is 5010, is 5000"),
        ({"start_port": 5010}, "end_port", "is required with start_port"),
        ({"end_port": 5010}, "start_port", "is required with end_port"),
        ({"start_port": 0, "end_port": 1}, "start_port", "is 0"),
        ({"port": 1, "start_port": 1, "end_port": 2}, "port", "excludes start_port and end_port"),
        ({"port": 1, "handlers": ["tls", "ftp"]}, "handlers[1]", 'proxy_proto or edge_http, is "ftp"'),
        ({"port": 1, "tls_options": {"versions": ["SSLv3"]}}, "tls_options.versions[0]", "TLSv1.2 or TLSv1.3"),
        ({"port": 1, "tls_options": {"alpn": ["h2", ""]}}, "tls_options.alpn[1]", "1..255 bytes"),
        ({"port": 1, "proxy_proto_options": {"version": "v3"}}, "proxy_proto_options.version", "v1 or v2"),
    ],
)
def test_what_a_public_port_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str, why: str) -> None:
    problems = port_problems(**fields)
    assert list(problems) == [f"services[0].ports[0].{field}"]
    assert why in problems[f"services[0].ports[0].{field}"]


@pytest.mark.parametrize("handler", ["http", "tls", "pg_tls", "edge_http"])
def test_a_udp_service_has_no_handlers_of_tcp(handler: str) -> None:
    problems = problems_of(protocol="udp", ports=[{"port": 1, "handlers": [handler]}])
    assert list(problems) == ["services[0].ports[0].handlers[0]"]
    assert "UDP" in problems["services[0].ports[0].handlers[0]"]


def test_handlers_and_their_options_are_kept() -> None:
    port = service_of(
        ports=[
            {
                "port": 443,
                "handlers": ["proxy_proto", "tls", "http"],
                "force_https": True,
                "tls_options": {"alpn": ["h2"], "versions": ["TLSv1.3"], "default_self_signed": True},
            }
        ]
    ).ports[0]
    assert (list(port.handlers), port.force_https) == (["proxy_proto", "tls", "http"], True)
    assert (list(port.tls_alpn), list(port.tls_versions), port.tls_default_self_signed) == (["h2"], ["TLSv1.3"], True)
    assert port.proxy_proto_version == "v1"
    assert not port.HasField("http")


def test_a_version_of_the_proxy_protocol_is_kept_without_its_handler_too() -> None:
    ports = [{"port": 1, "handlers": ["tls"], "proxy_proto_options": {"version": "v2"}}, {"port": 2}]
    assert [port.proxy_proto_version for port in service_of(ports=ports).ports] == ["v2", ""]


def test_options_of_http_become_durations_and_lists() -> None:
    options = {
        "compress": True,
        "h2_backend": True,
        "idle_timeout": 60,
        "headers_read_timeout": 5,
        "response": {"pristine": True, "headers": {"X-A": "1", "X-B": ["2", "3"], "Server": False, "X-C": None}},
        "replay_cache": [
            {"path_prefix": "/", "ttl_seconds": 30, "type": "cookie", "name": "sid", "allow_bypass": True}
        ],
    }
    http = service_of(ports=[{"port": 80, "handlers": ["http"], "http_options": options}]).ports[0].http
    assert (http.compress, http.h2_backend, http.pristine) == (True, True, True)
    assert (http.idle_timeout.seconds, http.headers_read_timeout.seconds) == (60, 5)
    assert {name: MessageToDict(value) for name, value in http.response_headers.items()} == {
        "X-A": ["1"],
        "X-B": ["2", "3"],
        "Server": False,
    }
    cache = http.replay_cache[0]
    assert (cache.path_prefix, cache.ttl.seconds, cache.type, cache.name) == ("/", 30, "cookie", "sid")
    assert cache.allow_bypass


def test_empty_options_of_http_are_none() -> None:
    assert not service_of(ports=[{"port": 80, "http_options": {}}]).ports[0].HasField("http")


@pytest.mark.parametrize("value", [True, 5, {"a": "b"}, ["a", 1]])
def test_a_response_header_is_a_string_a_list_of_them_or_false(value: Any) -> None:
    problems = port_problems(port=80, http_options={"response": {"headers": {"X-A": value}}})
    assert list(problems) == ["services[0].ports[0].http_options.response.headers.X-A"]


def test_response_headers_cannot_smuggle_others() -> None:
    headers = {"X-A": "1\r\nX-B: 2", "X B": "1"}
    problems = port_problems(port=80, http_options={"response": {"headers": headers}})
    path = "services[0].ports[0].http_options.response.headers"
    assert list(problems) == [f'{path}["X B"]', f"{path}.X-A"]


def test_a_replay_cache_says_everything() -> None:
    problems = port_problems(port=80, http_options={"replay_cache": [{}]})
    path = "services[0].ports[0].http_options.replay_cache[0]"
    assert list(problems) == [f"{path}.path_prefix", f"{path}.ttl_seconds", f"{path}.type", f"{path}.name"]


def test_a_check_of_a_service_takes_its_port_and_decides_about_routing() -> None:
    checks = [{"type": "http", "path": "/up"}, {"type": "tcp", "port": 9}]
    http, tcp = service_of(checks=checks).checks
    assert (http.type, http.kind, http.port) == (CHECK_TYPE_HTTP, CHECK_KIND_READINESS, 8080)
    assert tcp.port == 9


def test_a_check_of_a_service_is_refused_by_its_path() -> None:
    problems = problems_of(checks=[{"type": "tcp", "port": 0}, {"type": "icmp", "interval": "0s"}])
    assert list(problems) == [
        "services[0].checks[0].port",
        "services[0].checks[1].type",
        "services[0].checks[1].interval",
    ]
