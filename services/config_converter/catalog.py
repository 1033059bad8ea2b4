"""What the converter knows of its cell, from one watch of the store: the plan, and facts that conversions depend on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from skerry.handover.v1.plan_pb2 import Plan
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationLimits, OrganizationRecord
from skerry.store.v1.store_pb2 import (
    RECORD_KIND_APP,
    RECORD_KIND_IMAGE_ALIAS,
    RECORD_KIND_ORGANIZATION,
    RECORD_KIND_PLAN,
    RECORD_KIND_VOLUME,
    AppRecord,
    Change,
    WatchFilter,
    WatchResponse,
)
from skerry.store.v1.volume_store_pb2 import VOLUME_STATE_DESTROYED, VolumeRecord

from services.config_converter.part import Facts, Limits
from services.config_converter.rules import MIB

FILTER = WatchFilter(
    kinds=[
        RECORD_KIND_PLAN,
        RECORD_KIND_APP,
        RECORD_KIND_ORGANIZATION,
        RECORD_KIND_IMAGE_ALIAS,
        RECORD_KIND_VOLUME,
    ]
)

_NO_LIMITS = OrganizationLimits()


@dataclass(slots=True)
class _Records:
    apps: dict[str, AppRecord] = field(default_factory=dict)
    """By name."""
    organizations: dict[str, OrganizationRecord] = field(default_factory=dict)
    """By short name."""
    slugs: dict[str, str] = field(default_factory=dict)
    """Short name of an organization by its id."""
    aliases: dict[str, str] = field(default_factory=dict)
    volumes: dict[str, VolumeRecord] = field(default_factory=dict)
    """By id; those that are not destroyed."""

    def put_app(self, app: AppRecord) -> None:
        """Names are unique among apps that are not deleted, so another one may have this one's name by now."""
        present = self.apps.get(app.name)
        if not app.deleted:
            self.apps[app.name] = app
        elif present is not None and present.id == app.id:
            del self.apps[app.name]

    def put_organization(self, organization: OrganizationRecord) -> None:
        slug = self.slugs.pop(organization.id, None)
        if slug is not None:
            self.organizations.pop(slug, None)
        if not organization.deleted:
            self.slugs[organization.id] = organization.slug
            self.organizations[organization.slug] = organization

    def put_volume(self, volume: VolumeRecord) -> None:
        """Destroyed ones are nowhere."""
        if volume.state == VOLUME_STATE_DESTROYED:
            self.volumes.pop(volume.id, None)
        else:
            self.volumes[volume.id] = volume

    def put_alias(self, alias: ImageAliasRecord) -> None:
        if alias.deleted:
            self.aliases.pop(alias.alias, None)
        elif not alias.digest or "@" in alias.reference:
            self.aliases[alias.alias] = alias.reference
        else:
            self.aliases[alias.alias] = f"{alias.reference}@{alias.digest}"


class Catalog:
    """A view of the store's log, fed by `follow`. While a state comes anew, it keeps answering from the old one."""

    def __init__(self, on_plan: Callable[[Plan], None]) -> None:
        """`on_plan` is called with every plan that is newer than the one before."""
        self._on_plan = on_plan
        self._records = _Records()
        self._coming: _Records | None = None
        self._facts: dict[str, Facts] = {}
        self._aliases: dict[str, str] | None = None
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self.epoch = 0
        """Of the plan; 0 before the first."""

    def reset(self) -> None:
        """A state begins anew."""
        self._coming = _Records()

    def __call__(self, response: WatchResponse) -> None:
        """Take a message of the watch in."""
        records = self._coming if response.snapshot and self._coming is not None else self._records
        for change in response.changes:
            self._take(change, records)
        if self._coming is not None and response.snapshot_complete:
            self._records, self._coming = self._coming, None
            self._forget_facts()

    def _take(self, change: Change, records: _Records) -> None:
        match change.WhichOneof("record"):
            case "plan":
                self.use(change.plan)
            case "app":
                records.put_app(change.app)
            case "organization":
                records.put_organization(change.organization)
                self._facts.clear()
            case "volume":
                records.put_volume(change.volume)
            case "image_alias":
                records.put_alias(change.image_alias)
                self._forget_facts()

    def use(self, plan: Plan) -> None:
        """Apply a plan, if it is newer than the present one."""
        if plan.epoch <= self.epoch:
            return
        self._on_plan(plan)
        self.epoch = plan.epoch
        for entry in [entry for entry in self._waiting if entry[0] <= plan.epoch]:
            self._waiting.discard(entry)
            if not entry[1].done():
                entry[1].set_result(None)

    async def until(self, epoch: int) -> None:
        """Wait until a plan of this epoch, or a later one, is applied."""
        if epoch <= self.epoch:
            return
        applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (epoch, applied)
        self._waiting.add(entry)
        try:
            await applied
        finally:
            self._waiting.discard(entry)

    def app(self, name: str) -> AppRecord | None:
        """The app, as far as it is here."""
        return self._records.apps.get(name)

    def put_app(self, app: AppRecord) -> None:
        """Know an app that the watch has not brought yet."""
        self._records.put_app(app)

    def volume_at(self, app_name: str, volume: str) -> str | None:
        """The worker of a volume that an app knows by its id or its name; None where nothing is known of it."""
        known = self._records.volumes.get(volume)
        if known is not None:
            return known.worker_id if known.app_name == app_name else None
        named = (each for each in self._records.volumes.values() if each.name == volume and each.app_name == app_name)
        return min((each.worker_id for each in named), default=None)

    def put_volume(self, volume: VolumeRecord) -> None:
        """Know a volume that the watch has not brought yet."""
        self._records.put_volume(volume)

    def facts_of(self, organization: str) -> Facts:
        """What conversions for an organization depend on. The same object until something of it changes."""
        facts = self._facts.get(organization)
        if facts is None:
            facts = Facts(image_aliases=self._present_aliases(), limits=self._limits_of(organization))
            if organization in self._records.organizations or not organization:
                self._facts[organization] = facts
        return facts

    def _present_aliases(self) -> dict[str, str]:
        # A copy, since facts are what they were when a conversion was made.
        if self._aliases is None:
            self._aliases = dict(self._records.aliases)
        return self._aliases

    def _limits_of(self, organization: str) -> Limits:
        record = self._records.organizations.get(organization)
        limits = record.limits if record is not None else _NO_LIMITS
        return Limits(
            cpus=limits.max_cpus if limits.HasField("max_cpus") else None,
            memory_mb=limits.max_memory_bytes // MIB if limits.HasField("max_memory_bytes") else None,
            gpus=limits.max_gpus if limits.HasField("max_gpus") else None,
        )

    def _forget_facts(self) -> None:
        self._facts.clear()
        self._aliases = None
