"""Reading the cell's catalog from the store, whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from skerry.store.v1 import store_pb2
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationRecord
from skerry.store.v1.store_pb2 import AppRecord, WatchFilter, WatchRequest

from services.central_sync.records import Catalog

if TYPE_CHECKING:
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

READ_SECONDS = 30.0
_NAMES = ("RECORD_KIND_APP", "RECORD_KIND_ORGANIZATION", "RECORD_KIND_IMAGE_ALIAS")
_KINDS = [number for name, number in store_pb2.RecordKind.items() if name in _NAMES]


async def read_catalog(store: MachineStoreAsyncStub) -> Catalog:
    """What the catalog holds now."""
    catalog = Catalog()
    responses = store.Watch(WatchRequest(filter=WatchFilter(kinds=_KINDS)), timeout=READ_SECONDS)
    try:
        async for response in responses:
            for change in response.changes:
                record = getattr(change, change.WhichOneof("record") or "app")
                if isinstance(record, AppRecord | OrganizationRecord | ImageAliasRecord):
                    catalog.take(record)
            if response.snapshot_complete:
                break
    finally:
        responses.cancel()
    return catalog
