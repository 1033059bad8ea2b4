"""Any gateway serves any request: those for other cells go to a gateway there, as the user's own call, once at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Never

import grpc
from skerry.machines.v1 import machines_pb2 as api
from skerry.machines.v1.cells_pb2_grpc import CellsStub
from skerry.machines.v1.graphql_pb2_grpc import GraphQLStub
from skerry.machines.v1.machines_pb2_grpc import MachinesStub
from skerry.machines.v1.platform_pb2_grpc import PlatformStub
from skerry.machines.v1.releases_pb2_grpc import ReleasesStub
from skerry.machines.v1.secrets_pb2_grpc import SecretsStub
from skerry.machines.v1.volumes_pb2 import ListVolumesRequest, Volume
from skerry.machines.v1.volumes_pb2_grpc import VolumesStub

from services.runtime.channels import connect
from services.runtime.edges import GATEWAY, count_refusal
from services.runtime.errors import DependencyDown, ForbiddenDependency, NotFound, SkerryError
from services.runtime.guard import current_chain, current_path, service_of
from services.runtime.ids import cell_of
from services.runtime.regions import RegionMap
from services.runtime.registry import current_call
from services.runtime.telemetry import log

UNREACHABLE_KEY = "skerry-unreachable-regions"
"""Header, and trailing metadata, that names the regions which a list lacks."""
FORWARDED_KEYS = ("authorization", "idempotency-key", "fly-machine-lease-nonce", "fly-request-id")
"""What goes with a forwarded call besides its trace and path, which every call carries."""
CALL_SECONDS = 5.0
"""How long a gateway elsewhere may take."""
LIST_SECONDS = 1.0
"""The same, where a region that does not answer is only named."""
RETRY_AFTER_SECONDS = 1.0

Connect = Callable[[Sequence[str], str, str], grpc.aio.Channel]
"""Makes a channel from addresses, the caller's and the callee's place and service."""


_STUBS: Mapping[str, Callable[[grpc.aio.Channel], Any]] = {
    "Machines": MachinesStub,
    "Volumes": VolumesStub,
    "Secrets": SecretsStub,
    "Platform": PlatformStub,
    "Releases": ReleasesStub,
    "GraphQL": GraphQLStub,
    "Cells": CellsStub,
}
"""The public services that requests may belong to another cell of, by name."""


class Listed(NamedTuple):
    """Machines, oldest first, the codes of the regions that did not answer, and where the next page begins."""

    machines: list[api.Machine]
    unreachable: tuple[str, ...]
    next_cursor: str = ""


class _Kind(NamedTuple):
    """What is listed: by which method of which service, and in which field of its answer."""

    service: str
    method: str
    items: str


def connect_in_the_clear(addresses: Sequence[str], caller: str, callee: str) -> grpc.aio.Channel:
    """A channel to a gateway elsewhere, without TLS."""
    return connect(addresses, caller=caller, callee=callee, secret=None, leaves_region=True)


def tell_unreachable(context: grpc.aio.ServicerContext[Any, Any], regions: Sequence[str]) -> None:
    """Name, beside an answer, the regions that it lacks."""
    if regions:
        context.set_trailing_metadata(((UNREACHABLE_KEY, ",".join(regions)),))


class Peer:
    """The gateways of another cell, as the one `here` reaches them."""

    def __init__(self, region: str, *, here: str, there: str, channel: grpc.aio.Channel | None) -> None:
        """`here` and `there` are elements of a path; the channel is None where no address is known."""
        self.region = region
        self.channel = channel
        self._here = here
        self._there = there
        self._stubs: dict[str, Any] = {}

    async def call(
        self, method: str, request: Any, seconds: float | None = CALL_SECONDS, *, service: str = "Machines"
    ) -> Any:
        """Make the call that is being served there; it lasts no longer than that one, nor than `seconds`.

        Raises ForbiddenDependency when it comes from another cell already, DependencyDown naming the region when it
        does not answer, and what it is refused for there.
        """
        metadata = self._metadata()
        try:
            return await getattr(self._stub_of(service), method)(request, timeout=seconds, metadata=metadata)
        except DependencyDown as error:
            self._raise_named(error)

    async def stream(
        self, method: str, request: Any, seconds: float, *, service: str = "Machines"
    ) -> AsyncGenerator[Any, None]:
        """The same for a method that answers a stream."""
        metadata = self._metadata()
        responses = getattr(self._stub_of(service), method)(request, timeout=seconds, metadata=metadata)
        try:
            async for response in responses:
                yield response
        except DependencyDown as error:
            self._raise_named(error)
        finally:
            responses.cancel()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes along. Raises ForbiddenDependency for a call that has been forwarded, DependencyDown."""
        if _gateways_before(self._here):
            _refuse_second_hop(self._there)
        if self.channel is None:
            raise self._down("the region map has no gateway of it")
        call = current_call()
        carried = call.metadata if call is not None else {}
        return tuple((key, carried[key]) for key in FORWARDED_KEYS if key in carried)

    def _raise_named(self, error: DependencyDown) -> Never:
        """Raise the error, with the region's name where it is the way there that is broken."""
        if error.metadata.get("dependency") != self._there:
            raise error
        raise self._down(error.message) from error

    def _stub_of(self, service: str) -> Any:
        stub = self._stubs.get(service)
        if stub is None:
            assert self.channel is not None
            stub = self._stubs[service] = _STUBS[service](self.channel)
        return stub

    def _down(self, why: str) -> DependencyDown:
        return DependencyDown(
            f"region {self.region} cannot be reached from here: {why}. What runs there runs on",
            metadata={"dependency": self._there, "region": self.region},
            retry_after=RETRY_AFTER_SECONDS,
        )


