"""Dry runs of creating and updating a machine: every step but the one that writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.config_pb2 import MachineConfig

from gateway.capacity import no_capacity
from gateway.machines import (
    CREATE_MACHINE,
    UPDATE_MACHINE,
    Creation,
    Update,
    Version,
    commit_creation,
    commit_update,
    grows,
    look_key_up,
    place,
    place_if_it_grows,
    place_request,
)
from gateway.mounts import name_by_id
from gateway.rest.codec import encode
from gateway.surroundings import Surroundings
from services.runtime.errors import VersionMismatch

MOST_DIFFERENCES = 1_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs between two JSON documents; None stands for what is not there."""

    path: str
    before: Any
    after: Any


def differences(before: Any, after: Any, path: str) -> Iterator[Difference]:
    """What differs between two JSON values at `path`, member by member and item by item."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from differences(before.get(name), after.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            was, will_be = (values[index] if index < len(values) else None for values in (before, after))
            yield from differences(was, will_be, f"{path}[{index}]")
    elif before != after or type(before) is not type(after):
        yield Difference(path, before, after)


async def dry_run_creation(around: Surroundings, request: api.CreateMachineRequest, key: str) -> api.DryRun:
    """What a create would make. Raises what it would, but for what only the write can tell."""
    creation = Creation(around, request, key=key)
    for step in CREATE_MACHINE.steps:
        if step.forward not in (look_key_up, place, commit_creation):
            await step.forward(creation)
    return api.DryRun(spec=_spec(creation), placement=await _place(creation))


async def dry_run_update(around: Surroundings, request: api.UpdateMachineRequest) -> api.DryRun:
    """What an update would make of the machine, and what it would change. Raises what it would, as above."""
    update = Update(around, request)
    for step in UPDATE_MACHINE.steps:
        if step.forward not in (place_if_it_grows, commit_update):
            await step.forward(update)
    machine = update.machine
    if request.current_version not in ("", machine.instance_id):
        raise VersionMismatch(
            f"machine {machine.id} is at version {machine.instance_id}, not {request.current_version[:64]!r}",
            metadata={"current_version": machine.instance_id},
        )
    wanted = MachineConfig()
    wanted.CopyFrom(request.config)
    if update.volume is not None:
        name_by_id(wanted, update.volume)
    before, after = (json.loads(encode(config)) for config in (machine.config, wanted))
    found = list(differences(before, after, "config"))
    if request.name not in ("", machine.name):
        found.insert(0, Difference("name", machine.name, request.name))
    placement = _stays(around, machine) if not grows(update) else await _place(update)
    return api.DryRun(
        spec=_spec(update),
        placement=placement,
        diff=[
            api.ConfigDifference(path=each.path, before=_value(each.before), after=_value(each.after))
            for each in found[:MOST_DIFFERENCES]
        ],
    )


async def _place(version: Version) -> api.DryRunPlacement:
    around = version.around
    request = place_request(version)
    request.dry_run = True
    placed = await around.retries(lambda: around.scheduler.Place(request))
    fits = bool(placed.candidates)
    return api.DryRunPlacement(
        region=around.region,
        fits=fits,
        reason="" if fits else no_capacity(around.region, version.need, placed).message,
        candidates=[
            api.DryRunCandidate(worker_id=each.worker_id, score=each.score, reasons=each.reasons)
            for each in placed.candidates
        ],
        rejections=[
            api.DryRunRejection(constraint=each.reason, workers=each.workers, most_free=each.most_free)
            for each in placed.rejections
        ],
        workers=placed.workers,
    )


def _stays(around: Surroundings, machine: store.MachineRecord) -> api.DryRunPlacement:
    candidates = [api.DryRunCandidate(worker_id=machine.worker_id, score=1, reasons=["it stays where it is"])]
    return api.DryRunPlacement(region=around.region, fits=True, candidates=candidates, workers=1)


def _spec(version: Version) -> Value:
    return _value(json_format.MessageToDict(version.conversion.spec, preserving_proto_field_name=True))


def _value(document: Any) -> Value:
    return json_format.ParseDict(document, Value()) if document is not None else Value()
