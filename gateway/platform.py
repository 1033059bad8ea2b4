"""The regions, and how many machines would find room where: nothing is written or reserved."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from skerry.converter.v1.converter_pb2 import ConvertRequest
from skerry.machines.v1 import platform_pb2 as api
from skerry.scheduler.v1.scheduler_pb2 import CountRoomRequest
from skerry.types.v1.config_pb2 import MachineConfig, MachineGuest
from skerry.types.v1.resources_pb2 import Resources

from gateway.apps import Catalog
from gateway.routing import LIST_SECONDS, Peer
from gateway.surroundings import Surroundings
from services.runtime.errors import (
    DependencyDown,
    ForbiddenDependency,
    InvalidConfig,
    NotFound,
    PartUnserved,
    SkerryError,
    Violation,
)
from services.runtime.regions import Region
from services.runtime.resources import need_of
from services.runtime.telemetry import log

ANY = "any"
MOST_MACHINES = 1000
"""Machines that are counted in a region, and placed in all."""
MOST_CAPACITY = 100_000
MOST_WEIGHT = 1000
MOST_VOLUME_BYTES = 1 << 50
WEIGHT_OF_REGION = 50
WEIGHT_OF_SPREAD = 1
DEFAULT_COMPUTE = MachineGuest(cpu_kind="performance", cpus=1, memory_mb=2048)
SMALLEST_COMPUTE = MachineGuest(cpu_kind="shared", cpus=1, memory_mb=256)

_IMAGE = "docker.io/library/busybox"
"""A machine has an image; which one does not matter to its need."""


class Room(NamedTuple):
    """How many machines find room, and how many workers can take one at least."""

    machines: int
    workers: int


class Need(NamedTuple):
    """What a machine needs, and the dedicated hosts that it must run on; empty for everybody's."""

    amounts: Resources
    host_dedication_id: str


class Simulated(NamedTuple):
    """Where machines would be placed, best first, and the codes of the regions that did not answer."""

    placements: list[api.RegionPlacement]
    unreachable: tuple[str, ...]


async def list_regions(around: Surroundings) -> api.ListRegionsResponse:
    """All regions; the one that is asked tells its capacity, unless what it takes to know it is away."""
    regions = [
        api.Region(
            code=region.code,
            name=region.name,
            latitude=region.latitude,
            longitude=region.longitude,
            gateway_available=True,
        )
        for region in around.regions.regions
    ]
    try:
        room = await _room(around, await _need(around, SMALLEST_COMPUTE), MOST_CAPACITY)
    except (DependencyDown, PartUnserved) as error:
        log.warning("capacity_unknown", why=error.message)
    else:
        next(region for region in regions if region.code == around.region).capacity = room.machines
    return api.ListRegionsResponse(regions=regions, nearest=around.region)


async def simulate_placements(
    around: Surroundings, catalog: Catalog, request: api.SimulatePlacementsRequest
) -> Simulated:
    """Where the machines of `request` would find room now.

    Raises InvalidConfig, NotFound (the organization), DependencyDown for what this region needs to answer.
    """
    regions = _wanted(around, request)
    if request.org_slug and catalog.reached_organization(request.org_slug) is None:
        raise NotFound(f"there is no organization {request.org_slug[:64]!r} that this token reaches")
    need = await _need(around, request.compute if request.HasField("compute") else DEFAULT_COMPUTE)
    need.amounts.disk_bytes += request.volume_size_bytes
    if around.routing.is_forwarded:
        # Whoever asked goes round the cells.
        rooms = {around.region: await _room(around, need, MOST_MACHINES)}
        unreachable: tuple[str, ...] = ()
        regions = [around.regions.region(around.region)]
    else:
        rooms, unreachable = await _rooms(around, regions, request, need)
    codes = [region.code for region in regions if region.code in rooms]
    found = [rooms[code] for code in codes]
    counts = [room.machines for room in found]
    if request.count:
        weights = request.weights
        counts = distribute(
            request.count,
            counts,
            region=weights.region if weights.HasField("region") else WEIGHT_OF_REGION,
            spread=weights.spread if weights.HasField("spread") else WEIGHT_OF_SPREAD,
        )
    placements = [
        api.RegionPlacement(region=code, count=count, concurrency=room.workers)
        for code, count, room in zip(codes, counts, found, strict=True)
        if count
    ]
    return Simulated(placements, unreachable)


def distribute(count: int, room: Sequence[int], *, region: int, spread: int) -> list[int]:
    """How many of `count` machines go to each of the regions whose `room` is given, in the order of preference.

    One after the other goes where the weight `region` times the preference (1 for the first, falling evenly to the
    last) less `spread` times the machines that are there already is greatest. What finds no room is left out.
    """
    placed = [0] * len(room)
    waiting = [(-region * (1 - index / len(room)), index) for index, free in enumerate(room) if free > 0]
    heapq.heapify(waiting)
    for _ in range(min(count, sum(room))):
        score, index = heapq.heappop(waiting)
        placed[index] += 1
        if placed[index] < room[index]:
            heapq.heappush(waiting, (score + spread, index))
    return placed


