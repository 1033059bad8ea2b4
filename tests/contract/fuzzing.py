"""Requests that nobody would send: messages filled at random from their descriptors, and bytes that are no messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DEEPEST = 6
STRINGS = (
    *("", "a", "A" * 300, "x" * 70_000, "é", "日本", "\x00", "\n", "null", "-1", "1e999"),
    *("../..", "a/b", "%00", "'", '"', "$(", "{}", "000", "001", "fff", "00000000000000", "vol_001", "vs_001"),
    *("started", "stopped", "SIGTERM", "15s", "1m30s", "syd", "personal", "name-1", "busybox"),
    *("docker.io/library/busybox:1", "01JABCDEFGHJKMNPQRSTVWXYZ0", "2026-01-02T03:04:05Z"),
)
INTEGERS = (0, 1, -1, 2, 5, 60, 256, 1 << 15, (1 << 31) - 1, -(1 << 31), (1 << 32) - 1, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, 1.0, -1.5, float("inf"), float("-inf"), float("nan"), 1e308, 5e-324)
_BITS: Mapping[int, tuple[int, bool]] = {
    FieldDescriptor.CPPTYPE_INT32: (32, True),
    FieldDescriptor.CPPTYPE_INT64: (64, True),
    FieldDescriptor.CPPTYPE_UINT32: (32, False),
    FieldDescriptor.CPPTYPE_UINT64: (64, False),
}


class Requests:
    """An endless source of requests. `known` are texts that mean something where they are sent to, such as ids."""

    def __init__(self, random: Random, known: Mapping[str, Sequence[str]]) -> None:
        """`known` are by the name of the field that may hold them; any may come in any other, but seldom."""
        self._random = random
        self._known = known
        self._all = [text for texts in known.values() for text in texts]

    def bytes_for(self, descriptor: Descriptor) -> bytes:
        """A request for a method that takes messages of that type: one, one with bytes changed, or none at all."""
        kind = self._random.random()
        if kind < 0.1:
            return self._random.randbytes(self._random.choice((0, 1, 3, 17, 200, 5000)))
        raw = self.message(descriptor).SerializeToString()
        if kind < 0.75 or not raw:
            return raw
        changed = bytearray(raw)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(changed))
            match self._random.randrange(3):
                case 0:
                    changed[at] = self._random.randrange(256)
                case 1:
                    del changed[at:]
                    changed.append(8)
                case _:
                    changed[at:at] = self._random.randbytes(3)
        return bytes(changed)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with some of its fields filled."""
        message = GetMessageClass(descriptor)()
        often = 0.75 if depth == 0 else 0.35
        for field in descriptor.fields:
            if field.name == "cmd" and not field.is_repeated:
                # What would be run is not left to chance.
                setattr(message, field.name, "true")
            elif self._random.random() < often and depth < DEEPEST:
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
            entries = getattr(message, field.name)
            for _ in range(self._random.randint(1, 3)):
                name = self._value(key)
                if value.message_type is not None:
                    entries[name].CopyFrom(self.message(value.message_type, depth + 1))
                else:
                    entries[name] = self._value(value)
        elif field.is_repeated:
            items = getattr(message, field.name)
            for _ in range(self._random.randint(1, 3)):
                items.append(self.message(inner, depth + 1) if inner is not None else self._value(field))
        elif inner is not None:
            getattr(message, field.name).CopyFrom(self.message(inner, depth + 1))
        else:
            setattr(message, field.name, self._value(field))

    def _value(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if kind in _BITS:
            bits, signed = _BITS[kind]
            lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            return min(max(self._random.choice(INTEGERS), lowest), highest)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._random.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return self._random.choice([*(value.number for value in field.enum_type.values), 99, -1])
        if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self._random.choice(FLOATS)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._random.randbytes(self._random.choice((0, 1, 32, 400)))
        return self._text(field.name)

    def _text(self, field: str) -> str:
        known = self._known.get(field)
        if known and self._random.random() < 0.8:
            return self._random.choice(known)
        if self._all and self._random.random() < 0.2:
            return self._random.choice(self._all)
        return self._random.choice(STRINGS)


def in_turn(services: Sequence[ServiceDescriptor], leave_out: Callable[[str], bool]) -> Iterator[MethodDescriptor]:
    """The methods of the services, round and round, for ever."""
    methods = [method for service in services for method in service.methods if not leave_out(method.full_name)]
    while True:
        yield from methods
