"""What belongs to another cell, asked for here: releases of apps at home there, machines by GraphQL, and room."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from skerry.store.v1 import store_pb2 as store

from gateway.routing import UNREACHABLE_KEY
from tests.integration.gateway.test_regions import CELLS, DEAD, DEAD_CELL, Regions, regions  # noqa: F401
from tests.support_gateway import Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

_numbers = itertools.count(1)


async def at_home_in(regions: Regions, cell: str) -> str:  # noqa: F811
    """A new app at home in `cell`, which all regions know."""
    name = f"at-home-{next(_numbers)}"
    for each in regions.values():
        await each.store.CreateApp(
            store.CreateAppRequest(
                app_id=f"id-of-{name}", name=name, organization_slug="personal", network="default", home_cell=cell
            )
        )
    return name


async def ask(via: TestRegion, query: str, **variables: Any) -> Answer:
    answer = await via.call("POST", "/graphql", {"query": query, "variables": variables})
    assert (answer.status, answer.json.get("errors")) == (200, None), answer
    return answer


async def test_the_home_cell_hands_out_numbers_whoever_is_asked(regions: Regions) -> None:  # noqa: F811
    app = await at_home_in(regions, CELLS["syd"])
    bodies = [{"app_name": app, "image": f"image-{number}"} for number in range(6)]
    sent = [
        (regions["syd"], regions["iad"])[number % 2].call("POST", "/api/v1/releases", bodies[number])
        for number in range(6)
    ]
    taken = [answer.json["release"] for answer in await asyncio.gather(*sent)]
    assert sorted(each["version"] for each in taken) == [1, 2, 3, 4, 5, 6]
    assert {each["id"][:3] for each in taken} == {CELLS["syd"]}
    lists = [(await via.call("GET", f"/api/v1/apps/{app}/releases")).json for via in regions.values()]
    assert lists[0] == lists[1]
    told = await regions["iad"].call("PATCH", f"/api/v1/releases/{taken[0]['id']}", {"status": "running"})
    assert (told.status, told.json["release"]["status"]) == (200, "running")
    current = [(await via.call("GET", f"/api/v1/apps/{app}/releases/current")).json for via in regions.values()]
    assert current[0] == current[1]
    assert current[0]["release"]["version"] == 6


async def test_while_the_home_cell_is_away_a_release_is_refused_naming_it(regions: Regions) -> None:  # noqa: F811
    app = await at_home_in(regions, DEAD_CELL)
    for verb, path, body in [
        ("POST", "/api/v1/releases", {"app_name": app, "image": "nginx"}),
        ("GET", f"/api/v1/apps/{app}/releases", None),
        ("GET", f"/api/v1/apps/{app}/releases/current", None),
        ("PATCH", f"/api/v1/releases/{DEAD_CELL}01jc00000000000000000000zz", {"status": "running"}),
    ]:
        answer = await regions["syd"].call(verb, path, body)
        assert (answer.status, answer.json["status"]) == (503, "dependency_down"), answer
        assert DEAD in answer.json["error"]
        assert int(answer.headers["retry-after"]) >= 1
    # All else of the app goes on.
    assert (await regions["syd"].machine(app))["region"] == "syd"


async def test_an_app_is_read_while_its_home_cell_is_away_and_the_region_is_named(regions: Regions) -> None:  # noqa: F811
    app = await at_home_in(regions, DEAD_CELL)
    machine = await regions["iad"].machine(app)
    query = """query($name: String!) { app(name: $name) {
      status currentRelease { id } currentReleaseUnprocessed { id } imageDetails { digest } version
      regions { code } machines { nodes { id } }
    } }"""
    answer = await ask(regions["syd"], query, name=app)
    assert answer.json["data"]["app"] == {
        "status": "deployed",
        "currentRelease": None,
        "currentReleaseUnprocessed": None,
        "imageDetails": None,
        "version": 0,
        "regions": [{"code": "iad"}],
        "machines": {"nodes": [{"id": machine["id"]}]},
    }
    assert answer.headers[UNREACHABLE_KEY] == DEAD


async def test_releases_and_machines_of_another_cell_are_read_whole(regions: Regions) -> None:  # noqa: F811
    app = await at_home_in(regions, CELLS["iad"])
    definition = {"app": app, "processes": {"web": "serve --port 80"}}
    body = {"app_name": app, "image": "nginx", "definition": definition}
    assert (await regions["iad"].call("POST", "/api/v1/releases", body)).status == 201
    machine = await regions["iad"].machine(app)
    query = """query($name: String!, $id: String!) {
      app(name: $name) {
        currentReleaseUnprocessed { id version configDefinition status imageRef createdAt user { email } }
      }
      machine(machineId: $id) { id name state region config createdAt app { name } ips { nodes { ip } } host { id } }
    }"""
    here, there = [
        (await ask(regions[code], query, name=app, id=machine["id"])).json["data"] for code in ("syd", "iad")
    ]
    assert here == there
    assert here["app"]["currentReleaseUnprocessed"]["configDefinition"] == definition
    assert here["machine"]["name"] == machine["name"]


async def test_room_is_counted_in_all_regions_that_answer(regions: Regions) -> None:  # noqa: F811
    compute = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
    body = {"compute": compute, "region": "any", "count": 30, "weights": {"region": 0, "spread": 1}}
    answer = await regions["syd"].call("POST", "/v1/platform/placements", body)
    assert {each["Region"]: each["Count"] for each in answer.json["Regions"]} == {"syd": 15, "iad": 15}
    assert answer.headers[UNREACHABLE_KEY] == DEAD
    body = {"compute": compute, "region": "iad", "count": 3}
    answer = await regions["syd"].call("POST", "/v1/platform/placements", body)
    assert answer.json == {"Regions": [{"Region": "iad", "Count": 3, "Concurrency": 1}]}
    assert UNREACHABLE_KEY not in answer.headers


async def test_an_app_is_created_at_home_in_its_preferred_region(regions: Regions) -> None:  # noqa: F811
    query = """mutation($input: CreateAppInput!) { createApp(input: $input) { app { name } } }"""
    name = f"preferred-{next(_numbers)}"
    given = {"organizationId": "personal", "name": name, "preferredRegion": "iad"}
    await regions["syd"].call("POST", "/graphql", {"query": query, "variables": {"input": given}})
    found = await regions["iad"].store.GetApp(store.GetAppRequest(name=name))
    assert found.app.home_cell == CELLS["iad"]
