"""Reading the cell's catalog from the store, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.store.v1.store_pb2 import (
    RECORD_KIND_APP,
    RECORD_KIND_IMAGE_ALIAS,
    RECORD_KIND_ORGANIZATION,
    WatchFilter,
    WatchRequest,
)

from services.central_sync.records import Catalog

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

READ_SECONDS = 30.0
_CATALOG = WatchFilter(kinds=[RECORD_KIND_APP, RECORD_KIND_ORGANIZATION, RECORD_KIND_IMAGE_ALIAS])


async def read_catalog(store: MachineStoreAsyncStub) -> Catalog:
    """What the catalog holds now."""
    catalog = Catalog()
    responses = store.Watch(WatchRequest(filter=_CATALOG), timeout=READ_SECONDS)
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
            if response.snapshot_complete:
                break
    finally:
        responses.cancel()
    return catalog
