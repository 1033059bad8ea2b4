"""Secrets of apps: changed at the centre, and sealed in the cell's catalog before the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from skerry.store.v1.catalog_pb2 import SecretsRecord
from skerry.store.v1.catalog_store_pb2 import CatalogRecord, PutCatalogRecordsRequest

from services.central_sync.apps import error_of
from services.central_sync.calls import Refusal
from services.central_sync.central_client import CentralClient, Json
from services.central_sync.records import secrets_of
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown, InvalidConfig
from services.runtime.sealing import Keyring

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub

_STORE_SECONDS = 2.0
_RETRY_AFTER = 1.0


class Secrets:
    """Sets, removes and brings secrets. Their values are in memory only, and only for as long as a call takes."""

    def __init__(self, client: CentralClient, catalog: CatalogStoreAsyncStub, keyring: Keyring | None) -> None:
        self._client = client
        self._catalog = catalog
        self._keyring = keyring

    async def update(self, app_id: str, values: Mapping[str, str], removed: Sequence[str]) -> SecretsRecord | None:
        """Set and remove secrets of an app; answers them all as they are then, sealed, None when there never were any.

        Raises NotFound, InvalidConfig, DependencyDown.
        """
        self._insist_on_keys()
        try:
            return await self._put(app_id, await self._client.update_secrets(app_id, values, removed))
        except Refusal as error:
            raise error_of(error) from error

    async def refresh(self, app_id: str) -> SecretsRecord | None:
        """Bring the secrets of an app as the centre has them now; answers as `update`.

        Raises NotFound, DependencyDown.
        """
        self._insist_on_keys()
        try:
            return await self._put(app_id, await self._client.secrets(app_id))
        except Refusal as error:
            raise error_of(error) from error

    async def _put(self, app_id: str, payload: Json | None) -> SecretsRecord | None:
        if payload is None:
            return None
        assert self._keyring is not None
        try:
            record = secrets_of(app_id, payload, self._keyring.seal)
        except (KeyError, TypeError, ValueError, AttributeError):
            # Without its cause, which could tell a value.
            raise DependencyDown(
                f"{CENTRAL} answers secrets in a form that is not known here",
                metadata={"dependency": CENTRAL},
                retry_after=_RETRY_AFTER,
            ) from None
        put = PutCatalogRecordsRequest(records=[CatalogRecord(secrets=record)])
        await self._catalog.PutCatalogRecords(put, timeout=_STORE_SECONDS)
        return record

    def _insist_on_keys(self) -> None:
        if self._keyring is None:
            raise InvalidConfig("the region has no key for secrets: its settings need secrets_keys")
