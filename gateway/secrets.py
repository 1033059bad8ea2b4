"""Secrets of apps: changed at the centre through central-sync, read from the region's own catalog."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from skerry.machines.v1 import secrets_pb2 as api
from skerry.store.v1.catalog_pb2 import SecretEntry, SecretsRecord
from skerry.store.v1.catalog_store_pb2 import GetSecretsRequest
from skerry.store.v1.store_pb2 import AppRecord
from skerry.sync.v1 import sync_pb2 as sync
from skerry.types.v1.spec_pb2 import FileSpec, MachineSpec, ProcessSpec

from gateway.apps import RETRY_AFTER_SECONDS, Apps, no_app
from gateway.auth import Right, insist_on
from services.runtime.edges import CENTRAL
from services.runtime.errors import (
    DependencyDown,
    Internal,
    InvalidConfig,
    MissingReference,
    NotFound,
    SecretsNotHereYet,
    Violation,
)
from services.runtime.sealing import CannotOpen, Keyring, Sealed
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncAsyncStub

LONGEST_VALUE = 65_536
MOST_CHANGES = 500
CENTRE_SECONDS = 12.0
"""How long a change may take: central-sync may try twice."""

NAME_RULE = "must be 1..255 letters, digits, _, . and -, not beginning with a digit, . or -"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}").fullmatch


class Secrets:
    """What can be done with the secrets of apps. A value is in memory only, while it is set or shown."""

    def __init__(
        self,
        apps: Apps,
        catalog: CatalogStoreAsyncStub,
        *,
        central_sync: CentralSyncAsyncStub | None,
        keyring: Keyring | None,
    ) -> None:
        """Without `central_sync` nothing can be changed; without `keyring`, no value shown."""
        self._apps = apps
        self._catalog = catalog
        self._central_sync = central_sync
        self._keyring = keyring

    async def list(self, request: api.ListSecretsRequest) -> api.ListSecretsResponse:
        """The secrets of an app, by name, as of a version. Raises as `get`."""
        record, entries, version = await self._as_of(request)
        return api.ListSecretsResponse(
            secrets=[self._public(record, entry, show=request.show_secrets) for entry in entries], version=version
        )

    async def get(self, request: api.GetSecretRequest) -> api.AppSecret:
        """One secret.

        Raises NotFound (the app, the secret, or a version that is not kept), SecretsNotHereYet, Forbidden for a token
        that may not see values.
        """
        record, entries, _ = await self._as_of(request)
        for entry in entries:
            if entry.name == request.name:
                return self._public(record, entry, show=request.show_secrets)
        raise _no_secret(request.app_name, request.name)

    async def update(self, request: api.UpdateSecretsRequest) -> api.UpdateSecretsResponse:
        """Set and remove secrets at once. Raises InvalidConfig, NotFound (the app), DependencyDown."""
        changes = {name: change.value if change.HasField("value") else None for name, change in request.values.items()}
        record = await self._change(request.app_name, changes, "values.")
        return api.UpdateSecretsResponse(
            secrets=[_without_value(entry) for entry in record.secrets], version=record.version
        )

    async def set(self, request: api.SetSecretRequest) -> api.SetSecretResponse:
        """Set one secret. Raises InvalidConfig, NotFound (the app), DependencyDown."""
        if not request.HasField("value"):
            why = "is missing: to remove the secret, delete it"
            raise InvalidConfig(f"value {why}", violations=[Violation("value", why)])
        record = await self._change(request.app_name, {request.name: request.value})
        entry = next((entry for entry in record.secrets if entry.name == request.name), None)
        if entry is None:
            # Somebody removed it at the same moment.
            raise _no_secret(request.app_name, request.name)
        return api.SetSecretResponse(
            name=entry.name,
            digest=entry.digest,
            created_at=entry.created_at,
            updated_at=entry.updated_at,
            version=record.version,
        )

    async def delete(self, request: api.DeleteSecretRequest) -> int:
        """Remove one secret; the version without it. Raises NotFound (the app or the secret), DependencyDown."""
        app = await self._apps.resolve(request.app_name)
        record = await self._read(app)
        if request.name not in _names(record) and self._central_sync is not None:
            record = await self._refresh(app)
        if request.name not in _names(record):
            raise _no_secret(request.app_name, request.name)
        return (await self._change(request.app_name, {request.name: None})).version

    async def insist_on(self, app: AppRecord, spec: MachineSpec, min_version: int, prefix: str = "config") -> None:
        """Check that the region has the secrets that a machine needs; the centre is asked once for what it lacks.

        `prefix` is the path of the configuration in the request. Raises SecretsNotHereYet for `min_version`, and
        MissingReference for secrets that the configuration names.
        """
        named = dict(secrets_named(spec, prefix))
        if not named and not min_version:
            return
        record = await self._read(app)
        missing = named.keys() - _names(record)
        if missing or record.version < min_version:
            record = await self._fresh(app, record)
        self._insist_on_version(app, record, min_version)
        absent = _names(record)
        violations = [
            Violation(field, f"names the secret {name}, which the app {app.name} does not have")
            for name, field in sorted(named.items())
            if name not in absent
        ]
        if violations:
            raise MissingReference(
                "; ".join(f"{each.field} {each.why}" for each in violations) + ": set it first", violations=violations
            )

    async def _as_of(
        self, request: api.ListSecretsRequest | api.GetSecretRequest
    ) -> tuple[SecretsRecord, Sequence[SecretEntry], int]:
        """The newest secrets, and those of the version that a request asks for, with that version."""
        app = await self._apps.resolve(request.app_name)
        if request.show_secrets:
            insist_on(Right.SHOW_SECRETS)
        record, needed = await self._read(app), max(request.version, request.min_version)
        if record.version < needed:
            record = await self._fresh(app, record)
            self._insist_on_version(app, record, needed)
        if request.version in (0, record.version):
            return record, record.secrets, record.version
        for older in record.history:
            if older.version == request.version:
                return record, older.secrets, older.version
        raise NotFound(f"version {request.version} of the secrets of the app {app.name!r} is not kept here any more")

    async def _read(self, app: AppRecord) -> SecretsRecord:
        answer = await self._catalog.GetSecrets(GetSecretsRequest(app_id=app.id))
        return answer.secrets

    async def _refresh(self, app: AppRecord) -> SecretsRecord:
        assert self._central_sync is not None
        await self._central_sync.RefreshSecrets(sync.RefreshSecretsRequest(app_id=app.id))
        return await self._read(app)

    async def _fresh(self, app: AppRecord, record: SecretsRecord) -> SecretsRecord:
        """The secrets as the centre has them; `record`, where it cannot be asked or does not know the app."""
        if self._central_sync is None:
            return record
        try:
            return await self._refresh(app)
        except (DependencyDown, NotFound) as error:
            log.info("secrets_not_refreshed", app=app.name, why=error.message)
            return record

    def _insist_on_version(self, app: AppRecord, record: SecretsRecord, needed: int) -> None:
        if record.version >= needed:
            return
        raise SecretsNotHereYet(
            f"the secrets of the app {app.name!r} are here in version {record.version}, and version {needed} is asked "
            "for: it has not come to this region yet, or was never made",
            metadata={"version": str(record.version), "needed": str(needed)},
            retry_after=RETRY_AFTER_SECONDS,
        )

    async def _change(self, app_name: str, changes: Mapping[str, str | None], path: str = "") -> SecretsRecord:
        app = await self._apps.resolve(app_name)
        _check(changes, path)
        if self._central_sync is None:
            raise DependencyDown(
                "secrets are set at the centre, and this region has none", metadata={"dependency": CENTRAL}
            )
        wanted = sync.UpdateSecretsRequest(
            app_id=app.id,
            values={name: value for name, value in changes.items() if value is not None},
            removed_names=[name for name, value in changes.items() if value is None],
        )
        try:
            answer = await self._central_sync.UpdateSecrets(wanted, timeout=CENTRE_SECONDS)
        except NotFound as error:
            # It was deleted there a moment ago.
            raise no_app(app_name) from error
        except DependencyDown as error:
            retry_after = RETRY_AFTER_SECONDS if error.retry_after is None else error.retry_after
            raise DependencyDown(
                f"the secrets of the app {app.name!r} cannot be changed now: {error.message}",
                metadata=error.metadata,
                retry_after=retry_after,
            ) from error
        return answer.secrets

    def _public(self, record: SecretsRecord, entry: SecretEntry, *, show: bool) -> api.AppSecret:
        secret = _without_value(entry)
        if not show or self._keyring is None:
            return secret
        # Of what has been replaced, no value is kept.
        kept = next((each for each in record.secrets if (each.name, each.version) == (entry.name, entry.version)), None)
        if kept is not None:
            try:
                secret.value = self._keyring.open(record.app_id, kept.name, Sealed(kept.key_id, kept.sealed))
            except CannotOpen as error:
                raise Internal(str(error)) from None
        return secret


def secrets_named(spec: MachineSpec, prefix: str) -> Iterator[tuple[str, str]]:
    """The secrets that a configuration names, each with the field that does; `prefix` is the configuration's path."""
    yield from _of_files(spec.files.files, prefix)
    yield from _of_processes(spec.processes.processes, f"{prefix}.processes")
    for at, container in enumerate(spec.containers.containers):
        yield from _of_files(container.files, f"{prefix}.containers[{at}]")
        yield from ((name, f"{prefix}.containers[{at}].secrets") for name in container.process.secrets.values())


