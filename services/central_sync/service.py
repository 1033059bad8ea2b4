"""central-sync on the wire, and the component behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import TYPE_CHECKING, Any, Never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from skerry.converter.v1.converter_pb2 import PART_OWNER_CENTRE, ConvertedPart
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub
from skerry.store.v1.store_pb2_grpc import MachineStoreStub
from skerry.sync.v1 import sync_pb2 as pb
from skerry.sync.v1.sync_pb2_grpc import CentralSyncServicer, add_CentralSyncServicer_to_server

from services.central_sync import mirror, pull
from services.central_sync.apps import Apps
from services.central_sync.breaker import Breaker, State
from services.central_sync.central_client import CentralClient, HttpFactory, plain_http
from services.central_sync.conversion import Conversions
from services.central_sync.marks import Marks
from services.central_sync.mirror import Mirror
from services.central_sync.pull import Pull
from services.central_sync.secrets import Secrets
from services.central_sync.settings import CentralSyncSettings
from services.central_sync.tokens import Tokens
from services.runtime.clock import Clock
from services.runtime.duty import Duty, LeadTimes
from services.runtime.errors import InvalidConfig, SkerryError, Violation
from services.runtime.sealing import Keyring
from services.runtime.tasks import run_forever
from services.runtime.telemetry import log

if TYPE_CHECKING:
    import grpc

    from services.runtime.registry import Registry

_LOOK_EVERY = 5.0
_TELL_EVERY = 0.2
_LONGEST_STALENESS = 10 * 365 * 86_400.0

_STATES = {
    State.CLOSED: pb.BREAKER_STATE_CLOSED,
    State.OPEN: pb.BREAKER_STATE_OPEN,
    State.HALF_OPEN: pb.BREAKER_STATE_HALF_OPEN,
}


class CentralSyncService(CentralSyncServicer):
    """skerry.sync.v1.CentralSync, the pull, the mirror, and the probes of open breakers."""

    name = "central-sync"

    def __init__(
        self,
        store: grpc.aio.Channel,
        settings: CentralSyncSettings,
        *,
        cell: str,
        region: str,
        instance: str,
        place: str = "",
        clock: Clock,
        random: Random,
        http: HttpFactory = plain_http,
        lead: LeadTimes | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """`store` is a channel to the machine-store of `cell`, which knows this central-sync as `instance`.

        `place` names the cell on the path of calls that begin here ("syd-1"); its number does where it is empty. `http`
        makes the HTTP client for the centre. `keyring` seals secrets of apps; without it the cell has none.
        """
        machines, catalog = MachineStoreStub(store), CatalogStoreStub(store)
        # An instance that was started again is not the one before: that one may still be there, paused.
        holder = f"{instance}-{random.getrandbits(32):08x}"
        marks = Marks(machines, catalog, holder)
        self._clock = clock
        self._news = _News()
        self._client = CentralClient(
            settings, cell=cell, place=place or cell, clock=clock, random=random, http=http, on_change=self._news.tell
        )
        self._conversions = Conversions(self._client, PlanStoreStub(store), cell=cell, waiting=settings.keep_waiting)
        self._apps = Apps(
            self._client, machines, catalog, region=region, misses=settings.lookup_misses, clock=clock, random=random
        )

        self._secrets = Secrets(self._client, catalog, keyring)
        self._tokens = Tokens(self._client, catalog)

        def duty(name: str) -> Duty:
            return Duty(name, machines, cell=cell, holder=holder, clock=clock, random=random, times=lead)

        self._pull = Pull(
            self._client,
            machines,
            catalog,
            marks,
            duty(pull.DUTY),
            settings.pull,
            cell=cell,
            clock=clock,
            keyring=keyring,
            on_change=self._news.tell,
        )
        self._mirror = Mirror(
            self._client,
            machines,
            marks,
            duty(mirror.DUTY),
            settings.mirror,
            cell=cell,
            clock=clock,
            random=random,
            on_change=self._news.tell,
        )

    def register(self, registry: Registry) -> None:
        """Add the servicer to `registry`."""
        add_CentralSyncServicer_to_server(self, registry)

    async def run(self, ready: Callable[[], None]) -> None:
        """Pull, mirror and probe until cancelled; `ready()` is called once the catalog was filled, by any instance."""
        probes = self._client.probes()
        try:
            await run_forever(
                ready=self._tell_ready(ready),
                pull=self._pull.run(),
                look=self._pull.look(),
                mirror=self._mirror.run(),
                keep_conversions=self._conversions.keep(),
                **{f"probe_{name}": calls.keep_probing(probes[name]) for name, calls in self._client.calls.items()},
            )
        finally:
            await self._client.close()

    async def ConvertParts(self, request: pb.ConvertPartsRequest, context: Any) -> pb.ConvertPartsResponse:
        """Convert parts by the centre, or from what it converted before. Raises DependencyDown, ForbiddenDependency."""
        return pb.ConvertPartsResponse(parts=await self._conversions.convert(request))

    async def GetCentralConverter(
        self, request: pb.GetCentralConverterRequest, context: Any
    ) -> pb.GetCentralConverterResponse:
        """What the centre converts. Raises DependencyDown."""
        found = await self._conversions.converter()
        parts = [
            ConvertedPart(part=part, owner=PART_OWNER_CENTRE, version=version)
            for part, versions in found.parts.items()
            for version in versions
        ]
        return pb.GetCentralConverterResponse(release=found.release, parts=parts)

    async def CreateApp(self, request: pb.CreateAppRequest, context: Any) -> pb.CreateAppResponse:
        """Create an app. Raises NameTaken, InvalidConfig, NotFound, DependencyDown."""
        app = await self._apps.create(
            request.name, request.organization_slug, network=request.network, role=request.app_role
        )
        return pb.CreateAppResponse(app=app)

    async def DeleteApp(self, request: pb.DeleteAppRequest, context: Any) -> pb.DeleteAppResponse:
        """Delete an app. Raises NotFound, DependencyDown."""
        await self._apps.delete(request.name)
        return pb.DeleteAppResponse()

    async def LookupApp(self, request: pb.LookupAppRequest, context: Any) -> pb.LookupAppResponse:
        """Find an app that the catalog does not have. Raises NotFound, DependencyDown."""
        return pb.LookupAppResponse(app=await self._apps.look_up(request.name))

    async def UpdateSecrets(self, request: pb.UpdateSecretsRequest, context: Any) -> pb.UpdateSecretsResponse:
        """Set and remove secrets of an app. Raises NotFound, InvalidConfig, DependencyDown."""
        changed = await self._secrets.update(request.app_id, request.values, request.removed_names)
        return pb.UpdateSecretsResponse(secrets=changed)

    async def RefreshSecrets(self, request: pb.RefreshSecretsRequest, context: Any) -> pb.RefreshSecretsResponse:
        """Bring the secrets of an app. Raises NotFound, DependencyDown."""
        return pb.RefreshSecretsResponse(secrets=await self._secrets.refresh(request.app_id))

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """Make a token. Raises NotFound, InvalidConfig, DependencyDown."""
        token = await self._tokens.create(
            request.organization_slug,
            app=request.app_name,
            scope=request.scope or "all",
            expires_at=_moment(request.expires_at) if request.HasField("expires_at") else None,
        )
        response = pb.CreateTokenResponse(token=token.token, id=token.id)
        if token.expires_at is not None:
            response.expires_at.FromMicroseconds(round(token.expires_at * 1e6))
        return response

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.RevokeTokenResponse:
        """Revoke a token. Raises InvalidConfig, DependencyDown."""
        await self._tokens.revoke(request.id)
        return pb.RevokeTokenResponse()

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Any) -> AsyncIterator[pb.WatchStatusResponse]:
        """The state of everything: now, at every change, and after a while without any."""
        await self._refresh()
        while True:
            news = self._news.next
            yield self._status()
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    await news.wait()
            except TimeoutError:
                await self._refresh()
            else:
                # Changes come in bursts; each is told, but not each in a message of its own.
                await self._clock.sleep(_TELL_EVERY)

    async def AcceptHeldChanges(
        self, request: pb.AcceptHeldChangesRequest, context: Any
    ) -> pb.AcceptHeldChangesResponse:
        """Let held changes into the catalog. Raises WrongState when there are none."""
        return pb.AcceptHeldChangesResponse(accepted=await self._pull.accept(request.who))

    async def _tell_ready(self, ready: Callable[[], None]) -> Never:
        await self._pull.until_filled()
        log.info("catalog_filled", position=self._pull.state.position)
        ready()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing ends this future")

    async def _refresh(self) -> None:
        try:
            await self._pull.refresh()
            await self._mirror.refresh()
        except SkerryError as error:
            log.warning("status_unknown", why=error.message)

    def _status(self) -> pb.WatchStatusResponse:
        pulled, mirrored = self._pull.state, self._mirror.state
        return pb.WatchStatusResponse(
            breakers=[_breaker(calls.breaker) for calls in self._client.calls.values()],
            pull=pb.PullStatus(
                position=pulled.position,
                staleness=_duration(min(self._pull.staleness, _LONGEST_STALENESS)),
                held_changes=pulled.held_changes,
                held_reason=pulled.held_reason,
                filled=pulled.filled,
            ),
            mirror=pb.MirrorStatus(revision=mirrored.revision, behind=mirrored.behind),
        )


class _News:
    """Tells those who wait that something changed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()
        """Set at the next change."""

    def tell(self) -> None:
        self.next.set()
        self.next = asyncio.Event()


def _breaker(breaker: Breaker) -> pb.BreakerStatus:
    since = Timestamp()
    since.FromMicroseconds(round(breaker.since * 1e6))
    return pb.BreakerStatus(
        call_class=breaker.name,
        state=_STATES[breaker.state],
        since=since,
        failure_rate=breaker.failure_rate,
        slow_call_rate=breaker.slow_call_rate,
        last_failure=breaker.last_failure,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _moment(at: Timestamp) -> float:
    """A moment, in unix seconds. Raises InvalidConfig of `expires_at` for what is none."""
    try:
        return at.ToMicroseconds() / 1e6
    except ValueError as error:
        why = f"is no moment: {error}"
        raise InvalidConfig(f"expires_at {why}", violations=[Violation("expires_at", why)]) from None
