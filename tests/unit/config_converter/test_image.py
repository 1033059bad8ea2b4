from __future__ import annotations

import pytest

from services.config_converter.part import Facts
from services.config_converter.parts.image import PART, split_reference
from tests.unit.config_converter.judging import accept, refuse

DIGEST = "sha256:" + "e15c" * 16


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("nginx", ("docker.io", "library/nginx", "latest", "")),
        ("nginx:1.27", ("docker.io", "library/nginx", "1.27", "")),
        ("docker.io/nginx", ("docker.io", "library/nginx", "latest", "")),
        ("index.docker.io/nginx", ("docker.io", "library/nginx", "latest", "")),
        ("docker.io/library/nginx", ("docker.io", "library/nginx", "latest", "")),
        ("acme/api", ("docker.io", "acme/api", "latest", "")),
        ("acme/api:7", ("docker.io", "acme/api", "7", "")),
        ("acme/tools/api:7", ("docker.io", "acme/tools/api", "7", "")),
        (
            "registry-1.docker.io/library/python:3.12-slim",
            ("registry-1.docker.io", "library/python", "3.12-slim", ""),
        ),
        ("registry-1.docker.io/python", ("registry-1.docker.io", "python", "latest", "")),
        ("localhost/app", ("localhost", "app", "latest", "")),
        ("localhost:5000/app:v1", ("localhost:5000", "app", "v1", "")),
        ("[2001:db8::1]:5000/app", ("[2001:db8::1]:5000", "app", "latest", "")),
        ("Registry.Example:443/a/b", ("Registry.Example:443", "a/b", "latest", "")),
        (f"acme/worker@{DIGEST}", ("docker.io", "acme/worker", "", DIGEST)),
        (f"acme/worker:7@{DIGEST}", ("docker.io", "acme/worker", "7", DIGEST)),
        ("a__b/c-d--e.f_g:_x.Y-z", ("docker.io", "a__b/c-d--e.f_g", "_x.Y-z", "")),
        (f"a:{'t' * 128}", ("docker.io", "library/a", "t" * 128, "")),
    ],
)
def test_a_reference_resolves_as_docker_resolves_it(reference: str, expected: tuple[str, str, str, str]) -> None:
    assert split_reference(reference) == expected
    spec = accept(PART, {"image": reference})
    assert (spec.registry, spec.repository, spec.tag, spec.digest) == expected


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("Nginx", "lower-case"),
        ("Acme/api", "lower-case"),
        ("acme//api", "lower-case"),
        ("/api", "lower-case"),
        ("acme/", "lower-case"),
        ("acme/api ", "lower-case"),
        ("acme/a___b", "lower-case"),
        ("acme/-a", "lower-case"),
        ("docker.io/", "lower-case"),
        ("https://registry.example/app", "host:port"),
        ("registry.example:port/app", "host:port"),
        ("-registry.example/app", "host:port"),
        ("acme/api:", "tag of 1..128"),
        ("acme/api:a:b", "tag of 1..128"),
        ("acme/api:.7", "tag of 1..128"),
        (f"acme/api:{'t' * 129}", "tag of 1..128"),
        ("acme/api@", "64 lower-case hex"),
        ("acme/api@sha256:abc", "64 lower-case hex"),
        (f"acme/api@{DIGEST.upper()}", "64 lower-case hex"),
        (f"acme/api@sha512:{'a' * 128}", "64 lower-case hex"),
        (f"acme/api@{DIGEST}@{DIGEST}", "64 lower-case hex"),
        ("a" * 256, "255 characters at most"),
        ("a" * 100_000, "512 characters at most"),
    ],
)
def test_a_reference_that_docker_refuses_is_refused_with_what_would_be_right(reference: str, why: str) -> None:
    problems = refuse(PART, {"image": reference})
    assert list(problems) == ["image"]
    assert why in problems["image"]
    assert len(problems["image"]) < 400


def test_a_machine_without_an_image_is_refused() -> None:
    assert "is required" in refuse(PART, {"env": {"A": "1"}})["image"]


def test_an_alias_stands_for_what_the_catalog_says() -> None:
    facts = Facts(image_aliases={"base": "registry.example/base:3"})
    spec = accept(PART, {"image": "base"}, facts)
    assert (spec.registry, spec.repository, spec.tag) == ("registry.example", "base", "3")


def test_a_known_digest_is_filled_in_but_never_overrides_the_users() -> None:
    facts = Facts(image_digests={"docker.io/acme/api:7": DIGEST})
    own = "sha256:" + "0" * 64
    assert accept(PART, {"image": "acme/api:7"}, facts).digest == DIGEST
    assert accept(PART, {"image": "acme/api:8"}, facts).digest == ""
    assert accept(PART, {"image": f"acme/api:7@{own}"}, facts).digest == own
