"""What the centre is the origin of: organizations, their limits, apps, their secrets, image aliases.

Every change is recorded in the feed in the transaction that makes it, with the whole record as its payload:

    organization  id -> {id, internal_numeric_id, slug, name, type, paid_plan, billable}
    limits        organization id -> {organization_id, organization_slug, cpus, memory_mb, gpus, machines} (null: any)
    app           id -> {id, internal_numeric_id, name, organization_id, organization_slug, network, role, home_cell,
                  status, created_at}
    secrets       app id -> {app_id, app_name, version,
                  secrets: [{name, value, digest, version, created_at, updated_at}]}
    image_alias   name -> {name, repository, digest, reference}

Moments are unix seconds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from services.central.database import Database, Row, Session, Write
from services.central.errors import Invalid, Missing, Taken
from services.central.vault import Vault
from services.runtime.clock import Clock
from services.runtime.ids import new_ulid
from services.runtime.regions import RegionMap
from services.runtime.telemetry import log

PERSONAL = "personal"
SECRETS = "secrets"
DEFAULT_NETWORK = "default"
DEFAULT_ROLE = "app"
LONGEST_SECRET = 65_536
MOST_SECRETS_BYTES = 262_144
"""Of all secrets of an app together, as they are sealed: every change of them goes to every region whole."""
LARGEST_LIMIT = (1 << 31) - 1

_APP_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch
_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}").fullmatch
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}").fullmatch
_REPOSITORY = re.compile(r"[A-Za-z0-9._:-]+(?:/[a-z0-9._-]+)+").fullmatch
_LONGEST_REFERENCE = 512


@dataclass(frozen=True, slots=True)
class Organization:
    """Who apps belong to."""

    id: str
    internal_numeric_id: int
    slug: str
    name: str
    type: str
    paid_plan: bool
    billable: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What an organization may give one machine, and how many machines it may have; None is no bound."""

    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    machines: int | None = None


@dataclass(frozen=True, slots=True)
class App:
    """An app; `created_at` in unix seconds."""

    id: str
    internal_numeric_id: int
    name: str
    organization_id: str
    organization_slug: str
    network: str
    role: str
    home_cell: str
    status: str
    secrets_version: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Secret:
    """What may be seen of a secret; times in unix seconds."""

    name: str
    digest: str
    version: int
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class ImageAlias:
    """A name for an image: `repository` is registry/path, the digest decides."""

    name: str
    repository: str
    digest: str

    @property
    def reference(self) -> str:
        """The image reference that the name stands for."""
        return f"{self.repository}@{self.digest}"


