"""`skerry drill incident`: the incident that this platform exists for, replayed on a mesh of its own.

Four acts of the same change: the centre's next release drops a part of the conversion. Once as on the platform of the
incident, without protections; once refused by the deploy check; once forced past it; once after a hand-over.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import handover, handover_calls, inside, up
from services.cli.console import AsJson, CommandError, print_json, print_table, progress, reports_errors
from services.cli.deploy import Deploy
from services.cli.mesh import MACHINE_STORE, Mesh

if TYPE_CHECKING:
    import grpc
    import httpx

app = typer.Typer(no_args_is_help=True, help="Drills, each on a mesh of its own.")

PART = "guest"
NEXT_RELEASE = "2"
"""The release of the centre that drops PART."""
REGIONS = ("syd", "iad", "fra")
SETS = 2
CENTRAL_INSTANCES = 2
APP = "drill"
PACE_SECONDS = 0.1
"""Between two requests of one region's load."""
LEAST_REQUESTS = 200
MIN_COMPARED = 50
_ACT_SECONDS = 60.0
_PROMOTION_SECONDS = 60.0
"""How long a promotion waits for evidence that does not become more."""
_CALL_SECONDS = 10.0
_UNPROTECTED = """
drill_no_guard = true

[handover]
drill_no_ownership_check = true
drill_no_epochs = true
drill_no_facts = true
"""
_PROTECTED = """
[handover]
sample = 0.5
"""
"""Every other conversion is compared, so that the evidence is there sooner."""
_COLUMNS = ("ACT", "REQUESTS", "FAILED", "HALF-CONVERTED", "REFUSED", "ROLLED BACK", "RECOVERED IN")


@app.command()
@reports_errors
def incident(
    as_json: AsJson = False,
    seed: Annotated[int, typer.Option(help="Of the load's variety.")] = 1,
) -> None:
    """Replay the incident in four acts: unprotected, checked, forced, handed-over."""
    random = Random(seed)
    acts: list[dict[str, Any]] = []
    with progress("the incident") as tell:
        staging_failed = _staging(random, tell)
        acts.append({**_unprotected(random, tell), "staging_failed": staging_failed})
        with _drill_mesh("protected", tell, settings=_PROTECTED) as mesh, _load(mesh, random, tell) as load:
            acts.append(_checked(mesh, load, tell))
            acts.append(_forced(mesh, load, tell))
            acts.append(_handed_over(mesh, load, tell))
    if as_json:
        print_json({"acts": acts})
        return
    rows = [
        (
            act["act"],
            act["requests"],
            act["failed"],
            act["half_converted"],
            act["refused"],
            act.get("rolled_back", ""),
            "" if act["recovered_in_s"] is None else f"{act['recovered_in_s']:.1f} s",
        )
        for act in acts
    ]
    print_table(_COLUMNS, rows, empty="nothing happened")


