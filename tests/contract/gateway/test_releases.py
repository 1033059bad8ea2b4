"""Releases, organizations and the platform, over REST and gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from skerry.machines.v1 import releases_pb2 as api
from skerry.machines.v1.releases_pb2_grpc import ReleasesStub
from skerry.store.v1.store_pb2 import ListWorkersRequest

from services.runtime.channels import connect
from services.runtime.errors import InvalidConfig, NotFound, WrongState
from tests.support_gateway import CELL, TOKEN, Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

RELEASE_FIELDS = {
    "id": str,
    "version": int,
    "stable": bool,
    "in_progress": bool,
    "status": str,
    "strategy": str,
    "user": str,
    "created_at": str,
    "image_ref": str,
}


async def release(region: TestRegion, app: str, **more: Any) -> Answer:
    body = {"app_name": app, "build_id": 0, "definition": {"app": app}, "image": "nginx", "strategy": "ROLLING", **more}
    return await region.call("POST", "/api/v1/releases", body)


async def taken(region: TestRegion, app: str, **more: Any) -> dict[str, Any]:
    answer = await release(region, app, **more)
    assert answer.status == 201, answer
    shown: dict[str, Any] = answer.json["release"]
    return shown


async def test_a_release_is_shown_as_clients_read_it(region: TestRegion) -> None:
    app = await region.app()
    shown = await taken(region, app)
    assert {name: type(value) for name, value in shown.items()} == RELEASE_FIELDS
    assert (shown["version"], shown["status"], shown["strategy"], shown["image_ref"]) == (
        1,
        "pending",
        "ROLLING",
        "nginx",
    )
    assert (shown["stable"], shown["in_progress"]) == (False, True)
    assert shown["id"].startswith(CELL)
    assert "@" in shown["user"]
    listed = await region.call("GET", f"/api/v1/apps/{app}/releases")
    assert (listed.status, listed.json) == (200, {"releases": [shown]})
    current = await region.call("GET", f"/api/v1/apps/{app}/releases/current")
    assert (current.status, current.json) == (200, {"release": shown})


async def test_a_deploy_tells_its_progress(region: TestRegion) -> None:
    app = await region.app()
    path = f"/api/v1/releases/{(await taken(region, app))['id']}"
    running = await region.call("PATCH", path, {"status": "running", "metadata": None})
    assert (running.status, running.json["release"]["status"], running.json["release"]["in_progress"]) == (
        200,
        "running",
        True,
    )
    done = await region.call("PATCH", path, {"status": "complete", "metadata": {"machines": ["a"]}})
    assert (done.json["release"]["status"], done.json["release"]["in_progress"], done.json["release"]["stable"]) == (
        "complete",
        False,
        True,
    )
    assert (await region.call("PATCH", path, {"status": "complete", "metadata": None})).status == 200
    late = await region.call("PATCH", path, {"status": "failed", "metadata": None})
    assert (late.status, late.json["status"]) == (409, "wrong_state")


async def test_numbers_count_up_and_the_newest_comes_first(region: TestRegion) -> None:
    app = await region.app()
    versions = [(await taken(region, app))["version"] for _ in range(3)]
    assert versions == [1, 2, 3]
    listed = (await region.call("GET", f"/api/v1/apps/{app}/releases")).json["releases"]
    assert [each["version"] for each in listed] == [3, 2, 1]
    assert (await region.call("GET", f"/api/v1/apps/{app}/releases?limit=1")).json["releases"] == listed[:1]


async def test_a_request_that_is_repeated_under_its_key_takes_one_release(region: TestRegion) -> None:
    app = await region.app()
    body = {"app_name": app, "image": "nginx"}
    headers = {"idempotency-key": "once"}
    first = await region.call("POST", "/api/v1/releases", body, headers=headers)
    again = await region.call("POST", "/api/v1/releases", body, headers=headers)
    assert (first.status, again.status) == (201, 201)
    assert first.json == again.json
    other = await region.call("POST", "/api/v1/releases", {**body, "image": "busybox"}, headers=headers)
    assert (other.status, other.json["status"]) == (422, "idempotency_conflict")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"strategy": "SIDEWAYS"}, "strategy"),
        ({"definition": "text"}, "definition"),
        ({"definition": [1]}, "definition"),
        ({"definition": {"large": "x" * 262_144}}, "definition"),
        ({"image": "x" * 1001}, "image"),
        ({"build_id": "x"}, "build_id"),
    ],
)
async def test_what_is_wrong_with_a_release_is_named(region: TestRegion, more: dict[str, Any], field: str) -> None:
    answer = await release(region, await region.app(), **more)
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert [each["field"] for each in answer.json["fields"]] == [field]


async def test_what_is_not_there_is_not_found(region: TestRegion) -> None:
    app = await region.app()
    for verb, path, body in [
        ("POST", "/api/v1/releases", {"app_name": "no-such-app"}),
        ("GET", "/api/v1/apps/no-such-app/releases", None),
        ("GET", "/api/v1/apps/no-such-app/releases/current", None),
        ("GET", f"/api/v1/apps/{app}/releases/current", None),
        ("PATCH", f"/api/v1/releases/{CELL}01jc00000000000000000000zz", {"status": "running"}),
        ("PATCH", "/api/v1/releases/nonsense", {"status": "running"}),
        ("PATCH", "/api/v1/releases/fff01jc00000000000000000000zz", {"status": "running"}),
        ("GET", "/api/v1/organizations/nobody", None),
        ("POST", "/api/v1/builds", {}),
        ("GET", "/v1/apps/no-such-app/ip_assignments", None),
        ("GET", f"/v1/apps/{app}/certificates", None),
    ]:
        answer = await region.call(verb, path, body)
        assert (answer.status, answer.json["status"]) == (404, "not_found"), (verb, path, answer)
        assert answer.json["error"]
    wrong = await region.call("PATCH", f"/api/v1/releases/{(await taken(region, app))['id']}", {"status": "great"})
    assert (wrong.status, wrong.json["fields"][0]["field"]) == (400, "status")


async def test_releases_over_grpc_are_the_same(region: TestRegion) -> None:
    app = await region.app()
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    async with connect([region.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as channel:
        stub = ReleasesStub(channel)
        made = (
            await stub.CreateRelease(api.CreateReleaseRequest(app_name=app, image="nginx"), metadata=metadata)
        ).release
        assert (made.version, made.strategy, made.status) == (1, "ROLLING", "pending")
        told = api.UpdateReleaseRequest(release_id=made.id, status="failed")
        assert (await stub.UpdateRelease(told, metadata=metadata)).release.status == "failed"
        current = await stub.GetCurrentRelease(api.GetCurrentReleaseRequest(app_name=app), metadata=metadata)
        listed = await stub.ListReleases(api.ListReleasesRequest(app_name=app), metadata=metadata)
        assert list(listed.releases) == [current.release]
        with pytest.raises(WrongState):
            await stub.UpdateRelease(api.UpdateReleaseRequest(release_id=made.id, status="running"), metadata=metadata)
        with pytest.raises(NotFound):
            await stub.ListReleases(api.ListReleasesRequest(app_name="no-such-app"), metadata=metadata)
        with pytest.raises(InvalidConfig):
            await stub.ListReleases(api.ListReleasesRequest(app_name=app, limit=-1), metadata=metadata)


async def test_the_status_of_an_app_follows_what_was_deployed(region: TestRegion) -> None:
    app = await region.app()

    async def status() -> str:
        return str((await region.call("GET", f"/v1/apps/{app}")).json["status"])

    assert await status() == "pending"
    machine = await region.machine(app)
    assert await status() == "deployed"
    assert (await region.call("DELETE", f"/v1/apps/{app}/machines/{machine['id']}?force=true")).status == 200
    await region.worker.destroyed(machine["id"])
    assert await status() == "suspended"


async def test_an_organization_is_shown_as_clients_read_it(region: TestRegion) -> None:
    answer = await region.call("GET", "/api/v1/organizations/personal")
    assert answer.status == 200
    assert answer.json == {
        "organization": {
            "id": "personal",
            "internal_numeric_id": 1,
            "slug": "personal",
            "raw_slug": "personal",
            "name": "Personal",
            "personal": True,
            "paid_plan": True,
            "billable": True,
            "billing_status": "CURRENT",
            "remote_builder_image": "",
        }
    }


async def test_an_app_shows_the_name_that_domains_of_others_point_to(region: TestRegion) -> None:
    app = await region.app()
    shown = (await region.call("GET", f"/v1/apps/{app}")).json
    assert shown["cname_target"] == f"{app}.apps.skerry.internal"


async def test_an_app_has_no_public_addresses(region: TestRegion) -> None:
    answer = await region.call("GET", f"/v1/apps/{await region.app()}/ip_assignments")
    assert (answer.status, answer.json) == (200, {"ips": []})


async def test_regions_are_listed_with_the_one_that_was_asked(region: TestRegion) -> None:
    answer = await region.call("GET", "/v1/platform/regions")
    assert answer.status == 200
    assert answer.json["Nearest"] == "syd"
    syd, ams = answer.json["Regions"]
    capacity = syd.pop("capacity")
    assert capacity > 0
    assert syd == {
        "code": "syd",
        "name": "Sydney",
        "latitude": -33.9,
        "longitude": 151.2,
        "gateway_available": True,
        "deprecated": False,
    }
    assert (ams["code"], "capacity" in ams) == ("ams", False)


async def test_placements_are_simulated_and_nothing_is_written(region: TestRegion) -> None:
    before = (await region.store.ListWorkers(ListWorkersRequest())).workers
    body = {
        "compute": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
        "region": "syd",
        "count": 7,
        "org_slug": "personal",
    }
    answer = await region.call("POST", "/v1/platform/placements", body)
    assert (answer.status, answer.json) == (200, {"Regions": [{"Region": "syd", "Count": 7, "Concurrency": 1}]})
    most = await region.call("POST", "/v1/platform/placements", {"region": "syd"})
    assert most.json["Regions"][0]["Count"] == 1000
    huge = {"region": "syd", "volume_name": "data", "volume_size_bytes": 1 << 50, "count": 5}
    assert (await region.call("POST", "/v1/platform/placements", huge)).json == {"Regions": []}
    assert (await region.store.ListWorkers(ListWorkersRequest())).workers == before


async def test_a_region_that_does_not_answer_a_simulation_is_named(region: TestRegion) -> None:
    answer = await region.call("POST", "/v1/platform/placements", {"region": "any", "count": 1})
    assert answer.json["Regions"] == [{"Region": "syd", "Count": 1, "Concurrency": 1}]
    assert answer.headers["skerry-unreachable-regions"] == "ams"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"region": "mars"}, "region"),
        ({"count": 1001}, "count"),
        ({"compute": {"cpu_kind": "imaginary"}}, "compute.cpu_kind"),
        ({"compute": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 300}}, "compute.memory_mb"),
        ({"weights": {"spread": -1}}, "weights.spread"),
    ],
)
async def test_what_is_wrong_with_a_simulation_is_named(region: TestRegion, body: dict[str, Any], field: str) -> None:
    answer = await region.call("POST", "/v1/platform/placements", body)
    assert answer.status == 400, answer
    assert field in [each["field"] for each in answer.json["fields"]]


async def test_a_simulation_for_an_organization_that_is_not_there_is_not_found(region: TestRegion) -> None:
    assert (await region.call("POST", "/v1/platform/placements", {"org_slug": "nobody"})).status == 404
