"""What the existing command-line client sends, command by command, with all of its base URLs pointing at a region.

The first deploy is made with the centre there; everything after it with the centre dead. Then the centre comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from services.cli.mesh import CENTRAL
from tests.e2e.meshes import RunningMesh, kill_9
from tests.support import eventually, free_port

NONCE = "fly-machine-lease-nonce"
DIGEST = f"sha256:{'0' * 64}"
IMAGE = f"docker.io/library/busybox:1@{DIGEST}"

APP_COMPACT = """
query($appName: String!) { appcompact: app(name: $appName) {
  id internalNumericId name hostname deployed network status appUrl platformVersion
  organization { id internalNumericId slug rawSlug paidPlan }
} }
"""
APP_STATUS = """
query($appName: String!) { app(name: $appName) {
  id name deployed status hostname version appUrl config { definition } organization { slug }
  currentRelease { id version status } services { description } sharedIpAddress ipAddresses { nodes { id } }
  imageDetails { registry repository tag digest version }
  machines { nodes { id name config state region createdAt app { name } ips { nodes { ip } } host { id } } }
} }
"""
RELEASE = """
query($appName: String!) { app(name: $appName) { currentReleaseUnprocessed { id version configDefinition } } }
"""
RELEASES = """
query($appName: String!, $limit: Int!) { app(name: $appName) { releasesUnprocessed(first: $limit) { nodes {
  id version description reason status imageRef stable user { id email name } createdAt
} } } }
"""
ORGANIZATIONS = """
query($admin: Boolean!) { organizations(admin: $admin) { nodes {
  id slug rawSlug name type paidPlan billable viewerRole internalNumericId
} } }
"""
MACHINE = """
query($machineId: String!) { gqlmachine: machine(machineId: $machineId) {
  id name app { name organization { id slug } }
} }
"""
VOLUME = "query($id: ID!) { volume(id: $id) { ... on Volume { app { name } state } } }"
CREATE_APP = """
mutation($input: CreateAppInput!) { createApp(input: $input) { app {
  id name organization { slug } config { definition } regions { name code }
} } }
"""


@dataclass
class Client:
    """The client's three base URLs, all of one region."""

    mesh: RunningMesh
    app: str = "shop"
    definition: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    volume: str = ""
    machine: str = ""

    def __post_init__(self) -> None:
        endpoints = self.mesh.endpoints
        headers = {"authorization": f"FlyV1 {endpoints['token']}"}
        self.http = httpx.Client(base_url=endpoints["regions"]["syd"]["rest"], headers=headers, timeout=65)

    def send(self, verb: str, path: str, body: Any = None, *, nonce: str | None = None) -> httpx.Response:
        return self.http.request(verb, path, json=body, headers={NONCE: nonce} if nonce else {})

    def ok(self, verb: str, path: str, body: Any = None, *, status: int = 200, nonce: str | None = None) -> Any:
        answer = self.send(verb, path, body, nonce=nonce)
        assert answer.status_code == status, f"{verb} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def flaps(self, verb: str, path: str, body: Any = None, *, status: int = 200, nonce: str | None = None) -> Any:
        return self.ok(verb, f"/v1/apps/{self.app}{path}", body, status=status, nonce=nonce)

    def ask(self, query: str, **variables: Any) -> Any:
        answer = self.ok("POST", "/graphql", {"query": query, "variables": variables})
        assert "errors" not in answer, answer
        return answer["data"]

    def status(self) -> str:
        return str(self.ask(APP_COMPACT, appName=self.app)["appcompact"]["status"])

    def release(self, image: str = IMAGE) -> dict[str, Any]:
        body = {
            "app_name": self.app,
            "build_id": 0,
            "definition": self.definition,
            "image": image,
            "strategy": "ROLLING",
        }
        made: dict[str, Any] = self.ok("POST", "/api/v1/releases", body, status=201)["release"]
        return made

    def tell(self, release: dict[str, Any], status: str) -> None:
        told = self.ok("PATCH", f"/api/v1/releases/{release['id']}", {"status": status, "metadata": None})["release"]
        assert (told["id"], told["version"], told["status"]) == (release["id"], release["version"], status)

    def machine_input(self, release: dict[str, Any], **more: Any) -> dict[str, Any]:
        metadata = {
            "fly_process_group": "web",
            "fly_release_id": release["id"],
            "fly_release_version": str(release["version"]),
            "fly_platform_version": "v2",
        }
        serve = ["/usr/bin/env", "python3", "-m", "http.server", str(self.port), "--bind", "127.0.0.1"]
        checks = {"alive": {"type": "http", "port": self.port, "path": "/", "interval": "1s", "timeout": "1s"}}
        config = {
            "image": IMAGE,
            "init": {"exec": serve},
            "env": {"FLY_PROCESS_GROUP": "web", "PRIMARY_REGION": "syd"},
            "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
            "metadata": metadata,
            "mounts": [{"path": "/data", "volume": self.volume, "name": "data"}],
            "checks": checks,
            "dns": {},
            "services": None,
        }
        return {"config": config, "region": "syd", "skip_secrets": False, **more}

    async def healthy(self, machine: str) -> None:
        def passing() -> bool:
            shown = self.flaps("GET", f"/machines/{machine}")
            return [check["status"] for check in shown.get("checks", [])] == ["passing"]

        await eventually(passing, seconds=20)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of a region whose centre is there at the beginning."""
    with RunningMesh("--workers", "2") as mesh:
        client = Client(mesh, port=free_port())
        client.definition = {"app": client.app, "primary_region": "syd", "mounts": [{"source": "data"}], "count": 1}
        yield client
        client.http.close()


async def test_orgs_list(client: Client) -> None:
    nodes = client.ask(ORGANIZATIONS, admin=False)["organizations"]["nodes"]
    assert [node["slug"] for node in nodes] == ["personal"]
    shown = client.ok("GET", "/api/v1/organizations/personal")["organization"]
    assert (shown["id"], shown["internal_numeric_id"]) == (nodes[0]["id"], int(nodes[0]["internalNumericId"]))


async def test_apps_create(client: Client) -> None:
    answer = client.ok("POST", "/graphql", {"query": APP_COMPACT, "variables": {"appName": client.app}})
    assert answer["errors"][0]["message"] == "Could not find App"
    assert client.send("GET", f"/v1/apps/{client.app}").status_code == 404
    organization = client.ask(ORGANIZATIONS, admin=False)["organizations"]["nodes"][0]["id"]
    given = {"organizationId": organization, "name": client.app, "preferredRegion": "syd", "machines": True}
    made = client.ask(CREATE_APP, input=given)["createApp"]["app"]
    assert (made["name"], made["organization"]["slug"], made["regions"][0]["code"]) == (client.app, "personal", "syd")
    assert client.status() == "pending"


async def test_a_first_deploy(client: Client) -> None:
    assert client.ask(RELEASE, appName=client.app)["app"]["currentReleaseUnprocessed"] is None
    assert client.flaps("GET", "/machines") == []
    assert client.flaps("GET", "/secrets")["secrets"] == []
    assert client.send("POST", "/api/v1/builds", {}).status_code == 404
    assert client.flaps("GET", "/ip_assignments") == {"ips": []}
    release = client.release()
    assert release["version"] == 1
    client.tell(release, "running")
    wanted = {"name": "data", "region": "syd", "size_gb": 1, "encrypted": None, "require_unique_zone": None}
    client.volume = client.flaps("POST", "/volumes", wanted)["id"]
    made = client.flaps("POST", "/machines", client.machine_input(release, lease_ttl=300))
    client.machine = made["id"]
    at = f"/machines/{client.machine}"
    client.flaps("GET", f"{at}/wait?instance_id={made['instance_id']}&state=started&timeout=60")
    await client.healthy(client.machine)
    client.flaps("DELETE", f"{at}/lease", nonce=made["nonce"])
    client.tell(release, "complete")
    assert client.status() == "deployed"
    definition = client.ask(RELEASE, appName=client.app)["app"]["currentReleaseUnprocessed"]["configDefinition"]
    assert definition == client.definition


async def test_the_centre_dies(client: Client) -> None:
    assert client.mesh.endpoints["pids"][CENTRAL]
    kill_9(client.mesh.endpoints["pids"][CENTRAL])
    refused = client.send("POST", "/v1/apps", {"app_name": "late", "org_slug": "personal"})
    assert (refused.status_code, refused.json()["status"]) == (503, "dependency_down")
    answer = client.ok(
        "POST",
        "/graphql",
        {"query": CREATE_APP, "variables": {"input": {"organizationId": "personal", "name": "late"}}},
    )
    assert answer["errors"][0]["extensions"]["code"] == "UNAVAILABLE"


async def test_a_later_deploy_without_the_centre(client: Client) -> None:
    shown = client.ask(APP_STATUS, appName=client.app)["app"]
    assert [node["id"] for node in shown["machines"]["nodes"]] == [client.machine]
    release = client.release()
    assert release["version"] == 2
    client.tell(release, "running")
    at = f"/machines/{client.machine}"
    lease = client.flaps("POST", f"{at}/lease?ttl=120", status=201)
    assert lease["status"] == "success"
    nonce = lease["data"]["nonce"]
    refreshed = client.flaps("POST", f"{at}/lease?ttl=13", status=201, nonce=nonce)
    assert refreshed["data"]["nonce"] == nonce
    before = client.flaps("GET", at)
    body = client.machine_input(release, current_version=before["instance_id"])
    updated = client.flaps("POST", at, body, nonce=nonce)
    assert updated["instance_id"] != before["instance_id"]
    client.flaps("GET", f"{at}/wait?instance_id={updated['instance_id']}&state=started&timeout=60")
    await client.healthy(client.machine)
    client.flaps("DELETE", f"{at}/lease", nonce=nonce)
    client.tell(release, "complete")
    assert client.flaps("GET", at)["config"]["metadata"]["fly_release_version"] == "2"


async def test_status_and_releases_without_the_centre(client: Client) -> None:
    shown = client.ask(APP_STATUS, appName=client.app)["app"]
    assert (shown["status"], shown["deployed"], shown["version"]) == ("deployed", True, 2)
    assert shown["currentRelease"]["status"] == "complete"
    assert shown["config"]["definition"] == client.definition
    (node,) = shown["machines"]["nodes"]
    assert (node["id"], node["state"], node["region"], node["app"]) == (
        client.machine,
        "started",
        "syd",
        {"name": client.app},
    )
    assert node["config"] == client.flaps("GET", f"/machines/{client.machine}")["config"]
    nodes = client.ask(RELEASES, appName=client.app, limit=25)["app"]["releasesUnprocessed"]["nodes"]
    assert [(each["version"], each["status"], each["stable"]) for each in nodes] == [
        (2, "complete", True),
        (1, "complete", True),
    ]
    listed = client.ok("GET", f"/api/v1/apps/{client.app}/releases")["releases"]
    assert [each["id"] for each in listed] == [node["id"] for node in nodes]
    assert client.ok("GET", f"/api/v1/apps/{client.app}/releases/current")["release"] == listed[0]


async def test_orgs_and_machine_lookups_without_the_centre(client: Client) -> None:
    await test_orgs_list(client)
    found = client.ask(MACHINE, machineId=client.machine)["gqlmachine"]
    assert found["app"] == {
        "name": client.app,
        "organization": {"id": found["app"]["organization"]["id"], "slug": "personal"},
    }
    assert client.ask(VOLUME, id=client.volume)["volume"] == {"app": {"name": client.app}, "state": "created"}
    regions = client.ok("GET", "/v1/platform/regions")
    assert (regions["Nearest"], [each["code"] for each in regions["Regions"]]) == ("syd", ["syd"])


async def test_scale_count_without_the_centre(client: Client) -> None:
    assert len(client.flaps("GET", "/machines")) == 1
    release = client.ok("GET", f"/api/v1/apps/{client.app}/releases/current")["release"]
    body = client.machine_input(release)
    body["config"]["mounts"] = None
    body["config"]["checks"] = None
    body["config"]["init"] = {"exec": ["/bin/sleep", "3600"]}
    made = client.flaps("POST", "/machines", body)
    client.flaps("GET", f"/machines/{made['id']}/wait?state=started&timeout=60")
    both = [client.flaps("GET", f"/machines/{each}") for each in (client.machine, made["id"])]
    # A scaled app is on two hosts at least, which groups 4 and 5 of the addresses tell apart.
    assert len({tuple(machine["private_ip"].split(":")[3:5]) for machine in both}) == 2
    client.flaps("DELETE", f"/machines/{made['id']}?kill=true")
    await eventually(lambda: [each["id"] for each in client.flaps("GET", "/machines")] == [client.machine])


async def test_an_app_without_machines_is_suspended(client: Client) -> None:
    client.flaps("DELETE", f"/machines/{client.machine}?kill=true")
    await eventually(lambda: client.status() == "suspended")


async def test_the_centre_comes_back_and_learns_of_the_releases(client: Client) -> None:
    mesh = client.mesh
    mesh.skerry("central", "up", "--dir", str(mesh.directory))
    headers = {"authorization": f"Bearer {mesh.mesh.central_secret('central-token')}"}
    asked = (RELEASES, {"appName": client.app, "limit": 25}), (VOLUME, {"id": client.volume})

    def has_learnt() -> bool:
        for query, variables in asked:
            body = {"query": query, "variables": variables}
            answer = httpx.post(mesh.endpoints["central"]["graphql"], json=body, headers=headers, timeout=10)
            if answer.json()["data"] != client.ask(query, **variables):
                return False
        return True

    await eventually(has_learnt, seconds=60)
    assert client.release()["version"] == 3