def _staging(random: Random, tell: Callable[[str], None]) -> int:
    """The change made in one region where everything is replaced at once; returns the failed requests: it passes."""
    tell("staging: one region, everything replaced at once")
    with _drill_mesh("staging", tell, regions=REGIONS[:1], sets=1, instances=1, settings=_UNPROTECTED) as mesh:
        for number in range(len(mesh.central_releases)):
            mesh.set_central_release(number + 1, NEXT_RELEASE)
        _convert_locally(mesh, REGIONS[0])
        Deploy(mesh, NEXT_RELEASE, tell).replace_all()
        with _load(mesh, random, tell) as load:
            load.reach(load.requests + LEAST_REQUESTS // 4)
        return load.failed + _half_converted(mesh)


def _unprotected(random: Random, tell: Callable[[str], None]) -> dict[str, Any]:
    """The same change as on the platform of the incident: rolled out piece by piece, and nothing watches."""
    with _drill_mesh("unprotected", tell, settings=_UNPROTECTED) as mesh, _load(mesh, random, tell) as load:
        tell("unprotected: the centre's next release, one instance at a time")
        load.reach(load.requests + LEAST_REQUESTS // 4)
        Deploy(mesh, NEXT_RELEASE, tell).replace_all(pause=lambda: load.reach(load.requests + LEAST_REQUESTS // 4))
        for region in mesh.regions:
            tell(f"unprotected: {region} converts {PART} itself")
            _convert_locally(mesh, region)
            load.reach(load.requests + LEAST_REQUESTS // 8)
        load.reach(LEAST_REQUESTS)
        return load.act("unprotected", _half_converted(mesh))


def _checked(mesh: Mesh, load: Load, tell: Callable[[str], None]) -> dict[str, Any]:
    tell("checked: the deploy check is asked")
    load.begin()
    refused = False
    try:
        Deploy(mesh, NEXT_RELEASE, tell).run(force=False)
    except CommandError as error:
        refused = True
        tell(f"checked: {error}")
    load.reach(LEAST_REQUESTS // 8)
    return {**load.act("checked", _half_converted(mesh)), "refused": refused}


def _forced(mesh: Mesh, load: Load, tell: Callable[[str], None]) -> dict[str, Any]:
    tell("forced: past the check")
    load.begin()
    kept = Deploy(mesh, NEXT_RELEASE, tell).run(force=True)
    load.reach(LEAST_REQUESTS)
    return {**load.act("forced", _half_converted(mesh)), "rolled_back": not kept}


def _handed_over(mesh: Mesh, load: Load, tell: Callable[[str], None]) -> dict[str, Any]:
    load.begin()
    for mode in ("shadow", "local-checked", "local"):
        for region in mesh.regions:
            _promote(mesh, region)
        tell(f"handed-over: {PART} is {mode} in every region")
    kept = Deploy(mesh, NEXT_RELEASE, tell).run(force=False)
    load.reach(LEAST_REQUESTS)
    if not kept:
        raise CommandError("the deploy after the hand-over was rolled back")
    return load.act("handed-over", _half_converted(mesh))


def _promote(mesh: Mesh, region: str) -> None:
    """Move PART one mode on, as soon as there is evidence enough."""
    from skerry.handover.v1 import handover_pb2

    request = handover_pb2.PromoteRequest(part=PART, min_compared=MIN_COMPARED, who="drill")

    async def work(channel: grpc.aio.Channel) -> None:
        await handover_calls.stub(channel).Promote(request, timeout=handover.PROMOTE_SECONDS)

    deadline = time.monotonic() + _PROMOTION_SECONDS
    why = ""
    while isinstance(answer := inside.ask_all(mesh, [region], work)[region], inside.Refusal):
        if str(answer) != why:
            # More was compared: a slow machine only takes longer.
            why, deadline = str(answer), time.monotonic() + _PROMOTION_SECONDS
        if time.monotonic() > deadline:
            raise CommandError(why)
        time.sleep(0.5)


def _convert_locally(mesh: Mesh, region: str) -> None:
    """Let `region` convert PART, without evidence and without asking anyone."""
    from skerry.handover.v1 import plan_pb2
    from skerry.store.v1 import plan_store_pb2
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub

    async def work(channel: grpc.aio.Channel) -> None:
        store: Any = PlanStoreStub(channel)
        plan = (await store.GetPlan(plan_store_pb2.GetPlanRequest(), timeout=_CALL_SECONDS)).plan
        entry = next(each for each in plan.parts if each.part == PART)
        entry.mode = plan_pb2.PART_MODE_LOCAL
        change = plan_store_pb2.ChangePlanRequest(
            expected_epoch=plan.epoch, parts=[entry], who="drill", why="as on the platform of the incident"
        )
        await store.ChangePlan(change, timeout=_CALL_SECONDS)

    inside.ask(mesh, region, work, of=MACHINE_STORE)


def _half_converted(mesh: Mesh) -> int:
    """Stored specs in which a part is missing or doubled."""
    from skerry.store.v1 import plan_store_pb2
    from skerry.store.v1.plan_store_pb2_grpc import PlanStoreStub
    from skerry.types.v1.spec_pb2 import MachineSpec

    every = sorted(part.name for part in MachineSpec.DESCRIPTOR.fields if part.number < 100)

    async def work(channel: grpc.aio.Channel) -> int:
        stream: Any = PlanStoreStub(channel)
        wrong = 0
        async for answer in stream.ListConfigurations(
            plan_store_pb2.ListConfigurationsRequest(), timeout=_CALL_SECONDS
        ):
            for stored in answer.configurations:
                made = sorted(part.part for part in stored.parts)
                wrong += made != every or not all(stored.spec.HasField(part) for part in every)
        return wrong

    return sum(inside.ask(mesh, region, work, of=MACHINE_STORE) for region in mesh.regions)


@contextmanager
def _drill_mesh(
    name: str,
    tell: Callable[[str], None],
    *,
    regions: tuple[str, ...] | None = None,
    sets: int = SETS,
    instances: int = CENTRAL_INSTANCES,
    settings: str = "",
) -> Iterator[Mesh]:
    """A mesh with every part at the centre, in a temporary folder; it is gone afterwards."""
    regions = regions or REGIONS
    tell(f"{name}: starting {len(regions)} regions of {sets} sets, and {instances} instances of the centre")
    with tempfile.TemporaryDirectory(prefix=f"skerry-drill-{name}-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        mesh = Mesh.prepare(directory, regions=regions, sets=sets, workers=1, plan="central")
        mesh.set_central_instances(instances)
        (directory / "settings.toml").write_text(settings, encoding="utf-8")
        try:
            up.start(mesh, mesh.regions, ready_seconds=120.0)
            yield mesh
        finally:
            up.stop(mesh)


@dataclass
class _Counts:
    requests: int = 0
    failed: int = 0
    failures: list[float] = field(default_factory=list)


class Load:
    """Steady creates and updates in every region of a mesh, and what became of them."""

    def __init__(self, mesh: Mesh, random: Random, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._doors = {
            region: [each["rest"] for each in document.get("sets", [document])]
            for region, document in mesh.endpoints({})["regions"].items()
        }
        self._headers = {"authorization": f"Bearer {mesh.token}"}
        self._random = random
        self._numbers = itertools.count()
        self._counts = _Counts()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def start(self) -> None:
        """Create the app, then begin."""
        import httpx

        region, doors = next(iter(self._doors.items()))
        httpx.post(f"{doors[0]}/v1/apps", json={"app_name": APP}, headers=self._headers, timeout=_CALL_SECONDS)
        deadline = time.monotonic() + _CALL_SECONDS
        for door in itertools.chain.from_iterable(self._doors.values()):
            while not httpx.get(f"{door}/v1/apps/{APP}", headers=self._headers, timeout=_CALL_SECONDS).is_success:
                if time.monotonic() > deadline:
                    raise CommandError(f"the app that was created in {region} is not known at {door}")
                time.sleep(0.1)
        self._thread.start()

    def end(self) -> None:
        """Stop, after the requests that are under way."""
        self._ended.set()
        self._thread.join()

    def begin(self) -> None:
        """Count from here on."""
        self._counts = _Counts()

    @property
    def requests(self) -> int:
        """Requests that ended since the counts began."""
        return self._counts.requests

    @property
    def failed(self) -> int:
        """Those answered with 500 or more, or not at all."""
        return self._counts.failed

    def reach(self, requests: int) -> None:
        """Wait until so many requests have ended since the counts began. Raises CommandError when they do not."""
        deadline = time.monotonic() + _ACT_SECONDS
        while self._counts.requests < requests:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise CommandError(f"the load has stopped at {self._counts.requests} of {requests} requests")
            time.sleep(0.05)

    def act(self, name: str, half_converted: int) -> dict[str, Any]:
        """What an act has shown."""
        counts = self._counts
        first_to_last = counts.failures[-1] - counts.failures[0] if counts.failures else None
        return {
            "act": name,
            "requests": counts.requests,
            "failed": counts.failed,
            "half_converted": half_converted,
            "refused": False,
            "recovered_in_s": None if first_to_last is None else round(first_to_last, 2),
        }

    async def _run(self) -> None:
        import httpx

        async with httpx.AsyncClient(headers=self._headers, timeout=_CALL_SECONDS) as client:
            await asyncio.gather(*(self._drive(client, region, doors) for region, doors in self._doors.items()))

    async def _drive(self, client: httpx.AsyncClient, region: str, doors: list[str]) -> None:
        created: list[str] = []
        while not self._ended.is_set():
            door = f"{self._random.choice(doors)}/v1/apps/{APP}/machines"
            if created and self._random.random() < 0.3:
                await self._request(client, f"{door}/{created[-1]}", self._body(region))
            elif (made := await self._request(client, door, self._body(region))) is not None:
                created.append(made["id"])
            await asyncio.sleep(PACE_SECONDS)

    def _body(self, region: str) -> dict[str, Any]:
        """A configuration that was never seen before, in the part that moves too: no cache knows its conversion."""
        number = next(self._numbers)
        guest = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256, "kernel_args": [f"drill={number}"]}
        config = {"image": "busybox", "env": {"N": str(number)}, "guest": guest}
        return {"config": config, "region": region, "skip_launch": True}

    async def _request(self, client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any] | None:
        import httpx

        counts = self._counts
        answer: dict[str, Any] | None = None
        failure = ""
        try:
            response = await client.post(url, json=body)
            if response.status_code >= 500:
                failure = response.text[:200]
            elif response.is_success:
                answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        counts.requests += 1
        if failure:
            counts.failed += 1
            counts.failures.append(time.monotonic())
            self._tell(f"failed: {failure}")
        return answer


@contextmanager
def _load(mesh: Mesh, random: Random, tell: Callable[[str], None]) -> Iterator[Load]:
    load = Load(mesh, random, tell)
    load.start()
    try:
        yield load
    finally:
        load.end()
