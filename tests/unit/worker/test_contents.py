"""Copies of volumes are what the volumes were, however they travel."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.contents import copy_tree, measure, read_archive, remove_tree, write_archive


def fill(folder: Path) -> Path:
    """A directory with one of everything."""
    folder.mkdir()
    (folder / "empty").mkdir(mode=0o700)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_bytes(os.urandom(700_000))
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o754)
    (folder / "nothing").touch()
    (folder / "link").symlink_to("deep/er/file")
    (folder / "away").symlink_to("/etc/passwd")
    (folder / "broken").symlink_to("nowhere")
    (folder / "name with\nnewline é").write_text("x")
    os.utime(folder / "script", (1, 2))
    return folder


def look(folder: Path) -> dict[str, tuple[int, object]]:
    """What there is: mode, and content or target."""
    found: dict[str, tuple[int, object]] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: object = None
        if stat.S_ISLNK(mode):
            content = path.readlink()
        elif stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, content)
    return found


async def through_an_archive(source: Path, target: Path) -> None:
    await write_archive(read_archive(source), target)


def test_a_copy_has_everything_but_what_means_nothing_without_its_maker(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    before = look(source)
    os.mkfifo(source / "pipe")
    copy_tree(source, tmp_path / "copy")
    assert look(tmp_path / "copy") == before
    assert (tmp_path / "copy" / "script").stat().st_mtime == 2
    assert (tmp_path / "copy").stat().st_mode == source.stat().st_mode


async def test_an_archive_carries_the_same(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    before = look(source)
    os.mkfifo(source / "pipe")
    await through_an_archive(source, tmp_path / "copy")
    assert look(tmp_path / "copy") == before


async def test_the_digest_of_a_copy_is_that_of_its_source(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    copy_tree(source, tmp_path / "copy")
    await through_an_archive(source, tmp_path / "carried")
    assert measure(tmp_path / "copy") == measure(tmp_path / "carried") == measure(source)


@settings(max_examples=30, deadline=None)
@given(change=st.sampled_from(["content", "name", "mode", "target", "more", "less"]))
def test_whatever_changes_in_a_volume_changes_its_digest(tmp_path_factory: pytest.TempPathFactory, change: str) -> None:
    folder = fill(tmp_path_factory.mktemp("volume") / "source")
    size, digest = measure(folder)
    assert size == 700_000 + len("#!/bin/sh\n") + 1
    match change:
        case "content":
            (folder / "script").write_text("#!/bin/ha\n")
        case "name":
            (folder / "script").rename(folder / "other")
        case "mode":
            (folder / "script").chmod(0o755)
        case "target":
            (folder / "link").unlink()
            (folder / "link").symlink_to("deep/er")
        case "more":
            (folder / "more").mkdir()
        case "less":
            (folder / "nothing").unlink()
    assert measure(folder)[1] != digest


async def test_an_archive_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")

    async def half() -> AsyncIterator[bytes]:
        async for data in read_archive(source):
            yield data[: len(data) // 2]
            return

    with pytest.raises(OSError, match="cannot be read"):
        await write_archive(half(), tmp_path / "copy")


async def test_what_goes_wrong_on_the_way_is_told_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b""
        raise ConnectionResetError("the other worker is gone")

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(write_archive(broken(), tmp_path / "copy"), 10)


async def test_a_reader_that_stops_early_ends_the_packing(tmp_path: Path) -> None:
    source = fill(tmp_path / "source")
    archive = read_archive(source)
    assert await anext(archive)
    await asyncio.wait_for(archive.aclose(), 10)  # type: ignore[attr-defined]


def test_removing_what_is_not_there_is_done_already(tmp_path: Path) -> None:
    remove_tree(fill(tmp_path / "source"))
    remove_tree(tmp_path / "source")
    assert not (tmp_path / "source").exists()
