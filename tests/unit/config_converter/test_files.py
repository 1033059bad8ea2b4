from __future__ import annotations

import base64
from typing import Any

import pytest

from services.config_converter.parts.files import MOST_CONTENT, PART
from tests.unit.config_converter.judging import accept, refuse


def problems_of(**fields: Any) -> dict[str, str]:
    return refuse(PART, {"files": [{"guest_path": "/x", "raw_value": "YQ==", **fields}]})


def file_with(size: int) -> dict[str, str]:
    return {"guest_path": "/x", "raw_value": base64.b64encode(bytes(size)).decode()}


def test_a_file_has_one_of_three_sources() -> None:
    files = [
        {"guest_path": "/a", "raw_value": "aGVsbG8gd29ybGQK"},
        {"guest_path": "/b", "secret_name": "KEY"},
        {"guest_path": "/c", "image_config": "img"},
    ]
    a, b, c = accept(PART, {"files": files}).files
    assert (a.path, a.content) == ("/a", b"hello world\n")
    assert (b.path, b.secret_name) == ("/b", "KEY")
    assert (c.path, c.image_config) == ("/c", "img")


@pytest.mark.parametrize(("mode", "expected"), [({}, 0o644), ({"mode": 0}, 0), ({"mode": 0o7777}, 0o7777)])
def test_a_mode_is_0644_unless_it_is_said(mode: dict[str, int], expected: int) -> None:
    assert accept(PART, {"files": [{"guest_path": "/a", "secret_name": "S", **mode}]}).files[0].mode == expected


@pytest.mark.parametrize(
    ("fields", "has"),
    [
        ({"secret_name": "S"}, "raw_value and secret_name"),
        ({"secret_name": "S", "image_config": "i"}, "raw_value and secret_name and image_config"),
        ({"raw_value": ""}, "none"),
    ],
)
def test_a_file_with_two_sources_or_none_is_refused(fields: dict[str, str], has: str) -> None:
    problems = problems_of(**fields)
    assert list(problems) == ["files[0]"]
    assert problems["files[0]"].endswith(f"has {has}")


@pytest.mark.parametrize("text", ["%%%", "YQ", "YQ=", "YQ==YQ==", "YQ==\n", " YQ==", "YQ=-", "Y_Q=", "ü", "===="])
def test_content_is_strict_base64(text: str) -> None:
    problems = problems_of(raw_value=text)
    assert list(problems) == ["files[0].raw_value"]
    assert "must be base64" in problems["files[0].raw_value"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guest_path": "x"}, "guest_path"),
        ({"guest_path": ""}, "guest_path"),
        ({"guest_path": "/"}, "guest_path"),
        ({"guest_path": "/a/.."}, "guest_path"),
        ({"guest_path": "/a/"}, "guest_path"),
        ({"mode": 0o10000}, "mode"),
    ],
)
def test_a_path_and_a_mode_out_of_bounds_are_refused(fields: dict[str, Any], field: str) -> None:
    assert list(problems_of(**fields)) == [f"files[0].{field}"]


def test_all_files_together_have_one_mib_at_most() -> None:
    half = MOST_CONTENT // 2
    assert len(accept(PART, {"files": [file_with(half), file_with(half)]}).files) == 2
    assert list(refuse(PART, {"files": [file_with(half), file_with(half), file_with(1)]})) == ["files[2].raw_value"]
