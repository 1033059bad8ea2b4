"""What a worker must not forget: what it has begun, and what it has yet to tell.

One append-only file of lines, each a checksum and a JSON object; a line is written at once, so what one line says
happened together. A line that was cut off by a crash is dropped, and everything behind it. The file is written anew
when most of it is history.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import zlib
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from skerry.store.v1.store_pb2 import Observation

_COMPACT_BYTES = 1 << 20
_COMPACT_FACTOR = 4
_QUICK_SECONDS = 0.002
"""A disk that writes faster than this is waited for at once: a thread would take longer to get its turn."""


class Phase(StrEnum):
    """How far this worker has come with a machine."""

    STARTING = "starting"
    """A run was begun, and nobody knows yet whether it runs."""
    RUNNING = "running"
    """Its processes run, or have ended and that is not written down yet."""
    SUSPENDED = "suspended"
    """Its processes are frozen, or about to be; or have ended, and that is not written down yet."""
    WAITING = "waiting"
    """It ended, and its restart policy starts it again at `restart_at`."""
    PAUSED = "paused"
    """It is to be started again, as the same generation: the worker itself stopped it, or never started it."""
    ENDED = "ended"
    """It does not run, and nothing but a new generation starts it."""
    FAILED = "failed"
    """It cannot run, and nothing but a new generation tries again."""


class Stop(StrEnum):
    """Why a machine that runs is being stopped."""

    NO = ""
    """It is not."""
    REQUESTED = "requested"
    """That was asked for."""
    PAUSE = "pause"
    """The worker itself goes down, and machines with it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One machine in the journal. Times are in unix seconds, 0 where there is none."""

    machine_id: str
    generation: int
    instance_id: str = ""
    run: int = 0
    """Number of the latest attempt to run it, from 1, never used twice for a machine."""
    phase: Phase = Phase.PAUSED
    stop: Stop = Stop.NO
    restart_count: int = 0
    """Restarts by its policy since the generation began."""
    attempts: int = 0
    """Restarts since it last ran well."""
    restart_at: float = 0.0
    pid: int = 0
    """Of its main process, while it runs."""
    started_at: float = 0.0
    reason: str = ""
    """Why it failed."""


class JournalDamaged(Exception):
    """The journal's file is not a journal."""


