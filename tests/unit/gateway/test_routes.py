"""The routes that the annotations make, and what they read from paths and queries."""

from __future__ import annotations

import asyncio
import json

import pytest
from skerry.machines.v1 import machines_pb2 as api

from gateway.public_services import PUBLIC_SERVICES, path_of, public_methods
from gateway.rest.routes import Router, routes_of
from services.runtime.errors import InvalidConfig, MethodNotAllowed, NotFound

ROUTES = routes_of(*PUBLIC_SERVICES)
ROUTER = Router(ROUTES)


def test_every_rpc_of_the_api_is_a_route() -> None:
    assert {(route.verb, route.template, route.rpc, route.status) for route in ROUTES} >= {
        ("POST", "/v1/apps", "CreateApp", 201),
        ("GET", "/v1/apps", "ListApps", 200),
        ("GET", "/v1/apps/{app_name}", "GetApp", 200),
        ("DELETE", "/v1/apps/{app_name}", "DeleteApp", 202),
        ("POST", "/v1/apps/{app_name}/machines", "CreateMachine", 200),
        ("GET", "/v1/apps/{app_name}/machines", "ListMachines", 200),
        ("GET", "/v1/apps/{app_name}/machines/{machine_id}", "GetMachine", 200),
        ("POST", "/v1/apps/{app_name}/machines/{machine_id}", "UpdateMachine", 200),
        ("DELETE", "/v1/apps/{app_name}/machines/{machine_id}", "DeleteMachine", 200),
        ("POST", "/v1/apps/{app_name}/machines/{machine_id}/start", "StartMachine", 200),
        ("POST", "/v1/apps/{app_name}/machines/{machine_id}/stop", "StopMachine", 200),
        ("POST", "/v1/apps/{app_name}/machines/{machine_id}/restart", "RestartMachine", 200),
        ("GET", "/v1/apps/{app_name}/machines/{machine_id}/wait", "WaitMachine", 200),
        ("GET", "/v1/apps/{app_name}/machines/{machine_id}/events", "ListMachineEvents", 200),
    }
    without_route = {path_of(method) for method in public_methods()} - {route.path for route in ROUTES}
    # GraphQL has a way in of its own, and only gateways ask each other for the cells of apps.
    assert without_route == {"/skerry.machines.v1.GraphQL/Execute", "/skerry.machines.v1.Cells/LocateApp"}


def test_no_two_routes_are_one() -> None:
    assert len({(route.verb, route.segments) for route in ROUTES}) == len(ROUTES)
    assert len({route.rpc for route in ROUTES}) == len(ROUTES)


async def test_a_map_is_written_as_the_object_that_it_is() -> None:
    route, _ = ROUTER.find("GET", "/v1/apps/a/machines/m/metadata")
    written = await route.write(api.GetMachineMetadataResponse(metadata={"a": "1"}))
    assert json.loads(written) == {"a": "1"}


async def test_an_answer_without_content_has_none() -> None:
    route, _ = ROUTER.find("DELETE", "/v1/apps/a/machines/m/metadata/key")
    assert (route.status, await route.write(route.response())) == (204, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v1/nothing",
        "/v1/apps/",
        "/v1/apps//machines",
        "/v1/apps/a/machines/",
        "/v1/apps/a/machines/m/wait/more",
        "/v2/apps",
        "//v1/apps",
        "/v1/apps/%ff",
        "/v1/apps/a/machines/m/%77ait%2f",
    ],
)
def test_a_path_that_no_route_has_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.find("GET", path)


def test_an_encoded_slash_does_not_part_segments() -> None:
    route, segments = ROUTER.find("GET", "/v1/apps/a/machines/..%2f..%2fetc")
    assert (route.rpc, segments[4]) == ("GetMachine", "../../etc")


def test_another_method_is_told_which_there_are() -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        ROUTER.find("PATCH", "/v1/apps/a/machines")
    assert refused.value.metadata["allow"] == "GET, POST"


def read(verb: str, path: str, query: bytes = b"", body: bytes = b"") -> object:
    route, segments = ROUTER.find(verb, path)
    request, _ = route.read(segments, query, body)
    return request


def test_the_path_decides_over_the_body() -> None:
    request = read("POST", "/v1/apps/web/machines", body=b'{"app_name": "other", "name": "m"}')
    assert request == api.CreateMachineRequest(app_name="web", name="m")


def test_a_query_sets_fields_lists_and_maps_and_what_is_not_known_is_ignored() -> None:
    query = (
        b"started&state=started&state=stopped&summary=true&include_deleted=&metadata.team=edge%20one&metadata.x=&y=1"
    )
    assert read("GET", "/v1/apps/web/machines", query) == api.ListMachinesRequest(
        app_name="web", state=["started", "stopped"], summary=True, metadata={"team": "edge one", "x": ""}
    )


def test_a_query_counts_also_where_there_is_a_body() -> None:
    request = read("POST", "/v1/apps/web/machines/m/restart", b"timeout=10s&force_stop=true&signal=SIGHUP")
    assert request == api.RestartMachineRequest(
        app_name="web", machine_id="m", timeout="10s", force_stop=True, signal="SIGHUP"
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (b"force=maybe", "force"),
        (b"kill=2", "kill"),
    ],
)
def test_a_query_that_is_no_boolean_is_refused_by_its_name(query: bytes, field: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        read("DELETE", "/v1/apps/web/machines/m", query)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("query", [b"limit=ten", b"limit=2147483648", b"limit=1.5", b"limit=--1", b"limit=%D9%A1"])
def test_a_query_that_is_no_number_is_refused_by_its_name(query: bytes) -> None:
    with pytest.raises(InvalidConfig, match=r"limit must be a whole number of -2147483648\.\.2147483647"):
        read("GET", "/v1/apps/web/machines/m/events", query)


@pytest.mark.parametrize("query", [b"name=%ff", b"&".join([b"state=started"] * 500), b"state=\xff"])
def test_a_query_that_cannot_be_read_is_refused(query: bytes) -> None:
    with pytest.raises(InvalidConfig, match="query"):
        read("GET", "/v1/apps/web/machines", query)


def test_nul_in_a_query_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidConfig, match="region must not hold the character NUL"):
        read("GET", "/v1/apps/web/machines", b"region=a%00")


async def test_a_long_list_is_written_whole_and_lets_others_have_their_turn() -> None:
    route, _ = ROUTER.find("GET", "/v1/apps/web/machines")
    response = api.ListMachinesResponse(machines=[api.Machine(id=f"{number:014x}") for number in range(1001)])
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    written = await route.write(response)
    other.cancel()
    assert [machine["id"] for machine in json.loads(written)] == [f"{number:014x}" for number in range(1001)]
    assert turns >= 5
    assert await route.write(api.ListMachinesResponse()) == b"[]"
