"""Which commands a machine runs as processes of its host, and in which environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skerry.types.v1.spec_pb2 import (
    MACHINE_FIELD_APP_NAME,
    MACHINE_FIELD_ID,
    MACHINE_FIELD_IMAGE,
    MACHINE_FIELD_PRIVATE_IP,
    MACHINE_FIELD_REGION,
    MACHINE_FIELD_VERSION,
    ImageSpec,
    InitSpec,
    MachineField,
    MachineSpec,
    ProcessSpec,
)

from services.worker.drivers.driver import Assignment, CannotRun

_OFFICIAL = "library/"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Command:
    """One process: its words, its environment, and the user it runs as (empty: the worker's own)."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    user: str = ""


def commands_of(
    assignment: Assignment, images: Mapping[str, Sequence[str]], *, root: str, search_path: str
) -> list[Command]:
    """The processes of the machine, the main one first.

    `images` is the table from image to command, `root` the directory that stands for the machine's root, `search_path`
    its PATH unless its own environment has one. Raises CannotRun.
    """
    spec = assignment.record.spec
    _refuse_what_needs_more(spec)
    environment = _environment(assignment, root, search_path)
    words = _words(spec.init)
    if words:
        return [Command(words, environment)]
    if spec.processes.processes:
        return [
            Command(
                _words(process) or _words_of_image(spec.image, images),
                _process_environment(process, environment, assignment),
                process.user,
            )
            for process in spec.processes.processes
        ]
    return [Command(_words_of_image(spec.image, images), environment)]


def image_reference(image: ImageSpec) -> str:
    """The image as people write it: registry/repository:tag@digest."""
    name = "/".join(part for part in (image.registry, image.repository) if part)
    return name + (f":{image.tag}" if image.tag else "") + (f"@{image.digest}" if image.digest else "")


def _refuse_what_needs_more(spec: MachineSpec) -> None:
    if spec.containers.containers:
        raise CannotRun(
            "the process driver runs no containers: leave config.containers out, or place the machine on a worker with "
            "a container driver"
        )
    for at, file in enumerate(spec.files.files):
        source = file.WhichOneof("source")
        if source == "secret_name":
            raise CannotRun(
                f"config.files[{at}] needs the secret {file.secret_name}, and there are no secrets on this worker: "
                "give its content as raw_value"
            )
        if source == "image_config":
            raise CannotRun(
                f"config.files[{at}] is made from an image, and the process driver cannot read images: "
                "give its content as raw_value"
            )
    for at, process in enumerate(spec.processes.processes):
        for variable, name in sorted(process.secrets.items()):
            raise CannotRun(
                f"config.processes[{at}] needs the secret {name} for {variable}, and there are no secrets on this "
                "worker: set the variable in env"
            )


def _words(source: InitSpec | ProcessSpec) -> tuple[str, ...]:
    return tuple(source.exec) or (*source.entrypoint, *source.cmd)


def _words_of_image(image: ImageSpec, images: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    for name in _names(image):
        if images.get(name):
            return tuple(images[name])
    raise CannotRun(
        f"image {image_reference(image)} names no command, and the process driver cannot read images: set "
        "config.init.exec, or list the image with its command under process.images in the worker's settings"
    )


def _names(image: ImageSpec) -> list[str]:
    """The names an image may be listed under, the most precise first."""
    names = [f"{image.registry}/{image.repository}", image.repository]
    if image.repository.startswith(_OFFICIAL):
        names.append(image.repository.removeprefix(_OFFICIAL))
    tagged = [f"{name}:{image.tag}" for name in names] if image.tag else []
    return tagged + names


def _environment(assignment: Assignment, root: str, search_path: str) -> dict[str, str]:
    record, spec = assignment.record, assignment.record.spec
    own = {
        "MACHINE_ROOT": root,
        "FLY_APP_NAME": record.app_name,
        "FLY_MACHINE_ID": record.id,
        "FLY_ALLOC_ID": record.id,
        "FLY_MACHINE_VERSION": record.instance_id,
        "FLY_REGION": assignment.region,
        "FLY_IMAGE_REF": image_reference(spec.image),
        "FLY_VM_MEMORY_MB": str(spec.guest.memory_bytes // _MIB),
        "FLY_PRIVATE_IP": assignment.private_ip,
    }
    group = spec.metadata.entries.get("fly_process_group") or record.metadata.get("fly_process_group")
    if group:
        own["FLY_PROCESS_GROUP"] = group
    return {"PATH": search_path, "HOME": root, **spec.env.variables, **own}


def _process_environment(process: ProcessSpec, shared: Mapping[str, str], assignment: Assignment) -> dict[str, str]:
    facts = {variable: _fact(field, assignment) for variable, field in process.env_from.items()}
    return {**shared, **process.env, **facts}


def _fact(field: MachineField.ValueType, assignment: Assignment) -> str:
    record = assignment.record
    facts: dict[MachineField.ValueType, str] = {
        MACHINE_FIELD_ID: record.id,
        MACHINE_FIELD_VERSION: record.instance_id,
        MACHINE_FIELD_APP_NAME: record.app_name,
        MACHINE_FIELD_PRIVATE_IP: assignment.private_ip,
        MACHINE_FIELD_REGION: assignment.region,
        MACHINE_FIELD_IMAGE: image_reference(record.spec.image),
    }
    return facts.get(field, "")
