"""Releases: taken by the cell that is home to their app, since it hands their numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
from google.protobuf.struct_pb2 import Value
from skerry.machines.v1 import releases_pb2 as api
from skerry.store.v1 import release_pb2 as record
from skerry.store.v1 import release_store_pb2 as store
from skerry.store.v1.release_pb2 import ReleaseRecord, ReleaseStatus
from skerry.store.v1.store_pb2 import AppRecord

from gateway.apps import Apps, Catalog
from gateway.auth import current_principal
from gateway.rest.writing import encode_value
from gateway.retrying import Retries
from gateway.routing import Peer, Routing
from services.runtime.clock import Clock
from services.runtime.errors import InvalidConfig, NotFound, Violation
from services.runtime.ids import cell_of, new_release_id
from services.runtime.principals import email_of

if TYPE_CHECKING:
    from skerry.store.v1.release_store_pb2_grpc import ReleaseStoreAsyncStub

STRATEGIES = ("ROLLING", "ROLLING_ONE", "IMMEDIATE", "CANARY", "BLUEGREEN", "SIMPLE")
STATUSES: dict[str, ReleaseStatus.ValueType] = {
    "running": record.RELEASE_STATUS_RUNNING,
    "complete": record.RELEASE_STATUS_COMPLETE,
    "failed": record.RELEASE_STATUS_FAILED,
    "interrupted": record.RELEASE_STATUS_INTERRUPTED,
}
"""What a user may tell of a release."""
LISTED = 100
MOST_LISTED = 1000
LONGEST_IMAGE = 1000
LONGEST_KEY = 255
MOST_DEFINITION_BYTES = 256 * 1024
"""Of a definition or metadata, as JSON."""


class Releases:
    """What can be done with releases. `store` is that of this cell."""

    def __init__(
        self,
        store: ReleaseStoreAsyncStub,
        apps: Apps,
        catalog: Catalog,
        routing: Routing,
        retries: Retries,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self._store = store
        self._apps = apps
        self._catalog = catalog
        self._routing = routing
        self._retries = retries
        self._clock = clock
        self._random = random

    async def create(self, request: api.CreateReleaseRequest, key: str) -> api.CreateReleaseResponse:
        """Take a release; `key` is the client's idempotency key, empty without one.

        Raises InvalidConfig, NotFound (the app), IdempotencyConflict, DependencyDown naming the region that is home to
        the app when it is away.
        """
        strategy = request.strategy.upper() or STRATEGIES[0]
        violations = [*_not_object("definition", request.definition)]
        if strategy not in STRATEGIES:
            violations.append(Violation("strategy", f"must be one of {', '.join(STRATEGIES)}"))
        if len(request.image) > LONGEST_IMAGE:
            violations.append(Violation("image", f"must not be longer than {LONGEST_IMAGE} characters"))
        if len(key) > LONGEST_KEY:
            violations.append(Violation("idempotency-key", f"must not be longer than {LONGEST_KEY} characters"))
        definition = _json(request.definition)
        if len(definition) > MOST_DEFINITION_BYTES:
            violations.append(_too_large("definition"))
        _refuse(violations)
        app = await self._apps.resolve(request.app_name)
        if (peer := self.home_of(app)) is not None:
            forwarded: api.CreateReleaseResponse = await peer.call("CreateRelease", request, service="Releases")
            return forwarded
        write = store.CreateReleaseRequest(
            release_id=new_release_id(self._routing.cell, self._clock.now(), self._random),
            app_id=app.id,
            strategy=strategy,
            user=email_of(current_principal.get()),
            image_ref=request.image,
            definition_json=definition,
            idempotency_key=key,
        )
        taken = await self._retries(lambda: self._store.CreateRelease(write))
        return api.CreateReleaseResponse(release=public_release(taken.release))

    async def update(self, request: api.UpdateReleaseRequest) -> api.UpdateReleaseResponse:
        """Note how far a release is. Raises InvalidConfig, NotFound, WrongState, DependencyDown."""
        violations = [*_not_object("metadata", request.metadata)]
        if request.status not in STATUSES:
            violations.append(Violation("status", f"must be one of {', '.join(STATUSES)}"))
        metadata = _json(request.metadata)
        if len(metadata) > MOST_DEFINITION_BYTES:
            violations.append(_too_large("metadata"))
        _refuse(violations)
        cell = cell_of(request.release_id)
        if cell is None:
            raise no_release(request.release_id)
        if (peer := self._routing.by_cell(cell)) is not None:
            forwarded: api.UpdateReleaseResponse = await peer.call("UpdateRelease", request, service="Releases")
            return forwarded
        await self._check_reach(request.release_id)
        write = store.UpdateReleaseRequest(
            release_id=request.release_id,
            status=STATUSES[request.status],
            metadata_json=metadata,
        )
        changed = await self._retries(lambda: self._store.UpdateRelease(write))
        return api.UpdateReleaseResponse(release=public_release(changed.release))

    async def list(self, request: api.ListReleasesRequest) -> api.ListReleasesResponse:
        """Releases of an app, newest first. Raises InvalidConfig, NotFound (the app), DependencyDown."""
        if not 0 <= request.limit <= MOST_LISTED:
            _refuse([Violation("limit", f"must be 0..{MOST_LISTED}")])
        app = await self._apps.resolve(request.app_name)
        if (peer := self.home_of(app)) is not None:
            forwarded: api.ListReleasesResponse = await peer.call("ListReleases", request, service="Releases")
            return forwarded
        found = await self.records(app, request.limit or LISTED)
        return api.ListReleasesResponse(releases=[public_release(each) for each in found])

    async def current(self, request: api.GetCurrentReleaseRequest) -> api.GetCurrentReleaseResponse:
        """The newest release of an app. Raises NotFound (the app, or a release of it), DependencyDown."""
        app = await self._apps.resolve(request.app_name)
        if (peer := self.home_of(app)) is not None:
            forwarded: api.GetCurrentReleaseResponse = await peer.call("GetCurrentRelease", request, service="Releases")
            return forwarded
        found = await self.records(app, 1)
        if not found:
            raise NotFound(f"app {app.name!r} has no release yet")
        return api.GetCurrentReleaseResponse(release=public_release(found[0]))

    async def records(self, app: AppRecord, limit: int) -> Sequence[ReleaseRecord]:
        """Releases of an app that is at home here, newest first. Raises DependencyDown."""
        request = store.ListReleasesRequest(app_id=app.id, limit=limit)
        return (await self._retries(lambda: self._store.ListReleases(request))).releases

    def home_of(self, app: AppRecord) -> Peer | None:
        """Who hands out the numbers of an app's releases; None for this cell."""
        try:
            return self._routing.by_cell(app.home_cell or self._routing.cell)
        except NotFound as error:
            raise NotFound(f"the home of app {app.name!r} is not in the region map: {error.message}") from error

    async def _check_reach(self, release_id: str) -> None:
        """Raise NotFound for a release that is not there, or of an app that the token does not reach."""
        read = store.GetReleaseRequest(release_id=release_id)
        try:
            app_id = (await self._retries(lambda: self._store.GetRelease(read))).release.app_id
            app = self._catalog.app_of_id(app_id)
            if app is not None:
                await self._apps.resolve(app.name)
                return
        except NotFound:
            pass
        raise no_release(release_id)


