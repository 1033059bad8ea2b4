"""What the API does beyond the reference: dry runs, several machines at once, pages, fields, ETags, watches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.config_pb2 import MachineConfig

from services.runtime.errors import InvalidConfig, RevisionTooOld
from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion
from tests.support_gateway import region as new_region

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG: dict[str, Any] = {"image": "busybox", "env": {"A": "1"}}


async def revision(region: TestRegion) -> int:
    """The newest revision of the region's log."""
    async for response in region.store.Watch(store.WatchRequest(from_revision=1), timeout=10):
        if response.revision >= response.newest_revision:
            return int(response.revision)
    raise AssertionError("the watch ended")


async def test_a_dry_run_of_a_create_tells_spec_and_placement_and_writes_nothing(region: TestRegion) -> None:
    app = await region.app()
    before = await revision(region)
    answer = await region.call("POST", f"/v1/apps/{app}/machines?dry_run=true", {"config": CONFIG, "region": "syd"})
    assert answer.status == 200
    assert set(answer.json) == {"spec", "placement", "diff"}
    assert answer.json["spec"]["image"]["repository"].endswith("busybox")
    placement = answer.json["placement"]
    assert (placement["fits"], placement["region"], placement["workers"]) == (True, "syd", 1)
    assert placement["candidates"][0]["worker_id"] == region.worker.id
    assert placement["candidates"][0]["reasons"]
    assert answer.json["diff"] == []
    assert "etag" not in answer.headers
    assert await revision(region) == before
    assert (await region.call("GET", f"/v1/apps/{app}/machines")).json == []


async def test_a_dry_run_that_does_not_fit_says_which_constraint_fails(region: TestRegion) -> None:
    app = await region.app()
    config = {**CONFIG, "guest": {"cpu_kind": "performance", "cpus": 8, "memory_mb": 32768, "gpu_kind": "l40s"}}
    answer = await region.call("POST", f"/v1/apps/{app}/machines?dry_run=true", {"config": config})
    assert answer.status == 200, answer
    placement = answer.json["placement"]
    assert placement["fits"] is False
    assert placement["candidates"] == []
    assert placement["rejections"] == [{"constraint": "gpu", "workers": 1, "most_free": 0}]
    assert "too few GPUs" in placement["reason"]


async def test_a_dry_run_is_refused_for_what_the_create_would_be(region: TestRegion) -> None:
    app = await region.app()
    answer = await region.call("POST", f"/v1/apps/{app}/machines?dry_run=true", {"config": {"image": "not an image"}})
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    answer = await region.call("POST", "/v1/apps/no-such-app/machines?dry_run=true", {"config": CONFIG})
    assert answer.status == 404


async def test_a_dry_run_of_an_update_tells_what_would_change_and_writes_nothing(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, config={**CONFIG, "metadata": {"kept": "yes"}})
    before = await revision(region)
    config = {"image": "busybox", "env": {"A": "2", "B": "3"}, "metadata": {"kept": "yes"}}
    path = f"/v1/apps/{app}/machines/{machine['id']}?dry_run=true"
    answer = await region.call("POST", path, {"config": config, "name": "renamed"})
    assert answer.status == 200, answer
    assert answer.json["diff"] == [
        {"path": "name", "before": machine["name"], "after": "renamed"},
        {"path": "config.env.A", "before": "1", "after": "2"},
        {"path": "config.env.B", "before": None, "after": "3"},
    ]
    assert answer.json["placement"]["candidates"][0]["reasons"] == ["it stays where it is"]
    assert await revision(region) == before
    stale = await region.call("POST", path, {"config": config, "current_version": "01JABCDEFGHJKMNPQRSTVWXYZ0"})
    assert (stale.status, stale.json["status"]) == (409, "version_mismatch")


