"""A configuration in the JSON form of the public API, which is the one that the centre reads.

Against plain proto JSON: 64-bit integers are numbers, and members that no field has stand where the user wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from skerry.types.v1.annotations_pb2 import JSON_RULE_UNKNOWN_MEMBERS, json_rule

from services.runtime.errors import InvalidConfig, Violation


def public_json(message: Message) -> dict[str, Any]:
    """The JSON object of `message`, which holds what is set in it and nothing else.

    Raises InvalidConfig for a member that no field has and whose text is no JSON.
    """
    members: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for field, value in message.ListFields():
        kind, one = _form(field)
        if kind is _Kind.SINGLE:
            members[field.name] = value if one is None else one(value)
        elif kind is _Kind.LIST:
            members[field.name] = list(value) if one is None else [one(item) for item in value]
        elif kind is _Kind.MAP:
            members[field.name] = dict(value) if one is None else {name: one(entry) for name, entry in value.items()}
        else:
            unknown = {name: _value_of(name, text) for name, text in value.items()}
    return {**unknown, **members}


def _value_of(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        why = "is not the JSON of a value"
        raise InvalidConfig(f"{name[:64]} {why}", violations=[Violation(name[:64], why)]) from None


class _Kind(Enum):
    SINGLE = 0
    LIST = 1
    MAP = 2
    UNKNOWN_MEMBERS = 3


@cache
def _form(field: FieldDescriptor) -> tuple[_Kind, Callable[[Any], Any] | None]:
    """What a field is, and what makes its values JSON; None where they are."""
    if field.GetOptions().Extensions[json_rule] == JSON_RULE_UNKNOWN_MEMBERS:
        return _Kind.UNKNOWN_MEMBERS, None
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return _Kind.MAP, _json_of(entry.fields_by_name["value"])
    return _Kind.LIST if field.is_repeated else _Kind.SINGLE, _json_of(field)


def _json_of(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    if field.message_type is not None:
        is_value = field.message_type.full_name == Value.DESCRIPTOR.full_name
        return json_format.MessageToDict if is_value else public_json
    if field.enum_type is not None:
        names = field.enum_type.values_by_number
        return lambda number: names[number].name
    return None
