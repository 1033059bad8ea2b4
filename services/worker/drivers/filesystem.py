"""The directory that stands for a machine's root: its files and its mounts, none of which reaches outside of it."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from skerry.types.v1.spec_pb2 import FileSpec, MachineSpec, MountSpec

from services.worker.drivers.driver import CannotRun

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}").fullmatch
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_MODE = 0o644


def prepare_root(root: Path, volumes: Path, spec: MachineSpec, app_id: str) -> None:
    """Make the machine's root, link its volumes into it and write its files.

    Guest paths are taken below `root` whatever they hold ("..", links that the machine has made).
    Raises CannotRun; OSError.
    """
    root.mkdir(mode=0o755, exist_ok=True)
    linked: dict[str, Path] = {}
    for at, mount in enumerate(spec.mounts.mounts):
        where = f"config.mounts[{at}].path"
        parts = _parts(mount.path, where)
        volume = volumes / _volume_name(mount, app_id, at)
        volume.mkdir(mode=0o755, parents=True, exist_ok=True)
        _link(root, parts, volume, where)
        linked["/".join(parts)] = volume
    for at, file in enumerate(spec.files.files):
        _write(root, linked, file, f"config.files[{at}].guest_path")


def empty(directory: Path) -> None:
    """Remove a directory, if there is one, with everything in it; links are not followed. Raises OSError."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        # Something else of the tree may still be there.
        if directory.exists():
            shutil.rmtree(directory)


def _volume_name(mount: MountSpec, app_id: str, at: int) -> str:
    # Names are unique within an app only.
    name = mount.volume_id or (f"{app_id}.{mount.volume_name}" if mount.volume_name else "")
    if not _SAFE_NAME(name):
        raise CannotRun(f"config.mounts[{at}] names no volume that could be a directory: {name!r}")
    return name


def _parts(path: str, where: str) -> list[str]:
    parts = [part for part in posixpath.normpath("/" + path.lstrip("/")).split("/") if part]
    if not parts:
        raise CannotRun(f"{where} is the root itself: name something below it")
    return parts


def _link(root: Path, parts: list[str], volume: Path, where: str) -> None:
    parent = _open_directory(root, {}, parts[:-1], where)
    try:
        try:
            os.symlink(volume, parts[-1], dir_fd=parent)
        except FileExistsError:
            _replace_by_link(parent, parts[-1], volume, where)
    finally:
        os.close(parent)


def _replace_by_link(parent: int, name: str, volume: Path, where: str) -> None:
    try:
        if os.readlink(name, dir_fd=parent) == str(volume):
            return
        os.unlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError:
            raise CannotRun(
                f"{where}: the machine's root has something there that is not empty; mount the volume elsewhere"
            ) from None
    os.symlink(volume, name, dir_fd=parent)


def _write(root: Path, linked: Mapping[str, Path], file: FileSpec, where: str) -> None:
    parts = _parts(file.path, where)
    if "/".join(parts) in linked:
        raise CannotRun(f"{where} is where a volume is mounted: name a file below it")
    parent = _open_directory(root, linked, parts[:-1], where)
    mode = file.mode & 0o7777 or _DEFAULT_MODE
    try:
        # Removed first: what is there may be a link out of the root, or a file that cannot be written.
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            pass
        fd = os.open(
            parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        with os.fdopen(fd, "wb") as out:
            out.write(file.content)
            os.fchmod(out.fileno(), mode)
    except OSError as error:
        _refuse_if_theirs(error, where)
        raise
    finally:
        os.close(parent)


def _open_directory(root: Path, linked: Mapping[str, Path], parts: list[str], where: str) -> int:
    """A descriptor of the directory `parts` below `root`, made where missing; only links to volumes are followed."""
    fd = os.open(root, _OPEN_DIRECTORY)
    try:
        for depth, part in enumerate(parts, 1):
            volume = linked.get("/".join(parts[:depth]))
            if volume is not None:
                inner = os.open(volume, _OPEN_DIRECTORY)
            else:
                try:
                    os.mkdir(part, 0o755, dir_fd=fd)
                except FileExistsError:
                    pass
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as error:
        os.close(fd)
        _refuse_if_theirs(error, where)
        raise
    return fd


def _refuse_if_theirs(error: OSError, where: str) -> None:
    reasons = {
        errno.ELOOP: "leads over a link that the machine has made",
        errno.ENOTDIR: "leads over a link that the machine has made, or over something that is no directory",
        errno.EISDIR: "is a directory",
        errno.ENAMETOOLONG: "has a name that is too long",
    }
    reason = reasons.get(error.errno or 0)
    if reason:
        raise CannotRun(
            f"{where} {reason}: choose another path, or clear the machine's root (config.rootfs.persist = never)"
        ) from None
