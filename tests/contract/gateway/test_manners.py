"""Bad requests of every shape get an error in JSON with its status, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from skerry.machines.v1 import machines_pb2 as api

from services.runtime.errors import InvalidConfig, SkerryError, http_status
from tests.samples import invalid_samples, valid_samples
from tests.support import eventually
from tests.support_gateway import TOKEN, Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"config": {"image": "busybox"}, "skip_launch": True}
MACHINES = "/v1/apps/{app}/machines"


def assert_refused(answer: Answer, status: int, reason: str) -> None:
    assert (answer.status, answer.json["status"]) == (status, reason), answer
    assert answer.json["error"]
    assert_mannered(answer)


def assert_mannered(answer: Answer) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["fly-request-id"]
    assert len(answer.headers["traceparent"].split("-")) == 4


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"[1,2]",
        b'{"name": "\xff\xfe"}',
        b"[" * 100_000,
        b"",
        b'{"name":"\\ud800","config":{"image":"busybox"}}',
        b'{"config": 7}',
        b'{"config":{"image":"busybox","guest":{"memory_mb":' + b"9" * 400 + b"}}}",
        b'{"config":{"image":"busybox","guest":{"memory_mb":NaN}}}',
        b'{"config":{"image":"busybox"},"name":"a\\u0000b"}',
        b'{"config":{"image":"busybox","env":{"A":"x\\u0000y"}}}',
        b'{"config":{"image":"busybox"},"name":"a","name":"b"}',
        b'{"config":{"image":"busybox"},"name":"not a name"}',
    ],
)
async def test_a_bad_body_is_refused_and_leaves_nothing_behind(region: TestRegion, body: bytes) -> None:
    app = await region.app()
    assert_refused(await region.call("POST", MACHINES.format(app=app), content=body), 400, "invalid_config")
    assert (await region.call("GET", MACHINES.format(app=app))).json == []


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer nonsense"}, {"authorization": f"Basic {TOKEN}"}])
@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_without_a_known_token_nothing_is_answered(
    region: TestRegion, verb: str, headers: dict[str, str]
) -> None:
    answer = await region.call(verb, "/v1/apps", headers=headers, token=None)
    assert_refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.json["error"]


async def test_both_schemes_of_tokens_are_taken(region: TestRegion) -> None:
    answer = await region.call("GET", "/v1/apps", headers={"authorization": f"FlyV1 {TOKEN}"}, token=None)
    assert answer.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/nothing",
        "/v1/apps/no-such-app",
        "/v1/apps/no-such-app/machines",
        "/v1/apps/No%20App/machines",
        "/v1/apps/no-such-app/machines/00112233445566",
        "/v1/apps/{app}/machines/00000000000000",
        "/v1/apps/{app}/machines/00112233445566",
        "/v1/apps/{app}/machines/00112233445566/events",
        "/v1/apps/{app}/machines/00112233445566/wait?timeout=1",
        "/v1/apps/{app}/machines/..%2f..%2fetc",
        "/v1/apps/{app}/machines/%2e%2e",
        "/v1/apps/{app}/machines/..%2f..%2fetc/events",
        "/v1/apps/{app}/machines/x/wait",
        "/v1/apps/{app}/machines/%ff",
    ],
)
async def test_what_does_not_exist_is_not_found(region: TestRegion, path: str) -> None:
    assert_refused(await region.call("GET", path.format(app=await region.app())), 404, "not_found")


async def test_another_method_is_told_which_there_are(region: TestRegion) -> None:
    answer = await region.call("PATCH", "/v1/apps/a/machines")
    assert_refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    assert_refused(await region.call("POST", "/healthz"), 405, "method_not_allowed")


async def test_head_answers_as_get_does_without_the_body(region: TestRegion) -> None:
    app = await region.app()
    machine = (await region.machine(app))["id"]
    machines = f"/v1/apps/{app}/machines"
    for path in ("/healthz", machines, f"{machines}/{machine}", "/v1/apps/nobodys", "/openapi.json"):
        head, get = await region.call("HEAD", path), await region.call("GET", path)
        assert (head.status, head.json) == (get.status, None)
        for name in ("content-type", "content-length", "etag"):
            assert head.headers.get(name) == get.headers.get(name)
    refused = await region.call("HEAD", f"{machines}/watch")
    assert (refused.status, refused.headers["allow"]) == (405, "GET")


async def test_health_needs_no_token(region: TestRegion) -> None:
    answer = await region.call("GET", "/healthz", token=None)
    assert (answer.status, answer.json) == (200, {"status": "serving"})
    assert_mannered(answer)


@pytest.mark.parametrize("path", ["/v1/apps/a/machines", "/v1/nothing"])
@pytest.mark.parametrize("size", [(1 << 20) + 1, 2 << 20, 10 << 20])
async def test_a_body_that_is_too_large_is_told_so(region: TestRegion, path: str, size: int) -> None:
    assert_refused(await region.call("POST", path, content=b" " * size), 413, "too_large")


async def test_a_body_of_the_largest_size_is_read(region: TestRegion) -> None:
    app = await region.app()
    body = json.dumps(GOOD).encode().ljust(1 << 20)
    assert (await region.call("POST", MACHINES.format(app=app), content=body)).status == 200


async def test_a_region_that_is_not_known_is_refused_and_one_without_gateways_is_down(region: TestRegion) -> None:
    app = await region.app()
    answer = await region.call("POST", MACHINES.format(app=app), {**GOOD, "region": "xyz"})
    assert_refused(answer, 400, "invalid_config")
    assert answer.json["fields"][0]["field"] == "region"
    answer = await region.call("POST", MACHINES.format(app=app), {**GOOD, "region": "ams"})
    assert_refused(answer, 503, "dependency_down")
    assert "ams" in answer.json["error"]
    assert answer.headers["retry-after"]
    assert (await region.call("POST", MACHINES.format(app=app), {**GOOD, "region": "syd"})).status == 200
    assert_refused(await region.call("GET", MACHINES.format(app=app) + "?region=xyz"), 400, "invalid_config")


async def test_one_answer_names_everything_that_is_wrong(region: TestRegion) -> None:
    app = await region.app()
    body = {"name": "-", "region": "xyz", "config": {"size": "huge", "restart": {"policy": "sometimes"}}}
    answer = await region.call("POST", MACHINES.format(app=app), body)
    assert_refused(answer, 400, "invalid_config")
    fields = {violation["field"] for violation in answer.json["fields"]}
    assert fields == {"name", "region", "config.image", "config.size", "config.restart.policy"}
    assert all(field in answer.json["error"] for field in fields)


async def test_a_request_keeps_its_id_and_trace(region: TestRegion) -> None:
    headers = {"fly-request-id": "mine-1", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    answer = await region.call("GET", "/v1/apps", headers=headers)
    assert answer.headers["fly-request-id"] == "mine-1"
    assert answer.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    other = await region.call("GET", "/v1/nothing", headers={"fly-request-id": "two words", "traceparent": "nonsense"})
    assert_mannered(other)
    assert len(other.headers["fly-request-id"]) == 26


async def test_members_that_nothing_knows_are_named_in_a_warning(region: TestRegion) -> None:
    app = await region.app()
    answer = await region.call("POST", MACHINES.format(app=app), content=valid_samples()["unknown-fields"])
    assert answer.status == 200
    assert answer.headers["warning"] == '299 - "unknown fields: config.quantum, config.services[0].teleport"'
    assert answer.json["config"]["quantum"] == {"qubits": 3}
    read = await region.call("GET", MACHINES.format(app=app) + f"/{answer.json['id']}")
    assert read.json["config"] == answer.json["config"]
    assert "warning" not in read.headers


NAME_WHAT_IS_NOT_THERE = {
    "database-with-volume": "config.mounts[0].volume",
    "files-and-secrets": "config.processes[0].secrets",
}
"""Samples that name a volume or secrets, which have to be made before, and where they do."""


@pytest.mark.parametrize(("name", "where"), NAME_WHAT_IS_NOT_THERE.items())
async def test_a_valid_sample_that_names_what_its_app_does_not_have_is_refused_where_it_does(
    region: TestRegion, name: str, where: str
) -> None:
    app = await region.app()
    body = {**json.loads(valid_samples()[name]), "skip_launch": True}
    answer = await region.call("POST", MACHINES.format(app=app), body)
    assert (answer.status, answer.json["status"]) == (422, "missing_reference"), answer
    assert where in answer.json["error"]
    assert (await region.call("GET", MACHINES.format(app=app))).json == []


@pytest.mark.parametrize("name", [name for name in valid_samples() if name not in NAME_WHAT_IS_NOT_THERE])
async def test_every_other_valid_sample_is_accepted_and_reads_back(region: TestRegion, name: str) -> None:
    app = await region.app()
    body = {**json.loads(valid_samples()[name]), "skip_launch": True}
    answer = await region.call("POST", MACHINES.format(app=app), body)
    assert answer.status == 200, answer
    read = await region.call("GET", MACHINES.format(app=app) + f"/{answer.json['id']}")
    assert read.json == answer.json
    assert read.json["config"]["image"] == body["config"]["image"]


@pytest.mark.parametrize("name", invalid_samples())
async def test_every_invalid_sample_is_refused_by_its_field(region: TestRegion, name: str) -> None:
    app = await region.app()
    sample = invalid_samples()[name]
    answer = await region.call("POST", MACHINES.format(app=app), sample["request"])
    assert answer.status == sample["expect"]["status"], answer
    assert sample["expect"]["field"] in answer.json["error"]
    assert any(violation["field"] == sample["expect"]["field"] for violation in answer.json["fields"]), answer


async def test_what_is_no_http_is_refused_in_json(region: TestRegion) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", region.rest_port)
    writer.write(b"NONSENSE\r\n\r\n")
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    assert status == "HTTP/1.1 400 Bad Request"
    assert_refused(Answer(400, json.loads(body), dict(line.split(": ") for line in lines)), 400, "invalid_config")


async def test_a_client_that_goes_away_ends_its_wait(region: TestRegion) -> None:

    app = await region.app()
    machine = await region.machine(app)
    path = f"/v1/apps/{app}/machines/{machine['id']}/wait?state=started"
    _, writer = await asyncio.open_connection("127.0.0.1", region.rest_port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode())
    await eventually(lambda: region.gateway.waiting == 1)
    writer.close()
    await eventually(lambda: region.gateway.waiting == 0, seconds=5)


REQUESTS: list[tuple[str, Any, str]] = [
    ("CreateMachine", api.CreateMachineRequest(app_name="no-such-app"), "not_found"),
    ("GetMachine", api.GetMachineRequest(app_name="no-such-app", machine_id="x"), "not_found"),
    ("GetApp", api.GetAppRequest(), "not_found"),
    ("CreateApp", api.CreateAppRequest(name="Not A Name"), "invalid_config"),
    ("CreateApp", api.CreateAppRequest(name="a", org_slug="other"), "not_found"),
    ("ListApps", api.ListAppsRequest(org_slug="other"), "not_found"),
    ("DeleteApp", api.DeleteAppRequest(app_name="no-such-app"), "not_found"),
    ("WaitMachine", api.WaitMachineRequest(app_name="a", state=["nowhere"]), "invalid_config"),
    ("ListMachineEvents", api.ListMachineEventsRequest(app_name="a", limit=-1), "invalid_config"),
]


@pytest.mark.parametrize(("rpc", "request_message", "reason"), REQUESTS)
async def test_over_grpc_errors_have_the_same_reasons(
    region: TestRegion, rpc: str, request_message: Any, reason: str
) -> None:
    with pytest.raises(SkerryError) as refused:
        await getattr(region.machines, rpc)(request_message, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert refused.value.reason == reason
    with pytest.raises(SkerryError) as unknown:
        await getattr(region.machines, rpc)(request_message)
    assert (unknown.value.reason, http_status(unknown.value.reason)) == ("unauthorized", 401)


async def test_over_grpc_an_empty_create_names_its_fields(region: TestRegion) -> None:
    app = await region.app()
    with pytest.raises(InvalidConfig) as refused:
        await region.machines.CreateMachine(
            api.CreateMachineRequest(app_name=app), metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
    assert [violation.field for violation in refused.value.violations] == ["config.image"]
