"""Random configurations, made from the descriptor: every field, valid values and invalid ones."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.conversion import FIELDS_OF_NO_PART

TEXTS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "a",
                "A",
                "a.b",
                "/",
                "/data",
                "/a/../b",
                "data",
                "vol_a",
                "acme/api:7",
                "nginx",
                "GET",
                "YQ==",
                "%%%",
            ),
            *("tcp", "udp", "http", "https", "tls", "pg_tls", "proxy_proto", "stop", "off", "always", "never", "no"),
            *("15s", "1m30s", "0s", "-1s", "1.5h", "9999999h", "µs", "shared", "performance", "a10", "shared-cpu-2x"),
            *("on-failure", "SIGTERM", "hourly", "healthy", "id", "region", "148e21ea7e46e8", "fdaa::3", "1.1.1.1:53"),
            *("readiness", "liveness", "informational", "requests", "connections", "memory", "disk", "cookie", "v2"),
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
INTEGERS = st.one_of(
    st.sampled_from([-(2**63), -1, 0, 1, 2, 8, 80, 100, 256, 512, 2048, 65535, 65536, 2**31, 2**32, 2**63 - 1]),
    st.integers(-(2**63), 2**63 - 1),
)
DOUBLES = st.floats(allow_nan=True, allow_infinity=True)

_VALUES = st.recursive(
    st.none() | st.booleans() | DOUBLES.filter(lambda x: x == x and abs(x) != float("inf")) | TEXTS,
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
_SPANS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type in _SPANS:
        low, high = _SPANS[field.cpp_type]
        return INTEGERS.map(lambda value: min(max(value, low), high))
    return {
        FieldDescriptor.CPPTYPE_STRING: TEXTS,
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_DOUBLE: DOUBLES,
    }[field.cpp_type]


def _fields(descriptor: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    optional = {f.name: _one(f) for f in descriptor.fields if f.name not in FIELDS_OF_NO_PART}
    return st.fixed_dictionaries({}, optional=optional)


def _one(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    message = field.message_type
    if message and message.GetOptions().map_entry:
        return st.dictionaries(TEXTS, _single(message.fields_by_name["value"]), max_size=3)
    return st.lists(_single(field), max_size=3) if field.is_repeated else _single(field)


def _single(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    nested = field.message_type
    if nested is None:
        return _scalars(field)
    if nested.full_name == "google.protobuf.Value":
        return _VALUES
    return st.deferred(lambda: _fields(nested))


def fill(message: Any, fields: dict[str, Any]) -> None:
    """Write `fields` into `message`; map entries in the dictionary's order."""
    for name, value in fields.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        nested = field.message_type
        if nested is None:
            if field.is_repeated:
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        elif nested.GetOptions().map_entry:
            entries = getattr(message, name)
            for key, entry in value.items():
                inner = nested.fields_by_name["value"].message_type
                if inner is None:
                    entries[key] = entry
                else:
                    fill_message(entries[key], entry)
        elif field.is_repeated:
            for entry in value:
                fill_message(getattr(message, name).add(), entry)
        else:
            fill_message(getattr(message, name), value)


def fill_message(message: Any, value: Any) -> None:
    """Write a nested message; it is set even when it is empty."""
    if message.DESCRIPTOR.full_name != "google.protobuf.Value":
        message.SetInParent()
        fill(message, value)
    elif value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, float):
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    else:
        message.list_value.SetInParent()
        for entry in value:
            fill_message(message.list_value.values.add(), entry)


def configuration(fields: dict[str, Any]) -> MachineConfig:
    """The configuration with these fields."""
    config = MachineConfig()
    fill(config, fields)
    return config


FIELDS: st.SearchStrategy[dict[str, Any]] = _fields(MachineConfig.DESCRIPTOR)


def reversed_maps(value: Any) -> Any:
    """The same fields with every dictionary in the opposite order."""
    if isinstance(value, dict):
        return {key: reversed_maps(entry) for key, entry in reversed(value.items())}
    return [reversed_maps(entry) for entry in value] if isinstance(value, list) else value
