"""Comparing two conversions of a part: what the input was, whether the outcomes differ, and where."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from skerry.handover.v1.plan_pb2 import Difference
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.part import Convert, Facts, Part, Problems
from services.config_converter.rules import member


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a converter made of a part: its message, or why it refused the configuration."""

    version: int
    spec: Message | None = None
    refusal: str = ""

    @property
    def accepted(self) -> bool:
        """The configuration was not refused."""
        return self.spec is not None


_Field = Any
"""A FieldDescriptor, of which protobuf has two classes."""


def outcome_here(convert: Convert, version: int, config: MachineConfig, facts: Facts) -> Outcome:
    """What a converter of the region makes of a configuration."""
    problems = Problems()
    spec = convert(config, facts, problems)
    if problems.found:
        return Outcome(version, refusal="; ".join(f"{field} {why}" for field, why in problems.found.items()))
    return Outcome(version, spec)


def compare(part: str, here: Outcome, there: Outcome) -> Difference | None:
    """The first field in which two outcomes differ, as a Difference with both; None when they agree.

    `here` is the region's, `there` the other one's: the centre's, or what is stored. Two refusals agree, whatever they
    say.
    """
    if here.spec is None and there.spec is None:
        return None
    found = Difference(
        part=part,
        local_version=here.version,
        central_version=there.version,
        local_refusal=here.refusal,
        central_refusal=there.refusal,
    )
    if here.spec is not None and there.spec is not None:
        if here.spec == there.spec:
            return None
        where = first_difference(here.spec, there.spec)
        if where is None:
            # They are not equal only because NaN never is.
            return None
        found.field, found.local_value, found.central_value = where
    if here.spec is not None:
        found.local_output = _json(here.spec)
    if there.spec is not None:
        found.central_output = _json(there.spec)
    return found


def first_difference(here: Message, there: Message, path: str = "") -> tuple[str, str, str] | None:
    """Path of the first field, in the order of the numbers, in which two messages differ, and both values as JSON.

    A value that is absent is an empty string. None when they do not differ.
    """
    for field in here.DESCRIPTOR.fields:
        name = f"{path}.{field.name}" if path else field.name
        mine, theirs = getattr(here, field.name), getattr(there, field.name)
        if field.has_presence:
            has_mine, has_theirs = here.HasField(field.name), there.HasField(field.name)
            if has_mine != has_theirs:
                return name, _value(field, mine) if has_mine else "", _value(field, theirs) if has_theirs else ""
        found = _difference(field, mine, theirs, name)
        if found is not None:
            return found
    return None


def _difference(field: _Field, mine: Any, theirs: Any, name: str) -> tuple[str, str, str] | None:
    nested = field.message_type
    if nested and nested.GetOptions().map_entry:
        value = nested.fields_by_name["value"]
        for key in sorted({*mine, *theirs}):
            at = member(name, str(key))
            if key not in mine or key not in theirs:
                return (
                    at,
                    _single(value, mine[key]) if key in mine else "",
                    _single(value, theirs[key]) if key in theirs else "",
                )
            found = _single_difference(value, mine[key], theirs[key], at)
            if found is not None:
                return found
        return None
    if not field.is_repeated:
        return _single_difference(field, mine, theirs, name)
    for i in range(max(len(mine), len(theirs))):
        at = f"{name}[{i}]"
        if i >= len(mine) or i >= len(theirs):
            return (
                at,
                _single(field, mine[i]) if i < len(mine) else "",
                _single(field, theirs[i]) if i < len(theirs) else "",
            )
        found = _single_difference(field, mine[i], theirs[i], at)
        if found is not None:
            return found
    return None


def _single_difference(field: _Field, mine: Any, theirs: Any, name: str) -> tuple[str, str, str] | None:
    if field.message_type:
        return first_difference(mine, theirs, name)
    if mine == theirs or (isinstance(mine, float) and math.isnan(mine) and math.isnan(theirs)):
        return None
    return name, _single(field, mine), _single(field, theirs)


def _value(field: _Field, value: Any) -> str:
    return f"[{', '.join(_single(field, v) for v in value)}]" if field.is_repeated else _single(field, value)


def _single(field: _Field, value: Any) -> str:
    if isinstance(value, Message):
        return _json(value)
    if field.enum_type and value in field.enum_type.values_by_number:
        return json.dumps(field.enum_type.values_by_number[value].name)
    if isinstance(value, bytes):
        return json.dumps(base64.b64encode(value).decode())
    return json.dumps(value, ensure_ascii=False)


def _json(message: Message) -> str:
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True), ensure_ascii=False, sort_keys=True)


class InputHashes:
    """Hashes of everything that the conversion of a part depends on, but the converter's version."""

    def __init__(self, parts: Sequence[Part]) -> None:
        owned = {path for part in parts for path in part.owns}
        self._takers = {part.name: _taker(part, owned) for part in parts}
        self._facts = {part.name: part.facts_used for part in parts}

    def of(self, part: str, config: MachineConfig, facts: Facts) -> bytes:
        """SHA-256 of every field that the part owns or reads, and of the facts that it uses."""
        taken = MachineConfig()
        self._takers[part](config, taken)
        used = json.dumps([part, *sorted(self._facts[part](config, facts))])
        digest = hashlib.sha256(used.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
        digest.update(taken.SerializeToString(deterministic=True))
        return digest.digest()


_Take = Callable[[MachineConfig, MachineConfig], None]


def _taker(part: Part, owned: set[str]) -> _Take:
    """Copies what the part owns or reads, and nothing else, from one configuration to another."""
    inner: dict[str, set[str]] = {}
    whole: dict[str, set[str]] = {}
    for path in (*part.owns, *part.reads):
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, set()).add(rest)
        else:
            whole[name] = set()
    for path in owned - {*part.owns, *part.reads}:
        name, _, rest = path.partition(".")
        if rest and name in whole:
            whole[name].add(rest)

    def take(source: MachineConfig, target: MachineConfig) -> None:
        for field, value in source.ListFields():
            name = field.name
            if name in whole:
                _copy(field, value, target)
                for dropped in whole[name]:
                    getattr(target, name).ClearField(dropped)
            elif name in inner:
                nested = getattr(target, name)
                for below, found in value.ListFields():
                    if below.name in inner[name]:
                        _copy(below, found, nested)

    return take


def _copy(field: _Field, value: Any, target: Message) -> None:
    if field.is_repeated:
        here = getattr(target, field.name)
        if isinstance(value, Mapping) and field.message_type.fields_by_name["value"].message_type is None:
            here.update(value)
        else:
            here.MergeFrom(value)
    elif isinstance(value, Message):
        getattr(target, field.name).CopyFrom(value)
    else:
        setattr(target, field.name, value)
