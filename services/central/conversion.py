"""Answers exactly the parts that were asked for: each converted by this instance's release, or refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.central.catalog import Catalog
from services.central.errors import Invalid, Missing
from services.central.legacy import PARTS, convert_part
from services.central.lookup import VolumeLookup
from services.central.releases import Release

MOUNTS = "mounts"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """What became of one part.

    `spec` is its message's JSON form; or there are `violations` (field below the configuration, why); or `not_served`
    says why this release does not convert it, and `version` is 0.
    """

    part: str
    version: int = 0
    spec: Json | None = None
    violations: tuple[tuple[str, str], ...] = ()
    not_served: str | None = None


class Conversion:
    """Converts for one release. Facts that a request leaves out come from the centre's own tables and the regions."""

    def __init__(self, release: Release, catalog: Catalog, lookup: VolumeLookup) -> None:
        self.release = release
        self._catalog = catalog
        self._lookup = lookup

    async def convert(
        self, asked: Sequence[str], config: Json, facts: Json, *, app_name: str, region: str
    ) -> list[PartAnswer]:
        """One answer for each of `asked`, in that order: a part's name, or name@version; without one the newest counts.

        Raises Invalid for a part that is asked for twice, and what the lookup of a volume raises.
        """
        wanted = [_wanted(text) for text in asked]
        names = [part for part, _ in wanted]
        if len(set(names)) != len(names):
            raise Invalid("parts must name each part once")
        _check_facts(facts)
        chosen = [self._choose(part, version) for part, version in wanted]
        served = {answer.part for answer in chosen if not answer.not_served}
        all_facts = await self._complete(facts, served, config, app_name, region)
        return [answer if answer.not_served else _converted(answer, config, all_facts) for answer in chosen]

    def _choose(self, part: str, version: int | None) -> PartAnswer:
        versions = self.release.parts.get(part)
        if versions is None:
            why = f"release {self.release.name} does not convert it" if part in PARTS else "there is no such part"
            return PartAnswer(part, not_served=why)
        if version is not None and version not in versions:
            has = ", ".join(map(str, versions))
            return PartAnswer(part, not_served=f"release {self.release.name} converts it at {has}, not at {version}")
        return PartAnswer(part, versions[-1] if version is None else version)

    async def _complete(self, facts: Json, served: set[str], config: Json, app_name: str, region: str) -> Json:
        complete = {**facts, "region": region}
        if served & {"image", "containers"} and facts.get("image_aliases") is None:
            complete["image_aliases"] = {a.name: a.reference for a in await self._catalog.image_aliases()}
        if "guest" in served and facts.get("limits") is None:
            complete["limits"] = await self._limits(app_name)
        if MOUNTS in served:
            complete["volume_location"] = await self._locations(config, facts, app_name, region)
        return complete

    async def _limits(self, app_name: str) -> Json:
        try:
            app = await self._catalog.app(app_name)
        except Missing:
            return {}
        limits = await self._catalog.limits(app.organization_id)
        return {"cpus": limits.cpus, "memory_mb": limits.memory_mb, "gpus": limits.gpus}

    async def _locations(self, config: Json, facts: Json, app_name: str, region: str) -> Json:
        known = facts.get("volume_location")
        locations = dict(known) if isinstance(known, dict) else {}
        mounts = config.get(MOUNTS)
        # More than one is refused anyway, without asking anybody.
        for mount in mounts if isinstance(mounts, list) and len(mounts) == 1 else ():
            volume = (mount.get("volume") or mount.get("name")) if isinstance(mount, dict) else None
            if isinstance(volume, str) and volume not in locations:
                locations[volume] = await self._lookup.locate(app_name, region, volume)
        return locations


def _check_facts(facts: Json) -> None:
    for name in ("image_aliases", "image_digests", "limits", "volume_location"):
        fact = facts.get(name)
        if fact is not None and not isinstance(fact, dict):
            raise Invalid(f"facts.{name} must be an object")
        if name.startswith("image") and not all(isinstance(value, str) for value in (fact or {}).values()):
            raise Invalid(f"facts.{name} must map strings to strings")


def _wanted(text: str) -> tuple[str, int | None]:
    part, at, version = text.partition("@")
    if not at:
        return part, None
    if not version.isascii() or not version.isdigit():
        raise Invalid(f"parts are named as NAME or NAME@VERSION, not {text[:80]!r}")
    return part, int(version)


def _converted(answer: PartAnswer, config: Json, facts: Json) -> PartAnswer:
    spec, wrong = convert_part(answer.part, answer.version, config, facts)
    if wrong:
        return PartAnswer(answer.part, answer.version, violations=tuple(wrong.items()))
    return PartAnswer(answer.part, answer.version, spec)
