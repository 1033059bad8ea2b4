"""Several regions, each with its own database and gateway: any gateway serves every one, and a dead one is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack

import grpc
import pytest
import pytest_asyncio
from skerry.machines.v1 import machines_pb2 as api

from gateway.routing import UNREACHABLE_KEY
from services.runtime.channels import connect
from services.runtime.errors import DependencyDown
from services.runtime.regions import Cell, Region, RegionMap
from tests.support import eventually
from tests.support_gateway import CENTRAL_TOKEN, TOKEN, TestRegion, region

CELLS = {"syd": "001", "iad": "002"}
DEAD, DEAD_CELL = "fra", "003"
MAP = RegionMap(
    [Region(code, code, 0, 0, (Cell(cell, (f"{code}:1",)),)) for code, cell in (*CELLS.items(), (DEAD, DEAD_CELL))]
)
BODY = {"config": {"image": "busybox"}, "skip_launch": True}

Regions = Mapping[str, TestRegion]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def regions(postgres: str) -> AsyncIterator[Regions]:
    """Two regions that serve, in a map with a third where nobody listens."""
    # Port 1 of this machine refuses connections.
    addresses = {f"{DEAD}:1": "127.0.0.1:1"}

    def reach(symbolic: Sequence[str], caller: str, callee: str) -> grpc.aio.Channel:
        found = [addresses[address] for address in symbolic]
        return connect(found, caller=caller, callee=callee, secret=None, leaves_region=True)

    async with AsyncExitStack() as stack:
        serving: dict[str, TestRegion] = {}
        for code, cell in CELLS.items():
            serving[code] = await stack.enter_async_context(
                region(postgres, cell=cell, regions=MAP, connect_elsewhere=reach)
            )
            addresses[f"{code}:1"] = serving[code].grpc_address
        yield serving


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def app(regions: Regions) -> str:
    """A new app that both regions know."""
    name = await regions["syd"].app()
    answer = await regions["iad"].call("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
    assert answer.status == 201, answer
    return name


async def test_any_gateway_creates_reads_and_changes_volumes_of_every_region(regions: Regions, app: str) -> None:
    made: dict[str, str] = {}
    for via in regions.values():
        for to, cell in CELLS.items():
            answer = await via.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": to})
            assert (answer.status, answer.json["region"], answer.json["id"][4:7]) == (200, to, cell), answer
            made[answer.json["id"]] = to
    for via in regions.values():
        for volume, to in made.items():
            path = f"/v1/apps/{app}/volumes/{volume}"
            assert (await via.call("GET", path)).json["region"] == to
            assert (await via.call("PUT", path, {"snapshot_retention": 3})).json["snapshot_retention"] == 3
            assert (await via.call("GET", f"{path}/snapshots")).json == []
        listed = await via.call("GET", f"/v1/apps/{app}/volumes")
        assert {each["id"] for each in listed.json} == set(made)
        assert listed.headers[UNREACHABLE_KEY] == DEAD
        listed = await via.call("GET", f"/v1/apps/{app}/volumes?region=iad")
        assert {each["id"] for each in listed.json} == {volume for volume, to in made.items() if to == "iad"}
    volume, other = next(i for i, to in made.items() if to == "iad"), regions["syd"]
    elsewhere = {"config": {"image": "busybox", "mounts": [{"path": "/data", "volume": volume}]}, "region": "syd"}
    refused = await other.call("POST", f"/v1/apps/{app}/machines", elsewhere)
    assert (refused.status, refused.json["status"]) == (422, "volume_elsewhere")
    answer = await other.call("DELETE", f"/v1/apps/{app}/volumes/{volume}")
    assert (answer.status, answer.json["id"]) == (200, volume)


async def test_any_gateway_creates_reads_and_changes_machines_of_every_region(regions: Regions, app: str) -> None:
    made: dict[str, str] = {}
    for via in regions.values():
        for to, cell in CELLS.items():
            answer = await via.call("POST", f"/v1/apps/{app}/machines", {**BODY, "region": to})
            assert (answer.status, answer.json["region"], answer.json["id"][:3]) == (200, to, cell), answer
            made[answer.json["id"]] = to
    for via in regions.values():
        for machine, to in made.items():
            path = f"/v1/apps/{app}/machines/{machine}"
            assert (await via.call("GET", path)).json["region"] == to
            assert (await via.call("POST", path, BODY)).json["region"] == to
            assert (await via.call("GET", f"{path}/events")).status == 200
    machine, other = next(i for i, to in made.items() if to == "iad"), regions["syd"]
    assert (await other.call("DELETE", f"/v1/apps/{app}/machines/{machine}?force=true")).status == 200
    answer = await regions["iad"].call("GET", f"/v1/apps/{app}/machines/{machine}")
    assert answer.json["state"] in ("destroying", "destroyed")


async def test_a_machine_is_known_to_every_gateway_the_moment_its_creation_is_answered(
    regions: Regions, app: str
) -> None:
    calls: list[tuple[str, str, object]] = [
        ("GET", "", None),
        ("GET", "/events", None),
        ("GET", "/wait?state=created", None),
        ("GET", "/metadata", None),
        ("POST", "/metadata/k", {"value": "v"}),
        ("POST", "/lease?ttl=1", None),
    ]
    for to in regions:
        for verb, path, body in calls:
            for via in regions.values():
                made = await regions["syd"].call("POST", f"/v1/apps/{app}/machines", {**BODY, "region": to})
                answer = await via.call(verb, f"/v1/apps/{app}/machines/{made.json['id']}{path}", body)
                assert answer.status in (200, 201, 204), (to, verb, path, answer)


async def test_a_lease_that_was_taken_through_one_gateway_holds_at_every_other(regions: Regions, app: str) -> None:
    made = await regions["syd"].call("POST", f"/v1/apps/{app}/machines", {**BODY, "region": "iad"})
    path = f"/v1/apps/{app}/machines/{made.json['id']}"
    nonce = (await regions["syd"].call("POST", f"{path}/lease?ttl=60")).json["data"]["nonce"]
    for via in regions.values():
        assert (await via.call("GET", f"{path}/lease")).json["data"]["nonce"] == nonce
        assert (await via.call("POST", f"{path}/cordon")).json["status"] == "lease_held"
        held = await via.call("POST", f"{path}/cordon", headers={"fly-machine-lease-nonce": nonce})
        assert held.status == 200, "the nonce goes with the forwarded call"


async def test_without_a_region_a_machine_is_where_it_was_asked_for(regions: Regions, app: str) -> None:
    for code, via in regions.items():
        assert (await via.machine(app))["region"] == code


async def test_a_repeated_create_elsewhere_makes_one_machine(regions: Regions, app: str) -> None:
    headers = {"idempotency-key": "one"}
    path, body = f"/v1/apps/{app}/machines", {**BODY, "region": "iad"}
    answers = [await via.call("POST", path, body, headers=headers) for via in regions.values()]
    assert len({answer.json["id"] for answer in answers}) == 1


async def test_a_list_is_of_every_region_oldest_first_and_names_the_one_that_is_dead(
    regions: Regions, app: str
) -> None:
    path = f"/v1/apps/{app}/machines"
    made = [
        (await regions["syd"].call("POST", path, {**BODY, "region": to})).json["id"]
        for to in ("syd", "iad", "syd", "iad", "syd")
    ]
    for via in regions.values():
        answer = await via.call("GET", path)
        assert [machine["id"] for machine in answer.json] == made
        assert answer.headers[UNREACHABLE_KEY] == DEAD
        call = via.machines.ListMachines(
            api.ListMachinesRequest(app_name=app), metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
        assert [machine.id for machine in (await call).machines] == made
        assert dict(await call.trailing_metadata())[UNREACHABLE_KEY] == DEAD


async def test_a_list_of_one_region_asks_that_alone(regions: Regions, app: str) -> None:
    path = f"/v1/apps/{app}/machines"
    made = [(await regions["syd"].call("POST", path, {**BODY, "region": "iad"})).json["id"]]
    await regions["syd"].machine(app)
    for via in regions.values():
        answer = await via.call("GET", f"{path}?region=iad")
        assert [machine["id"] for machine in answer.json] == made
        assert UNREACHABLE_KEY not in answer.headers
    answer = await regions["syd"].call("GET", f"{path}?region={DEAD}")
    assert answer.status == 503
    assert DEAD in answer.json["error"]


@pytest.mark.parametrize("verb", ["POST", "GET"])
async def test_what_belongs_to_a_dead_region_is_refused_and_names_it(regions: Regions, app: str, verb: str) -> None:
    path = f"/v1/apps/{app}/machines"
    if verb == "POST":
        answer = await regions["syd"].call(verb, path, {**BODY, "region": DEAD})
    else:
        answer = await regions["syd"].call(verb, f"{path}/{DEAD_CELL}{'0' * 11}")
    assert (answer.status, answer.json["status"]) == (503, "dependency_down")
    assert f"region {DEAD}" in answer.json["error"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_wait_goes_to_where_the_machine_is(regions: Regions, app: str) -> None:
    answer = await regions["syd"].call(
        "POST", f"/v1/apps/{app}/machines", {**BODY, "region": "iad", "skip_launch": False}
    )
    machine = answer.json["id"]
    path = f"/v1/apps/{app}/machines/{machine}/wait?state=started&timeout=30"
    waiting = asyncio.create_task(regions["syd"].call("GET", path))
    await eventually(lambda: regions["iad"].gateway.waiting == 1)
    assert regions["syd"].gateway.waiting == 0
    await regions["iad"].worker.started(machine)
    assert (await waiting).json == {"ok": True}


async def test_errors_from_elsewhere_are_those_of_here(regions: Regions, app: str) -> None:
    path = f"/v1/apps/{app}/machines"
    bad = {"config": {"image": "busybox", "guest": {"cpus": -1}}, "region": "iad"}
    there, here = [await via.call("POST", path, bad) for via in regions.values()]
    assert (there.status, there.json) == (here.status, here.json)
    missing = await regions["syd"].call("GET", f"{path}/{CELLS['iad']}{'0' * 11}")
    assert (missing.status, missing.json["status"]) == (404, "not_found")
    unknown = await regions["syd"].call("GET", f"{path}/00f{'0' * 11}")
    assert (unknown.status, unknown.json["status"]) == (404, "not_found")


async def test_a_request_is_forwarded_once_at_most(regions: Regions, app: str) -> None:
    headers = {"baggage": "skerry.path=fra-1/gateway"}
    path = f"/v1/apps/{app}/machines"
    answer = await regions["syd"].call("POST", path, {**BODY, "region": "iad"}, headers=headers)
    assert (answer.status, answer.json["status"]) == (508, "dependency_cycle")
    assert "fra-1/gateway > syd-1/gateway > iad-1/gateway" in answer.json["error"]
    assert (await regions["syd"].call("POST", path, {**BODY, "region": "syd"}, headers=headers)).status == 200
    await regions["iad"].machine(app)
    listed = await regions["syd"].call("GET", path, headers=headers)
    assert {machine["region"] for machine in listed.json} == {"syd"}


@pytest.mark.parametrize("path", ["/v1/apps", "/v1/apps/x/machines", "/nothing/here", "/healthz"])
@pytest.mark.parametrize("tells", [True, False])
async def test_the_centre_is_refused_at_every_path_with_the_whole_chain(
    regions: Regions, path: str, tells: bool
) -> None:
    headers = {"baggage": "skerry.path=syd-1/gateway>syd-1/config-converter>syd-1/central-sync"} if tells else {}
    answer = await regions["syd"].call("GET", path, headers=headers, token=CENTRAL_TOKEN)
    assert (answer.status, answer.json["status"]) == (508, "dependency_cycle")
    chain = "syd-1/gateway > syd-1/config-converter > syd-1/central-sync > central > syd-1/gateway"
    assert (chain if tells else "central > syd-1/gateway") in answer.json["error"]


async def test_over_grpc_a_dead_region_is_down_too(regions: Regions, app: str) -> None:
    request = api.GetMachineRequest(app_name=app, machine_id=f"{DEAD_CELL}{'0' * 11}")
    with pytest.raises(DependencyDown) as caught:
        await regions["syd"].machines.GetMachine(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert caught.value.metadata["region"] == DEAD
    assert caught.value.retry_after


async def test_pages_go_through_the_machines_of_every_region_in_their_order(regions: Regions, app: str) -> None:
    made: list[str] = []
    for number in range(6):
        to = list(CELLS)[number % 2]
        answer = await regions["syd"].call("POST", f"/v1/apps/{app}/machines", {**BODY, "region": to})
        made.append(answer.json["id"])
    seen: list[str] = []
    path = cursor = f"/v1/apps/{app}/machines?limit=2&fields=id"
    while cursor:
        page = await regions["iad"].call("GET", path)
        assert page.headers["skerry-unreachable-regions"] == DEAD
        seen += [machine["id"] for machine in page.json]
        cursor = page.headers.get("skerry-next-cursor", "")
        path = f"/v1/apps/{app}/machines?limit=2&fields=id&cursor={cursor}"
    assert seen == made


async def test_an_app_is_what_it_is_in_all_regions_together_whichever_is_asked(regions: Regions, app: str) -> None:
    before = await regions["iad"].call("GET", f"/v1/apps/{app}")
    assert (before.json["status"], before.json["machine_count"]) == ("pending", 0)
    for to in ("syd", "iad", "iad"):
        await regions["syd"].call("POST", f"/v1/apps/{app}/machines", {**BODY, "region": to})
    for door in regions.values():
        got = await door.call("GET", f"/v1/apps/{app}")
        listed = await door.call("GET", "/v1/apps?org_slug=personal")
        (in_list,) = [each for each in listed.json["apps"] if each["name"] == app]
        for answer, shown in ((got, got.json), (listed, in_list)):
            assert (shown["status"], shown["machine_count"]) == ("deployed", 3)
            assert answer.headers["skerry-unreachable-regions"] == DEAD


async def test_a_watch_of_another_region_goes_through_any_gateway(regions: Regions, app: str) -> None:
    there = await regions["iad"].machine(app)
    await regions["syd"].machine(app)
    request = api.WatchMachinesRequest(app_name=app, region="iad")
    call = regions["syd"].machines.WatchMachines(request, metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=20)
    responses = aiter(call)
    assert (await anext(responses)).machine.id == there["id"]
    assert (await anext(responses)).caught_up
    other = await regions["iad"].machine(app)
    while not (told := await anext(responses)).HasField("machine"):
        pass
    assert told.machine.id == other["id"]
    call.cancel()
    await eventually(lambda: regions["iad"].gateway.watching == 0)
    request.region = DEAD
    with pytest.raises(DependencyDown):
        async for _ in regions["syd"].machines.WatchMachines(
            request, metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=20
        ):
            pass
