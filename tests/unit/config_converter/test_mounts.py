from __future__ import annotations

from typing import Any

import pytest

from services.config_converter.parts.mounts import PART
from tests.unit.config_converter.judging import accept, refuse

GIB = 1 << 30


def mount_of(**fields: Any) -> Any:
    return accept(PART, {"mounts": [{"volume": "vol_a", "path": "/data", **fields}]}).mounts[0]


def test_a_mount_is_in_bytes() -> None:
    mount = mount_of(size_gb=10, extend_threshold_percent=80, add_size_gb=5, size_gb_limit=100, encrypted=True)
    assert (mount.volume_id, mount.path, mount.encrypted) == ("vol_a", "/data", True)
    assert (mount.size_bytes, mount.extend_limit_bytes) == (10 * GIB, 100 * GIB)
    assert (mount.extend_threshold_percent, mount.extend_by_bytes) == (80, 5 * GIB)


def test_a_volume_that_is_extended_grows_by_one_gb_unless_more_is_said() -> None:
    assert mount_of().extend_by_bytes == 0
    assert mount_of(extend_threshold_percent=80).extend_by_bytes == GIB


@pytest.mark.parametrize(
    ("fields", "volume_id", "name"),
    [
        ({"volume": "vol_a"}, "vol_a", ""),
        ({"volume": "vol_a", "name": "data"}, "vol_a", "data"),
        ({"name": "data"}, "", "data"),
        ({"volume": "data"}, "", "data"),
        ({"volume": "data", "name": "data"}, "", "data"),
    ],
)
def test_a_volume_is_given_by_id_or_name(fields: dict[str, str], volume_id: str, name: str) -> None:
    mount = accept(PART, {"mounts": [{"path": "/data", **fields}]}).mounts[0]
    assert (mount.volume_id, mount.volume_name) == (volume_id, name)


def test_two_mounts_are_refused() -> None:
    mounts = [{"volume": "vol_a", "path": "/a"}, {"volume": "vol_b", "path": "/b"}]
    assert refuse(PART, {"mounts": mounts}) == {"mounts": "must have 1 mount at most, has 2"}


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"path": "data"}, "path", "absolute path"),
        ({"path": ""}, "path", "is required"),
        ({"path": "/"}, "path", "below the root"),
        ({"path": "/./"}, "path", "below the root"),
        ({"path": "/a/../../etc"}, "path", 'must not climb with ".."'),
        ({"volume": ""}, "volume", "is required"),
        ({"volume": "one", "name": "two"}, "volume", "vol_"),
        ({"extend_threshold_percent": 101}, "extend_threshold_percent", "must be 0..100, is 101"),
        ({"extend_threshold_percent": -1}, "extend_threshold_percent", "must be 0..100, is -1"),
        ({"add_size_gb": -1}, "add_size_gb", "is -1"),
        ({"size_gb": 2**62}, "size_gb", f"is {2**62}"),
        ({"size_gb": 10, "size_gb_limit": 5}, "size_gb_limit", "must be at least size_gb, which is 10, is 5"),
    ],
)
def test_what_a_mount_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str, why: str) -> None:
    problems = refuse(PART, {"mounts": [{"volume": "vol_a", "path": "/data", **fields}]})
    assert list(problems) == [f"mounts[0].{field}"]
    assert why in problems[f"mounts[0].{field}"]


def test_dots_in_names_of_a_path_are_no_climbing() -> None:
    assert mount_of(path="/..data/a..b").path == "/..data/a..b"
