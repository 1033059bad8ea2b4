"""Reading the cell's catalog from the store, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.store.v1.store_pb2 import (
    RECORD_KIND_APP,
    RECORD_KIND_IMAGE_ALIAS,
    RECORD_KIND_ORGANIZATION,
    RECORD_KIND_REVOCATION,
    RECORD_KIND_SECRETS,
    RECORD_KIND_TOKEN_KEY,
    WatchFilter,
    WatchRequest,
)

from services.central_sync.records import Catalog

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

READ_SECONDS = 30.0
_CATALOG = WatchFilter(kinds=[RECORD_KIND_APP, RECORD_KIND_ORGANIZATION, RECORD_KIND_IMAGE_ALIAS])
_SECRETS = WatchFilter(kinds=[RECORD_KIND_SECRETS])
_WHOLE = WatchFilter(kinds=[*_CATALOG.kinds, *_SECRETS.kinds, RECORD_KIND_TOKEN_KEY, RECORD_KIND_REVOCATION])


async def read_catalog(store: MachineStoreAsyncStub) -> Catalog:
    """What the catalog holds now, but for secrets."""
    return await _read(store, _CATALOG)


async def read_whole_catalog(store: MachineStoreAsyncStub) -> Catalog:
    """What the catalog holds now."""
    return await _read(store, _WHOLE)


async def read_secrets(store: MachineStoreAsyncStub) -> Catalog:
    """What the catalog holds now of secrets, and nothing else."""
    return await _read(store, _SECRETS)


async def _read(store: MachineStoreAsyncStub, wanted: WatchFilter) -> Catalog:
    catalog = Catalog()
    responses = store.Watch(WatchRequest(filter=wanted), timeout=READ_SECONDS)
    try:
        async for response in responses:
            for change in response.changes:
                match change.WhichOneof("record"):
                    case "app":
                        catalog.take(change.app)
                    case "organization":
                        catalog.take(change.organization)
                    case "image_alias":
                        catalog.take(change.image_alias)
                    case "secrets":
                        catalog.take(change.secrets)
                    case "token_key":
                        catalog.take(change.token_key)
                    case "revocation":
                        catalog.take(change.revocation)
            if response.snapshot_complete:
                break
    finally:
        responses.cancel()
    return catalog
