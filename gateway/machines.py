"""Creating and updating machines: the sagas, declared as tables of steps.

Who calls is known before the first step, by the interceptor of the public door. The last step is the only one that
leaves anything behind, and it is one durable transaction of the machine-store; so no step needs an undo. Whatever ends
a process after that transaction, the machine exists and the reconciler of its region finishes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from skerry.converter.v1.converter_pb2 import ConversionResult, ConvertRequest
from skerry.machines.v1 import machines_pb2 as api
from skerry.scheduler.v1.scheduler_pb2 import PlaceRequest
from skerry.store.v1 import store_pb2 as store
from skerry.store.v1.volume_store_pb2 import VolumeRecord
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.resources_pb2 import Resources
from skerry.types.v1.spec_pb2 import SecretsUse

from gateway.capacity import no_capacity
from gateway.leases import new_lease, shown_nonce, ttl_violation
from gateway.mounts import fill_mount, find_volume, name_by_id, volume_of_update
from gateway.names import MACHINE_NAME_RULE, is_machine_id, is_machine_name, new_machine_name
from gateway.public import public_machine
from gateway.rest.codec import is_json
from gateway.saga import Saga, Step
from gateway.surroundings import Surroundings
from services.runtime.errors import (
    InvalidConfig,
    MissingReference,
    NameTaken,
    NoCapacity,
    NotFound,
    PartUnserved,
    PlanMoved,
    Violation,
    WrongState,
)
from services.runtime.ids import new_machine_id, new_ulid
from services.runtime.resources import RESOURCE_FIELDS, less, need_of

CANDIDATES = 3
MOST_NAMES_TRIED = 5
MOST_VOLUMES_TRIED = 5
OTHER_INSTANCES = 2
"""How many more converters are asked when one says that it is only itself that cannot serve a part."""
MOST_CONVERSIONS = 4
"""How often a configuration is converted at most, because the plan moved meanwhile."""
LONGEST_KEY = 255
SOURCE = "user"

V = TypeVar("V", bound="Version")


@dataclass(slots=True)
class Version:
    """A version of a machine in the making: what creating and updating have in common."""

    around: Surroundings
    request: Any
    violations: list[Violation] = field(default_factory=list)
    app: store.AppRecord = field(default_factory=store.AppRecord)
    conversion: ConversionResult = field(default_factory=ConversionResult)
    need: Resources = field(default_factory=Resources)
    candidates: list[str] = field(default_factory=list)
    placed_again: bool = False
    volume: VolumeRecord | None = None
    """What it mounts; the machine is where that is."""
    times_converted: int = 0
    answer: api.Machine | None = None

    @property
    def answered(self) -> bool:
        return self.answer is not None

    @property
    def machine_id(self) -> str:
        """The machine that gets the version; empty while there is none."""
        return ""


@dataclass(slots=True)
class Creation(Version):
    """A machine in the making. `key` is the client's idempotency key; empty without one."""

    request: api.CreateMachineRequest
    key: str = ""
    fingerprint: bytes = b""
    volumes_tried: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Update(Version):
    """A new version of the machine `machine` in the making."""

    request: api.UpdateMachineRequest
    machine: store.MachineRecord = field(default_factory=store.MachineRecord)

    @property
    def machine_id(self) -> str:
        return self.request.machine_id


async def check_creation(creation: Creation) -> None:
    """Note what is wrong with the request beside its configuration; the converter adds the rest."""
    _check_name(creation)
    _check_unknown_members(creation)
    _check_region(creation)
    if (violation := ttl_violation("lease_ttl", creation.request.lease_ttl)) is not None:
        creation.violations.append(violation)
    if len(creation.key) > LONGEST_KEY:
        creation.violations.append(Violation("idempotency-key", f"must not be longer than {LONGEST_KEY} characters"))


async def check_update(update: Update) -> None:
    """The same for an update."""
    _check_name(update)
    _check_unknown_members(update)
    if not is_machine_id(update.request.machine_id):
        raise no_machine(update.request.machine_id, update.request.app_name)


