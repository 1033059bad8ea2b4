"""What REST answers to errors and to members that nothing knows."""

from __future__ import annotations

import json

from gateway.rest.answers import refusal, unknown_fields_warning
from services.runtime.errors import (
    DependencyDown,
    InvalidConfig,
    MethodNotAllowed,
    NoCapacity,
    StillRunning,
    Unauthenticated,
    Violation,
)


def test_an_error_says_what_is_wrong_and_its_reason() -> None:
    answer = refusal(NoCapacity("no room"))
    assert (answer.status, json.loads(answer.body)) == (422, {"error": "no room", "status": "insufficient_capacity"})
    assert refusal(StillRunning("x")).status == 412


def test_the_text_names_every_field_whoever_raised_the_error() -> None:
    violations = [Violation("config.image", "is required"), Violation("config.size", "is unknown")]
    answer = refusal(InvalidConfig("config.image is required", violations=violations))
    assert json.loads(answer.body) == {
        "error": "config.image is required; config.size is unknown",
        "status": "invalid_config",
        "fields": [
            {"field": "config.image", "why": "is required"},
            {"field": "config.size", "why": "is unknown"},
        ],
    }


def test_errors_carry_the_headers_that_http_wants_with_them() -> None:
    assert refusal(DependencyDown("x", retry_after=0.2)).headers == [(b"retry-after", b"1")]
    assert refusal(DependencyDown("x", retry_after=2.5)).headers == [(b"retry-after", b"3")]
    assert refusal(MethodNotAllowed("x", metadata={"allow": "GET"})).headers == [(b"allow", b"GET")]
    assert refusal(Unauthenticated("x")).headers == [(b"www-authenticate", b"Bearer")]


def test_the_warning_names_unknown_fields() -> None:
    name, value = unknown_fields_warning(["config.quantum", "config.services[0].teleport"])
    assert name == b"warning"
    assert value == b'299 - "unknown fields: config.quantum, config.services[0].teleport"'


def test_the_warning_is_one_line_of_ascii_whatever_the_names() -> None:
    _, value = unknown_fields_warning(['a"b', "c\\d", "e\r\nset-cookie: x", "ü"])
    assert value == rb'299 - "unknown fields: a\"b, c\\d, e??set-cookie: x, ?"'


def test_the_warning_is_cut_and_says_so() -> None:
    _, value = unknown_fields_warning([f"config.{'x' * 100}{number}" for number in range(50)])
    assert len(value) < 1100
    assert value.endswith(b', and 41 more"')
