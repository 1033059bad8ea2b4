"""The whole conversion: every part once, all errors in one answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from google.protobuf.message import Message
from skerry.converter.v1.converter_pb2 import PART_OWNER_REGION, ConversionResult, ConvertedPart
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec

from services.config_converter.part import NO_FACTS, Convert, Facts, Part, Problems
from services.config_converter.parts import PARTS
from services.config_converter.rules import member
from services.runtime.errors import InvalidConfig, PartUnserved, Violation

PART_NAMES = tuple(field.name for field in MachineSpec.DESCRIPTOR.fields if field.number < 100)
"""Every part has the name of its field in MachineSpec; those from 100 on are no parts."""

FIELDS_OF_NO_PART = frozenset({"unknown_members"})
"""Fields of MachineConfig that are kept for the user and that no part judges."""

DEFAULT_PREFIX = "config"
FIELDS_NAMED = 5
"""Fields that the message of an error names at most; its violations hold more."""
MESSAGE_BYTES = 800
VIOLATION_BYTES = 3000
"""With these an error stays below the 8 KiB of metadata that a gRPC client takes, however its text is encoded."""


@dataclass(frozen=True, slots=True)
class Context:
    """Whose configuration it is, and where it stands in the user's request."""

    app_name: str = ""
    region: str = ""
    field_prefix: str = DEFAULT_PREFIX
    machine_id: str = ""


NO_CONTEXT = Context()


def convert(
    config: MachineConfig, context: Context = NO_CONTEXT, facts: Facts = NO_FACTS, parts: tuple[Part, ...] = PARTS
) -> ConversionResult:
    """Convert a configuration with the newest converters of `parts`: every part has to be there exactly once.

    Equal arguments give results that serialize to equal bytes (with `deterministic=True`). Raises InvalidConfig, whose
    violations hold the bad fields in an order that depends on the configuration only, and PartUnserved if a part is
    missing or doubled.
    """
    steps, blank = _steps_and_blank(parts)
    problems = Problems()
    result = convert_steps(steps, blank, config, facts, problems)
    if problems.found:
        raise invalid_config(problems, context.field_prefix)
    return result


Steps = tuple[tuple[str, Convert], ...]
"""Parts by name, each with its converter."""


def convert_steps(
    steps: Steps, blank: bytes, config: MachineConfig, facts: Facts, problems: Problems
) -> ConversionResult:
    """A result that begins as `blank` (serialized) and has the part of every step; what is wrong is in `problems`."""
    for field in _fields_with_nul(config):
        problems.add(field, "must not contain the character NUL")
    result = ConversionResult.FromString(blank)
    spec = result.spec
    for name, convert_part in steps:
        getattr(spec, name).CopyFrom(convert_part(config, facts, problems))
    return result


@lru_cache(maxsize=16)
def _steps_and_blank(parts: tuple[Part, ...]) -> tuple[Steps, bytes]:
    """The newest converters, and a result with an empty spec, which says who converts what."""
    claimed = Counter(part.name for part in parts)
    faults = [f"{name} has no converter" for name in PART_NAMES if not claimed[name]]
    faults += [f"{name} has {times} converters" for name, times in claimed.items() if times > 1]
    faults += [f"{name} is no part" for name in claimed if name not in PART_NAMES]
    if faults:
        raise PartUnserved(f"every part of a spec has to be converted exactly once: {'; '.join(faults)}")
    made = [ConvertedPart(part=part.name, owner=PART_OWNER_REGION, version=part.version) for part in parts]
    return tuple((part.name, part.convert) for part in parts), blank_result(made)


def blank_result(made: Sequence[ConvertedPart], epoch: int = 0) -> bytes:
    """A serialized result with an empty spec, which says who converts what."""
    result = ConversionResult(parts=made, epoch=epoch)
    result.spec.SetInParent()
    return result.SerializeToString()


def invalid_config(problems: Problems, prefix: str = DEFAULT_PREFIX) -> InvalidConfig:
    """The error for what the Problems hold, with `prefix` before each field: as many as fit, the others are counted."""
    violations = [Violation(f"{prefix}.{field}", why) for field, why in problems.found.items()]
    total = len(violations) + problems.left_out
    kept = _first(violations, VIOLATION_BYTES)
    named = _first(kept[:FIELDS_NAMED], MESSAGE_BYTES)
    message = "; ".join(f"{violation.field} {violation.why}" for violation in named)
    others = total - len(named)
    if others:
        message += f"; and {others} more field{'s' if others > 1 else ''}"
    return InvalidConfig(message, violations=kept)


def _first(violations: Sequence[Violation], most_bytes: int) -> Sequence[Violation]:
    """The first violations whose text has `most_bytes` at most; one at least."""
    sizes = accumulate(len(violation.field.encode()) + len(violation.why.encode()) for violation in violations)
    return violations[: max(1, sum(size <= most_bytes for size in sizes))]


def owner_of(field: str, parts: Sequence[Part] = PARTS) -> Part:
    """The part that owns a field of MachineConfig, a path such as `guest.cpus`; the longest owned path decides.

    Raises KeyError when there is none.
    """
    owners = {owned: part for part in parts for owned in part.owns}
    path = field.split(".")
    for length in range(len(path), 0, -1):
        part = owners.get(".".join(path[:length]))
        if part:
            return part
    raise KeyError(field)


def _fields_with_nul(config: MachineConfig) -> Iterator[str]:
    if _may_have_nul(config):
        for field, value in config.ListFields():
            if field.name not in FIELDS_OF_NO_PART:
                yield from _paths_with_nul(value, field.name)


def _paths_with_nul(value: object, path: str) -> Iterator[str]:
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, Message):
        if _may_have_nul(value):
            for field, inner in value.ListFields():
                yield from _paths_with_nul(inner, f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key in sorted(value):
            entry = member(path, key)
            if "\0" in key:
                yield entry
            yield from _paths_with_nul(value[key], entry)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for i, inner in enumerate(value):
            yield from _paths_with_nul(inner, f"{path}[{i}]")


def _may_have_nul(message: Message) -> bool:
    """Quick, and never wrong when it says no: a NUL is a zero byte on the wire, where some numbers have them too."""
    return b"\0" in message.SerializeToString()
