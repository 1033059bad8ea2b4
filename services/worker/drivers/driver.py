"""What the agent asks of whatever runs machines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from skerry.store.v1.store_pb2 import MachineRecord

UNKNOWN_EXIT_CODE = -1


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt to run a machine: its number is never used twice for the machine on this worker."""

    machine_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What to run: the record of the machine with its spec, and what else its environment tells."""

    record: MachineRecord
    region: str
    private_ip: str
    fresh: bool
    """The machine's version is not the one that ran here before."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The secrets of the machine's app, name to value. They go to its processes and its files, and nowhere else."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended."""

    code: int
    """Exit status, 128 + signal when a signal ended it, -1 when nobody knows."""
    signal: int
    """The signal that ended it; 0 for none."""
    oom_killed: bool
    """It took more memory than it may have."""
    at: float
    """When, in unix seconds."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a machine has left on this host: its latest run, and what it was run from, if it ever was."""

    run: Run
    record: MachineRecord | None = None
    private_ip: str = ""


@dataclass(slots=True)
class Running:
    """A run whose processes live, or lived a moment ago."""

    run: Run
    pid: int
    """Of its main process."""
    started_at: float
    """When, in unix seconds."""
    ended: asyncio.Future[Exit]
    """Done once none of its processes is left."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What is known of a run that an earlier agent began; nothing set: it never started, and never will."""

    running: Running | None = None
    """It runs."""
    exit: Exit | None = None
    """It ran and has ended."""
    refused: str = ""
    """It could not be started, for this reason."""


@dataclass(frozen=True, slots=True)
class Inside:
    """The inside of a machine that runs as processes of this host."""

    pids: tuple[int, ...]
    """Of its commands, the main one first; each leads a process group."""
    shims: tuple[int, ...]
    """Of what keeps them: all below these is the machine's."""
    root: Path
    """The directory that stands for its root."""

    @property
    def pid(self) -> int:
        """Of its main process."""
        return self.pids[0]


class CannotRun(Exception):
    """The machine cannot run here, and trying again does not mend that. The message is for the machine's owner."""


class CannotSuspend(Exception):
    """This driver cannot freeze the machine. The message is for the machine's owner."""


class LaunchLost(Exception):
    """It is not known whether the run was started: ask `recover`."""


class Driver(Protocol):
    """Runs machines on this host. What it starts outlives it; a later driver on the same data finds it again."""

    name: str
    """What workers call it: "process"."""

    async def work(self, ready: Callable[[], None]) -> None:
        """Background work until cancelled, which does not end what runs.

        Calls `ready` once the other methods may be called.
        """
        ...

    async def launch(self, run: Run, assignment: Assignment) -> Running:
        """Start a run. Raises CannotRun; LaunchLost; OSError for what may be better the next time."""
        ...

    async def recover(self, run: Run) -> Recovered:
        """Find out what became of a run that was perhaps begun; adopt it if it runs. Raises OSError."""
        ...

    def signal(self, run: Run, number: int) -> None:
        """Send a signal to the processes of a run that `launch` or `recover` gave. Nothing if it has ended."""
        ...

    def inside(self, run: Run) -> Inside | None:
        """Where a run is that `launch` or `recover` gave; None if it has ended."""
        ...

    async def suspend(self, run: Run) -> None:
        """Freeze the processes of a run that `launch` or `recover` gave, until `resume`. Nothing if it has ended.

        Freezing what is frozen makes no difference. Raises CannotSuspend; OSError.
        """
        ...

    async def resume(self, run: Run) -> None:
        """Let the processes of a run go on, frozen or not. Nothing if it has ended. Raises OSError."""
        ...

    async def remove(self, machine_id: str) -> None:
        """Remove everything of a machine that does not run, except its volumes. Raises OSError."""
        ...

    def found(self) -> Iterable[Found]:
        """Every machine that has left something on this host."""
        ...

    def log_of(self, machine_id: str) -> Path:
        """Where the output of a machine is, if it has run."""
        ...
