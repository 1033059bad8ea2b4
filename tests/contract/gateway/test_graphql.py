"""GraphQL in a region: the operations that existing clients send, with the fields that they ask for."""

from __future__ import annotations

from typing import Any

import pytest
from skerry.machines.v1.graphql_pb2 import ExecuteRequest
from skerry.machines.v1.graphql_pb2_grpc import GraphQLStub
from skerry.store.v1.catalog_pb2 import ImageAliasRecord
from skerry.store.v1.catalog_store_pb2 import CatalogRecord, PutCatalogRecordsRequest
from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub

from services.runtime.channels import connect, local
from services.runtime.errors import Unauthenticated
from tests.support import eventually
from tests.support_gateway import TOKEN, Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIGEST = f"sha256:{'0' * 64}"
APP = """
query($appName: String!) { appcompact: app(name: $appName) {
  id internalNumericId name hostname cnameTarget deployed network status appUrl version platformVersion
  organization { id internalNumericId slug rawSlug paidPlan } role { name } config { definition } services { protocol }
  ipAddresses { nodes { id } } sharedIpAddress currentRelease { id version status user { email } createdAt }
  imageDetails { registry repository tag digest version } egressIpAddresses { nodes { id } }
  machines { nodes { id name config state region createdAt app { name } ips { nodes { ip } } host { id } } }
} }
"""


async def ask(region: TestRegion, query: str, **variables: Any) -> dict[str, Any]:
    answer = await send(region, query, **variables)
    assert "errors" not in answer.json, answer.json
    data: dict[str, Any] = answer.json["data"]
    return data


async def send(region: TestRegion, query: str, **variables: Any) -> Answer:
    answer = await region.call("POST", "/graphql", {"query": query, "variables": variables})
    assert answer.status == 200, answer
    return answer


async def refused(region: TestRegion, query: str, **variables: Any) -> tuple[str, str]:
    answer = (await send(region, query, **variables)).json
    assert answer["data"] is None
    return answer["errors"][0]["message"], answer["errors"][0]["extensions"]["code"]


async def alias(region: TestRegion, name: str, repository: str) -> None:
    registry = region.registries["machine-store"]
    catalog = CatalogStoreStub(local(registry, caller="syd-1/cli", callee="machine-store", secret="of-the-set"))
    record = ImageAliasRecord(alias=name, reference=f"{repository}@{DIGEST}", digest=DIGEST)
    await catalog.PutCatalogRecords(PutCatalogRecordsRequest(records=[CatalogRecord(image_alias=record)]))


async def test_a_new_app_is_read_whole(region: TestRegion) -> None:
    name = await region.app()
    app = (await ask(region, APP, appName=name))["appcompact"]
    assert isinstance(app.pop("internalNumericId"), int)
    assert app.pop("id")
    host = f"{name}.apps.skerry.internal"
    assert app == {
        "name": name,
        "hostname": host,
        "cnameTarget": host,
        "deployed": False,
        "network": "default",
        "status": "pending",
        "appUrl": f"https://{host}",
        "version": 0,
        "platformVersion": "machines",
        "organization": {
            "id": "personal",
            "internalNumericId": "1",
            "slug": "personal",
            "rawSlug": "personal",
            "paidPlan": True,
        },
        "role": {"name": ""},
        "config": {"definition": {}},
        "services": [],
        "ipAddresses": {"nodes": []},
        "sharedIpAddress": None,
        "currentRelease": None,
        "imageDetails": None,
        "egressIpAddresses": {"nodes": []},
        "machines": {"nodes": []},
    }


async def test_an_app_is_found_by_its_id_too(region: TestRegion) -> None:
    name = await region.app()
    found = (await ask(region, "query($n: String!) { app(name: $n) { id } }", n=name))["app"]["id"]
    assert (await ask(region, "query($i: ID!) { app(id: $i) { name } }", i=found))["app"]["name"] == name


async def test_an_app_has_its_machines_and_is_deployed(region: TestRegion) -> None:
    name = await region.app()
    machine = await region.machine(name, config={"image": "busybox", "env": {"A": "1"}})
    app = (await ask(region, APP, appName=name))["appcompact"]
    assert (app["status"], app["deployed"]) == ("deployed", True)
    (node,) = app["machines"]["nodes"]
    assert node["id"] == machine["id"]
    assert (node["name"], node["state"], node["region"]) == (machine["name"], "created", "syd")
    assert node["config"] == machine["config"]
    assert node["createdAt"] == machine["created_at"]
    assert node["app"] == {"name": name}
    assert node["ips"]["nodes"] == [{"ip": machine["private_ip"]}]
    assert node["host"]["id"]