async def resolve_app(version: Version) -> None:
    """Find the app. Raises NotFound."""
    version.app = await version.around.apps.resolve(version.request.app_name)


async def look_key_up(creation: Creation) -> None:
    """Answer a repeated request with the machine that it has made. Raises IdempotencyConflict."""
    around = creation.around
    canonical = creation.request.SerializeToString(deterministic=True)
    creation.fingerprint = hashlib.sha256(canonical).digest()
    if not creation.key or creation.violations:
        return
    request = store.LookupIdempotencyKeyRequest(
        app_id=creation.app.id, idempotency_key=creation.key, request_fingerprint=creation.fingerprint
    )
    found = await around.retries(lambda: around.store.LookupIdempotencyKey(request))
    if found.HasField("machine"):
        creation.answer = public_machine(
            found.machine,
            creation.app,
            cell=around.cell,
            events=found.events,
            nonce=found.machine.lease.nonce if creation.request.lease_ttl else "",
        )


async def read_machine(update: Update) -> None:
    """Read the machine as it is. Raises NotFound."""
    around, request = update.around, update.request
    read = store.GetMachineRequest(machine_id=request.machine_id, app_id=update.app.id)
    try:
        update.machine = (await around.retries(lambda: around.store.GetMachine(read))).machine
    except NotFound:
        raise no_machine(request.machine_id, request.app_name) from None
    if request.region not in ("", update.machine.region):
        update.violations.append(Violation("region", f"cannot change: the machine is in {update.machine.region}"))


async def convert(version: Version, min_epoch: int = 0) -> None:
    """Convert the configuration, under the plan of `min_epoch` or a later one.

    Raises InvalidConfig for everything that is wrong with the request, PartUnserved, DependencyDown.
    """
    around = version.around
    request = ConvertRequest(
        config=version.request.config,
        app_name=version.app.name,
        region=around.region,
        min_epoch=min_epoch,
        machine_id=version.machine_id,
    )
    version.times_converted += 1
    try:
        version.conversion = await _converted(around, request)
    except InvalidConfig as error:
        if not version.violations:
            raise
        raise _invalid([*version.violations, *error.violations]) from None
    if version.violations:
        raise _invalid(version.violations)
    if version.request.skip_secrets or version.request.min_secrets_version:
        use = SecretsUse(skip=version.request.skip_secrets, min_version=version.request.min_secrets_version)
        version.conversion.spec.secrets.CopyFrom(use)
    version.need = need_of(version.conversion.spec)


async def check_secrets(version: Version) -> None:
    """Look for the secrets that the machine needs. Raises SecretsNotHereYet, MissingReference."""
    spec = version.conversion.spec
    await version.around.secrets.insist_on(version.app, spec, version.request.min_secrets_version)


async def _converted(around: Surroundings, request: ConvertRequest) -> ConversionResult:
    """The conversion by the converter whose turn it is or, where only that one cannot, by one of the next."""
    for _ in range(OTHER_INSTANCES):
        try:
            return (await around.retries(lambda: around.converter.Convert(request))).result
        except PartUnserved as error:
            if "instance" not in error.metadata:
                raise
    return (await around.retries(lambda: around.converter.Convert(request))).result


async def find_mounted_volume(creation: Creation) -> None:
    """Find the volume that the machine mounts, if any. Raises MissingReference, VolumeElsewhere, WrongState."""
    if creation.conversion.spec.mounts.mounts:
        await _find_volume(creation)


async def keep_volume(update: Update) -> None:
    """Let the machine keep the volume that it has. Raises InvalidConfig for any other wish."""
    update.volume = volume_of_update(update.machine, update.conversion.spec)
    if update.volume is not None:
        fill_mount(update.conversion.spec, update.volume)


async def place(version: Version) -> None:
    """Rank workers. Raises NoCapacity when none is feasible."""
    if version.volume is not None:
        version.candidates = [version.volume.worker_id]
        return
    version.candidates = await _candidates(version)


