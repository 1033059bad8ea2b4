"""What the operator says about a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.resources import RESOURCE_FIELDS
from services.worker.drivers.demo_server import DEMO_IMAGES


def _to_resources(amounts: Any) -> Any:
    if not isinstance(amounts, Mapping):
        return amounts
    unknown = sorted(set(amounts) - set(RESOURCE_FIELDS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such amount; there are {', '.join(RESOURCE_FIELDS)}")
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not isinstance(amount, int) or amount < 0:
            raise ValueError(f"{name}: must be a whole number from 0, is {amount!r}")
    return Resources(**amounts)


def _to_amounts(resources: Resources) -> dict[str, int]:
    return {name: getattr(resources, name) for name in RESOURCE_FIELDS}


Capacity = Annotated[Resources, BeforeValidator(_to_resources), PlainSerializer(_to_amounts)]
"""A Resources message, in a file a table of its amounts."""


class ProcessSettings(BaseModel):
    """The process driver, which runs a machine as processes of the host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: dict[str, list[str]] = {}
    """Image to the command that stands for it: "nginx", "acme/api", "acme/api:1.2", "registry.example/acme/api"."""
    open_files: int = Field(default=65_536, ge=16)
    """Limit of open files of each process, lowered to what the host allows."""
    max_processes: int = Field(default=4_096, ge=1)
    """Limit of processes of a machine, where a cgroup is writable."""
    cgroups: Literal["auto", "off"] = "auto"
    """Limit memory and processes by cgroups where these are writable; "off": never."""
    log_bytes: int = Field(default=10 << 20, ge=4096)
    """Size at which a machine's log is rotated."""
    log_files: int = Field(default=3, ge=0)
    """Rotated logs that are kept of each machine."""

    def command_tables(self) -> Mapping[str, list[str]]:
        """Image to command: the images that are known without being listed, then those of the operator."""
        return {**DEMO_IMAGES, **self.images}


class WorkerSettings(BaseModel):
    """One worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    id: str = Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?$")
    """Unique in the cell."""
    zone: str = ""
    """Where it stands: machines of one app are spread over zones."""
    capacity: Capacity
    """What it has."""
    data: Path
    """Directory for its journal, its machines and its volumes. One agent at a time."""
    driver: Literal["process"] = "process"
    """What runs the machines."""
    process: ProcessSettings = ProcessSettings()
    """How the process driver runs them."""
    host_dedication_id: str = ""
    """Dedicated hosts that it belongs to; empty for everybody's."""
    heartbeat_seconds: float = Field(default=1.0, gt=0)
    """Time between two signs of life."""
