"""Conversion and apps by a real centre: as it answers, from the cache, and when it is dead, slow or flaky."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from skerry.converter.v1.converter_pb2 import PART_OWNER_CENTRE
from skerry.store.v1 import store_pb2
from skerry.store.v1.plan_store_pb2 import CentralConversion, LookupConversionsRequest
from skerry.sync.v1 import sync_pb2
from skerry.types.v1.config_pb2 import MachineConfig, MachineMount

from services.central_sync.breaker import BreakerSettings
from services.central_sync.central_client import plain_http
from services.central_sync.settings import CallClass
from services.runtime.errors import (
    DependencyDown,
    ForbiddenDependency,
    InvalidConfig,
    NameTaken,
    NotFound,
)
from services.runtime.guard import REGIONAL_MEMBER
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import BREAKER, Cell, Instance, bounds, quick, url_of
from tests.support import eventually, free_port

CONFIG = MachineConfig(image="nginx:1.27", env={"A": "1"})
NOWHERE = "http://127.0.0.1:9/graphql"


def wanted(*parts: str, config: MachineConfig = CONFIG, versions: tuple[int, ...] = (1,), **more: Any) -> Any:
    """A request whose hashes stand for the whole configuration."""
    hashed = config.SerializeToString(deterministic=True)
    return sync_pb2.ConvertPartsRequest(
        parts=[sync_pb2.WantedPart(part=part, versions=versions, input_hash=hashed) for part in parts],
        config=config,
        app_name="web",
        region="syd",
        **more,
    )


async def convert(instance: Instance, request: Any) -> list[sync_pb2.CentralPart]:
    return list((await instance.stub.ConvertParts(request, timeout=5)).parts)


async def kept(cell: Cell, part: str, config: MachineConfig = CONFIG, version: int = 1) -> bool:
    asked = CentralConversion(part=part, input_hash=config.SerializeToString(deterministic=True), version=version)
    return bool((await cell.plans.LookupConversions(LookupConversionsRequest(wanted=[asked]))).found)


# Conversion


async def test_the_centre_answers_each_part_that_is_wanted(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        image, env = await convert(instance, wanted("image", "env"))
        assert (image.part, image.version, image.cached) == ("image", 1, False)
        assert (image.spec.image.repository, image.spec.image.tag) == ("library/nginx", "1.27")
        assert env.spec.env.variables == {"A": "1"}
        assert not env.spec.HasField("image")


async def test_what_was_converted_before_comes_from_the_cache_with_the_centre_dead(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        first = await convert(instance, wanted("image", "env"))
        await eventually(lambda: kept(cell, "env"))
    async with cell.sync(quick([NOWHERE])) as instance:
        again = await convert(instance, wanted("image", "env"))
        assert {part.part: part.spec for part in again} == {part.part: part.spec for part in first}
        assert all(part.cached for part in again)
        with pytest.raises(DependencyDown) as caught:
            await convert(instance, wanted("image", "guest"))
        assert caught.value.metadata["parts"] == "guest", "the others are known"
        assert caught.value.metadata["dependency"] == "central"
        assert caught.value.metadata["since"]
        assert caught.value.retry_after is not None
        with pytest.raises(DependencyDown):
            await convert(instance, wanted("image", fresh=True))


async def test_a_part_is_asked_for_at_the_one_version_that_is_allowed(
    cell: Cell, fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    rolling = settings_for(tmp_path, await fresh_database(), release="1.1")
    async with running(rolling) as centre, cell.sync(quick([url_of(centre)])) as instance:
        assert [part.version for part in await convert(instance, wanted("image", versions=(1,)))] == [1]
        rolled = wanted("image", versions=(1, 2), fresh=True)
        assert [part.version for part in await convert(instance, rolled)] == [2]
        (refused,) = await convert(instance, wanted("image", versions=(3,)))
        assert (refused.version, refused.HasField("spec")) == (0, False)
        assert "not at 3" in refused.not_served


async def test_a_part_that_the_centre_does_not_convert_is_refused_by_name(
    cell: Cell, fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    dropped = settings_for(tmp_path, await fresh_database(), release="2")
    async with running(dropped) as centre, cell.sync(quick([url_of(centre)])) as instance:
        guest, env = await convert(instance, wanted("guest", "env"))
        assert (guest.part, guest.version, guest.not_served) == ("guest", 0, "release 2 does not convert it")
        assert env.HasField("spec")
        known = await instance.stub.GetCentralConverter(sync_pb2.GetCentralConverterRequest())
        assert known.release == "2"
        assert "guest" not in {part.part for part in known.parts}
        assert {(part.owner, part.version) for part in known.parts} == {(PART_OWNER_CENTRE, 1)}
        assert (await instance.breaker("conversion")).failure_rate == 0, "a refusal by name is an answer"


async def test_what_is_wrong_with_a_configuration_comes_back_and_is_not_kept(cell: Cell, centre: Centre) -> None:
    bad = MachineConfig(image="nginx", schedule="sometimes")
    async with cell.sync(quick([url_of(centre)])) as instance:
        schedule, _ = await convert(instance, wanted("schedule", "env", config=bad))
        assert [violation.field for violation in schedule.violations] == ["schedule"]
        assert not schedule.HasField("spec")
        await eventually(lambda: kept(cell, "env", bad))
        assert not await kept(cell, "schedule", bad)


async def test_the_facts_that_are_sent_along_spare_the_centre_its_question(cell: Cell, centre: Centre) -> None:
    config = MachineConfig(image="nginx", mounts=[MachineMount(volume="vol_001", path="/data")])
    async with cell.sync(quick([url_of(centre)])) as instance:
        (mounts,) = await convert(instance, wanted("mounts", config=config, volume_locations={"vol_001": "w1"}))
        assert mounts.spec.mounts.mounts[0].volume_id == "vol_001"
        (unknown,) = await convert(
            instance, wanted("mounts", config=config, volume_locations={"vol_001": ""}, fresh=True)
        )
        assert unknown.HasField("spec")
        with pytest.raises(DependencyDown, match="no gateway"):
            await convert(instance, wanted("mounts", config=config, without_facts=True, fresh=True))


async def test_the_centre_converts_under_the_facts_of_the_region_when_it_knows_newer_ones(
    cell: Cell, centre: Centre
) -> None:
    await centre.ask(
        "mutation($input: SetImageAliasInput!) { setImageAlias(input: $input) { imageAlias { name } } }",
        input={"name": "base", "repository": "docker.io/library/newer", "digest": f"sha256:{'b' * 64}"},
    )
    config = MachineConfig(image="base")
    config.guest.cpus = 4
    older = sync_pb2.CatalogFacts(image_aliases={"base": "docker.io/library/older:1"}, max_cpus=2)
    async with cell.sync(quick([url_of(centre)])) as instance:
        image, guest = await convert(instance, wanted("image", "guest", config=config, catalog=older, fresh=True))
        assert image.spec.image.repository == "library/older"
        assert [violation.field for violation in guest.violations] == ["guest.cpus"]
        unaliased, unbound = await convert(
            instance, wanted("image", "guest", config=config, catalog=sync_pb2.CatalogFacts(), fresh=True)
        )
        assert unaliased.spec.image.repository == "library/base"
        assert unbound.HasField("spec")
        (untold,) = await convert(instance, wanted("image", config=config, fresh=True))
        assert untold.spec.image.repository == "library/newer"


class Scripted(httpx.AsyncBaseTransport):
    """A centre that answers conversions as it is told, and all else as the real one does."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.real = httpx.AsyncHTTPTransport()
        self.headers: list[dict[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if b'"ConvertParts"' not in await request.aread():
            return await self.real.handle_async_request(request)
        self.headers.append(dict(request.headers))
        return httpx.Response(200, json=self.answer)

    async def aclose(self) -> None:
        await self.real.aclose()


def answered(part: str, version: int = 1, spec: Any = None, **more: Any) -> dict[str, Any]:
    return {"part": part, "version": version, "spec": spec, "violations": [], "notServed": None, **more}


async def scripted(cell: Cell, centre: Centre, document: Any, request: Any) -> list[sync_pb2.CentralPart]:
    way = Scripted(document)
    async with cell.sync(quick([url_of(centre)]), http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        return await convert(instance, request)


async def test_what_was_not_wanted_or_comes_twice_is_passed_on_as_it_is(cell: Cell, centre: Centre) -> None:
    env = {"variables": {"A": "1"}}
    document = {
        "data": {
            "convertParts": [
                answered("env", spec=env),
                answered("env", spec=env),
                answered("image", version=9, spec={"repository": "x"}),
                answered("dns", spec={"register": True}),
                answered("invented", spec={"a": 1}),
                answered("init", spec={"nonsense": 1}),
            ]
        }
    }
    parts = await scripted(cell, centre, document, wanted("env", "image", "init", "guest"))
    assert [(part.part, part.version) for part in parts] == [
        ("env", 1),
        ("env", 1),
        ("image", 9),
        ("dns", 1),
        ("invented", 1),
        ("init", 1),
    ]
    assert not parts[4].HasField("spec")
    assert "not a spec of this part" in parts[5].not_served
    assert not await kept(cell, "env")
    assert not await kept(cell, "image", version=9)


async def test_a_circle_comes_back_as_what_it_is_with_its_chain(cell: Cell, centre: Centre) -> None:
    chain = "syd-1/gateway > syd-1/config-converter > syd-1/central-sync > central > syd-1/gateway"
    refusal = {"message": "the region refuses", "extensions": {"code": "DEPENDENCY_CYCLE", "chain": chain}}
    document = {"data": None, "errors": [refusal]}
    with pytest.raises(ForbiddenDependency) as caught:
        await scripted(cell, centre, document, wanted("mounts"))
    assert caught.value.metadata["chain"] == chain


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"data": None},
        {"data": {"convertParts": [{"part": "env"}]}},
        {"data": {"convertParts": None}},
        {"errors": "no"},
        {"errors": [{"message": "boom", "extensions": {"code": "INTERNAL"}}]},
        {"errors": [{"message": "boom"}]},
    ],
)
async def test_an_answer_that_is_none_is_a_failure_of_the_centre(cell: Cell, centre: Centre, document: Any) -> None:
    with pytest.raises(DependencyDown, match="central does not answer"):
        await scripted(cell, centre, document, wanted("env"))


