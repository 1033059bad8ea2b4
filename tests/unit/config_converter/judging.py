"""What the tests of every part do: run one part on a configuration that is written like JSON."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.part import NO_FACTS, Facts, Part, Problems


def config_of(fields: dict[str, Any]) -> MachineConfig:
    """The configuration with these fields."""
    return ParseDict(fields, MachineConfig())


def accept(part: Part, fields: dict[str, Any], facts: Facts = NO_FACTS) -> Any:
    """The part's spec; fails if the part finds something wrong."""
    spec, problems = _run(part, fields, facts)
    assert problems.found == {}
    return spec


def refuse(part: Part, fields: dict[str, Any], facts: Facts = NO_FACTS) -> dict[str, str]:
    """What the part finds wrong: path to reason; fails if that is nothing."""
    _, problems = _run(part, fields, facts)
    assert problems.found
    return problems.found


def _run(part: Part, fields: dict[str, Any], facts: Facts) -> tuple[Message, Problems]:
    problems = Problems()
    return part.convert(config_of(fields), facts, problems), problems
