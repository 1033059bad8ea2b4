from __future__ import annotations

from typing import Any

import pytest

from services.config_converter.parts.statics import PART
from tests.unit.config_converter.judging import accept, refuse


def test_statics_are_kept_in_order() -> None:
    statics = [
        {"guest_path": "/app/public", "url_prefix": "/static", "index_document": "index.html"},
        {"guest_path": "/", "url_prefix": "/", "tigris_bucket": "b"},
        {"url_prefix": "/all", "tigris_bucket": "b"},
    ]
    first, second, third = accept(PART, {"statics": statics}).statics
    assert (first.guest_path, first.url_prefix, first.index_document) == ("/app/public", "/static", "index.html")
    assert (second.guest_path, second.tigris_bucket) == ("/", "b")
    assert (third.guest_path, third.url_prefix) == ("/", "/all")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guest_path": "app"}, "guest_path"),
        ({"guest_path": ""}, "guest_path"),
        ({"guest_path": "/"}, "guest_path"),
        ({"guest_path": "/a/../b"}, "guest_path"),
        ({"guest_path": "a", "tigris_bucket": "b"}, "guest_path"),
        ({"url_prefix": "static"}, "url_prefix"),
        ({"url_prefix": ""}, "url_prefix"),
    ],
)
def test_a_relative_path_or_prefix_is_refused(fields: dict[str, Any], field: str) -> None:
    static = {"guest_path": "/app", "url_prefix": "/static", **fields}
    assert list(refuse(PART, {"statics": [static]})) == [f"statics[0].{field}"]