async def test_the_path_and_the_trace_go_along_to_the_centre(cell: Cell, centre: Centre) -> None:
    way = Scripted({"data": {"convertParts": []}})
    settings = quick([url_of(centre)])
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    path = "skerry.path=syd-1/gateway>syd-1/config-converter,other=1"
    async with cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        metadata = (("traceparent", trace), ("baggage", path))
        await instance.stub.ConvertParts(wanted("env"), metadata=metadata, timeout=5)
    headers = way.headers[-1]
    assert headers["baggage"] == "skerry.path=syd-1/gateway>syd-1/config-converter>syd-1/central-sync,other=1"
    assert trace[3:35] in headers["traceparent"]
    assert headers["authorization"].startswith("Bearer ")


async def test_a_request_that_must_stay_in_its_region_does_not_leave_for_the_centre(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        metadata = (
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
            ("baggage", f"skerry.path=syd-1/gateway>syd-1/config-converter,{REGIONAL_MEMBER}=1"),
        )
        with pytest.raises(ForbiddenDependency, match="must not leave its region"):
            await instance.stub.ConvertParts(wanted("env"), metadata=metadata, timeout=5)


# Apps


async def test_an_app_is_in_the_catalog_before_it_is_answered(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        request = sync_pb2.CreateAppRequest(name="web", organization_slug="personal", network="blue")
        app = (await instance.stub.CreateApp(request)).app
        found = (await cell.store.GetApp(store_pb2.GetAppRequest(name="web"))).app
        assert found.id == app.id
        assert (app.home_cell, app.network, app.organization_slug) == ("001", "blue", "personal")
        with pytest.raises(NameTaken):
            await instance.stub.CreateApp(request)
        with pytest.raises(NotFound):
            await instance.stub.CreateApp(sync_pb2.CreateAppRequest(name="x", organization_slug="nobody"))
        with pytest.raises(InvalidConfig):
            await instance.stub.CreateApp(sync_pb2.CreateAppRequest(name="No Name", organization_slug="personal"))


async def test_a_deleted_app_is_gone_at_the_centre_and_here_with_its_machines(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        request = sync_pb2.CreateAppRequest(name="web", organization_slug="personal")
        app = (await instance.stub.CreateApp(request)).app
        await cell.add_worker()
        machine = await cell.add_machine(app.id)
        await instance.stub.DeleteApp(sync_pb2.DeleteAppRequest(name="web"))
        with pytest.raises(NotFound):
            await cell.store.GetApp(store_pb2.GetAppRequest(name="web"))
        found = (await cell.store.GetMachine(store_pb2.GetMachineRequest(machine_id=machine.id))).machine
        assert found.desired == store_pb2.DESIRED_STATE_DESTROYED
        with pytest.raises(NotFound):
            await instance.stub.DeleteApp(sync_pb2.DeleteAppRequest(name="web"))
        again = (await instance.stub.CreateApp(request)).app
        assert again.id != app.id


async def test_an_app_that_only_the_region_still_has_is_deleted_here(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)])) as instance:
        await cell.store.CreateApp(store_pb2.CreateAppRequest(app_id="own", name="own", organization_slug="personal"))
        await instance.stub.DeleteApp(sync_pb2.DeleteAppRequest(name="own"))
        assert await cell.app_names() == []


