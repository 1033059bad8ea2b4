"""`Skerry`: the API of a region, and `App`: what is done with the machines of one app."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.machines_pb2_grpc import MachinesStub
from skerry.machines.v1.platform_pb2_grpc import PlatformStub
from skerry.machines.v1.releases_pb2_grpc import ReleasesStub
from skerry.machines.v1.secrets_pb2_grpc import SecretsStub
from skerry.machines.v1.volumes_pb2_grpc import VolumesStub
from skerry.types.v1.config_pb2 import MachineConfig
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from skerry_client.channel import open_channel
from skerry_client.errors import DependencyDown, RateLimited, RevisionTooOld, WaitTimeout

if TYPE_CHECKING:
    from skerry.machines.v1.machines_pb2_grpc import MachinesAsyncStub
    from skerry.machines.v1.platform_pb2_grpc import PlatformAsyncStub
    from skerry.machines.v1.releases_pb2_grpc import ReleasesAsyncStub
    from skerry.machines.v1.secrets_pb2_grpc import SecretsAsyncStub
    from skerry.machines.v1.volumes_pb2_grpc import VolumesAsyncStub

T = TypeVar("T")

TIMEOUT = 10.0
PAGE = 500
LONGEST_WAIT = 60
"""Seconds of one wait of the API; `App.wait` makes several."""
_NONCE_KEY = "fly-machine-lease-nonce"
_PASSING = (DependencyDown, RateLimited)


class Skerry:
    """The API, through the gateways of one region. Use it as an async context manager, from one event loop.

    The stubs `machines`, `volumes`, `secrets`, `releases` and `platform` have every method of the API; calls on them
    carry the token, have a deadline, and raise the exceptions of `skerry_client.errors`.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str | Callable[[], str],
        region: str = "",
        timeout: float = TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """`addresses` are gateways, host:port; any of them serves any region, `region` is where machines are created.

        `token` may be a function, which is asked at every call. `timeout` is in seconds, for a call with all its
        repetitions. Without `credentials` it is in the clear. Raises ValueError for addresses that do not go together.
        """
        given = [addresses] if isinstance(addresses, str) else list(addresses)
        ask_token = token if callable(token) else lambda: token
        self.region = region
        self.timeout = timeout
        self._channels: list[grpc.aio.Channel] = []

        def channel(service: str) -> Any:
            opened = open_channel(
                given, f"skerry.machines.v1.{service}", token=ask_token, timeout=timeout, credentials=credentials
            )
            self._channels.append(opened)
            return opened

        self.machines: MachinesAsyncStub = MachinesStub(channel("Machines"))
        self.volumes: VolumesAsyncStub = VolumesStub(channel("Volumes"))
        self.secrets: SecretsAsyncStub = SecretsStub(channel("Secrets"))
        self.releases: ReleasesAsyncStub = ReleasesStub(channel("Releases"))
        self.platform: PlatformAsyncStub = PlatformStub(channel("Platform"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that run end."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def app(self, name: str) -> App:
        """What is done with the app of that name. Asks nothing yet."""
        return App(self, name)

    async def create_app(self, name: str, organization: str = "personal") -> App:
        """Create an app. Raises NameTaken, InvalidConfig, DependencyDown while the centre is away."""
        await self.machines.CreateApp(api.CreateAppRequest(name=name, org_slug=organization))
        return self.app(name)

    async def repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns, repeated with jitter within `timeout` while something is down or calls are too many.

        Only for what may be repeated. Raises what it raised last.
        """
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_PASSING),
            wait=_as_told_or_with_jitter,
            stop=stop_after_delay(self.timeout),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                return await call()
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held: what is changed through it is changed by its holder."""

    app: App
    machine_id: str
    nonce: str

    async def update(self, config: MachineConfig, **more: Any) -> api.Machine:
        """As `App.update`."""
        return await self.app.update(self.machine_id, config, nonce=self.nonce, **more)

    async def refresh(self, ttl: int) -> None:
        """Hold it for `ttl` seconds from now."""
        await self.app.acquire_lease(self.machine_id, ttl, nonce=self.nonce)


class App:
    """The machines of one app."""

    def __init__(self, skerry: Skerry, name: str) -> None:
        self._skerry = skerry
        self._machines = skerry.machines
        self.name = name

    async def create(
        self, config: MachineConfig, *, name: str = "", region: str = "", skip_launch: bool = False, key: str = ""
    ) -> api.Machine:
        """Create a machine, once: what is repeated carries the same idempotency key (`key`, or one made here).

        Raises InvalidConfig, NotFound (the app), NameTaken, NoCapacity, QuotaExceeded, DependencyDown.
        """
        request = api.CreateMachineRequest(
            app_name=self.name, config=config, name=name, region=region or self._skerry.region, skip_launch=skip_launch
        )
        metadata = (("idempotency-key", key or uuid.uuid4().hex),)
        created = await self._skerry.repeat(lambda: self._machines.CreateMachine(request, metadata=metadata))
        return created.machine

    async def dry_run(self, config: MachineConfig, *, region: str = "") -> api.DryRun:
        """What a create would make, and where. Writes nothing. Raises InvalidConfig, NotFound, DependencyDown."""
        request = api.CreateMachineRequest(
            app_name=self.name, config=config, region=region or self._skerry.region, dry_run=True
        )
        return (await self._machines.CreateMachine(request)).dry_run

    async def get(self, machine_id: str) -> api.Machine:
        """One machine. Raises NotFound."""
        return (await self._machines.GetMachine(self._of(api.GetMachineRequest, machine_id))).machine

    async def list(
        self, *, region: str = "", states: Sequence[str] = (), metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[api.Machine]:
        """The machines, oldest first, page by page; of all regions, unless one is named."""
        request = api.ListMachinesRequest(
            app_name=self.name, region=region, state=states, metadata=metadata or {}, limit=PAGE
        )
        while True:
            page = await self._machines.ListMachines(request)
            for machine in page.machines:
                yield machine
            if not page.next_cursor:
                return
            request.cursor = page.next_cursor

    async def update(
        self, machine_id: str, config: MachineConfig, *, current_version: str = "", name: str = "", nonce: str = ""
    ) -> api.Machine:
        """Make a new version. Raises VersionMismatch when `current_version` is given and is not the present one,
        LeaseHeld without the nonce of a lease that is held, and as `create`.
        """
        request = api.UpdateMachineRequest(
            app_name=self.name, machine_id=machine_id, config=config, current_version=current_version, name=name
        )
        return (await self._machines.UpdateMachine(request, metadata=_with(nonce))).machine

    async def start(self, machine_id: str, *, nonce: str = "") -> None:
        """Start a machine; one that runs stays so. Raises NotFound, WrongState, LeaseHeld."""
        await self._machines.StartMachine(self._of(api.StartMachineRequest, machine_id), metadata=_with(nonce))

    async def stop(self, machine_id: str, *, signal: str = "", timeout: str = "", nonce: str = "") -> None:
        """Stop a machine; `timeout` is a Go duration. Raises NotFound, WrongState, LeaseHeld."""
        request = self._of(api.StopMachineRequest, machine_id, signal=signal, timeout=timeout)
        await self._machines.StopMachine(request, metadata=_with(nonce))

    async def destroy(self, machine_id: str, *, force: bool = False, nonce: str = "") -> None:
        """Destroy a machine. Raises NotFound, LeaseHeld, StillRunning for one that runs, without `force`."""
        request = self._of(api.DeleteMachineRequest, machine_id, force=force)
        await self._machines.DeleteMachine(request, metadata=_with(nonce))

    async def wait(self, machine_id: str, *states: str, seconds: float = LONGEST_WAIT, version: str = "") -> None:
        """Return once the machine is in one of the states ("settled" is any that does not pass by itself).

        Raises WaitTimeout after `seconds`, NotFound, InvalidConfig when it can never be.
        """
        ends = asyncio.get_running_loop().time() + seconds
        while True:
            left = ends - asyncio.get_running_loop().time()
            this_time = max(1, min(LONGEST_WAIT, round(left)))
            request = self._of(
                api.WaitMachineRequest, machine_id, state=states, timeout=f"{this_time}s", version=version
            )
            try:
                await self._machines.WaitMachine(request, timeout=this_time + self._skerry.timeout)
            except WaitTimeout:
                if left <= LONGEST_WAIT:
                    raise
            else:
                return

    async def watch(self, from_revision: int | None = None) -> AsyncGenerator[api.WatchMachinesResponse, None]:
        """The machines as they are, then whatever happens to them, for ever: a watch that is cut goes on by itself.

        `from_revision` leaves the state out, and goes on after what was seen then. Raises RevisionTooOld when the log
        does not reach back that far: watch again without.
        """
        request = api.WatchMachinesRequest(app_name=self.name, region=self._skerry.region)
        if from_revision is not None:
            request.from_revision = from_revision
        failures = 0
        while True:
            responses = self._machines.WatchMachines(request)
            try:
                async for response in responses:
                    failures = 0
                    if response.revision:
                        request.from_revision = response.revision
                    yield response
            except RevisionTooOld:
                raise
            except _PASSING as error:
                failures += 1
                await asyncio.sleep(error.retry_after or min(5.0, 0.1 * 2**failures))
            finally:
                responses.cancel()

    @asynccontextmanager
    async def lease(self, machine_id: str, ttl: int = 60, description: str = "") -> AsyncIterator[Lease]:
        """Hold a lease on a machine until the end of the block. Raises LeaseHeld, NotFound."""
        nonce = await self.acquire_lease(machine_id, ttl, description=description)
        try:
            yield Lease(self, machine_id, nonce)
        finally:
            await self._machines.ReleaseMachineLease(
                self._of(api.ReleaseMachineLeaseRequest, machine_id), metadata=_with(nonce)
            )

    async def acquire_lease(self, machine_id: str, ttl: int, *, description: str = "", nonce: str = "") -> str:
        """Take a lease for `ttl` seconds, or refresh the one with that nonce; its nonce. Raises LeaseHeld, NotFound."""
        request = self._of(api.AcquireMachineLeaseRequest, machine_id, ttl=ttl, description=description)
        return (await self._machines.AcquireMachineLease(request, metadata=_with(nonce))).lease.data.nonce

    def _of(self, kind: Callable[..., T], machine_id: str, **more: Any) -> T:
        return kind(app_name=self.name, machine_id=machine_id, **more)


def _with(nonce: str) -> tuple[tuple[str, str], ...]:
    return ((_NONCE_KEY, nonce),) if nonce else ()


_jitter = wait_random_exponential(multiplier=0.05, max=1.0)


def _as_told_or_with_jitter(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    told = getattr(error, "retry_after", None)
    return float(told) if told is not None else float(_jitter(state))
