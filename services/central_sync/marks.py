"""Numbers of the cell that any of its instances may set: cursors of duties that are led for that moment only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from skerry.store.v1.catalog_store_pb2 import GetCursorRequest, SetCursorRequest
from skerry.store.v1.store_pb2 import AcquireDutyRequest, DutyTerm

from services.runtime.errors import Conflict

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

STORE_SECONDS = 2.0
"""Deadline of small reads and writes of the store."""
_LEASE_SECONDS = 2


class Marks:
    """Reads and sets marks. `holder` is what the store knows this instance by."""

    def __init__(self, store: MachineStoreAsyncStub, catalog: CatalogStoreAsyncStub, holder: str) -> None:
        self._store = store
        self._catalog = catalog
        self._holder = holder

    async def get(self, name: str) -> int:
        """The mark; 0 when it was never set."""
        answer = await self._catalog.GetCursor(GetCursorRequest(duty=name), timeout=STORE_SECONDS)
        return answer.value

    async def set(self, name: str, value: int) -> None:
        """Set the mark. Raises Conflict while another instance sets it."""
        taken = await self._store.AcquireDuty(self._request(name, _LEASE_SECONDS), timeout=STORE_SECONDS)
        if not taken.acquired:
            raise Conflict(f"{taken.holder} sets {name} just now; try again")
        await self.set_as_leader(name, taken.term, value)
        await self._store.AcquireDuty(self._request(name, 0), timeout=STORE_SECONDS)

    async def set_as_leader(self, duty: str, term: int, value: int) -> None:
        """Set the cursor of a duty that this instance leads. Raises Conflict for a term that is over."""
        request = SetCursorRequest(term=DutyTerm(duty=duty, term=term), value=value)
        await self._catalog.SetCursor(request, timeout=STORE_SECONDS)

    def _request(self, name: str, lease: int) -> AcquireDutyRequest:
        return AcquireDutyRequest(duty=name, holder=self._holder, lease=Duration(seconds=lease))
