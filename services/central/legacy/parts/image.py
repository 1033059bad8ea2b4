"""The image: a reference, resolved by the aliases and digests that the centre knows."""

from __future__ import annotations

import re

from services.central.legacy.values import Json, Wrong, get_str, note, quoted

DOCKER_HUB = ("docker.io", "index.docker.io")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?"
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_RE = re.compile(_HOST + r"\Z")
_REPOSITORY_RE = re.compile(rf"{_NAME}(?:/{_NAME})*\Z")
_TAG_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST_RE = re.compile(r"sha256:[0-9a-f]{64}\Z")


def image_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    spec = image_v2(config, facts, wrong)
    # The table of registries was keyed by lower-case hosts, and the spec got the key.
    spec["registry"] = spec["registry"].lower()
    return spec


def image_v2(config: Json, facts: Json, wrong: Wrong) -> Json:
    return resolve_image(get_str(config, "image", "image", wrong), facts, "image", wrong)


def resolve_image(reference: str, facts: Json, field: str, wrong: Wrong) -> Json:
    nothing = {"registry": "", "repository": "", "tag": "", "digest": ""}
    if reference == "":
        note(wrong, field, "is required: the reference of an image")
        return nothing
    reference = (facts.get("image_aliases") or {}).get(reference, reference)
    name, at, digest = reference.partition("@")
    if len(reference) > 512 or (at and not _DIGEST_RE.match(digest)):
        note(wrong, field, f"must be the reference of an image, with a digest sha256:…, is {quoted(reference)}")
        return nothing
    registry, repository, tag = split_name(name)
    hub = registry in DOCKER_HUB
    if hub:
        registry = "docker.io"
    if not _HOST_RE.match(registry) or not _REPOSITORY_RE.match(repository) or not (tag is None or _TAG_RE.match(tag)):
        note(wrong, field, f"must be the reference of an image (registry/repository:tag), is {quoted(reference)}")
        return nothing
    if hub and "/" not in repository:
        repository = "library/" + repository
    if len(registry) + len(repository) > 254:
        note(wrong, field, f"must have 255 characters at most before its tag, is {quoted(reference)}")
        return nothing
    if tag is None and not digest:
        tag = "latest"
    if not digest:
        digest = (facts.get("image_digests") or {}).get(f"{registry}/{repository}:{tag or ''}", "")
    return {"registry": registry, "repository": repository, "tag": tag or "", "digest": digest}


def split_name(name: str) -> tuple[str, str, str | None]:
    registry = "docker.io"
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        registry, name = first, rest
    repository, colon, tag = name.partition(":")
    return registry, repository, tag if colon else None
