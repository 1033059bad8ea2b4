"""Which commands a machine runs as processes of its host, in which environment, and with which files.

The secrets of the app come over what the configuration sets in `env`, where the names are the same, unless the machine
or the process does without them; over those come the secrets that a process names itself. What the machine is told of
itself (FLY_APP_NAME and the like), no secret of the app replaces.
"""

from __future__ import annotations

import binascii
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
    _refuse_what_needs_more(assignment)
    own = _told_of_itself(assignment, root)
    environment = {"PATH": search_path, "HOME": root, **spec.env.variables, **own}
    shared = {} if spec.secrets.skip else assignment.secrets
    secrets = {name: value for name, value in shared.items() if name not in own}
    words = _words(spec.init)
    if words:
        return [Command(words, {**environment, **secrets})]
    if spec.processes.processes:
        return [
            Command(
                _words(process) or _words_of_image(spec.image, images),
                _process_environment(process, environment, secrets, assignment),
                process.user,
            )
            for process in spec.processes.processes
        ]
    return [Command(_words_of_image(spec.image, images), {**environment, **secrets})]


def spec_with_files(assignment: Assignment) -> MachineSpec:
    """The machine's spec with the contents of files that are secrets: in base64 as clients set them, or as they are.

    Raises CannotRun for a secret that the app does not have.
    """
    spec = assignment.record.spec
    if not any(file.secret_name for file in spec.files.files):
        return spec
    whole = MachineSpec()
    whole.CopyFrom(spec)
    for file in whole.files.files:
        if file.secret_name:
            file.content = _content(assignment.secrets[file.secret_name])
    return whole


def image_reference(image: ImageSpec) -> str:
    """The image as people write it: registry/repository:tag@digest."""
    name = "/".join(part for part in (image.registry, image.repository) if part)
    return name + (f":{image.tag}" if image.tag else "") + (f"@{image.digest}" if image.digest else "")


def _refuse_what_needs_more(assignment: Assignment) -> None:
    spec = assignment.record.spec
    if spec.containers.containers:
        raise CannotRun(
            "the process driver runs no containers: leave config.containers out, or place the machine on a worker with "
            "a container driver"
        )
    for at, file in enumerate(spec.files.files):
        source = file.WhichOneof("source")
        if source == "secret_name" and file.secret_name not in assignment.secrets:
            raise _no_secret(assignment, f"config.files[{at}].secret_name", file.secret_name)
        if source == "image_config":
            raise CannotRun(
                f"config.files[{at}] is made from an image, and the process driver cannot read images: "
                "give its content as raw_value"
            )
    for at, process in enumerate(spec.processes.processes):
        for _, name in sorted(process.secrets.items()):
            if name not in assignment.secrets:
                raise _no_secret(assignment, f"config.processes[{at}].secrets", name)


def _no_secret(assignment: Assignment, field: str, name: str) -> CannotRun:
    return CannotRun(
        f"{field} names the secret {name}, which the app {assignment.record.app_name} does not have: set it, then "
        "start the machine again"
    )


def _content(value: str) -> bytes:
    try:
        return binascii.a2b_base64("".join(value.split()), strict_mode=True)
    except ValueError:
        return value.encode()


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


def _told_of_itself(assignment: Assignment, root: str) -> dict[str, str]:
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
    return own


def _process_environment(
    process: ProcessSpec, shared: Mapping[str, str], secrets: Mapping[str, str], assignment: Assignment
) -> dict[str, str]:
    facts = {variable: _fact(field, assignment) for variable, field in process.env_from.items()}
    named = {variable: assignment.secrets[name] for variable, name in process.secrets.items()}
    return {**shared, **process.env, **({} if process.ignore_app_secrets else secrets), **named, **facts}


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