class Routing:
    """Which cell a request belongs to, and the way there."""

    def __init__(self, *, cell: str, regions: RegionMap, connect: Connect = connect_in_the_clear) -> None:
        """`cell` is this gateway's own, in the map. Channels are made when they are first needed."""
        self.cell = cell
        self.region = regions.region_of_cell(cell).code
        self._regions = regions
        self._connect = connect
        self._here = f"{regions.place_of(cell)}/{GATEWAY}"
        self._peers: dict[str, Peer] = {}

    @property
    def is_forwarded(self) -> bool:
        """Whether the call that is being served came through a gateway of another cell: it goes no further."""
        return bool(_gateways_before(self._here))

    def is_known(self, region: str) -> bool:
        """Whether the region map has the region of that code."""
        return any(each.code == region for each in self._regions.regions)

    def by_region(self, code: str) -> Peer | None:
        """Who serves a new machine in the region `code`; None for this cell, also where there is no such region."""
        if code in ("", self.region) or not self.is_known(code):
            return None
        return self._peer(self._regions.region(code).cells[0].id)

    def by_machine(self, machine_id: str) -> Peer | None:
        """Who serves a machine; None for this cell, also for what is no id. Raises NotFound for an unknown cell."""
        if machine_id.startswith(self.cell):
            return None
        cell = cell_of(machine_id)
        if cell is None or cell == self.cell:
            return None
        self._regions.region_of_cell(cell)
        return self._peer(cell)

    def by_cell(self, cell: str) -> Peer | None:
        """Who serves what is in `cell`; None for this one. Raises NotFound for an unknown cell."""
        if cell == self.cell:
            return None
        self._regions.region_of_cell(cell)
        return self._peer(cell)

    async def list_machines(
        self, request: api.ListMachinesRequest, here: Callable[[], Awaitable[list[api.Machine]]]
    ) -> Listed:
        """The machines of the cells that `request` asks for; `here` lists those of this one.

        Raises what `here` raises, and, for the one region that was asked for, DependencyDown when it does not answer.
        """
        return Listed(*await self._list_everywhere(_Kind("Machines", "ListMachines", "machines"), request, here))

    async def list_volumes(
        self, request: ListVolumesRequest, here: Callable[[], Awaitable[list[Volume]]]
    ) -> tuple[list[Volume], tuple[str, ...]]:
        """The same for volumes: those of all cells, oldest first, and the regions that did not answer."""
        return await self._list_everywhere(_Kind("Volumes", "ListVolumes", "volumes"), request, here)

    async def ask_others(self, method: str, request: Any) -> tuple[list[Any], tuple[str, ...]]:
        """What the other cells answer to the call of Machines that is being served, and the regions that do not.

        A cell that does not have what is asked for yet, such as a new app, is left out. Nobody is asked for a call that
        comes from another cell.
        """
        if self.is_forwarded:
            return [], ()

        async def ask(peer: Peer) -> Any | None:
            try:
                return await self._answer_of(peer, method, request)
            except NotFound:
                return ()

        peers = [self._peer(cell) for cell in self._cells("") if cell != self.cell]
        answers = await asyncio.gather(*map(ask, peers))
        unreachable = dict.fromkeys(peer.region for peer, answer in zip(peers, answers, strict=True) if answer is None)
        return [answer for answer in answers if answer], tuple(unreachable)

    async def _list_everywhere(
        self, kind: _Kind, request: Any, here: Callable[[], Awaitable[list[Any]]]
    ) -> tuple[list[Any], tuple[str, ...]]:
        if _gateways_before(self._here):
            # Whoever asked goes round the cells.
            return await here(), ()
        cells = list(self._cells(request.region))
        peers = [self._peer(cell) for cell in cells if cell != self.cell]
        if not peers:
            return await here(), ()
        if len(cells) == 1:
            answer = await peers[0].call(kind.method, request, service=kind.service)
            return list(getattr(answer, kind.items)), ()
        named = bool(request.region)
        asked = [asyncio.ensure_future(self._list(kind, peer, request, named=named)) for peer in peers]
        try:
            items = await here() if self.cell in cells else []
            answers = await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()
        unreachable: list[str] = []
        for peer, answer in zip(peers, answers, strict=True):
            if answer is not None:
                items.extend(answer)
            elif peer.region not in unreachable:
                unreachable.append(peer.region)
        items.sort(key=_age)
        return items, tuple(unreachable)

    async def close(self) -> None:
        """Close the channels."""
        peers, self._peers = list(self._peers.values()), {}
        await asyncio.gather(*(peer.channel.close() for peer in peers if peer.channel is not None))

    async def _list(self, kind: _Kind, peer: Peer, request: Any, *, named: bool) -> Iterable[Any] | None:
        """What one cell has; None when it does not answer and its region was not asked for by name."""
        wanted = type(request)()
        wanted.CopyFrom(request)
        wanted.region = peer.region
        try:
            answer = await self._answer_of(peer, kind.method, wanted, service=kind.service, named=named)
        except NotFound:
            # An app that has not come there yet has nothing there.
            return ()
        if answer is None:
            return None
        found: Iterable[Any] = getattr(answer, kind.items)
        return found

    async def _answer_of(
        self, peer: Peer, method: str, request: Any, *, service: str = "Machines", named: bool = False
    ) -> Any | None:
        """What one cell answers; None when it does not and its region was not asked for by name. Raises NotFound."""
        try:
            return await peer.call(method, request, LIST_SECONDS, service=service)
        except (ForbiddenDependency, NotFound):
            raise
        except SkerryError as error:
            if named:
                raise
            log.warning("region_unreachable", asked=peer.region, reason=error.reason, why=error.message)
            return None

    def _cells(self, region: str) -> Iterable[str]:
        regions = self._regions.regions if not region else [self._regions.region(region)]
        return (cell.id for each in regions for cell in each.cells)

    def _peer(self, cell: str) -> Peer:
        peer = self._peers.get(cell)
        if peer is None:
            region = self._regions.region_of_cell(cell)
            addresses = next(each.gateways for each in region.cells if each.id == cell)
            there = f"{self._regions.place_of(cell)}/{GATEWAY}"
            channel = self._connect(addresses, self._here, there) if addresses else None
            peer = Peer(region.code, here=self._here, there=there, channel=channel)
            self._peers[cell] = peer
        return peer


def _gateways_before(here: str) -> list[str]:
    """The gateways of other cells through which the current call came."""
    return [element for element in current_path() if service_of(element) == GATEWAY and element != here]


def _refuse_second_hop(there: str) -> Never:
    chain = current_chain(there)
    count_refusal(GATEWAY, GATEWAY, "second_hop")
    log.warning("dependency_refused", chain=chain, why="it was forwarded already")
    raise ForbiddenDependency(
        f"forbidden dependency: {chain}: a request goes from one gateway to another once at most",
        metadata={"chain": chain},
    )


def _age(item: api.Machine | Volume) -> tuple[int, int, str]:
    return (item.created_at.seconds, item.created_at.nanos, item.id)
