"""Organizations, apps, images and limits over GraphQL, with the names and forms that clients expect."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.central.centres import Centre, GraphQLFailed, running, settings_for

DIGEST = "sha256:" + "ab" * 32

APP_QUERY = """
query ($name: String!) {
  appcompact: app(name: $name) {
    id internalNumericId name hostname cnameTarget deployed network status appUrl version platformVersion
    organization { id internalNumericId slug rawSlug paidPlan }
    role { name }
    config { definition }
    services { description protocol internalPort ports { port handlers } }
    ipAddresses { nodes { id address type } }
    egressIpAddresses { nodes { id } }
    sharedIpAddress
    currentRelease { id version status }
    imageDetails { registry repository tag digest version }
    machines { nodes { id name config state region createdAt app { name } ips { nodes { ip } } host { id } } }
    currentReleaseUnprocessed { configDefinition }
    releasesUnprocessed(first: 5) { nodes { id version description reason status imageRef stable createdAt } }
  }
}
"""


async def test_a_new_centre_has_the_organization_personal(centre: Centre) -> None:
    answer = await centre.ask(
        "query($admin: Boolean) { organizations(admin: $admin)"
        " { nodes { id slug rawSlug name type paidPlan billable viewerRole internalNumericId } } }",
        admin=False,
    )
    (only,) = answer["organizations"]["nodes"]
    assert (only["slug"], only["rawSlug"], only["type"], only["internalNumericId"]) == (
        "personal",
        "personal",
        "PERSONAL",
        "1",
    )
    found = await centre.ask(
        "query($slug: String!, $kind: AddOnType) { organization(slug: $slug)"
        " { id name addOns(type: $kind) { nodes { id } } } }",
        slug="personal",
        kind="some_kind",
    )
    assert found["organization"]["id"] == only["id"]
    assert found["organization"]["addOns"] == {"nodes": []}


async def test_an_app_is_created_at_home_in_its_preferred_region_and_read_back_whole(centre: Centre) -> None:
    created = await centre.ask(
        "mutation($input: CreateAppInput!) { createApp(input: $input)"
        " { app { id name organization { slug } config { definition } regions { name code } } } }",
        input={
            "organizationId": "personal",
            "name": "web",
            "preferredRegion": "iad",
            "network": "blue",
            "appRoleId": "r",
            "machines": True,
        },
    )
    assert created["createApp"]["app"]["regions"] == [{"name": "Ashburn, Virginia (US)", "code": "iad"}]
    app = (await centre.ask(APP_QUERY, name="web"))["appcompact"]
    assert app["id"] == created["createApp"]["app"]["id"]
    assert app["organization"]["internalNumericId"] == "1"
    expected = {
        "name": "web",
        "hostname": "web.apps.skerry.internal",
        "internalNumericId": 1,
        "status": "pending",
        "deployed": False,
        "network": "blue",
        "role": {"name": "r"},
        "platformVersion": "machines",
        "currentRelease": None,
        "imageDetails": None,
        "machines": {"nodes": []},
    }
    assert {key: app[key] for key in expected} == expected


async def test_an_app_without_a_preferred_region_is_at_home_in_the_first_cell_of_the_first(centre: Centre) -> None:
    assert (await centre.create_app("a"))["homeCell"] == "001"
    assert (await centre.create_app("b", preferredRegion="iad"))["homeCell"] == "002"


@pytest.mark.parametrize(
    ("more", "code", "names"),
    [
        ({"preferredRegion": "mars"}, "INVALID", "preferredRegion"),
        ({"name": "Not A Name"}, "INVALID", "name"),
        ({"organizationId": "nobody"}, "NOT_FOUND", "Organization"),
        ({"name": "taken"}, "NAME_TAKEN", "taken"),
    ],
)
async def test_an_app_that_cannot_be_created_is_refused_and_leaves_no_change(
    centre: Centre, more: dict[str, str], code: str, names: str
) -> None:
    await centre.create_app("taken")
    before = await centre.changes()
    with pytest.raises(GraphQLFailed) as refused:
        await centre.create_app(**{"name": "fresh", **more})
    assert refused.value.code == code
    assert names in refused.value.message
    assert (await centre.changes())["position"] == before["position"]


async def test_creating_an_app_with_an_id_can_be_repeated_and_not_by_another(centre: Centre) -> None:
    first = await centre.create_app("web", id="01chosen")
    assert await centre.create_app("web", id="01chosen") == first
    with pytest.raises(GraphQLFailed) as other_id:
        await centre.create_app("web", id="01other")
    with pytest.raises(GraphQLFailed) as other_name:
        await centre.create_app("web2", id="01chosen")
    with pytest.raises(GraphQLFailed) as name_is_an_id:
        await centre.create_app("01chosen")
    assert {e.value.code for e in (other_id, other_name, name_is_an_id)} == {"NAME_TAKEN"}


async def test_a_deleted_app_is_gone_and_its_name_is_free_again(centre: Centre) -> None:
    await centre.create_app("web")
    gone = await centre.ask("mutation($id: ID!) { deleteApp(appId: $id) { organization { id } } }", id="web")
    assert gone["deleteApp"]["organization"]["id"]
    answer = await centre.post(APP_QUERY, name="web")
    assert answer.status_code == 200
    (error,) = answer.json()["errors"]
    assert answer.json()["data"] is None
    assert (error["message"], error["extensions"]) == ("Could not find App", {"code": "NOT_FOUND"})
    await centre.create_app("web")


async def test_apps_are_listed_by_name_and_page_by_page(centre: Centre) -> None:
    for name in ("c", "a", "b"):
        await centre.create_app(name)
    query = 'query($after: String!) { apps(organizationSlug: "personal", after: $after, first: 2) { nodes { name } } }'
    assert (await centre.ask(query, after=""))["apps"]["nodes"] == [{"name": "a"}, {"name": "b"}]
    assert (await centre.ask(query, after="b"))["apps"]["nodes"] == [{"name": "c"}]


async def test_an_image_alias_is_found_by_name_digest_and_reference(centre: Centre) -> None:
    await centre.create_app("web")
    await centre.ask(
        "mutation($input: SetImageAliasInput!) { setImageAlias(input: $input) { imageAlias { name } } }",
        input={"name": "postgres-flex:15", "repository": "docker.io/flyio/postgres-flex", "digest": DIGEST},
    )
    reference = f"docker.io/flyio/postgres-flex@{DIGEST}"
    for ref in ("postgres-flex:15", DIGEST, reference):
        found = await centre.ask(
            "query($name: String!, $ref: String!) { app(name: $name)"
            " { image(ref: $ref) { id digest ref compressedSizeFull manifest } } }",
            name="web",
            ref=ref,
        )
        assert found["app"]["image"]["ref"] == reference
        assert int(found["app"]["image"]["compressedSizeFull"]) >= 0
    unknown = await centre.ask('{ app(name: "web") { image(ref: "nothing") { id } } }')
    assert unknown == {"app": {"image": None}}
    latest = await centre.ask(
        "query($image: String!) { latestImageDetails(image: $image) { registry repository tag version digest } }",
        image="docker.io/flyio/postgres-flex:15.1",
    )
    assert latest["latestImageDetails"] == {
        "registry": "docker.io",
        "repository": "flyio/postgres-flex",
        "tag": "15",
        "version": None,
        "digest": DIGEST,
    }
    assert (await centre.ask('{ latestImageDetails(image: "nginx") { digest } }'))["latestImageDetails"] is None


async def test_limits_of_an_organization_are_set_as_a_whole(centre: Centre) -> None:
    query = (
        "mutation($input: SetOrganizationLimitsInput!) { setOrganizationLimits(input: $input)"
        " { organization { limits { cpus memoryMb gpus machines } } } }"
    )
    for given in ({"cpus": 8, "memoryMb": 4096}, {"machines": 100}):
        answer = await centre.ask(query, input={"organizationId": "personal", **given})
        shown = answer["setOrganizationLimits"]["organization"]["limits"]
        assert shown == {"cpus": None, "memoryMb": None, "gpus": None, "machines": None, **given}
    with pytest.raises(GraphQLFailed, match="cpus"):
        await centre.ask(query, input={"organizationId": "personal", "cpus": -1})


async def test_regions_and_the_viewer_are_what_clients_ask_for(centre: Centre) -> None:
    answer = await centre.ask(
        "{ platform { requestRegion"
        " regions { name code latitude longitude gatewayAvailable requiresPaidPlan deprecated } }"
        " nearestRegion { code name gatewayAvailable }"
        " viewer { ... on User { id email } ... on Macaroon { email } } }"
    )
    assert [region["code"] for region in answer["platform"]["regions"]] == ["syd", "iad"]
    assert answer["nearestRegion"]["code"] == "syd"
    assert "@" in answer["viewer"]["email"]


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic abc"}])
async def test_without_the_token_everything_but_health_is_refused(centre: Centre, header: dict[str, str]) -> None:
    async with httpx.AsyncClient(base_url=centre.http.base_url, headers=header, trust_env=False) as stranger:
        refused = await stranger.post("/graphql", json={"query": "{ viewer { ... on User { id } } }"})
        assert refused.status_code == 200
        assert refused.json()["errors"][0]["extensions"]["code"] == "UNAUTHORIZED"
        assert (await stranger.get("/api/v1/organizations/personal")).status_code == 401
        health = await stranger.get("/healthz")
        assert (health.status_code, health.json()["release"]) == (200, "1")


async def test_the_token_is_accepted_under_both_schemes(centre: Centre) -> None:
    answer = await centre.ask("{ nearestRegion { code } }", headers={"authorization": "FlyV1 a-token-of-the-centre"})
    assert answer["nearestRegion"]["code"] == "syd"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"not json", "INVALID"),
        (b"[]", "INVALID"),
        (b'{"query": 5}', "INVALID"),
        (b'{"query": " "}', "INVALID"),
        (b'{"query": "{"}', "BAD_REQUEST"),
        (b'{"query": "{ nothing }"}', "BAD_REQUEST"),
        (b'{"query": "' + b"{ apps " * 20_000 + b'"}', "BAD_REQUEST"),
        (b"[" * 100_000, "INVALID"),
        (b'{"query": "query A { apps { nodes { id } } }", "operationName": "B"}', "INVALID"),
        (b'{"query": "query A { apps { nodes { id } } } query B { apps { nodes { id } } }"}', "INVALID"),
        (b'{"query": "query($l: Int!) { changes(after: \\"\\", limit: $l) { position } }"}', "BAD_REQUEST"),
        (b'{"query": "{ changes(after: \\"x\\", limit: 1) { position } }"}', "INVALID"),
        (b'{"query": "{ changes(after: \\"\\", limit: 0) { position } }"}', "INVALID"),
    ],
)
async def test_what_is_no_proper_request_is_an_error_with_a_code(centre: Centre, body: bytes, code: str) -> None:
    answer = await centre.http.post("/graphql", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["data"] is None
    assert answer.json()["errors"][0]["extensions"]["code"] == code


async def test_organizations_and_releases_are_read_over_rest_too(centre: Centre) -> None:
    organization = (await centre.http.get("/api/v1/organizations/personal")).json()["organization"]
    assert (organization["slug"], organization["internal_numeric_id"], organization["personal"]) == (
        "personal",
        1,
        True,
    )
    await centre.create_app("web")
    assert (await centre.http.get("/api/v1/apps/web/releases")).json() == {"releases": []}
    assert (await centre.http.get("/api/v1/apps/web/releases/current")).status_code == 404
    assert (await centre.http.post("/api/v1/builds", json={})).json()["status"] == "not_found"


async def test_releases_are_refused_naming_the_region_that_takes_them(centre: Centre) -> None:
    await centre.create_app("web", preferredRegion="iad")
    with pytest.raises(GraphQLFailed) as refused:
        await centre.ask(
            "mutation($input: CreateReleaseInput!) { createRelease(input: $input) { release { id version } } }",
            input={"appId": "web", "image": "nginx"},
        )
    assert refused.value.extensions == {"code": "TAKEN_BY_REGIONS", "region": "iad", "cell": "002"}


async def test_instances_that_start_together_share_one_new_database(
    fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, await fresh_database())
    async with running(settings) as first, running(settings) as second, running(settings) as third:
        apps = await asyncio.gather(*(c.create_app(f"app-{i}") for i, c in enumerate((first, second, third))))
        assert len({app["id"] for app in apps}) == 3
        for one in (first, second, third):
            answer = await one.ask("{ apps { nodes { name } } organizations { nodes { slug } } }")
            assert [node["name"] for node in answer["apps"]["nodes"]] == ["app-0", "app-1", "app-2"]
            assert answer["organizations"]["nodes"] == [{"slug": "personal"}]


async def test_a_new_organization_can_have_apps(centre: Centre) -> None:
    made: dict[str, Any] = await centre.ask(
        "mutation($input: CreateOrganizationInput!) { createOrganization(input: $input)"
        " { organization { slug type } } }",
        input={"name": "Acme, Inc.", "slug": "acme"},
    )
    assert made["createOrganization"]["organization"] == {"slug": "acme", "type": "SHARED"}
    await centre.create_app("web", organizationId="acme")
    answer = await centre.ask('{ app(name: "web") { organization { slug } } }')
    assert answer["app"]["organization"]["slug"] == "acme"