async def test_several_machines_are_created_with_one_request_and_a_repeat_makes_no_more(region: TestRegion) -> None:
    app = await region.app()
    body = {"config": CONFIG, "name": "web", "skip_launch": True, "count": 5}
    headers = {"idempotency-key": "five"}
    first = await region.call("POST", f"/v1/apps/{app}/machines", body, headers=headers)
    assert first.status == 200
    assert [machine["name"] for machine in first.json] == [f"web-{number}" for number in range(1, 6)]
    again = await region.call("POST", f"/v1/apps/{app}/machines", body, headers=headers)
    assert [machine["id"] for machine in again.json] == [machine["id"] for machine in first.json]
    more = await region.call("POST", f"/v1/apps/{app}/machines", {**body, "count": 7}, headers=headers)
    assert [machine["id"] for machine in more.json][:5] == [machine["id"] for machine in first.json]
    assert len((await region.call("GET", f"/v1/apps/{app}/machines")).json) == 7


async def test_of_several_machines_those_that_were_created_are_named_when_one_cannot_be(region: TestRegion) -> None:
    app = await region.app()
    taken = await region.machine(app, name="web-3")
    body = {"config": CONFIG, "name": "web", "skip_launch": True, "count": 4}
    answer = await region.call("POST", f"/v1/apps/{app}/machines", body, headers={"idempotency-key": "four"})
    assert (answer.status, answer.json["status"]) == (422, "name_taken")
    there = (await region.call("GET", f"/v1/apps/{app}/machines")).json
    made = [machine for machine in there if machine["id"] != taken["id"]]
    assert len(made) == 3
    assert all(machine["id"] in answer.json["error"] for machine in made)


@pytest.mark.parametrize("count", [101, 1 << 31])
async def test_more_machines_than_a_hundred_are_refused(region: TestRegion, count: int) -> None:
    app = await region.app()
    answer = await region.call("POST", f"/v1/apps/{app}/machines", {"config": CONFIG, "count": count})
    assert (answer.status, answer.json["fields"][0]["field"]) == (400, "count")


async def test_pages_hold_every_machine_that_stays_once_while_others_come_and_go(region: TestRegion) -> None:
    app = await region.app()
    body = {"config": CONFIG, "skip_launch": True, "count": 9}
    created = (await region.call("POST", f"/v1/apps/{app}/machines", body)).json
    ids = {machine["id"] for machine in created}
    doomed = created[0]["id"], created[4]["id"]
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        path = f"/v1/apps/{app}/machines?limit=2" + (f"&cursor={cursor}" if cursor else "")
        page = await region.call("GET", path)
        assert page.status == 200
        assert len(page.json) <= 2
        seen += [machine["id"] for machine in page.json]
        pages += 1
        if pages == 1:
            for machine_id in doomed:
                await region.call("DELETE", f"/v1/apps/{app}/machines/{machine_id}")
                await region.worker.destroyed(machine_id)
        await region.machine(app) if pages < 3 else None
        cursor = page.headers.get("skerry-next-cursor", "")
        if not cursor:
            break
    assert len(seen) == len(set(seen))
    assert ids - set(doomed) <= set(seen)
    assert pages >= 4


@pytest.mark.parametrize("cursor", ["nonsense", "e30", "W1siMDAxIiwtMSwiYSJdXQ", "WzFd", "=" * 5])
async def test_what_is_no_cursor_is_refused(region: TestRegion, cursor: str) -> None:
    app = await region.app()
    answer = await region.call("GET", f"/v1/apps/{app}/machines?limit=1&cursor={cursor}")
    assert (answer.status, answer.json["fields"][0]["field"]) == (400, "cursor")