async def test_an_app_shows_its_releases_and_gives_the_definition_back(region: TestRegion) -> None:
    await alias(region, "shop-image:15", "docker.io/flyio/shop-image")
    name = await region.app()
    definition = {"app": name, "count": 3, "deep": {"list": [1, 2.5, None, True, "x"]}}
    for image in ("nginx", "shop-image:15"):
        body = {"app_name": name, "definition": definition, "image": image, "strategy": "IMMEDIATE"}
        assert (await region.call("POST", "/api/v1/releases", body)).status == 201
    app = (await ask(region, APP, appName=name))["appcompact"]
    assert (app["version"], app["currentRelease"]["version"], app["status"]) == (2, 2, "suspended")
    assert app["config"] == {"definition": definition}
    assert app["imageDetails"] == {
        "registry": "docker.io",
        "repository": "flyio/shop-image",
        "tag": "15",
        "digest": DIGEST,
        "version": None,
    }
    query = """
    query($name: String!, $first: Int!) { app(name: $name) {
      currentReleaseUnprocessed { id version configDefinition }
      releasesUnprocessed(first: $first) { nodes {
        id version description reason status imageRef stable user { id email name } createdAt
      } }
    } }
    """
    app = (await ask(region, query, name=name, first=25))["app"]
    assert app["currentReleaseUnprocessed"]["configDefinition"] == definition
    nodes = app["releasesUnprocessed"]["nodes"]
    assert [(node["version"], node["imageRef"], node["stable"]) for node in nodes] == [
        (2, "shop-image:15", False),
        (1, "nginx", False),
    ]
    assert "@" in nodes[0]["user"]["email"]
    assert len((await ask(region, query, name=name, first=1))["app"]["releasesUnprocessed"]["nodes"]) == 1


async def test_organizations_are_read_as_clients_ask_for_them(region: TestRegion) -> None:
    query = """
    query($admin: Boolean) { organizations(admin: $admin) { nodes {
      id slug rawSlug name type paidPlan billable viewerRole internalNumericId
    } } }
    """
    nodes = (await ask(region, query, admin=False))["organizations"]["nodes"]
    assert nodes == [
        {
            "id": "personal",
            "slug": "personal",
            "rawSlug": "personal",
            "name": "Personal",
            "type": "PERSONAL",
            "paidPlan": True,
            "billable": True,
            "viewerRole": "admin",
            "internalNumericId": "1",
        }
    ]
    query = """
    query($slug: String!, $kind: AddOnType) { organization(slug: $slug) {
      id internalNumericId slug rawSlug name type billable addOns(type: $kind) { nodes { id } } limits { machines }
    } }
    """
    found = (await ask(region, query, slug="personal", kind="some_kind"))["organization"]
    assert (found["slug"], found["addOns"], found["limits"]) == ("personal", {"nodes": []}, {"machines": None})


async def test_a_machine_is_read_by_its_id_alone(region: TestRegion) -> None:
    name = await region.app()
    machine = await region.machine(name)
    query = """
    query($machineId: String!) { gqlmachine: machine(machineId: $machineId) {
      id name app { name organization { id slug } }
    } }
    """
    found = (await ask(region, query, machineId=machine["id"]))["gqlmachine"]
    assert found == {
        "id": machine["id"],
        "name": machine["name"],
        "app": {"name": name, "organization": {"id": "personal", "slug": "personal"}},
    }
    for unknown in ("00112233445566", "nonsense", "fff12233445566"):
        assert await refused(region, query, machineId=unknown) == ("Could not find Machine", "NOT_FOUND")


async def test_regions_and_the_viewer_are_what_clients_ask_for(region: TestRegion) -> None:
    query = """{
      platform { requestRegion regions {
        name code latitude longitude gatewayAvailable requiresPaidPlan deprecated
      } }
      nearestRegion { code name gatewayAvailable }
      viewer { ... on User { id email } ... on Macaroon { id email } }
    }"""
    found = await ask(region, query)
    assert found["platform"]["requestRegion"] == "syd"
    assert [each["code"] for each in found["platform"]["regions"]] == ["syd", "ams"]
    assert found["nearestRegion"] == {"code": "syd", "name": "Sydney", "gatewayAvailable": True}
    assert "@" in found["viewer"]["email"]


async def test_an_image_alias_is_found_by_name_digest_and_reference(region: TestRegion) -> None:
    await alias(region, "postgres-flex:15", "docker.io/flyio/postgres-flex")
    name = await region.app()
    query = """
    query($name: String!, $ref: String!) { app(name: $name) { image(ref: $ref) {
      id digest ref compressedSizeFull manifest
    } } }
    """

    async def is_here() -> bool:
        return bool((await ask(region, query, name=name, ref="postgres-flex:15"))["app"]["image"])

    await eventually(is_here)
    reference = f"docker.io/flyio/postgres-flex@{DIGEST}"
    for ref in ("postgres-flex:15", reference):
        image = (await ask(region, query, name=name, ref=ref))["app"]["image"]
        assert (image["ref"], image["digest"]) == (reference, DIGEST)
        assert int(image["compressedSizeFull"]) >= 0
    assert (await ask(region, query, name=name, ref="nothing"))["app"]["image"] is None
    query = """
    query($image: String!, $flyVersion: String) { latestImageDetails(image: $image, flyVersion: $flyVersion) {
      registry repository tag version digest
    } }
    """
    latest = await ask(region, query, image="docker.io/flyio/postgres-flex:15.1", flyVersion="1")
    assert latest["latestImageDetails"] == {
        "registry": "docker.io",
        "repository": "flyio/postgres-flex",
        "tag": "15",
        "version": None,
        "digest": DIGEST,
    }
    assert (await ask(region, query, image="nginx"))["latestImageDetails"] is None


