"""JSON schemas of messages, as the codec of this package reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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

Schema = dict[str, Any]
Describe = Callable[[str], str]
"""The description of what has that full name in the protos; empty without one."""

_INTEGERS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(1 << 31), "maximum": 2**31 - 1},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64", "minimum": -(1 << 63), "maximum": 2**63 - 1},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**32 - 1},
    FieldDescriptor.CPPTYPE_UINT64: {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
}
_PLAIN: Mapping[int, Schema] = {
    **_INTEGERS,
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
}
_TIME: Schema = {"type": "string", "format": "date-time", "examples": ["2026-01-02T03:04:05.678Z"]}
_UNIX: Schema = {"type": "integer", "format": "int64"}
_GO_DURATION = r"^[+-]?([0-9]*(\.[0-9]*)?(ns|us|µs|μs|ms|s|m|h))+$|^[+-]?0$"

_TAKEN: Mapping[int, Schema] = {
    options.JSON_RULE_GO_DURATION: {
        "anyOf": [
            {"type": "string", "pattern": _GO_DURATION, "description": "A Go duration."},
            {"type": "integer", "minimum": 0, "description": "Nanoseconds."},
        ],
        "examples": ["1m30s", 15_000_000_000],
    },
    options.JSON_RULE_AUTOSTOP: {"enum": [True, False, "off", "stop", "suspend"]},
    options.JSON_RULE_PERSIST_ROOTFS: {"enum": ["none", "never", "restart", "always", 0, 1, 2, 3]},
    options.JSON_RULE_STRING_OR_INTEGER: {"type": ["string", "integer"]},
    options.JSON_RULE_SECRET: {"type": "string", "writeOnly": True},
    options.JSON_RULE_SECRETS_OR_NULL: {
        "type": "object",
        "additionalProperties": {"type": ["string", "null"], "writeOnly": True},
    },
    options.JSON_RULE_UNIX_MILLIS: _UNIX,
    options.JSON_RULE_UNIX_SECONDS: _UNIX,
}
"""What a field with a rule takes in requests."""
_ANSWERED: Mapping[int, Schema] = {
    options.JSON_RULE_GO_DURATION: {"type": "string", "examples": ["1m30s"]},
    options.JSON_RULE_AUTOSTOP: {"enum": [False, True, "suspend"]},
    options.JSON_RULE_UNIX_MILLIS: _UNIX,
    options.JSON_RULE_UNIX_SECONDS: _UNIX,
}
"""What a field with a rule is in answers, where that differs from its type."""


class Schemas:
    """The schemas of messages, each once, by name. Those of requests have names of their own: they take more."""

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self.components: dict[str, Schema] = {}

    def taken(self, descriptor: Descriptor, without: frozenset[str] = frozenset()) -> Schema:
        """A reference to the schema of what a request may hold; `without` fields that its path has."""
        name = _request_name(descriptor)
        if name not in self.components:
            self.components[name] = {}
            self.components[name] = self._message(descriptor, without, self._taken_field)
        return _reference(name)

    def answered(self, descriptor: Descriptor) -> Schema:
        """A reference to the schema of what an answer holds."""
        name = descriptor.name
        if name not in self.components:
            self.components[name] = {}
            schema = self._message(descriptor, frozenset(), self._answered_field)
            needed = [json_name(f) for f in descriptor.fields if is_always_there(f) or is_null_when_empty(f)]
            self.components[name] = {**schema, **({"required": needed} if needed else {})}
        return _reference(name)

    def answered_in_part(self, descriptor: Descriptor) -> Schema:
        """The same for an answer that holds only some of the members."""
        name = f"{descriptor.name}Fields"
        if name not in self.components:
            schema = self._message(descriptor, frozenset(), self._answered_field)
            text = f"{schema.get('description', '')} Only those members that were asked for."
            self.components[name] = {**schema, "description": text.lstrip()}
        return _reference(name)

    def answered_field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field in answers, that may be an answer of its own."""
        return self._answered_field(field)

    def taken_field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field in requests, without the ways to say that it is not set."""
        return self._field(field, _TAKEN, self.taken)

    def described(self, schema: Schema, full_name: str) -> Schema:
        """`schema` with the description of what has that name."""
        text = self._describe(full_name)
        return {**schema, "description": text} if text else schema

    def _message(
        self, descriptor: Descriptor, without: frozenset[str], schema_of: Callable[[FieldDescriptor], Schema]
    ) -> Schema:
        members = {
            json_name(field): self.described(schema_of(field), field.full_name)
            for field in descriptor.fields
            if field.name not in without and rule_of(field) != options.JSON_RULE_UNKNOWN_MEMBERS
        }
        return self.described({"type": "object", "properties": members}, descriptor.full_name)

    def _taken_field(self, field: FieldDescriptor) -> Schema:
        return _or_null(self.taken_field(field))

    def _answered_field(self, field: FieldDescriptor) -> Schema:
        schema = self._field(field, _ANSWERED, self.answered)
        if is_null_when_empty(field):
            return _or_null(schema)
        if is_always_there(field) and "enum" in schema:
            return {**schema, "enum": [*schema["enum"], ""]}
        return schema

    def _field(
        self, field: FieldDescriptor, ruled: Mapping[int, Schema], message: Callable[[Descriptor], Schema]
    ) -> Schema:
        if (schema := ruled.get(rule_of(field))) is not None:
            return dict(schema)
        if is_map(field):
            value = message_of(field).fields_by_name["value"]
            return {"type": "object", "additionalProperties": self._singular(value, ruled, message)}
        one = self._singular(field, ruled, message)
        return {"type": "array", "items": one} if field.is_repeated else one

    def _singular(
        self, field: FieldDescriptor, ruled: Mapping[int, Schema], message: Callable[[Descriptor], Schema]
    ) -> Schema:
        if (schema := ruled.get(rule_of(field))) is not None:
            return dict(schema)
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            return {"type": "string", "enum": list(enum_names(enum_of(field)).values())}
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
            return dict(_PLAIN[field.cpp_type])
        full_name = message_of(field).full_name
        if full_name == Timestamp.DESCRIPTOR.full_name:
            return dict(_TIME)
        # Any JSON value.
        return {} if full_name == Value.DESCRIPTOR.full_name else message(message_of(field))


def _request_name(descriptor: Descriptor) -> str:
    return descriptor.name if descriptor.name.endswith("Request") else f"{descriptor.name}Input"


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    """In requests null means "not set", wherever it stands."""
    kind = schema.get("type")
    if isinstance(kind, str):
        nullable = {**schema, "type": [kind, "null"]}
    elif isinstance(kind, list):
        nullable = {**schema, "type": [*kind, "null"]}
    elif "enum" in schema:
        nullable = dict(schema)
    elif "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    elif not schema:
        return schema
    else:
        return {"anyOf": [schema, {"type": "null"}]}
    if "enum" in nullable:
        nullable["enum"] = [*nullable["enum"], None]
    return nullable