async def place_if_it_grows(update: Update) -> None:
    """Rank workers to move to, if the machine may have outgrown its own; else it stays where it is."""
    if not grows(update) or update.volume is not None:
        return
    try:
        update.candidates = await _candidates(update, excluded=[update.machine.worker_id])
    except NoCapacity:
        # Its own worker may have room all the same.
        update.candidates = []


def grows(update: Update) -> bool:
    """Whether the new version needs more of anything than the machine has reserved."""
    reserved, need = update.machine.reserved, update.need
    return any(getattr(need, amount) > getattr(reserved, amount) for amount in RESOURCE_FIELDS)


async def commit_creation(creation: Creation) -> None:
    """Write machine, version and event and reserve what it needs. Raises what the store refuses it for."""
    around, request = creation.around, creation.request
    instance_id = new_ulid(around.clock.now(), around.random)
    write = store.CreateMachineRequest(
        machine_id=new_machine_id(around.cell, around.random),
        instance_id=instance_id,
        app_id=creation.app.id,
        name=request.name or new_machine_name(around.random),
        region=around.region,
        config=request.config,
        conversion=creation.conversion,
        need=creation.need,
        candidate_worker_ids=creation.candidates,
        launch=not request.skip_launch,
        cordoned=request.skip_service_registration,
        # With a key of its own, a request whose answer was lost can be repeated without making a second machine.
        idempotency_key=creation.key or f"gateway:{instance_id}",
        request_fingerprint=creation.fingerprint,
        source=SOURCE,
        plan_epoch=creation.conversion.epoch,
    )
    if request.lease_ttl:
        write.lease.CopyFrom(new_lease(around.random, request.lease_ttl))
    names_tried = 1
    if creation.volume is not None:
        write.volume_id = creation.volume.id
        name_by_id(write.config, creation.volume)
    while True:
        try:
            written = await around.retries(lambda: _create(around, write))
            break
        except NameTaken:
            if request.name or names_tried == MOST_NAMES_TRIED:
                raise
            names_tried += 1
            write.name = new_machine_name(around.random)
        except WrongState as taken:
            await _find_another_volume(creation, taken)
            if creation.volume is not None:
                write.volume_id = creation.volume.id
                name_by_id(write.config, creation.volume)
            _write_conversion(creation, write)
        except NoCapacity as full:
            creation.candidates = await _other_candidates(creation, full)
            _write_conversion(creation, write)
        except PlanMoved as moved:
            await _convert_again(creation, moved, place)
            _write_conversion(creation, write)
    machine = written.machine
    whole = written.repeated_request
    creation.answer = public_machine(
        machine,
        creation.app,
        cell=around.cell,
        config=None if whole else write.config,
        image=None if whole else creation.conversion.spec.image,
        events=written.events,
        nonce=machine.lease.nonce,
    )


async def _create(around: Surroundings, write: store.CreateMachineRequest) -> store.CreateMachineResponse:
    asked = around.clock.monotonic()
    written = await around.store.CreateMachine(write)
    if around.create_waited is not None:
        around.create_waited(around.clock.monotonic() - asked)
    return written


async def commit_update(update: Update) -> None:
    """Write the new version and move its reservation. Raises what the store refuses it for."""
    around, request = update.around, update.request
    write = store.UpdateMachineRequest(
        machine_id=request.machine_id,
        app_id=update.app.id,
        instance_id=new_ulid(around.clock.now(), around.random),
        current_version=request.current_version,
        name=request.name,
        config=request.config,
        conversion=update.conversion,
        need=update.need,
        candidate_worker_ids=update.candidates,
        skip_launch=request.skip_launch,
        cordoned=request.skip_service_registration,
        source=SOURCE,
        plan_epoch=update.conversion.epoch,
        lease_nonce=shown_nonce(),
    )
    if update.volume is not None:
        name_by_id(write.config, update.volume)
    while True:
        try:
            # Not repeated when its answer is lost: a second one would be a second version.
            written = await around.store.UpdateMachine(write)
            break
        except NoCapacity as full:
            update.candidates = await _other_candidates(update, full, update.machine.worker_id)
            _write_conversion(update, write)
        except PlanMoved as moved:
            await _convert_again(update, moved, place_if_it_grows)
            _write_conversion(update, write)
    update.answer = public_machine(
        written.machine,
        update.app,
        cell=around.cell,
        config=write.config,
        image=update.conversion.spec.image,
        events=written.events,
    )


