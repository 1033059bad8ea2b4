"""Guest paths never lead out of a machine's root, whatever they and the machine itself have made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from skerry.types.v1.spec_pb2 import MachineSpec

from services.worker.drivers.driver import CannotRun
from services.worker.drivers.filesystem import empty, prepare_root


class Place:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "root"
        self.volumes = base / "volumes"
        self.outside = base / "outside"
        self.outside.mkdir(parents=True)

    def prepare(self, spec: MachineSpec) -> None:
        prepare_root(self.root, self.volumes, spec, "app-1")

    def strangers(self) -> list[Path]:
        """What is neither in the root nor in the volumes."""
        ours = (self.root, self.volumes)
        return [path for path in self.base.rglob("*") if not any(path.is_relative_to(one) for one in ours)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "place")


def file(path: str, content: bytes = b"x", mode: int = 0) -> MachineSpec:
    spec = MachineSpec()
    spec.files.files.add(path=path, content=content, mode=mode)
    return spec


def test_files_are_written_with_their_mode_and_replaced_at_the_next_start(place: Place) -> None:
    place.prepare(file("/etc/app/config", b"one", 0o400))
    place.prepare(file("/etc/app/config", b"two"))
    written = place.root / "etc/app/config"
    assert written.read_bytes() == b"two"
    assert written.stat().st_mode & 0o7777 == 0o644


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "etc", "..."]), min_size=1, max_size=8))
def test_no_path_leads_out_of_the_root(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    place = Place(tmp_path_factory.mktemp("paths") / "place")
    try:
        place.prepare(file("/" + "/".join(parts)))
    except CannotRun:
        assert not [part for part in parts if part not in ("", ".", "..")] or ".." in parts
    assert place.strangers() == [place.outside]


def test_a_link_that_the_machine_made_is_not_followed(place: Place) -> None:
    place.root.mkdir()
    (place.root / "out").symlink_to(place.outside)
    with pytest.raises(CannotRun, match=r"config\.files\[0\]\.guest_path leads over a"):
        place.prepare(file("/out/file"))
    assert not list(place.outside.iterdir())


def test_a_file_where_the_machine_made_a_link_replaces_the_link(place: Place) -> None:
    place.root.mkdir()
    (place.outside / "target").write_text("theirs")
    (place.root / "config").symlink_to(place.outside / "target")
    place.prepare(file("/config", b"ours"))
    assert (place.outside / "target").read_text() == "theirs"
    assert (place.root / "config").read_bytes() == b"ours"
    assert not (place.root / "config").is_symlink()


def test_a_volume_is_a_link_in_the_root_and_files_may_lie_in_it(place: Place) -> None:
    spec = file("/data/inner/file", b"in the volume")
    spec.mounts.mounts.add(volume_id="vol_001", path="/data")
    place.prepare(spec)
    place.prepare(spec)
    assert (place.root / "data").resolve() == place.volumes / "vol_001"
    assert (place.volumes / "vol_001/inner/file").read_bytes() == b"in the volume"


def test_a_volume_known_by_name_belongs_to_its_app(place: Place) -> None:
    spec = MachineSpec()
    spec.mounts.mounts.add(volume_name="data", path="/srv/data/")
    place.prepare(spec)
    assert (place.root / "srv/data").resolve() == place.volumes / "app-1.data"


def test_a_link_in_a_volume_is_not_followed(place: Place) -> None:
    spec = file("/data/out/file")
    spec.mounts.mounts.add(volume_id="vol_001", path="/data")
    (place.volumes / "vol_001").mkdir(parents=True)
    (place.volumes / "vol_001/out").symlink_to(place.outside)
    with pytest.raises(CannotRun, match="leads over a"):
        place.prepare(spec)
    assert not list(place.outside.iterdir())


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 200])
def test_a_volume_whose_name_is_no_directory_is_refused(place: Place, name: str) -> None:
    spec = MachineSpec()
    spec.mounts.mounts.add(volume_id=name, path="/data")
    with pytest.raises(CannotRun, match=r"config\.mounts\[0\]"):
        place.prepare(spec)
    assert place.strangers() == [place.outside]


def test_a_mount_does_not_hide_what_is_there(place: Place) -> None:
    spec = MachineSpec()
    spec.mounts.mounts.add(volume_id="vol_001", path="/data")
    (place.root / "data").mkdir(parents=True)
    place.prepare(spec)
    assert (place.root / "data").is_symlink()
    (place.root / "data").unlink()
    (place.root / "data").mkdir()
    (place.root / "data/file").touch()
    with pytest.raises(CannotRun, match="not empty"):
        place.prepare(spec)


@pytest.mark.parametrize("path", ["/", "/.", "/a/..", ""])
def test_the_root_itself_is_neither_file_nor_mount(place: Place, path: str) -> None:
    with pytest.raises(CannotRun, match="is the root itself"):
        place.prepare(file(path))
    spec = MachineSpec()
    spec.mounts.mounts.add(volume_id="vol_001", path=path)
    with pytest.raises(CannotRun, match="is the root itself"):
        place.prepare(spec)


def test_emptying_does_not_follow_links(place: Place) -> None:
    place.root.mkdir()
    (place.outside / "kept").touch()
    (place.root / "out").symlink_to(place.outside)
    empty(place.root)
    empty(place.root)
    assert not place.root.exists()
    assert (place.outside / "kept").exists()
