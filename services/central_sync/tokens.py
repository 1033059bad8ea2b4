"""Tokens of the public API: made and revoked at the centre, and known to the cell before the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.store.v1.catalog_store_pb2 import CatalogRecord, PutCatalogRecordsRequest, RecordRevocationRequest

from services.central_sync.apps import error_of
from services.central_sync.calls import Refusal
from services.central_sync.central_client import CentralClient, Token
from services.central_sync.records import token_key_of
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub

_STORE_SECONDS = 2.0
_RETRY_AFTER = 1.0


class Tokens:
    """Makes and revokes tokens."""

    def __init__(self, client: CentralClient, catalog: CatalogStoreAsyncStub) -> None:
        self._client = client
        self._catalog = catalog

    async def create(self, organization: str, *, app: str, scope: str, expires_at: float | None) -> Token:
        """A token for an organization, or one app of it where `app` is not empty; `expires_at` in unix seconds.

        Raises NotFound (the organization, the app), InvalidConfig, DependencyDown.
        """
        try:
            token = await self._client.create_token(organization, app=app, scope=scope, expires_at=expires_at)
        except Refusal as error:
            raise error_of(error) from error
        try:
            key = token_key_of("", token.key)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DependencyDown(
                f"{CENTRAL} answers a token in a form that is not known here",
                metadata={"dependency": CENTRAL},
                retry_after=_RETRY_AFTER,
            ) from None
        # It may be newer than what was pulled.
        put = PutCatalogRecordsRequest(records=[CatalogRecord(token_key=key)])
        await self._catalog.PutCatalogRecords(put, timeout=_STORE_SECONDS)
        return token

    async def revoke(self, revocation_id: str) -> None:
        """Revoke a token at the centre and here. Raises InvalidConfig, DependencyDown."""
        try:
            await self._client.revoke_token(revocation_id)
        except Refusal as error:
            raise error_of(error) from error
        await self._catalog.RecordRevocation(RecordRevocationRequest(id=revocation_id), timeout=_STORE_SECONDS)