async def test_a_list_answers_the_fields_that_are_asked_for(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    path = f"/v1/apps/{app}/machines"
    assert (await region.call("GET", f"{path}?fields=id,state")).json == [{"id": machine["id"], "state": "created"}]
    # Each member reads as it does in the whole machine, also one that a summary lacks.
    full = (await region.call("GET", path)).json[0]
    for name, member in full.items():
        assert (await region.call("GET", f"{path}?fields={name}")).json == [{name: member}]
    whole = (await region.call("GET", f"{path}?fields=config")).json
    assert whole == [{"config": machine["config"]}]
    answer = await region.call("GET", f"{path}?fields=id,nothing")
    assert (answer.status, answer.json["fields"][0]["field"]) == (400, "fields")


async def test_an_etag_names_the_version_and_an_update_at_another_one_is_refused(region: TestRegion) -> None:
    app = await region.app()
    created = await region.call("POST", f"/v1/apps/{app}/machines", {"config": CONFIG, "skip_launch": True})
    path = f"/v1/apps/{app}/machines/{created.json['id']}"
    tag = created.headers["etag"]
    assert tag == f'"{created.json["instance_id"]}"'
    assert (await region.call("GET", path)).headers["etag"] == tag
    updated = await region.call("POST", path, {"config": CONFIG}, headers={"if-match": tag})
    assert updated.status == 200
    assert updated.headers["etag"] == f'"{updated.json["instance_id"]}"' != tag
    stale = await region.call("POST", path, {"config": CONFIG}, headers={"if-match": tag})
    assert (stale.status, stale.json["status"]) == (409, "version_mismatch")
    anything = await region.call("POST", path, {"config": CONFIG}, headers={"if-match": "*"})
    assert anything.status == 200


async def test_a_precondition_that_cannot_be_kept_is_refused_not_ignored(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    for verb, where, body, tag in [
        ("DELETE", path, None, '"x"'),
        ("POST", f"{path}/start", {}, '"x"'),
        ("POST", path, {"config": CONFIG}, 'W/"x"'),
        ("POST", path, {"config": CONFIG, "current_version": "a"}, '"b"'),
    ]:
        answer = await region.call(verb, where, body, headers={"if-match": tag})
        assert (answer.status, answer.json["fields"][0]["field"]) == (400, "if-match")
    assert (await region.call("GET", path)).json["instance_id"] == machine["instance_id"]


class Events:
    """The events of a stream, one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        """The next event's type and document; comments are left out."""
        kind = ""
        async with asyncio.timeout(10):
            async for line in self._lines:
                name, _, text = line.partition(": ")
                if name == "id":
                    self.last_id = text
                elif name == "event":
                    kind = text
                elif name == "data":
                    return kind, json.loads(text)
        raise EOFError

    async def until_caught_up(self) -> list[dict[str, Any]]:
        machines: list[dict[str, Any]] = []
        while (event := await self.next())[0] != "caught_up":
            machines.append(event[1])
        return machines


@asynccontextmanager
async def watching(region: TestRegion, app: str, query: str = "", **headers: str) -> AsyncIterator[Events]:
    sent = {"authorization": f"Bearer {TOKEN}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with region.rest.stream("GET", f"/v1/apps/{app}/machines/watch{query}", headers=sent, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["fly-request-id"]
        yield Events(response)


async def test_a_watch_tells_the_state_and_then_every_change_once(region: TestRegion) -> None:
    app = await region.app()
    before = await region.machine(app)
    await region.machine(await region.app())
    async with watching(region, app) as events:
        assert [machine["id"] for machine in await events.until_caught_up()] == [before["id"]]
        after = await region.machine(app, skip_launch=False)
        kind, machine = await events.next()
        assert (kind, machine["id"], machine["state"]) == ("machine", after["id"], "starting")
        assert machine["config"] == after["config"]
        await region.worker.started(after["id"])
        assert (await events.next())[1]["state"] == "started"
    await eventually(lambda: region.gateway.watching == 0)


async def test_a_watch_that_comes_again_goes_on_after_its_last_event(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, skip_launch=False)
    async with watching(region, app) as events:
        await events.until_caught_up()
        await region.worker.started(machine["id"])
        assert (await events.next())[1]["state"] == "started"
        last = events.last_id
    await region.call("POST", f"/v1/apps/{app}/machines/{machine['id']}/stop", {})
    # A client that comes again repeats its query: where both are given, the header is the newer one.
    async with watching(region, app, "?from_revision=1", last_event_id=last) as events:
        told = [await events.next(), await events.next()]
        assert {kind for kind, _ in told} == {"machine", "caught_up"}
        assert [document["state"] for kind, document in told if kind == "machine"] == ["stopping"]


async def test_a_watch_is_refused_like_any_other_request(region: TestRegion) -> None:
    app = await region.app()
    path = f"/v1/apps/{app}/machines/watch"
    too_new = await region.call("GET", f"{path}?from_revision={1 << 60}")
    assert (too_new.status, too_new.json["status"]) == (410, "revision_too_old")
    for query, headers in [("?from_revision=-1", {}), ("?from_revision=x", {}), ("", {"last-event-id": "x"})]:
        answer = await region.call("GET", path + query, headers=headers)
        assert (answer.status, answer.json["fields"][0]["field"]) == (400, "from_revision"), answer
    assert (await region.call("GET", "/v1/apps/no-such-app/machines/watch")).status == 404
    assert (await region.call("GET", path, token=None)).status == 401


async def test_a_watch_over_grpc_is_the_same(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    call = region.machines.WatchMachines(
        api.WatchMachinesRequest(app_name=app), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=20
    )
    responses = aiter(call)
    first = await anext(responses)
    assert (first.machine.id, first.revision) == (machine["id"], 0)
    told = await anext(responses)
    assert told.caught_up
    assert told.revision > 0
    await region.machines.CreateMachine(
        api.CreateMachineRequest(app_name=app, config=MachineConfig(image="busybox"), skip_launch=True),
        metadata=(("authorization", f"Bearer {TOKEN}"),),
    )
    while not (response := await anext(responses)).HasField("machine"):
        assert response.revision >= told.revision
    assert response.revision > told.revision
    call.cancel()
    with pytest.raises(RevisionTooOld):
        async for _ in region.machines.WatchMachines(
            api.WatchMachinesRequest(app_name=app, from_revision=1 << 60),
            metadata=(("authorization", f"Bearer {TOKEN}"),),
        ):
            pass


@pytest.mark.parametrize(
    ("name", "text"), [("new", "nonsense"), ("new", ""), ("new", '{"a": 1} , "id": 2'), ("image", '"x"')]
)
async def test_members_that_nothing_knows_must_be_json_of_their_own(region: TestRegion, name: str, text: str) -> None:
    app = await region.app()
    request = api.CreateMachineRequest(
        app_name=app, config=MachineConfig(image="busybox", unknown_members={name: text})
    )
    with pytest.raises(InvalidConfig) as refused:
        await region.machines.CreateMachine(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert refused.value.violations[0].field == f"config.{name}"
    request.config.unknown_members.clear()
    request.config.unknown_members["new"] = '{"deep": [1, null]}'
    created = await region.machines.CreateMachine(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
    shown = (await region.call("GET", f"/v1/apps/{app}/machines/{created.machine.id}")).json
    assert shown["config"]["new"] == {"deep": [1, None]}


async def test_a_watch_ends_well_when_its_gateway_stops(postgres: str) -> None:
    serving = new_region(postgres)
    region = await serving.__aenter__()
    async with AsyncExitStack() as stack:
        stack.push_async_exit(serving)
        app = await region.app()
        async with httpx.AsyncClient(base_url=str(region.rest.base_url)) as client:
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with client.stream("GET", f"/v1/apps/{app}/machines/watch", headers=headers, timeout=30) as response:
                events = Events(response)
                await events.until_caught_up()
                stopping = asyncio.create_task(stack.pop_all().aclose())
                # Its end is that of the body: a connection that is cut would raise.
                with pytest.raises(EOFError):
                    await events.next()
            await stopping
