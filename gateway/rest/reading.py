"""JSON values to messages: one closure a message type, made from its descriptor when first used.

A reader never stops at the first mistake: it reports every field that is wrong, and every member that nothing knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.types.v1 import annotations_pb2 as options

from gateway.rest.forms import enum_names, enum_of, is_map, json_name, message_of, rule_of
from services.runtime.durations import LONGEST, format_go_duration
from services.runtime.errors import Violation

MOST_VIOLATIONS = 100
MOST_UNKNOWN = 100
DEEPEST_VALUE = 30
"""Levels of nesting of a free JSON value, which costs three messages a level."""

Where = tuple[Any, str | int] | None
"""A place in the document: the place of what holds it, and its name or index there; None is the document itself."""

Convert = Callable[[Any], Any]
"""Turns a JSON value into a field's value, or raises Mistake."""

_SHOWN = 40
_INTEGERS: Mapping[int, tuple[str, int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: ("a whole number of 32 bits", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: ("a whole number of 64 bits", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: ("a whole number of 0 or more and 32 bits", 0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: ("a whole number of 0 or more and 64 bits", 0, (1 << 64) - 1),
}
_PERSIST_ROOTFS = ("", "never", "restart", "always")


class Mistake(Exception):
    """A value is not what its field takes; the text says what it must be."""


class Report:
    """What a reader found out about a document: the fields that are wrong, and the paths that nothing knows."""

    __slots__ = ("unknown", "violations")

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.unknown: list[str] = []

    def wrong(self, where: Where, why: str) -> None:
        """Note that the value at `where` is wrong; after MOST_VIOLATIONS, nothing more is noted."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(Violation(path_of(where), why))

    def not_known(self, where: Where) -> None:
        """Note a member that nothing knows; after MOST_UNKNOWN, nothing more is noted."""
        if len(self.unknown) < MOST_UNKNOWN:
            self.unknown.append(path_of(where))


Nested = Callable[[Any, Where, Report], Any]
"""Turns a JSON value that holds others into what a message's constructor takes. Raises Mistake for the value itself."""

Reader = Convert | Nested


class _Row(NamedTuple):
    """How one field is read: a value of exactly the type `plain` as it is, another through one of the two functions."""

    name: str
    plain: type | None
    convert: Convert | None
    nested: Nested | None


def path_of(where: Where) -> str:
    """The path of a place, as people write it: "config.services[0].internal_port"."""
    parts: list[str] = []
    while where is not None:
        where, step = where
        parts.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(parts)).removeprefix(".")


@cache
def reader_of(descriptor: Descriptor) -> Nested:
    """What turns a JSON object into the fields of a message of that type, as its constructor takes them."""
    rows: dict[str, _Row] = {}
    unknown_members: str | None = None
    for field in descriptor.fields:
        if rule_of(field) == options.JSON_RULE_UNKNOWN_MEMBERS:
            unknown_members = field.name
        else:
            rows[json_name(field)] = _row(field)
    row_of = rows.get

    def read_message(value: Any, where: Where, report: Report) -> dict[str, Any]:
        if type(value) is not dict:
            raise Mistake(f"must be an object, is {kind_of(value)}")
        fields: dict[str, Any] = {}
        for key, member in value.items():
            row = row_of(key)
            if row is None:
                report.not_known((where, key))
                if unknown_members is not None and member is not None:
                    fields.setdefault(unknown_members, {})[key] = orjson.dumps(member).decode()
                continue
            if not member and (member is None or member == "" or member == [] or member == {}):
                continue
            name, plain, convert, nested = row
            if type(member) is plain:
                fields[name] = member
                continue
            try:
                if nested is not None:
                    # An object of which nothing is set is an empty one: not set either.
                    if inner := nested(member, (where, key), report):
                        fields[name] = inner
                elif convert is not None:
                    fields[name] = convert(member)
            except Mistake as mistake:
                report.wrong((where, key), str(mistake))
        return fields

    return read_message


def _row(field: FieldDescriptor) -> _Row:
    if rule_of(field) == options.JSON_RULE_SECRETS_OR_NULL:
        return _Row(field.name, None, None, _read_secrets_or_null)
    if is_map(field):
        return _Row(field.name, None, None, _map_reader(_singular_row(message_of(field).fields_by_name["value"])))
    row = _singular_row(field)
    return _Row(field.name, None, None, _list_reader(row)) if field.is_repeated else row


def _singular_row(field: FieldDescriptor) -> _Row:
    name, kind, rule = field.name, field.cpp_type, rule_of(field)
    if rule in _RULED:
        return _Row(name, *_RULED[rule], None)
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        well_known = _WELL_KNOWN.get(message_of(field).full_name)
        return _Row(name, None, well_known, None if well_known else _later(message_of(field)))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _Row(name, None, _enum_converter(enum_of(field)), None)
    if kind in _INTEGERS:
        return _Row(name, None, _integer_converter(*_INTEGERS[kind]), None)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return _Row(name, bool, _refuse("true or false"), None)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _Row(name, float, _convert_whole_to_float, None)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _Row(name, str, _refuse("a string"), None)
    raise TypeError(f"{field.full_name} has a type that the public API does not use")


def _later(descriptor: Descriptor) -> Nested:
    """The reader of a nested message, made when first used: types may hold themselves."""
    made: Nested | None = None

    def read_nested(value: Any, where: Where, report: Report) -> Any:
        nonlocal made
        if made is None:
            made = reader_of(descriptor)
        return made(value, where, report)

    return read_nested


def _list_reader(row: _Row) -> Nested:
    _, plain, convert, nested = row

    def read_list(value: Any, where: Where, report: Report) -> list[Any]:
        if type(value) is not list:
            raise Mistake(f"must be a list, is {kind_of(value)}")
        items: list[Any] = []
        for index, item in enumerate(value):
            if type(item) is plain:
                items.append(item)
                continue
            try:
                if nested is not None:
                    items.append(nested(item, (where, index), report))
                elif convert is not None:
                    items.append(convert(item))
            except Mistake as mistake:
                report.wrong((where, index), str(mistake))
        return items

    return read_list


def _map_reader(row: _Row) -> Nested:
    _, plain, convert, nested = row

    def read_map(value: Any, where: Where, report: Report) -> dict[str, Any]:
        if type(value) is not dict:
            raise Mistake(f"must be an object, is {kind_of(value)}")
        entries: dict[str, Any] = {}
        for key, item in value.items():
            if item is None:
                continue
            if type(item) is plain:
                entries[key] = item
                continue
            try:
                if nested is not None:
                    entries[key] = nested(item, (where, key), report)
                elif convert is not None:
                    entries[key] = convert(item)
            except Mistake as mistake:
                report.wrong((where, key), str(mistake))
        return entries

    return read_map


def _read_secrets_or_null(value: Any, where: Where, report: Report) -> dict[str, Any]:
    if type(value) is not dict:
        raise Mistake("must be an object")
    entries: dict[str, Any] = {}
    for key, item in value.items():
        if item is None or type(item) is str:
            entries[key] = {"value": item}
        else:
            report.wrong((where, key), "must be a string or null")
    return entries


def _refuse_secret(_value: Any) -> Any:
    # Whatever it is, it may be what somebody wants to keep to themselves.
    raise Mistake("must be a string")


def _refuse(expected: str) -> Convert:
    def refuse(value: Any) -> Any:
        raise Mistake(f"must be {expected}, is {kind_of(value)}")

    return refuse


def _integer_converter(expected: str, lowest: int, highest: int) -> Convert:
    def convert_integer(value: Any) -> int:
        if type(value) is int and lowest <= value <= highest:
            return value
        raise Mistake(f"must be {expected}, is {kind_of(value)}")

    return convert_integer


def _convert_whole_to_float(value: Any) -> float:
    if type(value) is int:
        return float(value)
    raise Mistake(f"must be a number, is {kind_of(value)}")


def _enum_converter(enum: EnumDescriptor) -> Convert:
    numbers = {text: number for number, text in enum_names(enum).items()}

    def convert_enum(value: Any) -> int:
        if isinstance(value, str) and value in numbers:
            return numbers[value]
        raise Mistake(f"must be one of {', '.join(numbers)}, is {kind_of(value)}")

    return convert_enum


def _convert_go_duration(value: Any) -> str:
    if type(value) is int and -LONGEST <= value <= LONGEST:
        return format_go_duration(value)
    raise Mistake(f'must be a duration such as "15s" or whole nanoseconds, is {kind_of(value)}')


def _convert_autostop(value: Any) -> str:
    if type(value) is bool:
        return "stop" if value else "off"
    raise Mistake(f'must be true, false, "off", "stop" or "suspend", is {kind_of(value)}')


def _convert_persist_rootfs(value: Any) -> str:
    if value == "none":
        return ""
    if type(value) is str:
        return value
    if type(value) is int and 0 <= value < len(_PERSIST_ROOTFS):
        return _PERSIST_ROOTFS[value]
    raise Mistake(f'must be "none", "never", "restart", "always" or a whole number of 0..3, is {kind_of(value)}')


def _convert_integer_to_string(value: Any) -> str:
    if type(value) is int:
        return str(value)
    raise Mistake(f"must be a string or a whole number, is {kind_of(value)}")


def _convert_timestamp(value: Any) -> Timestamp:
    moment = Timestamp()
    try:
        if not isinstance(value, str):
            raise ValueError
        moment.FromJsonString(value)
    except (ValueError, OverflowError):
        raise Mistake(f'must be a time such as "2026-01-02T03:04:05Z", is {kind_of(value)}') from None
    return moment


def _unix_converter(unit: str, nanoseconds: int) -> Convert:
    # The years 0001..9999, which is what a Timestamp holds.
    earliest, latest = -62_135_596_800 * 10**9, 253_402_300_799 * 10**9

    def convert_unix(value: Any) -> Timestamp:
        if type(value) is int and earliest <= value * nanoseconds <= latest:
            seconds, rest = divmod(value * nanoseconds, 10**9)
            return Timestamp(seconds=seconds, nanos=rest)
        raise Mistake(f"must be a whole number of {unit} since 1970, is {kind_of(value)}")

    return convert_unix


def _convert_value(value: Any, levels: int = DEEPEST_VALUE) -> Value:
    if levels == 0:
        raise Mistake(f"must not be nested deeper than {DEEPEST_VALUE} levels")
    if value is None:
        return Value(null_value=NULL_VALUE)
    if type(value) is bool:
        return Value(bool_value=value)
    if type(value) is str:
        return Value(string_value=value)
    if type(value) is list:
        return Value(list_value=ListValue(values=[_convert_value(item, levels - 1) for item in value]))
    if type(value) is dict:
        return Value(struct_value=Struct(fields={key: _convert_value(item, levels - 1) for key, item in value.items()}))
    return Value(number_value=value)


_RULED: Mapping[int, tuple[type | None, Convert]] = {
    options.JSON_RULE_GO_DURATION: (str, _convert_go_duration),
    options.JSON_RULE_AUTOSTOP: (str, _convert_autostop),
    options.JSON_RULE_PERSIST_ROOTFS: (None, _convert_persist_rootfs),
    options.JSON_RULE_STRING_OR_INTEGER: (str, _convert_integer_to_string),
    options.JSON_RULE_UNIX_MILLIS: (None, _unix_converter("milliseconds", 10**6)),
    options.JSON_RULE_UNIX_SECONDS: (None, _unix_converter("seconds", 10**9)),
    options.JSON_RULE_SECRET: (str, _refuse_secret),
}
_WELL_KNOWN: Mapping[str, Convert] = {
    Timestamp.DESCRIPTOR.full_name: _convert_timestamp,
    Value.DESCRIPTOR.full_name: _convert_value,
}


def kind_of(value: Any) -> str:
    """A JSON value for people, cut short: "null", "the number 5", "the string "a"", "an object"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, int | float):
        return f"the number {_cut(str(value))}"
    return "a list" if isinstance(value, list) else "an object"


def quoted(text: str) -> str:
    """`text` in quotes, cut short."""
    return json.dumps(_cut(text), ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
