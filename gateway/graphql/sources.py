"""What the operations of GraphQL are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.apps import Catalog
from gateway.releases import Releases
from gateway.secrets import Secrets
from gateway.surroundings import Surroundings

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreAsyncStub


@dataclass(frozen=True, slots=True)
class Sources:
    """What reads are made from, the same for all operations."""

    around: Surroundings
    catalog: Catalog
    releases: Releases
    catalog_store: CatalogStoreAsyncStub
    volume_store: VolumeStoreAsyncStub
    secrets: Secrets