def public_release(release: ReleaseRecord) -> api.Release:
    """The release of a record, as users see it."""
    return api.Release(
        id=release.id,
        version=release.version,
        stable=is_stable(release),
        in_progress=is_in_progress(release),
        status=status_of(release),
        strategy=release.strategy,
        user=release.user,
        created_at=release.created_at,
        image_ref=release.image_ref,
    )


def is_stable(release: ReleaseRecord) -> bool:
    """It was rolled out."""
    return release.status == record.RELEASE_STATUS_COMPLETE


def is_in_progress(release: ReleaseRecord) -> bool:
    """It has not ended."""
    return release.status in (record.RELEASE_STATUS_PENDING, record.RELEASE_STATUS_RUNNING)


def status_of(release: ReleaseRecord) -> str:
    """How far it is, as users read it."""
    return ReleaseStatus.Name(release.status).removeprefix("RELEASE_STATUS_").lower()


def no_release(release_id: str) -> NotFound:
    """The error for a release that there is not."""
    return NotFound(f"there is no release {release_id[:64]!r} that this token reaches")


def _is_set(value: Value) -> bool:
    return value.WhichOneof("kind") not in (None, "null_value")


def _not_object(field: str, value: Value) -> list[Violation]:
    if not _is_set(value) or value.WhichOneof("kind") == "struct_value":
        return []
    return [Violation(field, "must be an object")]


def _too_large(field: str) -> Violation:
    return Violation(field, f"must not be larger than {MOST_DEFINITION_BYTES} bytes of JSON")


def _json(value: Value) -> str:
    """A document as the store keeps it; empty where none is set."""
    if not _is_set(value):
        return ""
    plain: Any = encode_value(value)
    return orjson.dumps(plain).decode()


def _refuse(violations: Sequence[Violation]) -> None:
    if violations:
        raise InvalidConfig("; ".join(f"{v.field} {v.why}" for v in violations), violations=violations)
