"""One configuration, converted by the region's part and by the centre's: what differs."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec

from gateway.rest.codec import decode
from services.central.legacy import convert_part
from services.config_converter.part import Facts, Limits, Problems
from services.config_converter.parts import PARTS as REGION_PARTS

REGION = {part.name: part for part in REGION_PARTS}

Outcome = tuple[dict[str, Any] | None, frozenset[str]]
"""The spec (None when it was refused), and the fields that were refused."""


def in_the_region(part: str, config: MachineConfig, facts: dict[str, Any] | None = None) -> Outcome:
    """What the region's part makes of a configuration."""
    given = facts or {}
    limits = {name: value for name, value in (given.get("limits") or {}).items() if name != "machines"}
    problems = Problems()
    known = Facts(
        image_aliases=given.get("image_aliases", {}),
        image_digests=given.get("image_digests", {}),
        limits=Limits(**limits),
    )
    message = REGION[part].convert(config, known, problems)
    return (None if problems.found else _plain(message)), frozenset(problems.found)


def in_the_centre(part: str, config: dict[str, Any], facts: dict[str, Any] | None = None, version: int = 1) -> Outcome:
    """What the centre's converter makes of a configuration in its public JSON form."""
    spec, wrong = convert_part(part, version, config, facts or {})
    if wrong:
        return None, frozenset(wrong)
    message = getattr(MachineSpec(), part)
    ParseDict(spec, message)
    return _plain(message), frozenset()


def read(config: dict[str, Any]) -> MachineConfig:
    """The message of a configuration's public JSON form."""
    return decode(MachineConfig, json.dumps(config).encode())[0]


def differing_parts(
    config: dict[str, Any], facts: dict[str, Any] | None = None, message: MachineConfig | None = None
) -> dict[str, tuple[Outcome, Outcome]]:
    """Part to (what the region makes of it, what the centre makes of it), where they differ.

    `message` is the configuration as the region has it; it is read from `config` if it is not given.
    """
    ours = message or read(config)
    both = {p: (in_the_region(p, ours, facts), in_the_centre(p, config, facts)) for p in REGION}
    return {part: (here, there) for part, (here, there) in both.items() if here != there}


def _plain(message: Any) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return plain
