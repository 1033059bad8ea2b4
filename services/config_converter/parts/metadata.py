"""The part metadata: free key-value pairs of the user."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MetadataSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import member

_NONE = MetadataSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> MetadataSpec:
    """A key is not empty; a value may be."""
    metadata = config.metadata
    if not metadata:
        return _NONE
    spec = MetadataSpec()
    for key in sorted(metadata):
        if not key:
            problems.add(member("metadata", key), "must have a key")
        spec.entries[key] = metadata[key]
    return spec


PART = Part("metadata", owns=("metadata",), converters={1: convert})