def _wanted(around: Surroundings, request: api.SimulatePlacementsRequest) -> list[Region]:
    """The regions that are asked for, best first. Raises InvalidConfig for everything that is wrong."""
    violations: list[Violation] = []
    regions: list[Region] = []
    codes = [code.strip() for code in request.region.split(",") if code.strip()]
    for code in codes:
        if code == ANY:
            continue
        try:
            found = around.regions.region(code)
        except InvalidConfig as error:
            violations += error.violations
        else:
            regions += [found] if found not in regions else []
    if ANY in codes or not codes:
        here = around.regions.region(around.region)
        others = sorted(around.regions.regions, key=lambda other: _distance(here, other))
        regions += [each for each in others if each not in regions]
    if request.count > MOST_MACHINES:
        violations.append(Violation("count", f"must be 0..{MOST_MACHINES}"))
    if request.volume_size_bytes > MOST_VOLUME_BYTES:
        violations.append(Violation("volume_size_bytes", f"must be 0..{MOST_VOLUME_BYTES}"))
    for name in ("region", "spread"):
        if not 0 <= getattr(request.weights, name) <= MOST_WEIGHT:
            violations.append(Violation(f"weights.{name}", f"must be 0..{MOST_WEIGHT}"))
    if violations:
        raise _invalid(violations)
    return regions


async def _rooms(
    around: Surroundings, regions: Sequence[Region], request: api.SimulatePlacementsRequest, need: Need
) -> tuple[dict[str, Room], tuple[str, ...]]:
    """The room of each region, and the codes of those that did not answer."""
    cells = [(region.code, around.routing.by_cell(cell.id)) for region in regions for cell in region.cells]
    asked = [
        asyncio.ensure_future(_room(around, need, MOST_MACHINES) if peer is None else _room_there(peer, code, request))
        for code, peer in cells
    ]
    try:
        answers = await asyncio.gather(*asked)
    finally:
        for task in asked:
            task.cancel()
    rooms: dict[str, Room] = {}
    unreachable: dict[str, None] = {}
    for (code, _), answer in zip(cells, answers, strict=True):
        if answer is None:
            unreachable[code] = None
            continue
        before = rooms.get(code, Room(0, 0))
        rooms[code] = Room(min(before.machines + answer.machines, MOST_MACHINES), before.workers + answer.workers)
    return rooms, tuple(unreachable)


async def _room_there(peer: Peer, code: str, request: api.SimulatePlacementsRequest) -> Room | None:
    """The room of another cell; None when it does not answer."""
    wanted = api.SimulatePlacementsRequest()
    wanted.CopyFrom(request)
    wanted.region = code
    wanted.count = 0
    try:
        answer = await peer.call("SimulatePlacements", wanted, LIST_SECONDS, service="Platform")
    except (ForbiddenDependency, InvalidConfig):
        raise
    except SkerryError as error:
        log.warning("region_unreachable", asked=code, reason=error.reason, why=error.message)
        return None
    return Room(sum(each.count for each in answer.regions), sum(each.concurrency for each in answer.regions))


async def _room(around: Surroundings, need: Need, most: int) -> Room:
    request = CountRoomRequest(need=need.amounts, host_dedication_id=need.host_dedication_id, most=most)
    counted = await around.retries(lambda: around.scheduler.CountRoom(request))
    return Room(counted.machines, counted.workers)


async def _need(around: Surroundings, compute: MachineGuest) -> Need:
    """What a machine of that size needs. Raises InvalidConfig of fields of `compute`, PartUnserved, DependencyDown."""
    config = MachineConfig(image=_IMAGE, guest=compute)
    request = ConvertRequest(config=config, region=around.region)
    try:
        spec = (await around.retries(lambda: around.converter.Convert(request))).result.spec
    except InvalidConfig as error:
        raise _invalid([_of_compute(violation) for violation in error.violations]) from None
    return Need(need_of(spec), spec.guest.host_dedication_id)


def _of_compute(violation: Violation) -> Violation:
    return Violation(violation.field.replace("config.guest", "compute", 1), violation.why)


def _invalid(violations: Sequence[Violation]) -> InvalidConfig:
    return InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)


def _distance(one: Region, other: Region) -> float:
    """The angle between two places on the globe, in radians."""
    a, b = math.radians(one.latitude), math.radians(other.latitude)
    between = math.radians(other.longitude - one.longitude)
    half = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(between / 2) ** 2
    return 2 * math.asin(min(1.0, math.sqrt(half)))
