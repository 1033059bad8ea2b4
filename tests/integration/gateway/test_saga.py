"""Creating and updating when something between the steps goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

import httpx
import pytest
from skerry.machines.v1 import machines_pb2 as api
from skerry.scheduler.v1.scheduler_pb2 import Candidate, PlaceRequest, PlaceResponse
from skerry.store.v1 import store_pb2
from skerry.types.v1.resources_pb2 import Resources

from gateway.names import new_machine_name
from gateway.rest.door import RestDoor
from gateway.service import public_interceptors
from services.machine_store.service import MachineStoreService
from services.runtime.channels import local
from services.runtime.clock import SystemClock
from services.runtime.errors import DependencyDown
from services.runtime.registry import Registry, ServerCall
from services.scheduler.service import SchedulerService
from tests.support import eventually
from tests.support_gateway import CELL, GIB, TOKEN, gateway_of, region, running

T = TypeVar("T")
GOOD = {"config": {"image": "busybox"}, "skip_launch": True}


class ForgetfulStore(MachineStoreService):
    """Commits, and loses its first two answers."""

    lost = 0

    async def CreateMachine(self, request: store_pb2.CreateMachineRequest, context: Any) -> Any:
        answer = await super().CreateMachine(request, context)
        if self.lost < 2:
            self.lost += 1
            raise DependencyDown("machine-store broke the call off")
        return answer


async def test_an_answer_of_the_store_that_is_lost_makes_no_second_machine(postgres: str) -> None:
    async with region(postgres, machine_store=ForgetfulStore) as serving:
        app = await serving.app()
        machine = await serving.machine(app)
        listed = (await serving.call("GET", f"/v1/apps/{app}/machines")).json
        assert [each["id"] for each in listed] == [machine["id"]]
        assert listed[0]["config"] == machine["config"]
        assert listed[0]["image_ref"] == machine["image_ref"]


class AwayScheduler(SchedulerService):
    """Is away for the first three placements."""

    refused = 0

    async def Place(self, request: PlaceRequest, context: Any) -> PlaceResponse:
        if self.refused < 3:
            self.refused += 1
            raise DependencyDown("the scheduler starts")
        return await super().Place(request, context)


async def test_a_scheduler_that_is_away_for_a_moment_is_waited_for(postgres: str) -> None:
    async with region(postgres, scheduler=AwayScheduler) as serving:
        await serving.machine(await serving.app())


class LateScheduler(SchedulerService):
    """Its view is old: at first it offers a worker that is gone."""

    asked: list[Sequence[str]] = []  # noqa: RUF012

    async def Place(self, request: PlaceRequest, context: Any) -> PlaceResponse:
        self.asked.append(list(request.excluded_worker_ids))
        if not request.excluded_worker_ids:
            return PlaceResponse(candidates=[Candidate(worker_id="gone")], workers=1)
        return await super().Place(request, context)


async def test_candidates_that_turn_out_full_are_replaced_once(postgres: str) -> None:
    LateScheduler.asked.clear()
    async with region(postgres, scheduler=LateScheduler) as serving:
        await serving.machine(await serving.app())
    assert LateScheduler.asked == [[], ["gone"]]


class Repetitive(Random):
    """Chooses the first word and the number 1 for the first names, then at random."""

    repeated = 0

    def choice(self, seq: Any) -> Any:
        return seq[0] if self.repeated < 2 else super().choice(seq)

    def randrange(self, *args: Any, **kwargs: Any) -> int:
        self.repeated += 1
        return 1 if self.repeated <= 2 else super().randrange(*args, **kwargs)


async def test_a_generated_name_that_is_taken_is_generated_anew(postgres: str) -> None:
    taken = new_machine_name(Repetitive())
    async with region(postgres, random=Repetitive()) as serving:
        app = await serving.app()
        assert (await serving.machine(app, name=taken))["name"] == taken
        assert (await serving.machine(app))["name"] != taken


async def test_a_full_region_refuses_and_gives_back_nothing_it_did_not_take(postgres: str) -> None:
    room = Resources(shared_cpu_millicores=3000, memory_bytes=3 * GIB, disk_bytes=1000 * GIB)
    async with region(postgres, capacity=room) as serving:
        app = await serving.app()
        path = f"/v1/apps/{app}/machines"
        body = {"config": {"image": "busybox", "guest": {"cpus": 1, "memory_mb": 1024}}, "skip_launch": True}
        answers = await asyncio.gather(*(serving.call("POST", path, body) for _ in range(12)))
        made = [answer.json for answer in answers if answer.status == 200]
        assert len(made) == 3
        assert {answer.json["status"] for answer in answers if answer.status != 200} == {"insufficient_capacity"}
        grown = {"config": {"image": "busybox", "guest": {"cpus": 1, "memory_mb": 2048}}}
        refused = await serving.call("POST", f"{path}/{made[0]['id']}", grown)
        assert (refused.status, refused.json["status"]) == (422, "insufficient_capacity")
        await serving.call("DELETE", f"{path}/{made[1]['id']}")
        await serving.worker.destroyed(made[1]["id"])
        assert (await serving.call("POST", f"{path}/{made[0]['id']}", grown)).status == 200
        reserved = (await serving.store.ListWorkers(store_pb2.ListWorkersRequest())).workers[0].reserved
        assert reserved.memory_bytes == 3 * GIB


async def test_a_gateway_finds_an_app_that_another_made_and_asks_together(postgres: str) -> None:
    counted: Counter[str] = Counter()

    async def count(call: ServerCall) -> None:
        counted[call.method.rpartition("/")[2]] += 1

    async with region(postgres) as serving:
        store = serving.registries["machine-store"]
        store.interceptors = (*store.interceptors, count)
        # It does not run, so its view of the apps stays empty: it has to ask for each.
        blind = gateway_of(serving.registries, SystemClock(), Random())
        public = Registry(service="gateway", interceptors=public_interceptors([TOKEN]))
        blind.register(public)
        list_machines = local(public, caller=f"{CELL}/rest", callee="gateway", secret=None).unary_unary(
            "/skerry.machines.v1.Machines/ListMachines",
            request_serializer=api.ListMachinesRequest.SerializeToString,
            response_deserializer=api.ListMachinesResponse.FromString,
        )
        request, bearer = api.ListMachinesRequest(app_name="late"), (("authorization", f"Bearer {TOKEN}"),)

        async def listed() -> Any:
            return await list_machines(request, metadata=bearer)

        outcomes = await asyncio.gather(*(listed() for _ in range(50)), return_exceptions=True)
        assert {getattr(outcome, "reason", None) for outcome in outcomes} == {"not_found"}
        assert counted["GetApp"] <= 2
        await serving.call("POST", "/v1/apps", {"name": "late"})
        assert list((await listed()).machines) == []


async def test_a_gateway_is_not_healthy_before_it_has_caught_up(postgres: str) -> None:
    async with region(postgres) as serving:
        late = gateway_of(serving.registries, SystemClock(), Random())
        public = Registry(service="gateway", interceptors=public_interceptors([TOKEN]))
        late.register(public)
        door = RestDoor(
            local(public, caller=f"{CELL}/rest", callee="gateway", secret=None),
            host="127.0.0.1",
            port=0,
            ready=lambda: late.is_ready,
            clock=SystemClock(),
            random=Random(),
            grace=0.2,
        )
        async with running([door]), httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.port}") as client:
            before = await client.get("/healthz")
            assert (before.status_code, before.json()["status"]) == (503, "dependency_down")
            assert before.headers["retry-after"] == "1"
            async with running([late]):
                assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/healthz")).status_code == 503


async def test_a_door_refuses_an_address_that_is_in_use(postgres: str) -> None:
    async with region(postgres) as serving:
        channel = local(serving.registries["machine-store"], caller=f"{CELL}/rest", callee="gateway", secret=None)
        door = RestDoor(
            channel,
            host="127.0.0.1",
            port=serving.rest_port,
            ready=lambda: True,
            clock=SystemClock(),
            random=Random(),
        )
        with pytest.raises(OSError, match="is another process there"):
            await door.run(lambda: None)


class BreakingStore(MachineStoreService):
    """Fails where nobody thought of it."""

    async def GetMachine(self, request: store_pb2.GetMachineRequest, context: Any) -> Any:
        raise ZeroDivisionError("a secret of the inside")


async def test_a_fault_inside_is_answered_with_its_trace_and_nothing_of_the_inside(postgres: str) -> None:
    async with region(postgres, machine_store=BreakingStore) as serving:
        app = await serving.app()
        machine = await serving.machine(app)
        answer = await serving.call("GET", f"/v1/apps/{app}/machines/{machine['id']}")
        assert (answer.status, answer.json["status"]) == (500, "internal")
        assert "inside" not in answer.json["error"]
        assert answer.headers["traceparent"].split("-")[1] in answer.json["error"]


async def test_waits_of_two_gateways_are_woken_by_what_either_did(postgres: str) -> None:
    async with region(postgres) as serving:
        other = gateway_of(serving.registries, SystemClock(), Random())
        public = Registry(service="gateway", interceptors=public_interceptors([TOKEN]))
        other.register(public)
        wait = local(public, caller=f"{CELL}/rest", callee="gateway", secret=None).unary_unary(
            "/skerry.machines.v1.Machines/WaitMachine",
            request_serializer=api.WaitMachineRequest.SerializeToString,
            response_deserializer=api.WaitMachineResponse.FromString,
        )
        app = await serving.app()
        machine = await serving.machine(app)
        async with running([other]):
            request = api.WaitMachineRequest(app_name=app, machine_id=machine["id"], state=["destroyed"])
            waiting = asyncio.ensure_future(
                _answer(wait(request, metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=30))
            )
            await eventually(lambda: other.waiting == 1)
            await serving.call("DELETE", f"/v1/apps/{app}/machines/{machine['id']}")
            await serving.worker.destroyed(machine["id"])
            assert (await waiting).ok


async def _answer(call: Any) -> Any:
    return await call
