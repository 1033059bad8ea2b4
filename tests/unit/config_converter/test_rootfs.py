from __future__ import annotations

from typing import Any

import pytest
from skerry.types.v1.spec_pb2 import PERSIST_ROOTFS_NEVER, PersistRootfs

from services.config_converter.parts.rootfs import PART
from tests.unit.config_converter.judging import accept, refuse

GIB = 1 << 30


@pytest.mark.parametrize("fields", [{}, {"rootfs": {}}, {"cache_drive": {}}, {"guest": {"cpus": 1}}])
def test_a_root_file_system_has_eight_gib_and_survives_nothing(fields: dict[str, Any]) -> None:
    spec = accept(PART, fields)
    assert (spec.persist, spec.size_bytes, spec.cache_bytes) == (PERSIST_ROOTFS_NEVER, 8 * GIB, 0)


@pytest.mark.parametrize("persist", ["never", "restart", "always"])
def test_what_survives_may_stand_in_two_places(persist: str) -> None:
    for fields in (
        {"rootfs": {"persist": persist}},
        {"guest": {"persist_rootfs": persist}},
        {"rootfs": {"persist": persist}, "guest": {"persist_rootfs": persist}},
    ):
        assert PersistRootfs.Name(accept(PART, fields).persist) == f"PERSIST_ROOTFS_{persist.upper()}"


def test_two_places_that_differ_are_refused() -> None:
    problems = refuse(PART, {"rootfs": {"persist": "always"}, "guest": {"persist_rootfs": "never"}})
    assert list(problems) == ["rootfs.persist"]
    assert '"never"' in problems["rootfs.persist"]


def test_sizes_are_in_bytes() -> None:
    spec = accept(PART, {"rootfs": {"size_gb": 20}, "cache_drive": {"size_mb": 512}})
    assert (spec.size_bytes, spec.cache_bytes) == (20 * GIB, 512 << 20)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rootfs": {"persist": "sometimes"}}, "rootfs.persist"),
        ({"guest": {"persist_rootfs": "sometimes"}}, "guest.persist_rootfs"),
        ({"rootfs": {"size_gb": 0}}, "rootfs.size_gb"),
        ({"rootfs": {"size_gb": 2**64 - 1}}, "rootfs.size_gb"),
        ({"cache_drive": {"size_mb": 2**64 - 1}}, "cache_drive.size_mb"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    assert list(refuse(PART, fields)) == [field]