async def test_a_missing_app_is_asked_for_once_by_all_who_want_it(cell: Cell, centre: Centre) -> None:
    way = Counted()
    settings = quick([url_of(centre)])
    async with cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        ask = sync_pb2.LookupAppRequest(name="nothing")
        answers = await asyncio.gather(*(instance.stub.LookupApp(ask) for _ in range(20)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NotFound}
        with pytest.raises(NotFound):
            await instance.stub.LookupApp(ask)
        assert way.operations.count("App") == 1


async def test_an_app_that_was_not_there_is_found_once_a_moment_has_passed(cell: Cell, centre: Centre) -> None:
    settings = quick([url_of(centre)], lookup_misses=0.3)
    async with cell.sync(settings) as instance:
        ask = sync_pb2.LookupAppRequest(name="late")
        with pytest.raises(NotFound):
            await instance.stub.LookupApp(ask)
        await centre.create_app("late")

        async def found() -> bool:
            try:
                return (await instance.stub.LookupApp(ask)).app.name == "late"
            except NotFound:
                return False

        await eventually(found, seconds=2)
        assert "late" in await cell.app_names()


# A centre that is dead, slow or flaky


async def test_an_open_breaker_fails_calls_without_asking_the_dead_centre(cell: Cell, centre: Centre) -> None:
    await centre.create_app("fill")
    async with cell.sync(quick([url_of(centre)])):
        pass
    way = Counted()
    calls = bounds(CallClass.CONVERSION, breaker=replace(BREAKER, open_for=10.0, longest_open=10.0))
    settings = quick([NOWHERE], calls=calls)
    async with cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        for _ in range(3):
            with pytest.raises(DependencyDown, match="central"):
                await convert(instance, wanted("env"))
        assert (await instance.breaker("conversion")).state == sync_pb2.BREAKER_STATE_OPEN
        asked = way.operations.count("ConvertParts")
        assert asked >= 3
        for _ in range(20):
            with pytest.raises(DependencyDown):
                await convert(instance, wanted("env", fresh=True))
        assert way.operations.count("ConvertParts") == asked
        with pytest.raises(DependencyDown) as caught:
            await instance.stub.CreateApp(sync_pb2.CreateAppRequest(name="x", organization_slug="personal"))
        assert "central" in caught.value.message
        assert caught.value.retry_after is not None


async def test_it_closes_by_its_own_probes_once_the_centre_is_back(
    cell: Cell, fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    dsn = await fresh_database()
    port = free_port()
    central = settings_for(tmp_path, dsn, listen=f"127.0.0.1:{port}")
    async with running(central) as centre, cell.sync(quick([url_of(centre)])):
        pass
    way = Counted()
    settings = quick([f"http://127.0.0.1:{port}/graphql"])
    async with cell.sync(settings, http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        for _ in range(3):
            with pytest.raises(DependencyDown):
                await convert(instance, wanted("env"))
        assert (await instance.breaker("conversion")).state != sync_pb2.BREAKER_STATE_CLOSED
        async with running(central):
            states = []
            async for status in instance.stub.WatchStatus(sync_pb2.WatchStatusRequest(), timeout=10):
                breaker = next(each for each in status.breakers if each.call_class == "conversion")
                states.append(breaker.state)
                if breaker.state == sync_pb2.BREAKER_STATE_CLOSED:
                    break
            assert states[0] != sync_pb2.BREAKER_STATE_CLOSED
            assert (await convert(instance, wanted("env")))[0].HasField("spec")


async def test_a_slow_centre_opens_the_breaker_and_holds_nobody_longer_than_the_deadline(
    cell: Cell, centre: Centre
) -> None:
    calls = bounds(CallClass.CONVERSION, deadline=0.5, slow_after=0.2)
    async with cell.sync(quick([url_of(centre)], calls=calls)) as instance:
        await centre.http.post("/faults", json={"slow_ms": 60_000})
        answers = await asyncio.gather(
            *(instance.stub.ConvertParts(wanted("env", fresh=True), timeout=5) for _ in range(10)),
            return_exceptions=True,
        )
        assert {type(answer) for answer in answers} == {DependencyDown}
        breaker = await instance.breaker("conversion")
        assert breaker.state != sync_pb2.BREAKER_STATE_CLOSED
        assert "no answer within" in breaker.last_failure
        with pytest.raises(DependencyDown):
            await convert(instance, wanted("env", fresh=True))
        await centre.http.post("/faults", json={})
        await eventually(lambda: _closed(instance, "conversion"))


async def test_slow_answers_alone_open_the_breaker(cell: Cell, centre: Centre) -> None:
    calls = bounds(CallClass.CONVERSION, deadline=5.0, slow_after=0.1)
    async with cell.sync(quick([url_of(centre)], calls=calls)) as instance:
        await centre.http.post("/faults", json={"slow_ms": 300})
        for _ in range(3):
            assert (await convert(instance, wanted("env", fresh=True)))[0].HasField("spec")
        breaker = await instance.breaker("conversion")
        assert (breaker.state, breaker.failure_rate) == (sync_pb2.BREAKER_STATE_OPEN, 0.0)
        assert breaker.slow_call_rate == 1.0


async def test_one_class_that_fails_leaves_the_others_alone(cell: Cell, centre: Centre) -> None:
    document = {"errors": [{"message": "boom", "extensions": {"code": "TIMEOUT"}}]}
    way = Scripted(document)
    async with cell.sync(quick([url_of(centre)]), http=lambda _: httpx.AsyncClient(transport=way)) as instance:
        for _ in range(4):
            with pytest.raises(DependencyDown):
                await convert(instance, wanted("env"))
        assert (await instance.breaker("conversion")).state != sync_pb2.BREAKER_STATE_CLOSED
        await instance.stub.CreateApp(sync_pb2.CreateAppRequest(name="web", organization_slug="personal"))


async def test_another_instance_of_the_centre_is_asked_when_one_is_dead(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([NOWHERE, url_of(centre)])) as instance:
        for _ in range(10):
            assert (await convert(instance, wanted("env", fresh=True)))[0].HasField("spec")


async def test_a_flaky_centre_is_repeated_within_the_budget_and_grows_nothing(cell: Cell, centre: Centre) -> None:
    clients: list[httpx.AsyncClient] = []

    def make(connections: int) -> httpx.AsyncClient:
        clients.append(plain_http(connections))
        return clients[-1]

    breaker = BreakerSettings(minimum_calls=20, open_for=0.2, longest_open=0.4)
    settings = quick([url_of(centre)], calls=bounds(CallClass.CONVERSION, breaker=breaker))
    async with cell.sync(settings, http=make) as instance:
        await centre.http.post("/faults", json={"error_rate": 0.3, "slow_ms": 5})
        answered, down = 0, 0

        async def load(number: int) -> None:
            nonlocal answered, down
            config = MachineConfig(image="nginx", env={"N": str(number)})
            try:
                await asyncio.wait_for(
                    instance.stub.ConvertParts(wanted("env", config=config), timeout=5), 0.05 if number % 7 == 0 else 5
                )
                answered += 1
            except (DependencyDown, TimeoutError):
                down += 1

        most_tasks = 0
        for round_ in range(20):
            await asyncio.gather(*(load(round_ * 40 + number) for number in range(40)))
            most_tasks = max(most_tasks, len(asyncio.all_tasks()))
            await asyncio.sleep(0.05)
            if round_ == 4:
                early = most_tasks
        assert answered > 100
        assert most_tasks <= early + 20
        pool: Any = clients[0]._transport
        assert len(pool._pool.connections) <= 30
        await centre.http.post("/faults", json={})
        await eventually(lambda: _closed(instance, "conversion"))
        print(f"{answered} answered, {down} not, {most_tasks} tasks at most, {len(pool._pool.connections)} connections")
        assert (await convert(instance, wanted("image")))[0].HasField("spec")


async def test_a_wrong_token_is_told_as_what_it_is(cell: Cell, centre: Centre) -> None:
    async with cell.sync(quick([url_of(centre)], token="wrong"), wait=False) as instance:
        with pytest.raises(DependencyDown, match="UNAUTHORIZED") as caught:
            await convert(instance, wanted("env"))
        assert "wrong" not in str(caught.value)


class Counted(httpx.AsyncHTTPTransport):
    """HTTP as it is, with a note of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        text = (await request.aread()).decode()
        self.operations.append(text.split('"operationName":"')[1].split('"')[0])
        return await super().handle_async_request(request)


async def _closed(instance: Instance, call_class: str) -> bool:
    return (await instance.breaker(call_class)).state == sync_pb2.BREAKER_STATE_CLOSED
