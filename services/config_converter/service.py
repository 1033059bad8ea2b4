"""The config-converter as a service: messages in, the conversion under the plan, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Never

import grpc
from google.protobuf.duration_pb2 import Duration
from prometheus_client import Counter, Gauge
from skerry.converter.v1.converter_pb2 import ConversionResult, ConvertRequest, ConvertResponse
from skerry.converter.v1.converter_pb2_grpc import ConfigConverterServicer, add_ConfigConverterServicer_to_server
from skerry.handover.v1.handover_pb2_grpc import add_HandoverServicer_to_server
from skerry.handover.v1.plan_pb2 import Plan
from skerry.store.v1.plan_store_pb2 import RegisterConverterRequest
from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub
from skerry.store.v1.store_pb2 import GetAppRequest
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.store.v1.volume_store_pb2 import GetVolumeRequest
from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreStub
from skerry.sync.v1.sync_pb2 import (
    ConvertPartsRequest,
    ConvertPartsResponse,
    GetCentralConverterRequest,
    GetCentralConverterResponse,
)
from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub
from skerry.types.v1.config_pb2 import MachineConfig

from services.config_converter.catalog import FILTER, Catalog
from services.config_converter.checking import Checker
from services.config_converter.conversion import DEFAULT_PREFIX, Context
from services.config_converter.handover import served
from services.config_converter.handover_service import HandoverService
from services.config_converter.ledger import Ledger
from services.config_converter.part import Facts, Part
from services.config_converter.parts import PARTS
from services.config_converter.parts.mounts import VOLUME_ID_PREFIX, volumes_named
from services.config_converter.planned import PlannedConversion, Recipe, Requests, all_local
from services.config_converter.settings import HandoverSettings
from services.runtime import telemetry
from services.runtime.channels import local
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import DependencyDown, PartUnserved, SkerryError
from services.runtime.following import follow
from services.runtime.registry import Registry
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log

if TYPE_CHECKING:
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreAsyncStub
    from skerry.store.v1.store_pb2_grpc import MachineStoreAsyncStub
    from skerry.store.v1.volume_store_pb2_grpc import VolumeStoreAsyncStub
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncAsyncStub

APP_TIMEOUT = 1.0
LOOK_TIMEOUT = 0.5
_GIVE_UP_SECONDS = 0.5

_unserved = Counter(
    "skerry_conversions_unserved_total",
    "Conversions that were refused since the part's owner did not convert it as the plan wants.",
    ["cell", "part"],
    registry=telemetry.metrics,
)
_epoch = Gauge(
    "skerry_plan_applied_epoch",
    "Epoch of the plan that this converter has applied.",
    ["cell"],
    registry=telemetry.metrics,
)

TellHealth = Callable[[str, bool], Awaitable[None]]
"""Sets what health says of a name: whether it is served."""


def _nobody(callee: str) -> grpc.aio.Channel:
    """A channel behind which nobody is."""
    return local(Registry(service=callee), caller=ConfigConverterService.name, callee=callee, secret=None)


async def _tell_nobody(_name: str, _serving: bool) -> None:
    pass


class ConfigConverterService(ConfigConverterServicer):
    """Serves skerry.converter.v1.ConfigConverter and skerry.handover.v1.Handover."""

    name = "config-converter"

    def __init__(
        self,
        store: grpc.aio.Channel | None = None,
        central_sync: grpc.aio.Channel | None = None,
        *,
        cell: str = "",
        region: str = "",
        instance: str = "config-converter",
        clock: Clock | None = None,
        random: Random | None = None,
        settings: HandoverSettings | None = None,
        parts: Sequence[Part] = PARTS,
        tell_health: TellHealth = _tell_nobody,
    ) -> None:
        """`store` and `central_sync` are channels to those services of `cell`, which know this one as `instance`.
        Without a store it converts everything itself, under no plan and without facts.

        `parts` is what it can serve. `tell_health` hears of the health names `part/PART`.
        """
        self._clock = clock or SystemClock()
        self._random = random or Random()
        self._settings = settings or HandoverSettings()
        self._parts = tuple(parts)
        self._cell = cell
        self._region = region
        self._alone = store is None
        # An instance that was started again is not the one before: that one may still be there, paused.
        self._instance = f"{instance}-{self._random.getrandbits(32):08x}"
        store = store or _nobody("machine-store")
        central_sync = central_sync or _nobody("central-sync")
        self._store: MachineStoreAsyncStub = MachineStoreStub(store)
        self._volumes: VolumeStoreAsyncStub = VolumeStoreStub(store)
        self._plans: PlanStoreAsyncStub = PlanStoreStub(store)
        self._central_sync: CentralSyncAsyncStub = CentralSyncStub(central_sync)
        self._tell_health = tell_health
        self._recipe: Recipe | None = None
        self._catalog = Catalog(self._use)
        self._away_since: float | None = None
        self._unserved = 0
        if self._alone:
            self._recipe = Recipe(all_local(self._parts), self._parts, self._settings, self._instance)
        self._caught_up = asyncio.Event()
        self._moved = asyncio.Event()
        self._looking: asyncio.Future[None] | None = None
        self._told: dict[str, bool] = {}
        ledger = Ledger(self._plans)
        requests = Requests(self._parts, without_facts=self._settings.drill_no_facts)
        self._ledger = ledger
        self._checker = Checker(
            self._parts,
            requests,
            self._ask_centre,
            ledger,
            lambda: self._recipe,
            cell=cell,
            clock=self._clock,
            settings=self._settings,
        )
        self._conversion = PlannedConversion(
            requests,
            self._ask_centre,
            self._checker,
            now=self._clock.now,
            random=self._random,
            settings=self._settings,
        )
        self._handover = HandoverService(
            self._plans, self._ask_what_it_converts, self._parts, self._facts_here, self._settings
        )

    def register(self, registry: Registry) -> None:
        """Add the servicers to `registry`."""
        add_ConfigConverterServicer_to_server(self, registry)
        add_HandoverServicer_to_server(self._handover, registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Follow the plan and the catalog, compare, and tell the store what can be served, until cancelled."""
        if self._alone:
            ready()
            await asyncio.get_running_loop().create_future()
        if self._settings.off:
            log.warning("protections_off", settings=self._settings.off)
        await run_forever(
            follow=follow(
                self._store,
                FILTER,
                self._catalog,
                on_caught_up=self._caught_up.set,
                clock=self._clock,
                random=self._random,
            ),
            checking=self._checker.run(),
            registering=self._keep_registering(ready),
        )

    async def Convert(
        self, request: ConvertRequest, _context: grpc.aio.ServicerContext[ConvertRequest, ConvertResponse]
    ) -> ConvertResponse:
        """Convert a whole configuration under the plan. Raises InvalidConfig, PartUnserved, DependencyDown."""
        recipe = self._recipe
        if recipe is None or recipe.epoch < request.min_epoch:
            recipe = await self._recipe_of(request.min_epoch)
        whose = Context(
            request.app_name, request.region or self._region, request.field_prefix or DEFAULT_PREFIX, request.machine_id
        )
        facts = await self._facts_of(request.app_name)
        if request.config.mounts and not self._alone:
            facts = await self._with_volumes(facts, request)
        try:
            return ConvertResponse(result=await self._convert(recipe, request.config, whose, facts))
        except PartUnserved as error:
            self._unserved += 1
            _unserved.labels(self._cell, error.metadata["part"]).inc()
            raise

    async def _convert(self, recipe: Recipe, config: MachineConfig, whose: Context, facts: Facts) -> ConversionResult:
        """The conversion; once more under the store's plan when that has moved on from one that cannot be served."""
        try:
            return await self._conversion.convert(recipe, config, whose, facts)
        except (PartUnserved, DependencyDown):
            newer = await self._newer_than(recipe)
            if newer is None:
                raise
        return await self._conversion.convert(newer, config, whose, facts)

    def _use(self, plan: Plan) -> None:
        recipe = Recipe(plan, self._parts, self._settings, self._instance)
        for part, why in recipe.unserved.items():
            log.error("part_unserved", part=part, why=why, epoch=plan.epoch)
        log.info("plan_applied", epoch=plan.epoch)
        _epoch.labels(self._cell).set(plan.epoch)
        self._recipe = recipe
        self._moved.set()

    async def _recipe_of(self, epoch: int) -> Recipe:
        """The recipe under a plan of that epoch or a later one. Raises DependencyDown when it does not come in time."""
        await self._first_of(self._catalog.until(epoch or 1), self._settings.epoch_wait / 2)
        if self._catalog.epoch < (epoch or 1):
            # The log is late. The plan itself may be had.
            self._catalog.use(await self._ledger.plan(timeout=self._settings.epoch_wait / 2))
        if self._recipe is None or self._recipe.epoch < epoch:
            raise DependencyDown(
                f"the config-converter has not come to the epoch {epoch} of the plan, but to {self._catalog.epoch}; "
                "try again",
                metadata={"dependency": "machine-store"},
                retry_after=1.0,
            )
        return self._recipe

    async def _newer_than(self, recipe: Recipe) -> Recipe | None:
        """The recipe of the plan as the store has it, if that is a newer one: the view here may be a moment old."""
        if self._alone:
            return None
        # One look serves all that were refused meanwhile.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        await asyncio.shield(self._looking)
        present = self._recipe
        return present if present is not None and present.epoch > recipe.epoch else None

    async def _look(self) -> None:
        try:
            self._catalog.use(await self._ledger.plan(timeout=LOOK_TIMEOUT))
        except SkerryError as error:
            log.info("plan_cannot_be_read", why=error.message)

    async def _facts_of(self, app_name: str) -> Facts:
        """What the conversion depends on. The store is asked once for an app that is not here: it may be new."""
        if not app_name or self._alone:
            return self._catalog.facts_of("")
        app = self._catalog.app(app_name)
        if app is None:
            try:
                app = (await self._store.GetApp(GetAppRequest(name=app_name), timeout=APP_TIMEOUT)).app
            except SkerryError as error:
                log.info("app_unknown", app=app_name, why=error.message)
                return self._catalog.facts_of("")
            self._catalog.put_app(app)
        return self._catalog.facts_of(app.organization_slug)

    async def _with_volumes(self, facts: Facts, request: ConvertRequest) -> Facts:
        """With where the volumes are that the configuration names. The store is asked once for one that is not here."""
        locations: dict[str, str] = {}
        for volume in volumes_named(request.config):
            worker = self._catalog.volume_at(request.app_name, volume)
            if worker is None and volume.startswith(VOLUME_ID_PREFIX):
                worker = await self._look_for_volume(request.app_name, volume)
            if worker is not None:
                locations[volume] = worker
        return replace(facts, volume_locations=locations)

    async def _look_for_volume(self, app_name: str, volume_id: str) -> str | None:
        try:
            answer = await self._volumes.GetVolume(GetVolumeRequest(volume_id=volume_id), timeout=APP_TIMEOUT)
        except SkerryError as error:
            log.info("volume_unknown", volume=volume_id, why=error.message)
            return None
        self._catalog.put_volume(answer.volume)
        return self._catalog.volume_at(app_name, volume_id)

    def _facts_here(self, app_name: str) -> Facts:
        app = self._catalog.app(app_name)
        return self._catalog.facts_of(app.organization_slug if app else "")

    async def _ask_centre(self, request: ConvertPartsRequest) -> ConvertPartsResponse:
        try:
            answer = await self._central_sync.ConvertParts(request, timeout=self._settings.centre_timeout)
        except DependencyDown as error:
            if self._away_since is None:
                self._away_since = self._clock.now()
            since = datetime.fromtimestamp(self._away_since, UTC).isoformat(timespec="milliseconds")
            error.metadata.setdefault("since", since.replace("+00:00", "Z"))
            raise
        self._away_since = None
        return answer

    async def _ask_what_it_converts(self, request: GetCentralConverterRequest) -> GetCentralConverterResponse:
        return await self._central_sync.GetCentralConverter(request, timeout=self._settings.centre_timeout)

    async def _keep_registering(self, ready: Callable[[], None]) -> Never:
        await self._caught_up.wait()
        settings = self._settings
        try:
            while True:
                self._moved.clear()
                try:
                    if not self._catalog.epoch:
                        self._catalog.use(await self._ledger.plan())
                        self._moved.clear()
                    await self._register(settings.lease, timeout=settings.lease / 2)
                except SkerryError as error:
                    log.warning("converter_cannot_register", why=error.message)
                else:
                    ready()
                await self._say_what_is_served()
                await self._first_of(self._moved.wait(), settings.register_every * self._random.uniform(0.8, 1.0))
        finally:
            await self._withdraw()

    async def _register(self, lease: float, timeout: float) -> None:
        length = Duration()
        length.FromNanoseconds(round(lease * 1e9))
        request = RegisterConverterRequest(
            name=self._instance,
            serves=[served(part.name, version) for part in self._parts for version in sorted(part.converters)],
            applied_epoch=self._catalog.epoch,
            lease=length,
            unserved_conversions=self._unserved,
        )
        await self._plans.RegisterConverter(request, timeout=timeout)

    async def _withdraw(self) -> None:
        try:
            await self._register(0, timeout=_GIVE_UP_SECONDS)
        except SkerryError as error:
            log.info("converter_runs_out", why=error.message)

    async def _say_what_is_served(self) -> None:
        recipe = self._recipe
        names = {part.name for part in self._parts} | ({*recipe.entries, *recipe.unserved} if recipe else set())
        for name in sorted(names):
            serving = recipe is not None and name not in recipe.unserved
            if self._told.get(name) is not serving:
                await self._tell_health(f"part/{name}", serving)
                self._told[name] = serving

    async def _first_of(self, event: Awaitable[object], seconds: float) -> None:
        """Wait for `event`, or so many seconds."""
        waiting = asyncio.ensure_future(event)
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({waiting, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            sleep.cancel()
            await asyncio.gather(waiting, sleep, return_exceptions=True)