CREATE_MACHINE: Saga[Creation] = Saga(
    Step("check", check_creation),  # pure
    Step("resolve app", resolve_app),  # reads
    Step("look key up", look_key_up),  # reads; a repeat is answered here
    Step("convert", convert),  # pure
    Step("check secrets", check_secrets),  # reads, where the machine names any
    Step("find volume", find_mounted_volume),  # reads, where the machine mounts one
    Step("place", place),  # advisory: nothing is reserved yet
    Step("commit", commit_creation),  # the only durable step: one transaction
)
UPDATE_MACHINE: Saga[Update] = Saga(
    Step("check", check_update),  # pure
    Step("resolve app", resolve_app),  # reads
    Step("read machine", read_machine),  # reads
    Step("convert", convert),  # pure
    Step("check secrets", check_secrets),  # reads, where the machine names any
    Step("keep volume", keep_volume),  # pure
    Step("place", place_if_it_grows),  # advisory: nothing is reserved yet
    Step("commit", commit_update),  # the only durable step: one transaction
)


async def create_machine(around: Surroundings, request: api.CreateMachineRequest, key: str) -> api.Machine:
    """Create a machine; `key` is the client's idempotency key, empty without one. It exists durably on return.

    Raises InvalidConfig, NotFound (the app), NameTaken, IdempotencyConflict, NoCapacity, DependencyDown.
    """
    creation = await CREATE_MACHINE.run(Creation(around, request, key=key))
    assert creation.answer is not None
    return creation.answer


async def update_machine(around: Surroundings, request: api.UpdateMachineRequest) -> api.Machine:
    """Give a machine a new version; it exists durably on return.

    Raises InvalidConfig, NotFound (app or machine), VersionMismatch, WrongState, NameTaken, NoCapacity, DependencyDown.
    """
    update = await UPDATE_MACHINE.run(Update(around, request))
    assert update.answer is not None
    return update.answer


def no_machine(machine_id: str, app_name: str) -> NotFound:
    """The error for a machine that an app does not have."""
    return NotFound(f"app {app_name!r} has no machine {machine_id[:64]!r}")


def region_violation(around: Surroundings, code: str) -> Violation | None:
    """What is wrong with asking for something in the region `code`; None when nothing is."""
    if code in ("", around.region):
        return None
    try:
        around.regions.region(code)
    except InvalidConfig as error:
        return error.violations[0]
    return None


def place_request(version: Version, excluded: Sequence[str] = ()) -> PlaceRequest:
    """What the scheduler is asked for a place for `version`."""
    need, required = version.need, ""
    if version.volume is not None:
        need, required = less(need, version.volume.kept_for_machine), version.volume.worker_id
    return PlaceRequest(
        app_id=version.app.id,
        need=need,
        required_worker_id=required,
        host_dedication_id=version.conversion.spec.guest.host_dedication_id,
        limit=CANDIDATES,
        excluded_worker_ids=excluded,
        present_worker_id=version.machine.worker_id if isinstance(version, Update) else "",
        present_reserved=version.machine.reserved if isinstance(version, Update) else None,
    )


async def _candidates(version: Version, excluded: Sequence[str] = ()) -> list[str]:
    around = version.around
    request = place_request(version, excluded)
    placed = await around.retries(lambda: around.scheduler.Place(request))
    if not placed.candidates:
        raise no_capacity(around.region, version.need, placed)
    return [candidate.worker_id for candidate in placed.candidates]


