"""Converting over GraphQL: exactly the parts asked for, by releases that differ, with facts or without."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from google.protobuf.json_format import ParseDict
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from skerry.types.v1.spec_pb2 import MachineSpec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from services.central.legacy import PARTS
from services.runtime import telemetry
from tests.integration.central.centres import GATEWAY_TOKEN, Centre, GraphQLFailed, running, settings_for
from tests.samples import valid_samples
from tests.support import eventually

FreshDatabase = Callable[[], Awaitable[str]]

CONVERT = """
query($parts: [String!]!, $config: JSON!, $facts: JSON!, $appName: String!, $region: String!) {
  convertParts(parts: $parts, config: $config, facts: $facts, appName: $appName, region: $region) {
    part version spec violations { field why } notServed
  }
}
"""
MOUNTED = {"image": "nginx", "mounts": [{"volume": "vol_0011", "path": "/data"}]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
INCOMING = {
    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    "baggage": "skerry.path=001%2Fgateway%3E001%2Fconfig-converter%3E001%2Fcentral-sync",
}


async def convert(
    centre: Centre,
    parts: list[str],
    config: dict[str, Any],
    facts: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    answer = await centre.ask(
        CONVERT, headers, parts=parts, config=config, facts=facts or {}, appName="web", region="syd"
    )
    converted: list[dict[str, Any]] = answer["convertParts"]
    return converted


@dataclass
class Gateway:
    """A gateway's machines endpoint: remembers what it was sent, answers what it is told to."""

    base: str = ""
    status: int = 200
    body: Any = field(default_factory=list)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def machines(self, request: Request) -> JSONResponse:
        self.seen.append((request.url.path, dict(request.headers)))
        return JSONResponse(self.body, self.status)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway on a real socket."""
    told = Gateway()
    app = Starlette(routes=[Route("/v1/apps/{app}/machines", told.machines)])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    told.base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", loop="none", log_config=None))
    serving = asyncio.create_task(server._serve([listener]))
    await eventually(lambda: server.started)
    yield told
    server.should_exit = True
    await serving


@contextlib.asynccontextmanager
async def centre_beside(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path, **changed: Any
) -> AsyncIterator[Centre]:
    settings = settings_for(tmp_path, await fresh_database(), gateways={"syd": gateway.base}, **changed)
    async with running(settings) as centre:
        await centre.create_app("web")
        yield centre


async def test_a_whole_configuration_is_converted_to_messages_of_the_spec(centre: Centre) -> None:
    for name, body in valid_samples().items():
        config = json.loads(body)["config"]
        answers = await convert(centre, list(PARTS), config, {"volume_location": {"vol_2n0l3vl60qpv635d": None}})
        assert [(a["part"], a["version"], a["violations"], a["notServed"]) for a in answers] == [
            (part, 1, [], None) for part in PARTS
        ], name
        spec = MachineSpec()
        ParseDict({answer["part"]: answer["spec"] for answer in answers}, spec)
        assert all(spec.HasField(part) for part in PARTS)  # type: ignore[arg-type]


async def test_exactly_the_parts_that_were_asked_for_are_answered_in_that_order(centre: Centre) -> None:
    answers = await convert(centre, ["stop", "image"], {"image": "nginx", "env": {"A": {"not": "a string"}}})
    assert [answer["part"] for answer in answers] == ["stop", "image"]
    assert answers[1]["spec"]["repository"] == "library/nginx"


async def test_one_invalid_part_names_its_fields_and_harms_no_other(centre: Centre) -> None:
    config = {"image": "nginx", "guest": {"cpus": 3}, "stop_config": {"signal": "SIGNOTHING", "timeout": "soon"}}
    guest, stop, image = await convert(centre, ["guest", "stop", "image"], config)
    assert ([v["field"] for v in guest["violations"]], guest["spec"]) == (["guest.cpus"], None)
    assert {v["field"] for v in stop["violations"]} == {"stop_config.signal", "stop_config.timeout"}
    assert image["spec"]
    assert not image["violations"]


@pytest.mark.parametrize("parts", [["image", "image"], ["image", "image@1"], ["image@x"], ["image"] * 200])
async def test_a_request_that_names_parts_twice_or_wrongly_is_refused_as_a_whole(
    centre: Centre, parts: list[str]
) -> None:
    with pytest.raises(GraphQLFailed) as refused:
        await convert(centre, parts, {"image": "nginx"})
    assert refused.value.code == "INVALID"


@pytest.mark.parametrize("facts", [{"image_aliases": []}, {"limits": 5}, {"image_digests": {"a": 1}}])
async def test_facts_of_a_wrong_form_are_refused(centre: Centre, facts: dict[str, Any]) -> None:
    with pytest.raises(GraphQLFailed, match="facts"):
        await convert(centre, ["image", "guest"], {"image": "nginx"}, facts)


async def test_a_release_says_what_it_converts_and_refuses_by_name_what_it_does_not(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    dsn = await fresh_database()
    query = "{ converter { release parts { part versions } } }"
    async with (
        running(settings_for(tmp_path, dsn, release="1")) as one,
        running(settings_for(tmp_path, dsn, release="1.1")) as both,
        running(settings_for(tmp_path, dsn, release="3")) as three,
    ):
        served = {}
        for centre in (one, both, three):
            converter = (await centre.ask(query))["converter"]
            served[converter["release"]] = {p["part"]: p["versions"] for p in converter["parts"]}
        assert served["1"] == {part: [1] for part in PARTS}
        assert served["1.1"] == {**served["1"], "image": [1, 2]}
        assert set(served["1"]) - set(served["3"]) == {"guest", "services"}

        asked = ["guest", "image@1", "image@2"]
        config = {"image": "Registry.Example/app"}
        for centre, versions in ((one, {"image@1": 1}), (both, {"image@1": 1, "image@2": 2}), (three, {"image@1": 1})):
            for part in asked[1:]:
                (answer,) = await convert(centre, [part], config)
                assert answer["version"] == versions.get(part, 0)
                assert (answer["notServed"] is None) == (part in versions)
                assert (answer["spec"] is None) == (part not in versions)
        assert (await convert(both, ["image"], config))[0]["version"] == 2
        (guest, image) = await convert(three, ["guest", "image"], config)
        assert guest["notServed"] == "release 3 does not convert it"
        assert (guest["spec"], guest["violations"], image["notServed"]) == (None, [], None)
        (unknown,) = await convert(one, ["tentacles"], config)
        assert unknown["notServed"] == "there is no such part"
        known = (await one.ask("{ releases { release } }"))["releases"]
        assert {"1", "1.1", "2", "3"} <= {release["release"] for release in known}


async def test_a_release_of_a_file_can_be_run(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    file = tmp_path / "releases.toml"
    file.write_text('[release."9"]\ndrops = ["dns"]\nversions = { env = [2] }\n')
    async with running(settings_for(tmp_path, await fresh_database(), release="9", releases=file)) as centre:
        dns, env = await convert(centre, ["dns", "env"], {"image": "nginx", "env": {"A": "1 "}})
        assert dns["notServed"]
        assert (env["version"], env["spec"]) == (2, {"variables": {"A": "1 "}})


async def test_facts_that_are_missing_come_from_the_centres_own_tables(centre: Centre) -> None:
    await centre.create_app("web")
    digest = "sha256:" + "ef" * 32
    await centre.ask(
        "mutation($input: SetImageAliasInput!) { setImageAlias(input: $input) { imageAlias { name } } }",
        input={"name": "mine", "repository": "registry.example/team/app", "digest": digest},
    )
    await centre.ask(
        "mutation($input: SetOrganizationLimitsInput!) { setOrganizationLimits(input: $input)"
        " { organization { id } } }",
        input={"organizationId": "personal", "cpus": 2},
    )
    config = {"image": "mine", "guest": {"cpus": 4}}
    image, guest = await convert(centre, ["image", "guest"], config)
    assert (image["spec"]["repository"], image["spec"]["digest"]) == ("team/app", digest)
    assert [violation["field"] for violation in guest["violations"]] == ["guest.cpus"]
    image, guest = await convert(centre, ["image", "guest"], config, {"image_aliases": {}, "limits": {"cpus": 8}})
    assert (image["spec"]["repository"], guest["violations"]) == ("library/mine", [])


# Where a volume is.


async def test_mounts_asks_nobody_when_the_volumes_place_is_among_the_facts(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    async with centre_beside(gateway, fresh_database, tmp_path) as centre:
        for known in ({"region": "syd"}, None):
            (mounts,) = await convert(centre, ["mounts"], MOUNTED, {"volume_location": {"vol_0011": known}})
            assert mounts["spec"]["mounts"][0]["volume_id"] == "vol_0011"
        await convert(centre, ["image", "env"], MOUNTED)
        await convert(centre, ["mounts"], {"image": "nginx"})
        assert gateway.seen == []


async def test_mounts_asks_the_machines_region_when_that_fact_is_missing(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    gateway.body = [{"id": "00100000000001", "region": "iad", "config": {"mounts": [{"volume": "vol_0011"}]}}]
    async with centre_beside(gateway, fresh_database, tmp_path) as centre:
        (mounts,) = await convert(centre, ["mounts"], MOUNTED, {"volume_location": {}}, INCOMING)
        assert "iad" in mounts["violations"][0]["why"]
        gateway.body[0]["region"] = "syd"
        (mounts,) = await convert(centre, ["mounts"], MOUNTED, {}, INCOMING)
        assert mounts["spec"]["mounts"][0]["path"] == "/data"
        gateway.body = [{"id": "00100000000002"}]
        (mounts,) = await convert(centre, ["mounts"], MOUNTED)
        assert mounts["violations"] == []
    path, headers = gateway.seen[0]
    assert path == "/v1/apps/web/machines"
    assert headers["authorization"] == f"Bearer {GATEWAY_TOKEN}"
    assert headers["traceparent"].split("-")[1] == TRACE
    assert headers["baggage"] == INCOMING["baggage"]


async def test_a_centre_that_hides_where_calls_come_from_sends_no_baggage_on(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    async with centre_beside(gateway, fresh_database, tmp_path, pass_baggage_on=False) as centre:
        await convert(centre, ["mounts"], MOUNTED, {}, INCOMING)
    assert "baggage" not in gateway.seen[0][1]


@pytest.mark.parametrize("named", [True, False])
async def test_a_region_that_notices_the_circle_makes_it_an_error_with_the_whole_chain(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path, named: bool
) -> None:
    chain = "001/gateway > 001/config-converter > 001/central-sync > central > 001/gateway"
    gateway.status = 508
    gateway.body = {
        "error": f"forbidden dependency: {chain}: it closes a circle",
        "status": "dependency_cycle",
        **({"chain": chain} if named else {}),
    }
    async with centre_beside(gateway, fresh_database, tmp_path) as centre:
        with pytest.raises(GraphQLFailed) as refused:
            await convert(centre, ["image", "mounts"], MOUNTED)
    assert refused.value.code == "DEPENDENCY_CYCLE"
    assert refused.value.extensions["chain"] == chain


async def test_a_region_that_refuses_or_is_away_is_named_in_the_error(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    gateway.status, gateway.body = 404, {"error": "no such app", "status": "not_found"}
    async with centre_beside(gateway, fresh_database, tmp_path) as centre:
        with pytest.raises(GraphQLFailed) as refused:
            await convert(centre, ["mounts"], MOUNTED)
        assert refused.value.extensions == {"code": "REGION_REFUSED", "status": 404, "reason": "not_found"}
        with pytest.raises(GraphQLFailed) as unknown:
            await centre.ask(CONVERT, parts=["mounts"], config=MOUNTED, facts={}, appName="web", region="iad")
        assert (unknown.value.code, "'iad'" in unknown.value.message) == ("REGION_UNREACHABLE", True)


async def test_a_region_that_does_not_answer_in_time_is_unreachable(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        base = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        settings = settings_for(tmp_path, await fresh_database(), gateways={"syd": base}, region_timeout_s=0.2)
        async with running(settings) as centre:
            with pytest.raises(GraphQLFailed) as refused:
                await convert(centre, ["mounts"], MOUNTED)
            assert refused.value.code == "REGION_UNREACHABLE"


async def test_a_request_is_a_span_in_its_callers_trace_and_so_is_the_question_to_the_region(
    gateway: Gateway, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    exporter = InMemorySpanExporter()
    telemetry.setup("central", "", processor=SimpleSpanProcessor(exporter))
    try:
        async with centre_beside(gateway, fresh_database, tmp_path) as centre:
            body = {
                "query": CONVERT.replace("query(", "query Convert("),
                "operationName": "Convert",
                "variables": {"parts": ["mounts"], "config": MOUNTED, "facts": {}, "appName": "web", "region": "syd"},
            }
            await centre.http.post("/graphql", json=body, headers=INCOMING)
        spans = {s.name: s for s in exporter.get_finished_spans() if f"{s.context.trace_id:032x}" == TRACE}
    finally:
        telemetry.setup("skerry", "")
    root, operation, question = (spans[n] for n in ("graphql", "graphql Convert", "GET /v1/apps/{app}/machines"))
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    assert operation.parent is not None
    assert operation.parent.span_id == root.context.span_id
    assert question.parent is not None
    assert question.parent.span_id == operation.context.span_id
    assert gateway.seen[0][1]["traceparent"].split("-")[2] == f"{question.context.span_id:016x}"
    assert (root.attributes or {})["skerry.code"] == "OK"
