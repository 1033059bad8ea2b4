"""Limits of memory and of the number of processes, by cgroups of either version where one is writable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "skerry"
_REMOVE_ATTEMPTS = 5
_REMOVE_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine may have."""

    memory_bytes: int
    swap_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What a process must do to be limited: join through these files; `oom` has the line that counts kills."""

    join: tuple[str, ...] = ()
    oom: str | None = None


class Cgroups:
    """The cgroups of one worker, a folder for each machine below `folders` (memory, then pids; once for version 2)."""

    def __init__(self, folders: Sequence[Path], version: int) -> None:
        self.folders = tuple(folders)
        """Below these each machine has a folder."""
        self._version = version

    @classmethod
    def find(
        cls, worker_id: str, *, mounts: str = "/proc/self/mounts", own: str = "/proc/self/cgroup"
    ) -> Cgroups | None:
        """The writable cgroups below this process's own; None where there are none that can limit anything."""
        try:
            hierarchies = _own_cgroups(Path(mounts).read_text(), Path(own).read_text())
        except OSError:
            return None
        if "memory" in hierarchies and "pids" in hierarchies:
            candidates, version = [hierarchies["memory"], hierarchies["pids"]], 1
        elif "" in hierarchies:
            candidates, version = [hierarchies[""]], 2
        else:
            return None
        found = cls([base / _FOLDER / worker_id for base in candidates], version)
        return found if found._usable() else None

    def create(self, machine_id: str, limits: Limits) -> Membership:
        """Make the cgroups of a machine, with its limits. Raises OSError."""
        self._make_folders()
        folders = [folder / machine_id for folder in self.folders]
        for folder in folders:
            # One of an earlier run has its limits and its count of kills.
            _remove(folder)
            folder.mkdir(exist_ok=True)
        memory, pids = folders[0], folders[-1]
        (pids / "pids.max").write_text(str(limits.processes))
        if self._version == 1:
            (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            _write_if_there(memory / "memory.memsw.limit_in_bytes", limits.memory_bytes + limits.swap_bytes)
        else:
            (memory / "memory.max").write_text(str(limits.memory_bytes))
            _write_if_there(memory / "memory.swap.max", limits.swap_bytes)
        oom = memory / ("memory.oom_control" if self._version == 1 else "memory.events")
        return Membership(tuple(str(folder / "cgroup.procs") for folder in folders), str(oom))

    def remove(self, machine_id: str) -> None:
        """Remove the cgroups of a machine none of whose processes is left. Left where they are if one still is."""
        for folder in self.folders:
            _remove(folder / machine_id)

    def close(self) -> None:
        """Remove the worker's own folders, unless there still are machines in them."""
        for folder in self.folders:
            for level in (folder, folder.parent):
                try:
                    level.rmdir()
                except OSError:
                    break

    def _make_folders(self) -> None:
        """Make the worker's own folders, which another worker of the same name may have removed when it ended."""
        for folder in self.folders:
            if folder.exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            if self._version == 2:
                for level in (folder.parent.parent, folder.parent, folder):
                    (level / "cgroup.subtree_control").write_text("+memory +pids")

    def _usable(self) -> bool:
        try:
            # Only a try tells: a mount that looks writable may be somebody else's.
            membership = self.create(".probe", Limits(64 << 20, 0, 64))
            limited = all(Path(path).exists() for path in membership.join)
            self.remove(".probe")
        except OSError:
            return False
        return limited


def _own_cgroups(mounts: str, own: str) -> dict[str, Path]:
    """Controller to the folder of this process's cgroup; "" for version 2."""
    mounted: dict[str, str] = {}
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        if fields[2] == "cgroup2":
            mounted[""] = fields[1]
        elif fields[2] == "cgroup":
            mounted.update(dict.fromkeys(fields[3].split(","), fields[1]))
    found = {}
    for line in own.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            if controller in mounted:
                found[controller] = Path(mounted[controller] + path.rstrip("/"))
    return found


def _write_if_there(path: Path, value: int) -> None:
    """Write to a file that kernels without swap accounting do not have."""
    if path.exists():
        path.write_text(str(value))


def _remove(folder: Path) -> None:
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            # The kernel takes a moment to let go of the last process.
            time.sleep(_REMOVE_PAUSE_SECONDS)
