"""What the JSON form of a message has to know of its descriptor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from skerry.types.v1 import annotations_pb2 as options


def json_name(field: FieldDescriptor) -> str:
    """The field's name in JSON: its own, unless the proto's author chose another."""
    return field.name if field.json_name == _camel(field.name) else field.json_name


def _camel(name: str) -> str:
    return re.sub(r"_+([a-z0-9]?)", lambda match: match[1].upper(), name)


@cache
def enum_names(enum: EnumDescriptor) -> Mapping[int, str]:
    """Number to JSON name of every value but UNSPECIFIED: lower case, without the enum's prefix."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", enum.name).upper() + "_"
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values if value.number != 0}


def rule_of(field: FieldDescriptor) -> int:
    """The field's JsonRule."""
    return int(field.GetOptions().Extensions[options.json_rule])


def is_always_there(field: FieldDescriptor) -> bool:
    """Whether the field is in the JSON also when it is empty."""
    return bool(field.GetOptions().Extensions[options.json_always])


def is_null_when_empty(field: FieldDescriptor) -> bool:
    """Whether the field is in the JSON as null when it is empty."""
    return bool(field.GetOptions().Extensions[options.json_null])


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def message_of(field: FieldDescriptor) -> Descriptor:
    """The type of a field that holds messages."""
    assert field.message_type is not None
    return field.message_type


def enum_of(field: FieldDescriptor) -> EnumDescriptor:
    """The type of a field that holds enum values."""
    assert field.enum_type is not None
    return field.enum_type