async def _other_candidates(version: Version, full: NoCapacity, *excluded: str) -> list[str]:
    """Workers besides those that turned out to be full: they may have filled since the view of the fleet was made.

    Raises NoCapacity when there are none, as for a machine whose volume fixes its place, and `full` the second time.
    """
    if version.volume is not None:
        await _refuse_at_volume(version, full)
    others = await _candidates(version, excluded=[*version.candidates, *excluded])
    if version.placed_again:
        raise full
    version.placed_again = True
    return others


async def _find_volume(creation: Creation, *besides: str) -> None:
    around, spec = creation.around, creation.conversion.spec
    creation.volume = await find_volume(
        around.volumes, around.retries, creation.app, spec.mounts.mounts[0], cell=around.cell, besides=besides
    )
    fill_mount(spec, creation.volume)


async def _find_another_volume(creation: Creation, taken: WrongState) -> None:
    """Another free volume of the name, since somebody took the one that was found. Raises `taken` if there is none."""
    wanted = creation.request.config.mounts[0] if creation.request.config.mounts else None
    if creation.volume is None or wanted is None or wanted.volume == creation.volume.id:
        raise taken
    creation.volumes_tried.append(creation.volume.id)
    if len(creation.volumes_tried) >= MOST_VOLUMES_TRIED:
        raise taken
    creation.conversion.spec.mounts.mounts[0].volume_id = ""
    try:
        await _find_volume(creation, *creation.volumes_tried)
    except MissingReference:
        raise taken from None
    await place(creation)


async def _refuse_at_volume(version: Version, full: NoCapacity) -> None:
    """Say why the worker of the volume has no room; nothing when that has changed meanwhile."""
    assert version.volume is not None
    placed = await version.around.retries(lambda: version.around.scheduler.Place(place_request(version)))
    if placed.candidates:
        raise full
    refusal = no_capacity(version.around.region, version.need, placed)
    raise NoCapacity(
        f"the machine must be on worker {version.volume.worker_id}, where its volume {version.volume.id} is: "
        f"{refusal.message}",
        metadata={**refusal.metadata, "worker_id": version.volume.worker_id},
    )


async def _convert_again(version: V, moved: PlanMoved, place_again: Callable[[V], Awaitable[None]]) -> None:
    """Convert under the plan that has come meanwhile, and look for another place if the machine needs more now.

    Raises `moved` when that has happened too often.
    """
    if version.times_converted >= MOST_CONVERSIONS:
        raise moved
    need = version.need
    await convert(version, int(moved.metadata.get("epoch", "0")))
    if version.volume is not None:
        fill_mount(version.conversion.spec, version.volume)
    if version.need != need:
        await place_again(version)


def _write_conversion(version: Version, write: store.CreateMachineRequest | store.UpdateMachineRequest) -> None:
    """Bring a write up to the present conversion, need and candidates."""
    write.conversion.CopyFrom(version.conversion)
    write.need.CopyFrom(version.need)
    write.plan_epoch = version.conversion.epoch
    del write.candidate_worker_ids[:]
    write.candidate_worker_ids.extend(version.candidates)


def _check_name(version: Version) -> None:
    name = version.request.name
    if name and not is_machine_name(name):
        version.violations.append(Violation("name", MACHINE_NAME_RULE))


def _check_unknown_members(version: Version) -> None:
    """They are returned as they are: each must be a member of the configuration that JSON can have and no field is."""
    for name, text in version.request.config.unknown_members.items():
        if name in MachineConfig.DESCRIPTOR.fields_by_name:
            version.violations.append(Violation(f"config.{name}", "is known: it must be given as the field that it is"))
        elif not is_json(text):
            version.violations.append(Violation(f"config.{name[:64]}", "must be the JSON text of a value"))


def _check_region(version: Version) -> None:
    if (violation := region_violation(version.around, version.request.region)) is not None:
        version.violations.append(violation)


def _invalid(violations: Sequence[Violation]) -> InvalidConfig:
    return InvalidConfig("; ".join(f"{v.field} {v.why}".lstrip() for v in violations), violations=violations)