class Catalog:
    """Reads and writes the catalog. Names and ids are interchangeable where an app or an organization is meant."""

    def __init__(self, database: Database, vault: Vault, regions: RegionMap, clock: Clock, random: Random) -> None:
        self._database = database
        self._vault = vault
        self._regions = regions
        self._clock = clock
        self._random = random

    async def seed(self) -> None:
        """Make the organization `personal` if there is no organization at all."""
        async with self._database.write() as write:
            if await write.one("any_organization") is None:
                await self._insert_organization(write, PERSONAL, "Personal", "PERSONAL")

    # Organizations

    async def organizations(self) -> list[Organization]:
        """All organizations by slug."""
        async with self._database.read() as session:
            return [_organization(row) for row in await session.all("organizations")]

    async def organization(self, which: str) -> Organization:
        """One organization. Raises Missing."""
        async with self._database.read() as session:
            return await _find_organization(session, which)

    async def create_organization(self, slug: str, name: str) -> Organization:
        """A new organization. Raises Invalid, Taken."""
        if not _APP_NAME(slug):
            raise Invalid(f"slug must be 1..63 lower-case letters, digits and inner dashes, is {slug[:80]!r}")
        async with self._database.write() as write:
            return await self._insert_organization(write, slug, name or slug, "SHARED")

    async def _insert_organization(self, write: Write, slug: str, name: str, kind: str) -> Organization:
        row = await write.one("insert_organization", self._new_id(write.at), slug, name, kind, False, True, write.at)
        if row is None:
            raise Taken(f"there is an organization {slug!r} already")
        organization = _organization(row)
        await write.record("organization", organization.id, _organization_payload(organization))
        log.info("central_organization_created", organization=slug)
        return organization

    async def limits(self, organization_id: str) -> Limits:
        """The limits of an organization; none are set at first."""
        async with self._database.read() as session:
            row = await session.one("limits", organization_id)
        return Limits(row["cpus"], row["memory_mb"], row["gpus"], row["machines"]) if row else Limits()

    async def set_limits(self, which: str, limits: Limits) -> Organization:
        """Set all limits of an organization. Raises Invalid, Missing."""
        values = {name: getattr(limits, name) for name in ("cpus", "memory_mb", "gpus", "machines")}
        for name, value in values.items():
            if value is not None and not 0 <= value <= LARGEST_LIMIT:
                raise Invalid(f"{name} must be 0..{LARGEST_LIMIT}, is {value}")
        async with self._database.write() as write:
            organization = await _find_organization(write, which)
            await write.run("set_limits", organization.id, *values.values())
            payload = {"organization_id": organization.id, "organization_slug": organization.slug, **values}
            await write.record("limits", organization.id, payload)
        log.info("central_limits_set", organization=organization.slug, **values)
        return organization

    # Apps

    async def app(self, which: str) -> App:
        """One app. Raises Missing."""
        async with self._database.read() as session:
            return await _find_app(session, which)

    async def apps(self, organization_slug: str | None, after: str, limit: int) -> list[App]:
        """Apps by name, those after the name `after`, `limit` at most; of one organization or all."""
        async with self._database.read() as session:
            return [_app(row) for row in await session.all("apps", organization_slug, after, limit)]

    async def create_app(
        self,
        *,
        organization: str,
        name: str,
        preferred_region: str | None = None,
        network: str | None = None,
        role: str | None = None,
        app_id: str | None = None,
    ) -> App:
        """A new app, at home in the first cell of its region (of the first region when none is preferred).

        A caller that chooses `app_id` can repeat the call: it answers the same app. Raises Invalid, Missing, Taken.
        """
        if not _APP_NAME(name):
            raise Invalid(f"name must be 1..63 lower-case letters, digits and inner dashes, is {name[:80]!r}")
        if app_id is not None and not _APP_ID(app_id):
            raise Invalid('id must be 1..64 letters, digits, "_" and "-"')
        home_cell = self._home_cell(preferred_region)
        async with self._database.write() as write:
            owner = await _find_organization(write, organization)
            new_id = app_id or self._new_id(write.at)
            # A name that is another app's id would make the one be taken for the other.
            if await write.one("app_by_either", new_id, name):
                raise Taken("Name has already been taken")
            row = await write.one(
                "insert_app",
                new_id,
                name,
                owner.id,
                network or DEFAULT_NETWORK,
                role or DEFAULT_ROLE,
                home_cell,
                write.at,
            )
            if row is None:
                return await _repeated(write, app_id, name, owner)
            app = await _find_app(write, new_id)
            await write.record("app", app.id, app_payload(app))
        log.info("central_app_created", app=name, organization=owner.slug, home_cell=home_cell)
        return app

    def _home_cell(self, preferred_region: str | None) -> str:
        for region in self._regions.regions:
            if preferred_region in (None, "", region.code):
                return region.cells[0].id
        known = ", ".join(region.code for region in self._regions.regions)
        raise Invalid(f"preferredRegion must be one of {known}, is {str(preferred_region)[:80]!r}")

    async def delete_app(self, which: str) -> Organization:
        """Delete an app with its secrets; answers whose it was. Raises Missing."""
        async with self._database.write() as write:
            app = await _find_app(write, which)
            owner = await _find_organization(write, app.organization_id)
            await write.run("delete_app", app.id)
            if app.secrets_version:
                await write.record(SECRETS, app.id, None)
            await write.record("app", app.id, None)
        log.info("central_app_deleted", app=app.name, organization=owner.slug)
        return owner

    # Secrets

    async def secrets(self, app_id: str) -> list[Secret]:
        """The secrets of an app by name, without their values."""
        async with self._database.read() as session:
            rows = await session.all("secrets", app_id)
        return [Secret(r["name"], r["digest"], r["version"], r["created_at"], r["updated_at"]) for r in rows]

    async def secrets_record(self, which: str) -> dict[str, Any] | None:
        """The secrets of an app as the feed's readers get them, with their values; None when it never had any.

        Raises Missing.
        """
        async with self._database.read() as session:
            app = await _find_app(session, which)
            rows = await session.all("secrets", app.id)
        return self.reveal(SECRETS, _secrets_payload(app, rows)) if app.secrets_version else None

    async def set_secrets(
        self, which: str, values: Mapping[str, str], *, only: bool = False, removed: Sequence[str] = ()
    ) -> App:
        """Set secrets of an app, and remove those that are `removed` or, with `only`, not named; one new version.

        Answers the app with its new secrets version. Raises Invalid, Missing.
        """
        if not values and not only:
            raise Invalid("secrets must name one at least")
        for name, value in values.items():
            if not _SECRET_NAME(name):
                raise Invalid(f'a secret\'s key must be letters, digits, "_", "." and "-", is {name[:80]!r}')
            if len(value.encode()) > LONGEST_SECRET:
                raise Invalid(f"the secret {name} must have {LONGEST_SECRET} bytes at most")
        async with self._database.write() as write:
            app = await _find_app(write, which)
            version = await _next_version(write, app)
            if only:
                await write.run("keep_only_secrets", app.id, list(values))
            if removed:
                await write.run("delete_secrets", app.id, list(removed))
            for name, value in values.items():
                sealed = self._vault.seal(app.id, name, value)
                digest = self._vault.digest(app.id, name, value)
                await write.run("set_secret", app.id, name, sealed, digest, version, write.at)
            return await self._record_secrets(write, app)

    async def unset_secrets(self, which: str, names: Sequence[str]) -> App:
        """Remove secrets of an app; those that it does not have are no error. Raises Missing."""
        async with self._database.write() as write:
            app = await _find_app(write, which)
            if not await write.run("delete_secrets", app.id, list(names)):
                return app
            await _next_version(write, app)
            return await self._record_secrets(write, app)

    async def _record_secrets(self, write: Write, app: App) -> App:
        now = await _find_app(write, app.id)
        rows = await write.all("secrets", app.id)
        if sum(len(row["sealed"]) for row in rows) > MOST_SECRETS_BYTES:
            raise Invalid(f"the secrets of an app must have {MOST_SECRETS_BYTES} bytes together at most")
        await write.record(SECRETS, app.id, _secrets_payload(now, rows))
        log.info("central_secrets_changed", app=app.name, version=now.secrets_version, count=len(rows))
        return now

    def reveal(self, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The payload as the feed's readers get it: secrets opened, since regions keep them under keys of their own."""
        if kind != SECRETS:
            return payload
        app_id = payload["app_id"]
        opened = []
        for secret in payload["secrets"]:
            value = self._vault.open(app_id, secret["name"], base64.b64decode(secret["sealed"]))
            opened.append({"value": value, **{name: secret[name] for name in secret if name != "sealed"}})
        return {**payload, "secrets": opened}

    # Images

    async def image_aliases(self) -> list[ImageAlias]:
        """All aliases by name."""
        async with self._database.read() as session:
            return [_alias(row) for row in await session.all("image_aliases")]

    async def image(self, reference: str) -> ImageAlias | None:
        """What an alias, a digest or a repository@digest stands for; None when it is unknown."""
        async with self._database.read() as session:
            row = await session.one("image_alias", reference)
        return _alias(row) if row else None

    async def newest_image(self, reference: str) -> ImageAlias | None:
        """The alias of that name, else the newest alias of the repository that the reference names."""
        if alias := await self.image(reference):
            return alias
        async with self._database.read() as session:
            row = await session.one("newest_image_of", _repository_of(reference))
        return _alias(row) if row else None

    async def set_image_alias(self, name: str, repository: str, digest: str) -> ImageAlias:
        """Let `name` stand for an image. Raises Invalid."""
        if not 1 <= len(name) <= _LONGEST_REFERENCE:
            raise Invalid(f"name must have 1..{_LONGEST_REFERENCE} characters")
        if len(repository) > _LONGEST_REFERENCE or not _REPOSITORY(repository):
            raise Invalid('repository must be registry/path, such as "docker.io/library/nginx"')
        if not _DIGEST(digest):
            raise Invalid('digest must be "sha256:" and 64 lower-case hex digits')
        alias = ImageAlias(name, repository, digest)
        async with self._database.write() as write:
            await write.run("set_image_alias", name, repository, digest, write.at)
            payload = {"name": name, "repository": repository, "digest": digest, "reference": alias.reference}
            await write.record("image_alias", name, payload)
        log.info("central_image_alias_set", alias=name, reference=alias.reference)
        return alias

    async def delete_image_alias(self, name: str) -> None:
        """Forget an alias. Raises Missing."""
        async with self._database.write() as write:
            if not await write.run("delete_image_alias", name):
                raise Missing(f"there is no image alias {name[:80]!r}")
            await write.record("image_alias", name, None)
        log.info("central_image_alias_deleted", alias=name)

    def _new_id(self, now: float) -> str:
        return new_ulid(now, self._random).lower()


async def update_app_statuses(write: Write, app_ids: Sequence[str], gone: Sequence[str]) -> None:
    """Bring the status of apps in line with the mirror; `gone` are machine states that do not count."""
    if not app_ids:
        return
    for row in await write.all("app_statuses", list(app_ids), list(gone)):
        if await write.run("set_app_status", row["id"], row["status"]):
            app = await _find_app(write, row["id"])
            await write.record("app", app.id, app_payload(app))


def app_payload(app: App) -> dict[str, Any]:
    """An app as the feed has it."""
    names = ("id", "internal_numeric_id", "name", "organization_id", "organization_slug", "network", "role")
    return {name: getattr(app, name) for name in (*names, "home_cell", "status", "created_at")}


def _organization_payload(organization: Organization) -> dict[str, Any]:
    names = ("id", "internal_numeric_id", "slug", "name", "type", "paid_plan", "billable")
    return {name: getattr(organization, name) for name in names}


async def _find_organization(session: Session, which: str) -> Organization:
    if row := await session.one("organization", which):
        return _organization(row)
    raise Missing("Could not find Organization")


async def _find_app(session: Session, which: str) -> App:
    if row := await session.one("app", which):
        return _app(row)
    raise Missing("Could not find App")


async def _repeated(write: Write, app_id: str | None, name: str, owner: Organization) -> App:
    there = await write.one("app", name)
    if there and there["id"] == app_id and there["name"] == name and there["organization_id"] == owner.id:
        return _app(there)
    raise Taken("Name has already been taken" if there else "id has already been taken")


def _secrets_payload(app: App, rows: Sequence[Row]) -> dict[str, Any]:
    """The secrets of an app as the feed keeps them."""
    secrets = [{**row, "sealed": base64.b64encode(row["sealed"]).decode()} for row in rows]
    return {"app_id": app.id, "app_name": app.name, "version": app.secrets_version, "secrets": secrets}


async def _next_version(write: Write, app: App) -> int:
    row = await write.one("next_secrets_version", app.id)
    if row is None:
        raise Missing("Could not find App")
    version: int = row["secrets_version"]
    return version


def _repository_of(reference: str) -> str:
    name = reference.partition("@")[0]
    path, colon, tag = name.rpartition(":")
    return path if colon and "/" not in tag else name


def _organization(row: Row) -> Organization:
    names = ("id", "internal_numeric_id", "slug", "name", "type", "paid_plan", "billable")
    return Organization(**{name: row[name] for name in names})


def _app(row: Row) -> App:
    names = ("id", "internal_numeric_id", "name", "organization_id", "organization_slug", "network", "role")
    return App(**{name: row[name] for name in (*names, "home_cell", "status", "secrets_version", "created_at")})


def _alias(row: Row) -> ImageAlias:
    return ImageAlias(row["name"], row["repository"], row["digest"])
