"""Secrets of the apps whose machines run here: asked of the store at every start, opened in memory, kept sealed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from skerry.store.v1.catalog_pb2 import SecretsRecord
from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.spec_pb2 import MachineSpec

from services.runtime.errors import DependencyDown, SkerryError
from services.runtime.sealing import CannotOpen, Keyring, Sealed
from services.runtime.telemetry import log
from services.worker.drivers.driver import CannotRun

Fetch = Callable[[str], Awaitable[SecretsRecord | None]]
"""Asks the store for the secrets of an app; None when it never had any. Raises SkerryError."""


class AppSecrets:
    """The secrets of the apps of one worker. What is on the disk, in `folder`, is sealed as in the store."""

    def __init__(self, folder: Path, fetch: Fetch, keyring: Keyring | None) -> None:
        """Without `keyring`, no app has secrets here."""
        self._folder = folder
        self._fetch = fetch
        self._keyring = keyring
        self._kept: dict[str, SecretsRecord] = {}

    async def of(self, machine: MachineRecord) -> Mapping[str, str]:
        """The secrets that a machine may use, name to value: the newest that the store has, or, while it is away, the
        last that were seen, if those are new enough for the machine.

        Raises DependencyDown and other errors of the store; CannotRun when they do not open; OSError.
        """
        if self._keyring is None or not needs_secrets(machine.spec):
            return {}
        record = await self._newest(machine.app_id, machine.spec.secrets.min_version)
        try:
            return {
                entry.name: self._keyring.open(record.app_id, entry.name, Sealed(entry.key_id, entry.sealed))
                for entry in record.secrets
            }
        except CannotOpen as error:
            raise CannotRun(f"the machine cannot have its secrets: {error}") from None

    async def _newest(self, app_id: str, min_version: int) -> SecretsRecord:
        try:
            record = await self._fetch(app_id) or SecretsRecord(app_id=app_id)
        except SkerryError as error:
            kept = self._read(app_id)
            if kept is None:
                raise
            if kept.version < min_version:
                raise DependencyDown(
                    f"the machine needs version {min_version} of its secrets, this worker has version {kept.version}, "
                    f"and the store does not answer: {error.message}",
                    metadata={"dependency": "machine-store"},
                ) from error
            log.warning("secrets_as_of_before", app_id=app_id, version=kept.version, why=error.message)
            return kept
        record.ClearField("history")
        self._keep(app_id, record)
        return record

    def _read(self, app_id: str) -> SecretsRecord | None:
        record = self._kept.get(app_id)
        if record is None:
            try:
                record = SecretsRecord.FromString(self._file(app_id).read_bytes())
            except (FileNotFoundError, DecodeError):
                return None
            self._kept[app_id] = record
        return record

    def _keep(self, app_id: str, record: SecretsRecord) -> None:
        if record == self._read(app_id):
            return
        path = self._file(app_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(record.SerializeToString())
        temporary.rename(path)
        self._kept[app_id] = record

    def forget_all_but(self, app_ids: frozenset[str]) -> None:
        """Remove what is kept of other apps than `app_ids`: nothing of theirs is here any more."""
        present = {self._file(app_id).name for app_id in app_ids}
        try:
            for path in self._folder.iterdir() if self._folder.exists() else ():
                if path.name not in present:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("secrets_not_removed", folder=str(self._folder), why=str(error))
        self._kept = {app_id: record for app_id, record in self._kept.items() if app_id in app_ids}

    def _file(self, app_id: str) -> Path:
        # Ids are the centre's, which may have characters that no file name has.
        return self._folder / hashlib.sha256(app_id.encode()).hexdigest()[:32]


def needs_secrets(spec: MachineSpec) -> bool:
    """Whether a machine gets any secrets of its app."""
    return not spec.secrets.skip or any(True for _ in _named(spec))


def _named(spec: MachineSpec) -> Iterator[str]:
    yield from (file.secret_name for file in spec.files.files if file.secret_name)
    for process in spec.processes.processes:
        yield from process.secrets.values()
