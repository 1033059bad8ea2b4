"""Releases: taken under numbers that are never given twice, and how far each is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Never

from skerry.store.v1.release_pb2 import (
    RELEASE_STATUS_COMPLETE,
    RELEASE_STATUS_FAILED,
    RELEASE_STATUS_INTERRUPTED,
    RELEASE_STATUS_PENDING,
    RELEASE_STATUS_RUNNING,
    ReleaseRecord,
    ReleaseStatus,
)
from skerry.store.v1.release_store_pb2 import CreateReleaseRequest, UpdateReleaseRequest

from services.machine_store.database import Database
from services.machine_store.queries import load
from services.machine_store.records import Columns, check_text, moment, storable, timestamp
from services.runtime.clock import Clock
from services.runtime.errors import Conflict, IdempotencyConflict, InvalidConfig, NotFound, Violation, WrongState

_ENDS = frozenset({RELEASE_STATUS_COMPLETE, RELEASE_STATUS_FAILED, RELEASE_STATUS_INTERRUPTED})

TRANSITIONS: Mapping[ReleaseStatus.ValueType, frozenset[ReleaseStatus.ValueType]] = {
    RELEASE_STATUS_PENDING: frozenset({RELEASE_STATUS_RUNNING}) | _ENDS,
    RELEASE_STATUS_RUNNING: frozenset({RELEASE_STATUS_RUNNING}) | _ENDS,
    RELEASE_STATUS_COMPLETE: frozenset({RELEASE_STATUS_COMPLETE}),
    RELEASE_STATUS_FAILED: frozenset({RELEASE_STATUS_FAILED}),
    # One whose roll-out was broken off may be taken up again.
    RELEASE_STATUS_INTERRUPTED: frozenset({RELEASE_STATUS_RUNNING}) | _ENDS,
}
"""What may be told of a release, by what was told last."""

MOST_LISTED = 1000
MOST_DOCUMENT_BYTES = 2**20
MOST_TIMES_TRIED = 5

_SQL = load("releases")


class Releases:
    """The releases of the apps whose home the cell is."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(self, request: CreateReleaseRequest) -> ReleaseRecord:
        """Take a release under the app's next number; the same id, or key, again answers the same one.

        Raises InvalidConfig, NotFound (the app), IdempotencyConflict, DependencyDown.
        """
        for field in ("release_id", "app_id"):
            if not getattr(request, field):
                raise _wrong(field, "is missing")
        check_text(
            release_id=request.release_id,
            app_id=request.app_id,
            strategy=request.strategy,
            user=request.user,
            image_ref=request.image_ref,
            idempotency_key=request.idempotency_key,
        )
        check_text(MOST_DOCUMENT_BYTES, definition_json=request.definition_json)
        _check_json("definition_json", request.definition_json)
        row = await self._database.fetchrow(
            _SQL["create_release"],
            request.release_id,
            request.app_id,
            request.strategy,
            request.user,
            request.image_ref,
            request.definition_json,
            request.idempotency_key,
            self._now(),
        )
        assert row is not None
        if row["outcome"] == "no_app":
            raise NotFound(f"app {request.app_id} does not exist")
        if row["outcome"] == "other_request":
            raise IdempotencyConflict("the idempotency key stands for another release: use a new one")
        return await self.get(row["release_id"])

    async def update(self, request: UpdateReleaseRequest) -> ReleaseRecord:
        """Note how far a release is. Raises InvalidConfig, NotFound, WrongState, Conflict, DependencyDown."""
        if request.status not in TRANSITIONS:
            raise _wrong("status", "is missing")
        check_text(MOST_DOCUMENT_BYTES, metadata_json=request.metadata_json)
        _check_json("metadata_json", request.metadata_json)
        for _ in range(MOST_TIMES_TRIED):
            release = await self.get(request.release_id)
            if request.status not in TRANSITIONS[release.status]:
                raise WrongState(
                    f"release {release.version} is {status_name(release.status)}: "
                    f"it cannot become {status_name(request.status)}"
                )
            changed = await self._database.fetchval(
                _SQL["update_release"],
                release.id,
                release.revision,
                request.status,
                request.metadata_json,
                self._now(),
            )
            if changed:
                return await self.get(release.id)
        raise Conflict(f"release {request.release_id} changes all the time; repeat the request")

    async def get(self, release_id: str) -> ReleaseRecord:
        """One release. Raises NotFound, DependencyDown."""
        row = await self._database.fetchrow(_SQL["get_release"], storable(release_id))
        if row is None:
            raise NotFound(f"release {release_id[:64]!r} does not exist")
        return release_record(row)

    async def list(self, app_id: str, limit: int) -> list[ReleaseRecord]:
        """Releases of an app, newest first, that one alone with its documents. Raises InvalidConfig, DependencyDown."""
        if not 1 <= limit <= MOST_LISTED:
            raise _wrong("limit", f"is {limit}: it must be from 1 to {MOST_LISTED}")
        rows = await self._database.fetch(_SQL["list_releases"], storable(app_id), limit)
        return [release_record(row) for row in rows]

    def _now(self) -> datetime:
        return moment(self._clock.now())


def release_record(row: Columns) -> ReleaseRecord:
    """The release of a row of `releases`, or of such a row as the log keeps it."""
    return ReleaseRecord(
        id=row["id"],
        app_id=row["app_id"],
        version=row["version"],
        status=row["status"],
        strategy=row["strategy"],
        user=row["made_by"],
        image_ref=row["image_ref"],
        definition_json=row["definition"],
        metadata_json=row["metadata"],
        created_at=timestamp(_moment(row["created_at"])),
        updated_at=timestamp(_moment(row["updated_at"])),
        revision=row["revision"],
    )


def status_name(status: ReleaseStatus.ValueType) -> str:
    """A status as people write it."""
    return ReleaseStatus.Name(status).removeprefix("RELEASE_STATUS_").lower()


def _moment(at: datetime | str) -> datetime:
    return datetime.fromisoformat(at) if isinstance(at, str) else at


def _check_json(field: str, text: str) -> None:
    """Raise InvalidConfig, naming the field, for text that whoever reads it could not: it may be empty."""
    try:
        if text:
            json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _wrong(field, "is not JSON") from None


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _wrong(field: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])