def _of_files(files: Iterable[FileSpec], path: str) -> Iterator[tuple[str, str]]:
    for at, file in enumerate(files):
        if file.secret_name:
            yield file.secret_name, f"{path}.files[{at}].secret_name"


def _of_processes(processes: Iterable[ProcessSpec], path: str) -> Iterator[tuple[str, str]]:
    for at, process in enumerate(processes):
        yield from ((name, f"{path}[{at}].secrets") for name in process.secrets.values())


def _check(changes: Mapping[str, str | None], path: str) -> None:
    """Raises InvalidConfig, which tells names and never values."""
    if not 1 <= len(changes) <= MOST_CHANGES:
        violations = [Violation(path.rstrip("."), f"must name 1..{MOST_CHANGES} secrets, names {len(changes)}")]
    else:
        violations = []
        for name, value in changes.items():
            where = f"{path}{name[:255]}" if path else "value"
            if not _NAME(name):
                violations.append(Violation(where if path else "name", NAME_RULE))
            elif value is not None and len(value.encode()) > LONGEST_VALUE:
                violations.append(Violation(where, f"must have {LONGEST_VALUE} bytes at most"))
            elif value is not None and "\0" in value:
                violations.append(Violation(where, "must not hold the character NUL"))
    if violations:
        raise InvalidConfig("; ".join(f"{each.field} {each.why}" for each in violations), violations=violations)


def _without_value(entry: SecretEntry) -> api.AppSecret:
    return api.AppSecret(name=entry.name, digest=entry.digest, created_at=entry.created_at, updated_at=entry.updated_at)


def _names(record: SecretsRecord) -> set[str]:
    return {entry.name for entry in record.secrets}


def _no_secret(app_name: str, name: str) -> NotFound:
    return NotFound(f"app {app_name!r} has no secret {name[:80]!r}")
