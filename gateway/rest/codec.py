"""JSON of protobuf messages as the public API speaks it, compiled once per message type from its descriptor.

The forms differ from plain proto JSON: names are snake_case, 64-bit integers are numbers, enums are lower-case names
without their prefix, `null`, `""`, `[]` and `{}` mean "not set", and the options `json_rule`, `json_always` and
`json_null` of `skerry/types/v1/annotations.proto` say what else a field needs.

What JSON itself forbids (and duplicate names, which it does not) is refused before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson
from google.protobuf.message import Message

from gateway.rest.reading import MOST_VIOLATIONS, Report, Where, kind_of, path_of, quoted, reader_of
from gateway.rest.writing import encoder_of
from services.runtime.errors import InvalidConfig, Violation

M = TypeVar("M", bound=Message)

DEEPEST = 250
"""Levels of nesting of a whole document: what the serializer can write again."""

dump = orjson.dumps
"""The JSON of what an encoder made: UTF-8, without spaces."""


def decode(cls: type[M], body: bytes) -> tuple[M, list[str]]:
    """Read `body` into a new `cls`; returns it and the paths of the members that it does not know (the first hundred).

    An empty body and `null` are an empty message. Raises InvalidConfig: without a violation for what is no JSON, with
    one for each field that is wrong.
    """
    document = parse(body)
    if document is None:
        return cls(), []
    if type(document) is not dict:
        raise InvalidConfig(f"the body must be a JSON object, is {kind_of(document)}")
    report = Report()
    fields = reader_of(cls.DESCRIPTOR)(document, None, report)
    if report.violations:
        raise invalid(report.violations)
    return cls(**fields), report.unknown


def encode(message: Message) -> bytes:
    """The JSON of `message`."""
    return dump(encoder_of(message.DESCRIPTOR)(message))


def invalid(violations: Sequence[Violation]) -> InvalidConfig:
    """The error for these violations; its text names every field."""
    text = "; ".join(f"{violation.field} {violation.why}".lstrip() for violation in violations)
    return InvalidConfig(text, violations=violations)


def is_json(text: str) -> bool:
    """Whether the text is a JSON value that can be written into an answer as it is."""
    try:
        parse(text.encode())
    except (InvalidConfig, UnicodeEncodeError):
        return False
    return bool(text.strip())


def parse(body: bytes) -> Any:
    """The JSON value of `body`; None for an empty one.

    Raises InvalidConfig for what is not JSON in UTF-8, for a name that one object has twice, for nesting deeper than
    DEEPEST, and, naming them, for strings that hold NUL.
    """
    if not body or body.isspace():
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidConfig(f"the body is not JSON: {error}") from None
    if type(document) is dict or type(document) is list:
        _refuse_duplicates(body, document)
        if b"\\u0000" in body:
            _refuse_nul(document)
    return document


def _refuse_duplicates(body: bytes, document: Any) -> None:
    # Of members with one name the parser keeps the last. Each one lost is a colon less, unless colons are escaped.
    try:
        kept = orjson.dumps(document).count(b":")
    except orjson.JSONEncodeError:
        raise InvalidConfig(f"the body is nested deeper than {DEEPEST} levels") from None
    if kept != body.count(b":") or b"\\u003" in body:
        json.loads(body, object_pairs_hook=_unique)


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, member in members:
        if name in found:
            raise InvalidConfig(f"the body has the name {quoted(name)} twice in one object")
        found[name] = member
    return found


def _refuse_nul(document: Any) -> None:
    violations: list[Violation] = []
    left: list[tuple[Any, Where]] = [(document, None)]
    while left and len(violations) < MOST_VIOLATIONS:
        value, where = left.pop()
        if isinstance(value, dict):
            if any("\0" in name for name in value):
                violations.append(Violation(path_of(where), "must not have a name that holds the character NUL"))
            left.extend((inner, (where, name)) for name, inner in value.items())
        elif isinstance(value, list):
            left.extend((inner, (where, index)) for index, inner in enumerate(value))
        elif isinstance(value, str) and "\0" in value:
            violations.append(Violation(path_of(where).replace("\0", ""), "must not hold the character NUL"))
    if violations:
        raise invalid(violations[::-1])
