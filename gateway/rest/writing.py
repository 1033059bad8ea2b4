"""Messages to what the JSON serializer takes: one closure a message type, made from its descriptor when first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.types.v1 import annotations_pb2 as options

from gateway.rest.forms import (
    enum_names,
    enum_of,
    is_always_there,
    is_map,
    is_null_when_empty,
    json_name,
    message_of,
    rule_of,
)

Encode = Callable[[Any], Any]
"""Turns a message or a field's value into what the JSON serializer takes."""

ZERO_TIME = "0001-01-01T00:00:00Z"
"""A moment that is not set, where one must stand."""

_EMPTY: Mapping[int, Any] = {
    FieldDescriptor.CPPTYPE_STRING: "",
    FieldDescriptor.CPPTYPE_BOOL: False,
    FieldDescriptor.CPPTYPE_INT32: 0,
    FieldDescriptor.CPPTYPE_INT64: 0,
    FieldDescriptor.CPPTYPE_UINT32: 0,
    FieldDescriptor.CPPTYPE_UINT64: 0,
    FieldDescriptor.CPPTYPE_FLOAT: 0.0,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.0,
}


@cache
def encoder_of(descriptor: Descriptor) -> Encode:
    """What turns a message of that type into what the JSON serializer takes."""
    rows: dict[FieldDescriptor, tuple[str, Encode | None]] = {}
    always: dict[str, Any] = {}
    for field in descriptor.fields:
        name = json_name(field)
        if rule_of(field) == options.JSON_RULE_UNKNOWN_MEMBERS:
            continue
        rows[field] = name, _field_encoder(field)
        if is_null_when_empty(field):
            always[name] = None
        elif is_always_there(field):
            always[name] = _shown_when_empty(field)
    row_of = rows.get

    def encode_message(message: Any) -> dict[str, Any]:
        members = always.copy()
        for field, value in message.ListFields():
            row = row_of(field)
            if row is None:
                members.update((key, orjson.Fragment(text)) for key, text in value.items())
                continue
            name, encode_field = row
            members[name] = value if encode_field is None else encode_field(value)
        return members

    return encode_message


def map_encoder_of(field: FieldDescriptor) -> Encode:
    """What turns the entries of a map field into what the JSON serializer takes."""
    return _map_encoder(_singular_encoder(message_of(field).fields_by_name["value"]))


def _shown_when_empty(field: FieldDescriptor) -> Any:
    if field.is_repeated:
        return {} if is_map(field) else []
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if message_of(field).full_name == Timestamp.DESCRIPTOR.full_name:
            return ZERO_TIME
        # What is always there inside, too.
        return {
            json_name(inner): _shown_when_empty(inner) for inner in message_of(field).fields if is_always_there(inner)
        }
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return ""
    return _EMPTY[field.cpp_type]


def _field_encoder(field: FieldDescriptor) -> Encode | None:
    if is_map(field):
        return map_encoder_of(field)
    one = _singular_encoder(field)
    return _list_encoder(one) if field.is_repeated else one


def _map_encoder(one: Encode | None) -> Encode:
    return dict if one is None else lambda entries: {key: one(value) for key, value in entries.items()}


def _list_encoder(one: Encode | None) -> Encode:
    return list if one is None else lambda items: [one(item) for item in items]


def _singular_encoder(field: FieldDescriptor) -> Encode | None:
    """None where the value is written as it is."""
    rule = rule_of(field)
    if rule in _RULED_ENCODERS:
        return _RULED_ENCODERS[rule]
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        well_known = _WELL_KNOWN_ENCODERS.get(message_of(field).full_name)
        return well_known or _encode_later(message_of(field))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return enum_names(enum_of(field)).__getitem__
    if field.cpp_type not in _EMPTY or field.type == FieldDescriptor.TYPE_BYTES:
        raise TypeError(f"{field.full_name} has a type that the public API does not use")
    return None


def _encode_later(descriptor: Descriptor) -> Encode:
    """The encoder of a nested message, compiled when first used: types may hold themselves."""
    compiled: Encode | None = None

    def encode_nested(message: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = encoder_of(descriptor)
        return compiled(message)

    return encode_nested


def _encode_autostop(value: str) -> Any:
    return {"off": False, "stop": True}.get(value, value)


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").zfill(19)


def encode_timestamp(moment: Timestamp) -> str:
    """A moment, to the millisecond."""
    return f"{_second(moment.seconds)}.{moment.nanos // 1_000_000:03d}Z"


def _encode_unix_millis(moment: Timestamp) -> int:
    return moment.seconds * 1000 + moment.nanos // 1_000_000


def _encode_unix_seconds(moment: Timestamp) -> int:
    return moment.seconds


def encode_value(value: Value) -> Any:
    """What a free JSON value stands for; numbers that are whole become integers."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: encode_value(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [encode_value(item) for item in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < 1 << 53 else number
    return getattr(value, kind) if kind in ("bool_value", "string_value") else None


_RULED_ENCODERS: Mapping[int, Encode] = {
    options.JSON_RULE_AUTOSTOP: _encode_autostop,
    options.JSON_RULE_UNIX_MILLIS: _encode_unix_millis,
    options.JSON_RULE_UNIX_SECONDS: _encode_unix_seconds,
}
_WELL_KNOWN_ENCODERS: Mapping[str, Encode] = {
    Timestamp.DESCRIPTOR.full_name: encode_timestamp,
    Value.DESCRIPTOR.full_name: encode_value,
}