class Journal:
    """The journal of one worker. Not shared between processes; the caller sees to that."""

    def __init__(
        self, path: Path, new_id: Callable[[], str], *, timer: Callable[[], float] = time.perf_counter
    ) -> None:
        """Open the journal at `path`, or begin one. Raises OSError; JournalDamaged if the file is no journal."""
        self.id = ""
        self.entries: dict[str, Entry] = {}
        """By machine id. Change it by `write` only."""
        self.outbox: deque[Observation] = deque()
        """What the store has not confirmed yet, in the order of sequence numbers without gaps."""
        self.damaged_bytes = 0
        """What was dropped from the end of the file because a crash had cut it off."""
        self._path = path
        self._new_id = new_id
        self._next_sequence = 1
        self._checks_waiting: set[str] = set()
        self._written = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._timer = timer
        self._sync_seconds = 0.0
        self._fd = -1
        size = self._replay()
        if self.id and not self.damaged_bytes:
            # As it is: a disk that is full must not keep a worker from what it has written there.
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._size, self._compact_at = size, _COMPACT_BYTES
            self._written = 1
        else:
            self.id = self.id or new_id()
            self._rewrite()

    @property
    def next_sequence(self) -> int:
        """The number that the next observation gets."""
        return self._next_sequence

    def write(
        self,
        entries: Iterable[Entry] = (),
        *,
        forget: Iterable[str] = (),
        observations: Iterable[Observation] = (),
    ) -> None:
        """Write down all of this or nothing; it survives the end of this process, and of the host after `sync`.

        Numbers the observations and puts them into the outbox. Raises OSError, and has changed nothing then.
        """
        numbered = list(observations)
        for offset, observation in enumerate(numbered):
            observation.sequence = self._next_sequence + offset
        line: dict[str, Any] = {}
        changed = {entry.machine_id: entry for entry in entries}
        if changed:
            line["entries"] = [_to_values(entry) for entry in changed.values()]
        forgotten = list(forget)
        if forgotten:
            line["forget"] = forgotten
        if numbered:
            line["observations"] = [b64encode(observation.SerializeToString()).decode() for observation in numbered]
        if not line:
            return
        self._append(line)
        self.entries.update(changed)
        for machine_id in forgotten:
            self.entries.pop(machine_id, None)
        self._enqueue(numbered)
        self._compact_if_worthwhile()

    def acknowledge(self, last_sequence: int) -> None:
        """Drop observations up to `last_sequence` from the outbox: the store has them."""
        if not self.outbox or self.outbox[0].sequence > last_sequence:
            return
        try:
            self._append({"acknowledged": last_sequence})
        except OSError:
            pass  # After a restart they are sent again, and the store knows them by their numbers.
        self._drop(last_sequence)
        self._compact_if_worthwhile()

    def agrees_with(self, last_sequence: int) -> bool:
        """Whether a store that has seen observations up to `last_sequence` can go on with the outbox."""
        first = self.outbox[0].sequence if self.outbox else self._next_sequence
        return first - 1 <= last_sequence < self._next_sequence

    def renew(self) -> None:
        """Become another journal with the same content: observations are numbered from 1 again.

        Raises OSError, and is the journal that it was then.
        """
        id, first = self.id, self._next_sequence - len(self.outbox)
        self._number(self._new_id(), 1)
        try:
            self._rewrite()
        except OSError:
            self._number(id, first)
            raise

    def tells_checks_of(self, machine_id: str) -> bool:
        """Whether an observation of this machine's checks waits in the outbox."""
        return machine_id in self._checks_waiting

    async def sync(self) -> None:
        """Return once everything written so far is on the disk; callers share the way there. Raises OSError."""
        target = self._written
        if self._synced < target and self._syncing is None and self._sync_seconds < _QUICK_SECONDS:
            self._sync_file()
            self._synced = target
        while self._synced < target:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync_once())
            await asyncio.shield(self._syncing)

    def close(self) -> None:
        """Close the file. A sync that is under way ends first."""
        if self._fd >= 0 and self._syncing is None:
            os.close(self._fd)
            self._fd = -1

    async def _sync_once(self) -> None:
        written = self._written
        try:
            await asyncio.to_thread(self._sync_file)
            self._synced = max(self._synced, written)
        finally:
            self._syncing = None

    def _sync_file(self) -> None:
        began = self._timer()
        os.fdatasync(self._fd)
        self._sync_seconds = self._timer() - began

    def _number(self, id: str, first: int) -> None:
        self.id = id
        for sequence, observation in enumerate(self.outbox, first):
            observation.sequence = sequence
        self._next_sequence = first + len(self.outbox)

    def _enqueue(self, observations: Iterable[Observation]) -> None:
        for observation in observations:
            self.outbox.append(observation)
            self._next_sequence = observation.sequence + 1
            if observation.WhichOneof("seen") == "checks_changed":
                self._checks_waiting.add(observation.machine_id)

    def _drop(self, last_sequence: int) -> None:
        while self.outbox and self.outbox[0].sequence <= last_sequence:
            dropped = self.outbox.popleft()
            if dropped.WhichOneof("seen") == "checks_changed":
                self._checks_waiting.discard(dropped.machine_id)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = _encode(line)
        try:
            _write_all(self._fd, data)
        except OSError:
            # A piece of a line would make everything behind it unreadable.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self._written += 1

    def _compact_if_worthwhile(self) -> None:
        if self._size > self._compact_at and self._syncing is None:
            try:
                self._rewrite()
            except OSError:
                # What was to be written is written. There may be room for a smaller file when this one has grown.
                self._compact_at = self._size + _COMPACT_BYTES

    def _rewrite(self) -> None:
        data = b"".join(_encode(line) for line in self._snapshot())
        temporary = self._path.with_suffix(".new")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data)
            os.fsync(fd)
            temporary.rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = len(data)
        self._compact_at = max(_COMPACT_BYTES, _COMPACT_FACTOR * self._size)
        self._synced = self._written

    def _snapshot(self) -> Iterable[Mapping[str, Any]]:
        yield {"journal": self.id, "next": self._next_sequence - len(self.outbox)}
        for entry in self.entries.values():
            yield {"entries": [_to_values(entry)]}
        for observation in self.outbox:
            yield {"observations": [b64encode(observation.SerializeToString()).decode()]}

    def _replay(self) -> int:
        """Take in what the file says. Returns its size in bytes."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        at = 0
        while at < len(data):
            end = data.find(b"\n", at)
            line = _decode(data[at:end]) if end >= 0 else None
            if line is None:
                break
            self._apply(line)
            at = end + 1
        self.damaged_bytes = len(data) - at
        if data and not self.id and self.damaged_bytes == len(data) and b"\n" in data:
            raise JournalDamaged(f"{self._path} is not a journal of a worker: move it away, and start again")
        return len(data)

    def _apply(self, line: Mapping[str, Any]) -> None:
        if "journal" in line:
            self.id = line["journal"]
            self._next_sequence = line["next"]
        for values in line.get("entries", ()):
            entry = _to_entry(values)
            self.entries[entry.machine_id] = entry
        for machine_id in line.get("forget", ()):
            self.entries.pop(machine_id, None)
        self._enqueue(Observation.FromString(b64decode(text)) for text in line.get("observations", ()))
        if "acknowledged" in line:
            self._drop(line["acknowledged"])


_ENTRY_FIELDS = tuple(field.name for field in fields(Entry))


def _to_values(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in _ENTRY_FIELDS}


def _to_entry(values: Mapping[str, Any]) -> Entry:
    known = {name: value for name, value in values.items() if name in _ENTRY_FIELDS}
    entry = Entry(**known)
    return replace(entry, phase=Phase(entry.phase), stop=Stop(entry.stop))


def _encode(line: Mapping[str, Any]) -> bytes:
    text = json.dumps(line, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _decode(data: bytes) -> dict[str, Any] | None:
    checksum, separator, text = data.partition(b" ")
    try:
        if not separator or int(checksum, 16) != zlib.crc32(text):
            return None
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
