"""The part image: a reference as docker reads it, resolved to registry, repository, tag and digest."""

from __future__ import annotations

import re
from collections.abc import Iterator

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import ImageSpec

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import shown

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL = "library"

# What docker itself takes for the default registry. registry-1.docker.io is none: it stays as it was written.
_DEFAULT_REGISTRY_NAMES = frozenset({DEFAULT_REGISTRY, "index.docker.io"})

_LONGEST_NAME = 255
_LONGEST_REFERENCE = 512

_HOST_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?").fullmatch
_PATH_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*").fullmatch
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}").fullmatch
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}").fullmatch


def convert(config: MachineConfig, facts: Facts, problems: Problems) -> ImageSpec:
    """Every machine has an image."""
    spec = ImageSpec()
    fill_image(spec, config.image, facts, "image", problems)
    return spec


def fill_image(spec: ImageSpec, reference: str, facts: Facts, field: str, problems: Problems) -> None:
    """Resolve a reference that a user wrote into `spec`. A digest decides; a tag beside it is kept."""
    if not reference:
        problems.add(field, 'is required: an image reference such as "nginx:1.27" or "registry.example/app@sha256:…"')
        return
    try:
        registry, repository, tag, digest = split_reference(facts.image_aliases.get(reference, reference))
    except ValueError as error:
        problems.add(field, str(error))
        return
    if not digest and facts.image_digests:
        digest = facts.image_digests.get(f"{registry}/{repository}:{tag}", "")
    spec.registry = registry
    spec.repository = repository
    spec.tag = tag
    spec.digest = digest


def split_reference(reference: str) -> tuple[str, str, str, str]:
    """Registry, repository, tag and digest of an image reference, with defaults; tag or digest are empty without one.

    Raises ValueError that says what is wrong and what is allowed.
    """
    if len(reference) > _LONGEST_REFERENCE:
        raise ValueError(f"must have {_LONGEST_REFERENCE} characters at most, has {len(reference)}")
    name, at, digest = reference.partition("@")
    if at and not _DIGEST(digest):
        raise ValueError(
            f'must have a digest such as "sha256:" and 64 lower-case hex digits after "@", is {shown(reference)}'
        )
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        if not _REGISTRY(first):
            raise ValueError(f'must name a registry as host or host:port before the first "/", is {shown(reference)}')
        registry, path = first, rest
        if registry in _DEFAULT_REGISTRY_NAMES:
            registry = DEFAULT_REGISTRY
    else:
        registry, path = DEFAULT_REGISTRY, name
    repository, colon, tag = path.partition(":")
    if colon and not _TAG(tag):
        raise ValueError(
            f'must have a tag of 1..128 letters, digits, "_", "." and "-" after ":", is {shown(reference)}'
        )
    if not _REPOSITORY(repository):
        raise ValueError(
            "must be an image reference (registry/repository:tag@digest, the repository of lower-case letters and "
            f'digits joined by ".", "_", "__", "-" and "/"), is {shown(reference)}'
        )
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"{OFFICIAL}/{repository}"
    if len(registry) + 1 + len(repository) > _LONGEST_NAME:
        raise ValueError(f"must have {_LONGEST_NAME} characters at most before its tag, is {shown(reference)}")
    if not tag and not digest:
        tag = DEFAULT_TAG
    return registry, repository, tag, digest


def _facts_used(config: MachineConfig, facts: Facts) -> Iterator[tuple[str, str]]:
    yield from image_facts(config.image, facts)


def image_facts(reference: str, facts: Facts) -> Iterator[tuple[str, str]]:
    """What `fill_image` uses of the facts: alias and digest of the reference."""
    stands_for = facts.image_aliases.get(reference)
    if stands_for is not None:
        yield reference, stands_for
    if facts.image_digests:
        try:
            registry, repository, tag, _ = split_reference(stands_for or reference)
        except ValueError:
            return
        name = f"{registry}/{repository}:{tag}"
        yield name, facts.image_digests.get(name, "")


PART = Part("image", owns=("image",), converters={1: convert}, facts_used=_facts_used)
