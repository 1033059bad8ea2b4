"""Apps at the centre: made and deleted there first, and in the cell's catalog before the answer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from random import Random
from typing import TYPE_CHECKING

from skerry.store.v1 import store_pb2
from skerry.store.v1.catalog_store_pb2 import PutCatalogRecordsRequest
from skerry.store.v1.store_pb2 import AppRecord

from services.central_sync.calls import Refusal
from services.central_sync.central_client import INVALID, NAME_TAKEN, NOT_FOUND, App, CentralClient
from services.central_sync.records import app_of
from services.runtime.clock import Clock
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown, InvalidConfig, NameTaken, NotFound, SkerryError
from services.runtime.ids import new_ulid

if TYPE_CHECKING:
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub

_STORE_SECONDS = 2.0
_MOST_MISSES = 10_000
_RETRY_AFTER = 1.0

_ERRORS: dict[str, type[SkerryError]] = {NAME_TAKEN: NameTaken, INVALID: InvalidConfig, NOT_FOUND: NotFound}
"""What a refusal of the centre means to the caller, by its code."""


class Apps:
    """Creates, deletes and looks for apps."""

    def __init__(
        self,
        client: CentralClient,
        store: MachineStoreAsyncStub,
        catalog: CatalogStoreAsyncStub,
        *,
        region: str,
        misses: float,
        clock: Clock,
        random: Random,
    ) -> None:
        """`misses` is how long, in seconds, an app that was not there is not asked for again."""
        self._client = client
        self._store = store
        self._catalog = catalog
        self._region = region
        self._misses = misses
        self._clock = clock
        self._random = random
        self._missed: OrderedDict[str, float] = OrderedDict()
        self._looking: dict[str, asyncio.Task[AppRecord]] = {}

    async def create(self, name: str, organization: str, *, network: str, role: str) -> AppRecord:
        """A new app, at home in this region.

        Raises NameTaken, InvalidConfig, NotFound (the organization), DependencyDown.
        """
        app_id = new_ulid(self._clock.now(), self._random).lower()
        try:
            app = await self._client.create_app(
                app_id, name, organization, region=self._region, network=network, role=role
            )
        except Refusal as error:
            raise error_of(error) from error
        self._missed.pop(name, None)
        return await self._put(app)

    async def delete(self, name: str) -> None:
        """Delete an app at the centre and in the catalog; its machines are being destroyed then.

        Raises NotFound, DependencyDown.
        """
        unknown: Refusal | None = None
        try:
            await self._client.delete_app(name)
        except Refusal as error:
            if error.code != NOT_FOUND:
                raise error_of(error) from error
            unknown = error
        try:
            await self._store.DeleteApp(store_pb2.DeleteAppRequest(name=name, source="user"), timeout=_STORE_SECONDS)
        except NotFound:
            if unknown is not None:
                raise

    async def look_up(self, name: str) -> AppRecord:
        """An app that the catalog does not have: it has it then. One question at a time goes to the centre for a name.

        Raises NotFound, also for a moment after it was not there, and DependencyDown.
        """
        if self._is_missed(name):
            raise NotFound(f"there is no app {name[:80]!r}")
        looking = self._looking.get(name)
        if looking is None:
            looking = asyncio.create_task(self._find(name), name=f"look-up-{name[:80]}")
            self._looking[name] = looking
            looking.add_done_callback(lambda done: self._found(name, done))
        # One who gives up does not end it for the others.
        return await asyncio.shield(looking)

    async def _find(self, name: str) -> AppRecord:
        try:
            app = await self._client.app(name)
        except Refusal as error:
            if error.code == NOT_FOUND:
                self._miss(name)
                raise NotFound(f"there is no app {name[:80]!r}") from error
            raise error_of(error) from error
        return await self._put(app)

    def _found(self, name: str, done: asyncio.Task[AppRecord]) -> None:
        self._looking.pop(name, None)
        if not done.cancelled():
            done.exception()

    async def _put(self, app: App) -> AppRecord:
        try:
            record = app_of(app)
        except ValueError as error:
            raise DependencyDown(
                f"{CENTRAL} answers an app in a form that is not known here",
                metadata={"dependency": CENTRAL},
                retry_after=_RETRY_AFTER,
            ) from error
        await self._catalog.PutCatalogRecords(PutCatalogRecordsRequest(records=[record]), timeout=_STORE_SECONDS)
        return record.app

    def _is_missed(self, name: str) -> bool:
        now = self._clock.monotonic()
        while self._missed and next(iter(self._missed.values())) <= now:
            self._missed.popitem(last=False)
        return name in self._missed

    def _miss(self, name: str) -> None:
        self._missed[name] = self._clock.monotonic() + self._misses
        self._missed.move_to_end(name)
        if len(self._missed) > _MOST_MISSES:
            self._missed.popitem(last=False)


def error_of(error: Refusal) -> SkerryError:
    """What a refusal of the centre is to the caller."""
    kind = _ERRORS.get(error.code)
    if kind is not None:
        return kind(error.message)
    return DependencyDown(
        f"{CENTRAL} refuses ({error.code}): {error.message}",
        metadata={"dependency": CENTRAL, "code": error.code},
        retry_after=_RETRY_AFTER,
    )