async def test_an_app_that_is_not_there_is_said_so_in_the_words_that_clients_know(region: TestRegion) -> None:
    for name in ("no-such-app", "No App", "", "x" * 500):
        assert await refused(region, APP, appName=name) == ("Could not find App", "NOT_FOUND")
    query = "query($slug: String!) { organization(slug: $slug) { id } }"
    assert await refused(region, query, slug="nobody") == ("Could not find Organization", "NOT_FOUND")
    query = "query($id: ID!) { volume(id: $id) { ... on Volume { state app { name } } } }"
    for unknown in ("vol_001000000000000", "nonsense", ""):
        assert await refused(region, query, id=unknown) == ("Could not find Volume", "NOT_FOUND")


async def test_apps_are_created_and_deleted(region: TestRegion) -> None:
    query = """
    mutation($input: CreateAppInput!) { createApp(input: $input) { app {
      id name organization { slug } config { definition } regions { name code }
    } } }
    """
    name = f"{await region.app()}-graphql"
    given = {"organizationId": "personal", "name": name, "machines": True, "network": "blue"}
    app = (await ask(region, query, input=given))["createApp"]["app"]
    assert (app["name"], app["organization"], app["regions"]) == (
        name,
        {"slug": "personal"},
        [{"name": "Sydney", "code": "syd"}],
    )
    assert (await refused(region, query, input=given))[1] == "NAME_TAKEN"
    assert (await refused(region, query, input={**given, "name": "No"}))[1] == "INVALID"
    assert (await refused(region, query, input={**given, "organizationId": "nobody"}))[1] == "NOT_FOUND"
    assert (await refused(region, query, input={**given, "preferredRegion": "mars"}))[1] == "INVALID"
    deletion = "mutation($appId: ID!) { deleteApp(appId: $appId) { organization { id } } }"
    assert (await ask(region, deletion, appId=name))["deleteApp"]["organization"]["id"] == "personal"

    async def is_gone() -> bool:
        return bool((await send(region, APP, appName=name)).json["data"] is None)

    await eventually(is_gone)


async def test_secrets_cannot_be_set_without_a_centre(region: TestRegion) -> None:
    query = "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { release { id version } } }"
    secrets = {"appId": await region.app(), "secrets": [{"key": "A", "value": "hidden-value"}]}
    answer = (await send(region, query, input=secrets)).json
    assert answer["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
    assert "hidden-value" not in str(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{not json",
        b'{"query": 7}',
        b'{"query": "{ nothing }"}',
        b'{"query": "{ app(name: 7) { name } }"}',
        b'{"query": "query(", "variables": {}}',
        b'{"query": "subscription { viewer { __typename } }"}',
        b'{"query": "{ viewer { __typename } }", "variables": []}',
        b'{"query": "{ viewer { __typename } }", "variables": [1]}',
        b'{"query": "{ viewer { __typename } }", "operationName": {}}',
        b'{"query": "query A { viewer { __typename } }", "operationName": "B"}',
        b'{"query": "query A { viewer { __typename } } query B { viewer { __typename } }"}',
        b'{"query": "' + b" " * 70_000 + b'"}',
    ],
)
async def test_what_is_no_operation_is_an_error_with_a_code(region: TestRegion, body: bytes) -> None:
    answer = await region.call("POST", "/graphql", content=body)
    assert (answer.status, answer.json["data"]) == (200, None)
    assert answer.json["errors"][0]["extensions"]["code"] in ("BAD_REQUEST", "INVALID")


async def test_operations_that_are_too_deep_or_too_large_are_refused(region: TestRegion) -> None:
    deep = '{ app(name: "a") { machines { nodes { app { machines { nodes { id } } } } } } }'
    wide = "{ " + " ".join(f'a{number}: app(name: "a") {{ name }}' for number in range(30)) + " }"
    long = "{ viewer { " + "__typename " * 2000 + "} }"
    for query in (deep, wide, long):
        answer = (await send(region, query)).json
        assert answer["data"] is None, query
        assert answer["errors"][0]["extensions"]["code"] == "BAD_REQUEST"


async def test_without_a_known_token_nothing_is_answered(region: TestRegion) -> None:
    for token in (None, "nonsense"):
        answer = await region.call("POST", "/graphql", {"query": "{ viewer { __typename } }"}, token=token)
        assert (answer.status, answer.json["data"]) == (200, None)
        assert answer.json["errors"][0]["extensions"]["code"] == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_only_post_is_taken(region: TestRegion) -> None:
    answer = await region.call("GET", "/graphql")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_operations_over_grpc_are_the_same(region: TestRegion) -> None:
    request = ExecuteRequest(document=b'{"query": "{ nearestRegion { code } }"}')
    async with connect([region.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as channel:
        stub = GraphQLStub(channel)
        answer = await stub.Execute(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
        assert answer.document == b'{"data":{"nearestRegion":{"code":"syd"}}}'
        with pytest.raises(Unauthenticated):
            await stub.Execute(request)
