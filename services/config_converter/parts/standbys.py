"""The part standbys: the machines that this one stands by for."""

from __future__ import annotations

import re

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import StandbysSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import shown

_MACHINE_ID = re.compile(r"[0-9a-f]{14}").fullmatch
_NONE = StandbysSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> StandbysSpec:
    """A machine with services is routed to, so it stands by for none."""
    standbys = config.standbys
    if not standbys:
        return _NONE
    if config.services:
        problems.add("standbys", "must be empty for a machine with services: leave one of them out")
    for i, machine_id in enumerate(standbys):
        if not _MACHINE_ID(machine_id):
            problems.add(f"standbys[{i}]", f"must be a machine's id (14 lower-case hex digits), is {shown(machine_id)}")
    return StandbysSpec(machine_ids=standbys)


PART = Part("standbys", owns=("standbys",), reads=("services",), converters={1: convert})
