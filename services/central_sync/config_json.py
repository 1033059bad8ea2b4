"""A configuration in the JSON form of the public API, which is the one that the centre reads.

Against plain proto JSON: 64-bit integers are numbers, and members that no field has stand where the user wrote them.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from skerry.types.v1.annotations_pb2 import JSON_RULE_UNKNOWN_MEMBERS, json_rule


def public_json(message: Message) -> dict[str, Any]:
    """The JSON object of `message`, which holds what is set in it and nothing else."""
    members: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[json_rule] == JSON_RULE_UNKNOWN_MEMBERS:
            unknown = {name: json.loads(text) for name, text in value.items()}
        elif (inner := _value_of_map(field)) is not None:
            members[field.name] = {name: _json_of(inner, entry) for name, entry in value.items()}
        elif field.is_repeated:
            members[field.name] = [_json_of(field, item) for item in value]
        else:
            members[field.name] = _json_of(field, value)
    return {**unknown, **members}


def _value_of_map(field: FieldDescriptor) -> FieldDescriptor | None:
    entry = field.message_type
    return entry.fields_by_name["value"] if entry is not None and entry.GetOptions().map_entry else None


def _json_of(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Value):
        return json_format.MessageToDict(value)
    if isinstance(value, Message):
        return public_json(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value
