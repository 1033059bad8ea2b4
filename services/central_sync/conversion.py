"""Conversion by the centre: what it converted before comes from the cell's cache, the rest is asked for in one call.

An answer is passed on as the centre gave it, whether it fits what was wanted or not: who asks judges that.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Multiset
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Never

from google.protobuf import json_format
from prometheus_client import Counter
from skerry.store.v1.plan_store_pb2 import CentralConversion, KeepConversionsRequest, LookupConversionsRequest
from skerry.sync.v1.sync_pb2 import CentralPart, ConvertPartsRequest, FieldViolation, WantedPart
from skerry.types.v1.spec_pb2 import MachineSpec

from services.central_sync.calls import Refusal
from services.central_sync.central_client import CYCLE, INVALID, CentralClient, Converter, PartAnswer
from services.central_sync.config_json import public_json
from services.runtime import telemetry
from services.runtime.edges import CENTRAL
from services.runtime.errors import DependencyDown, ForbiddenDependency, InvalidConfig, SkerryError
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreAsyncStub

_LOOKUP_SECONDS = 1.0
_KEEP_SECONDS = 5.0
_RETRY_AFTER = 1.0

_cached = Counter(
    "skerry_central_conversions_total",
    "Parts that were to be converted by the centre: from the cache, by the centre, or not at all.",
    ["cell", "source"],
    registry=telemetry.metrics,
)
_not_kept = Counter(
    "skerry_central_conversions_not_kept_total",
    "Conversions that were not put into the cache, since too many waited or the store was away.",
    ["cell"],
    registry=telemetry.metrics,
)


class Conversions:
    """Converts parts, and keeps in the background what the centre answered."""

    def __init__(self, client: CentralClient, plans: PlanStoreAsyncStub, *, cell: str, waiting: int) -> None:
        """`waiting` is how many answers may wait to be kept."""
        self._client = client
        self._plans = plans
        self._cell = cell
        self._to_keep: asyncio.Queue[list[CentralConversion]] = asyncio.Queue(waiting)

    async def convert(self, request: ConvertPartsRequest) -> list[CentralPart]:
        """What is known or the centre answers for the parts that are wanted, the former first.

        Raises DependencyDown, naming the parts that are missing, and ForbiddenDependency with the chain of a circle.
        """
        found = {} if request.fresh else await self._look_up(request.parts)
        missing = [wanted for wanted in request.parts if wanted.part not in found]
        cached = [
            CentralPart(part=kept.part, version=kept.version, spec=kept.spec, cached=True) for kept in found.values()
        ]
        _cached.labels(self._cell, "cache").inc(len(cached))
        if not missing:
            return cached
        answers = await self._ask(request, missing)
        _cached.labels(self._cell, CENTRAL).inc(len(missing))
        self._keep_later(missing, answers)
        return [*cached, *answers]

    async def converter(self) -> Converter:
        """What the centre converts. Raises DependencyDown."""
        try:
            return await self._client.converter()
        except Refusal as error:
            raise _refused("converter", error) from error

    async def keep(self) -> Never:
        """Put answers into the cache until cancelled."""
        while True:
            conversions = await self._to_keep.get()
            while not self._to_keep.empty():
                conversions += self._to_keep.get_nowait()
            try:
                await self._plans.KeepConversions(
                    KeepConversionsRequest(conversions=conversions), timeout=_KEEP_SECONDS
                )
            except SkerryError as error:
                _not_kept.labels(self._cell).inc(len(conversions))
                log.warning("conversions_not_kept", count=len(conversions), why=error.message)

    async def _look_up(self, wanted: Iterable[WantedPart]) -> dict[str, CentralConversion]:
        """The newest conversion that was kept of each part, of those that have one."""
        asked = [
            CentralConversion(part=part.part, input_hash=part.input_hash, version=version)
            for part in wanted
            for version in part.versions
        ]
        if not asked:
            return {}
        try:
            answer = await self._plans.LookupConversions(
                LookupConversionsRequest(wanted=asked), timeout=_LOOKUP_SECONDS
            )
        except SkerryError as error:
            log.warning("conversions_not_looked_up", why=error.message)
            return {}
        return {kept.part: kept for kept in sorted(answer.found, key=lambda kept: kept.version)}

    async def _ask(self, request: ConvertPartsRequest, missing: Sequence[WantedPart]) -> list[CentralPart]:
        names = ", ".join(wanted.part for wanted in missing)
        try:
            answers = await self._client.convert_parts(
                [_asked(wanted) for wanted in missing],
                public_json(request.config),
                _facts(request),
                app_name=request.app_name,
                region=request.region,
            )
        except DependencyDown as error:
            _cached.labels(self._cell, "nobody").inc(len(missing))
            raise DependencyDown(
                f"{names}: {error.message}",
                metadata={**error.metadata, "parts": ",".join(wanted.part for wanted in missing)},
                retry_after=error.retry_after,
            ) from error
        except Refusal as error:
            _cached.labels(self._cell, "nobody").inc(len(missing))
            raise _refused(names, error) from error
        return [_central_part(answer) for answer in answers]

    def _keep_later(self, wanted: Sequence[WantedPart], answers: Sequence[CentralPart]) -> None:
        by_name = {part.part: part for part in wanted}
        times = Multiset(answer.part for answer in answers)
        conversions = [
            CentralConversion(
                part=answer.part,
                input_hash=by_name[answer.part].input_hash,
                version=answer.version,
                spec=answer.spec,
            )
            for answer in answers
            if answer.HasField("spec")
            and times[answer.part] == 1
            and answer.part in by_name
            and answer.version in by_name[answer.part].versions
        ]
        if not conversions:
            return
        try:
            self._to_keep.put_nowait(conversions)
        except asyncio.QueueFull:
            _not_kept.labels(self._cell).inc(len(conversions))


def _asked(wanted: WantedPart) -> str:
    # While a deploy of the centre rolls several versions are allowed, and each instance answers with the one it has.
    return f"{wanted.part}@{wanted.versions[0]}" if len(wanted.versions) == 1 else wanted.part


def _facts(request: ConvertPartsRequest) -> Mapping[str, Any]:
    if request.without_facts:
        return {}
    facts: dict[str, Any] = {
        "volume_location": {
            volume: {"region": request.region, "worker": worker} if worker else None
            for volume, worker in request.volume_locations.items()
        }
    }
    if request.HasField("catalog"):
        told = request.catalog
        facts["image_aliases"] = dict(told.image_aliases)
        facts["limits"] = {
            "cpus": told.max_cpus if told.HasField("max_cpus") else None,
            "memory_mb": told.max_memory_mb if told.HasField("max_memory_mb") else None,
            "gpus": told.max_gpus if told.HasField("max_gpus") else None,
        }
    return facts


def _central_part(answer: PartAnswer) -> CentralPart:
    part = CentralPart(
        part=answer.part,
        version=answer.version,
        violations=[FieldViolation(field=field, why=why) for field, why in answer.violations],
        not_served=answer.not_served,
    )
    if answer.spec is not None:
        try:
            spec = MachineSpec()
            json_format.ParseDict({answer.part: answer.spec}, spec)
            part.spec.CopyFrom(spec)
        except json_format.ParseError as error:
            part.not_served = f"its answer is not a spec of this part: {error}"
    return part


def _refused(names: str, error: Refusal) -> SkerryError:
    if error.code == CYCLE:
        chain = str(error.extensions.get("chain") or "")
        return ForbiddenDependency(f"{names}: {error.message}", metadata={"chain": chain, "dependency": CENTRAL})
    if error.code == INVALID:
        return InvalidConfig(f"{names}: the centre does not take the request: {error.message}")
    return DependencyDown(
        f"{names}: {CENTRAL} cannot convert: {error.message}",
        metadata={"dependency": CENTRAL, "code": error.code},
        retry_after=_RETRY_AFTER,
    )
