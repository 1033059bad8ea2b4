"""The processes of this host: which of them are a machine's, and whether they stand still."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from services.worker.drivers.shim import process_folders, stat_fields

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GONE = (b"Z", b"X")
_STILL: tuple[list[bytes], ...] = ([], [b"Z"], [b"X"], [b"T"], [b"t"], [b"D"])
"""Gone, stopped, or waiting in the kernel (for a child by vfork, for a disk), which it leaves by stopping."""


@dataclass(slots=True)
class ProcessTree:
    """One look at the processes of the host, those left out that have ended: all that were given to `add`."""

    parents: dict[int, int] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)
    resident: dict[int, int] = field(default_factory=dict)
    """In bytes."""

    @classmethod
    def read(cls) -> ProcessTree:
        """All processes, as they are now."""
        tree = cls()
        for folder in process_folders():
            tree.add(folder)
        return tree

    def add(self, folder: str) -> None:
        """Look at the process of a folder, "/proc/PID"; nothing if it has ended."""
        fields = stat_fields(folder)
        if fields and fields[0] not in _GONE:
            pid = int(folder.rpartition("/")[2])
            self.parents[pid] = int(fields[1])
            self.groups[pid] = int(fields[2])
            self.resident[pid] = int(fields[21]) * _PAGE_BYTES

    def members(self, leaders: Collection[int], shims: Collection[int]) -> list[int]:
        """The processes of a machine, ascending: those in the groups of its commands, and those below its shims."""
        return sorted(
            pid
            for pid, group in self.groups.items()
            if pid not in shims and (group in leaders or self._is_below(pid, shims))
        )

    def _is_below(self, pid: int, above: Collection[int]) -> bool:
        while pid > 1:
            pid = self.parents.get(pid, 0)
            if pid in above:
                return True
        return False


def stands_still(pid: int) -> bool:
    """Whether no thread of a process that was sent SIGSTOP takes another step of its own before SIGCONT."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return True
    return all(stat_fields(str(thread))[:1] in _STILL for thread in threads)
