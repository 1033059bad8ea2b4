"""The content of volumes and snapshots: directories that are copied, streamed, measured and removed, in threads."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 18
_FICLONE = 0x40049409
_KEPT = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
"""Kinds of files that a copy has; sockets, pipes and devices mean nothing without who made them."""


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory, whose content may change meanwhile, to `target`, which is not there yet, and onto the disk.

    Blocks of files are shared where the file system can. Raises OSError.
    """
    target.mkdir(mode=0o700)
    for entry in os.scandir(source):
        # What vanishes on the way was not there.
        with suppress(FileNotFoundError):
            _copy_entry(entry, target / entry.name)
    _copy_attributes(source.stat(), target)
    _sync(target)


def measure(directory: Path) -> tuple[int, str]:
    """The bytes of all files of a directory, and the SHA-256 of its content, "sha256:HEX". Raises OSError."""
    digest, size = hashlib.sha256(), 0
    for path in _walk(directory):
        found = path.lstat()
        name = os.fsencode(path.relative_to(directory))
        digest.update(b"%d:%s:%o:" % (len(name), name, found.st_mode))
        if stat.S_ISLNK(found.st_mode):
            digest.update(os.fsencode(path.readlink()) + b"\0")
        elif stat.S_ISREG(found.st_mode):
            digest.update(b"%d:" % found.st_size)
            size += found.st_size
            with path.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    digest.update(data)
    return size, f"sha256:{digest.hexdigest()}"


async def read_archive(directory: Path) -> AsyncIterator[bytes]:
    """A directory as a tar archive, piece by piece. Raises OSError."""
    reader, writer = os.pipe()
    packing = asyncio.create_task(asyncio.to_thread(_pack, directory, writer))
    try:
        while data := await asyncio.to_thread(os.read, reader, _CHUNK_BYTES):
            yield data
        await packing
    finally:
        # Whoever still packs finds nobody reading, and ends.
        os.close(reader)
        with suppress(OSError):
            await asyncio.shield(packing)


async def write_archive(pieces: AsyncIterator[bytes], target: Path) -> None:
    """Unpack a tar archive that comes in pieces into `target`, which is not there yet; then it is on the disk.

    Raises OSError, also for an archive that is cut off, and what `pieces` raises.
    """
    reader, writer = os.pipe()
    unpacking = asyncio.create_task(asyncio.to_thread(_unpack, reader, target))
    try:
        try:
            async for data in pieces:
                await asyncio.to_thread(_write_all, writer, data)
        finally:
            os.close(writer)
    except BrokenPipeError:
        pass  # Whoever unpacks knows why.
    except BaseException:
        with suppress(OSError):
            await asyncio.shield(unpacking)
        raise
    await unpacking


def remove_tree(directory: Path) -> None:
    """Remove a directory with everything in it, if there is one. Raises OSError."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)


def _pack(directory: Path, writer: int) -> None:
    with suppress(BrokenPipeError), os.fdopen(writer, "wb") as out, tarfile.open(mode="w|", fileobj=out) as archive:
        archive.add(directory, arcname=".", filter=_packable)


def _packable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return entry if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk() else None


def _unpack(reader: int, target: Path) -> None:
    target.mkdir(mode=0o700)
    with os.fdopen(reader, "rb") as source:
        try:
            _extract(source, target)
        except tarfile.TarError as error:
            raise OSError(f"what came of the volume cannot be read: {error}") from error
        finally:
            # Whoever sends must not wait for somebody who does not read any more.
            while source.read(_CHUNK_BYTES):
                pass
    for path in _walk(target):
        if not path.is_symlink():
            _sync(path)
    _sync(target)


def _extract(source: IO[bytes], target: Path) -> None:
    with tarfile.open(mode="r|", fileobj=source) as archive:
        # A worker has made it, from paths below one directory.
        archive.extractall(target, filter="fully_trusted")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _walk(directory: Path) -> Iterator[Path]:
    """Everything below a directory that a copy has, in the order of names."""
    for entry in sorted(os.scandir(directory), key=lambda entry: os.fsencode(entry.name)):
        path = Path(entry.path)
        if stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) in _KEPT:
            yield path
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path)


def _copy_entry(entry: os.DirEntry[str], target: Path) -> None:
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        target.symlink_to(Path(entry.path).readlink())
        _copy_owner(found, target)
    elif stat.S_ISDIR(found.st_mode):
        copy_tree(Path(entry.path), target)
    elif stat.S_ISREG(found.st_mode):
        _copy_file(Path(entry.path), target)
        _copy_attributes(found, target)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError:
            shutil.copyfileobj(read, write, _CHUNK_BYTES)
        write.flush()
        os.fsync(write.fileno())


def _copy_attributes(found: os.stat_result, target: Path) -> None:
    _copy_owner(found, target)
    target.chmod(stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy_owner(found: os.stat_result, target: Path) -> None:
    if os.geteuid() == 0:
        os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
