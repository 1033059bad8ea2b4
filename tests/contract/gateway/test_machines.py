"""Machines through their life, over REST and gRPC, against the real services of a region."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import json_format
from skerry.machines.v1 import machines_pb2 as api
from skerry.types.v1.config_pb2 import MachineConfig

from gateway.names import is_machine_id
from gateway.waits import STATES
from services.runtime.errors import IdempotencyConflict, NameTaken, StillRunning, WaitTimeout
from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEARER = (("authorization", f"Bearer {TOKEN}"),)
CONFIG: dict[str, Any] = {
    "image": "registry-1.docker.io/library/python:3.12-slim",
    "env": {"PORT": "8080", "EMPTY": ""},
    "metadata": {"team": "edge"},
    "services": [{"protocol": "tcp", "internal_port": 8080, "autostop": "suspend"}],
}


async def state_of(region: TestRegion, app: str, machine_id: str) -> str:
    state: str = (await region.call("GET", f"/v1/apps/{app}/machines/{machine_id}")).json["state"]
    return state


async def test_a_machine_is_answered_as_it_was_asked_for(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, name="web-1", config=CONFIG)
    assert is_machine_id(machine["id"])
    assert machine["id"].startswith("001")
    assert machine["name"] == "web-1"
    assert machine["state"] == "created"
    assert machine["region"] == "syd"
    assert machine["image_ref"] == {
        "registry": "registry-1.docker.io",
        "repository": "library/python",
        "tag": "3.12-slim",
    }
    assert machine["instance_id"] == machine["version"]
    assert machine["private_ip"].startswith("fdaa:")
    assert len(machine["private_ip"].split(":")) == 8
    assert machine["config"] == {
        **CONFIG,
        "init": {},
        "services": [{**CONFIG["services"][0], "force_instance_key": None}],
    }
    assert [(event["type"], event["source"]) for event in machine["events"]] == [("launch", "user")]
    assert machine["cordoned"] is False
    assert machine["host_status"] == "ok"


async def test_names_are_generated_and_each_is_taken_once(region: TestRegion) -> None:
    app = await region.app()
    machines = [await region.machine(app) for _ in range(3)]
    assert len({machine["name"] for machine in machines}) == 3
    body = {"config": {"image": "busybox"}, "name": machines[0]["name"], "skip_launch": True}
    answer = await region.call("POST", f"/v1/apps/{app}/machines", body)
    assert (answer.status, answer.json["status"]) == (422, "name_taken")
    other = await region.app()
    assert (await region.machine(other, name=machines[0]["name"]))["name"] == machines[0]["name"]


async def test_rest_and_grpc_show_the_same_machine(region: TestRegion) -> None:
    app = await region.app()
    created = await region.machines.CreateMachine(
        api.CreateMachineRequest(
            app_name=app, name="m", skip_launch=True, config=MachineConfig(image="busybox", env={"A": ""})
        ),
        metadata=BEARER,
    )
    read = await region.machines.GetMachine(
        api.GetMachineRequest(app_name=app, machine_id=created.machine.id), metadata=BEARER
    )
    assert read == api.GetMachineResponse(machine=created.machine)
    shown = (await region.call("GET", f"/v1/apps/{app}/machines/{created.machine.id}")).json
    for name in ("id", "name", "instance_id", "private_ip", "region"):
        assert shown[name] == getattr(created.machine, name)
    assert shown["config"] == {"init": {}, "image": "busybox", "env": {"A": ""}}
    assert shown["created_at"][:19] == json_format.MessageToDict(created.machine)["createdAt"][:19]


async def test_the_same_key_and_body_answer_the_same_machine_and_another_body_is_refused(region: TestRegion) -> None:
    app = await region.app()
    path, headers = f"/v1/apps/{app}/machines", {"idempotency-key": "key-1"}
    body = {"config": CONFIG, "skip_launch": True}
    first = await region.call("POST", path, body, headers=headers)
    again = await region.call("POST", path, body, headers=headers)
    assert (first.status, again.status) == (200, 200)
    assert again.json == first.json
    other = await region.call("POST", path, {**body, "name": "other"}, headers=headers)
    assert (other.status, other.json["status"]) == (422, "idempotency_conflict")
    assert len((await region.call("GET", path)).json) == 1
    request = api.CreateMachineRequest(app_name=app, config=MachineConfig(image="busybox"), name="by-grpc")
    with pytest.raises(IdempotencyConflict):
        await region.machines.CreateMachine(request, metadata=(*BEARER, ("idempotency-key", "key-1")))


async def test_of_many_requests_with_one_key_at_once_one_makes_the_machine(region: TestRegion) -> None:
    app = await region.app()
    path, headers = f"/v1/apps/{app}/machines", {"idempotency-key": "key-2"}
    body = {"config": CONFIG, "skip_launch": True}
    answers = await asyncio.gather(*(region.call("POST", path, body, headers=headers) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert all(answer.json["config"] == answers[0].json["config"] for answer in answers)
    assert all(answer.json["image_ref"] == answers[0].json["image_ref"] for answer in answers)


async def test_a_key_that_is_too_long_or_no_text_is_refused(region: TestRegion) -> None:
    path = f"/v1/apps/{await region.app()}/machines"
    for key in ("k" * 256, "é"):
        answer = await region.call("POST", path, {"config": CONFIG}, headers={"idempotency-key": key})
        assert (answer.status, answer.json["fields"][0]["field"]) == (400, "idempotency-key")


async def test_a_launched_machine_is_awaited_stopped_started_restarted_and_destroyed(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    assert machine["state"] in ("starting", "created")

    waiting = asyncio.create_task(region.call("GET", path + "/wait?state=started&timeout=20"))
    await eventually(lambda: region.gateway.waiting == 1)
    await region.worker.started(machine["id"])
    assert (await waiting).json == {"ok": True}

    answer = await region.call("POST", path + "/start")
    assert (answer.status, answer.json["status"], answer.json["previous_state"]) == (200, "started", "started")

    refused = await region.call("DELETE", path)
    assert (refused.status, refused.json["status"]) == (412, "still_running")

    answer = await region.call("POST", path + "/stop", {"id": machine["id"], "signal": "SIGTERM", "timeout": "10s"})
    assert (answer.status, answer.json) == (200, {"ok": True})
    assert await state_of(region, app, machine["id"]) == "stopping"
    conflict = await region.call("POST", path + "/start")
    assert (conflict.status, conflict.json["status"]) == (409, "wrong_state")
    stopped = path + f"/wait?state=stopped&instance_id={machine['instance_id']}&timeout=20s"
    waiting = asyncio.create_task(region.call("GET", stopped))
    await region.worker.exited(machine["id"])
    assert (await waiting).status == 200

    answer = await region.call("POST", path + "/start")
    assert answer.json["previous_state"] == "stopped"
    await region.worker.started(machine["id"])
    assert (await region.call("POST", path + "/restart?timeout=10s&force_stop=true")).json == {"ok": True}
    assert await state_of(region, app, machine["id"]) == "restarting"
    await region.worker.started(machine["id"])

    waiting = asyncio.create_task(region.call("GET", path + "/wait?state=destroyed&timeout=20"))
    assert (await region.call("DELETE", path + "?force=true")).json == {"ok": True}
    await region.worker.destroyed(machine["id"])
    assert (await waiting).status == 200
    assert (await region.call("GET", path + "/wait?state=destroyed")).status == 200
    at_once = await region.call("GET", path + "/wait?state=started&timeout=60", timeout=5)
    assert (at_once.status, at_once.json["fields"][0]["field"]) == (400, "state")
    assert (await region.call("DELETE", path)).status == 200

    events = (await region.call("GET", path + "/events?limit=100")).json
    assert events[-1]["type"] == "launch"
    assert [event["timestamp"] for event in events] == sorted((e["timestamp"] for e in events), reverse=True)
    assert len({event["id"] for event in events}) == len(events)
    assert len((await region.call("GET", path + "/events?limit=2")).json) == 2


async def test_a_wait_that_runs_out_is_told_so(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    answer = await region.call("GET", f"/v1/apps/{app}/machines/{machine['id']}/wait?timeout=1")
    assert (answer.status, answer.json["status"]) == (408, "timeout")
    assert "created" in answer.json["error"]
    with pytest.raises(WaitTimeout):
        await region.machines.WaitMachine(
            api.WaitMachineRequest(app_name=app, machine_id=machine["id"], timeout="1s"), metadata=BEARER, timeout=10
        )


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("state=created", 200),
        ("state=settled", 200),
        ("state=failed&state=created", 200),
        ("state=nowhere", 400),
        ("state=stopped", 400),
        ("timeout=0", 400),
        ("timeout=61", 400),
        ("timeout=soon", 400),
        ("state=created&instance_id=01J0000000000000000000000", 400),
    ],
)
async def test_waits_are_judged_by_their_query(region: TestRegion, query: str, status: int) -> None:
    app = await region.app()
    machine = await region.machine(app)
    answer = await region.call("GET", f"/v1/apps/{app}/machines/{machine['id']}/wait?{query}")
    assert answer.status == status, answer


async def test_a_wait_after_an_event_counts_states_that_have_passed(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, skip_launch=False)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    launch = machine["events"][0]["id"]
    await region.worker.started(machine["id"])
    await region.call("POST", path + "/stop")
    await region.worker.exited(machine["id"])
    assert (await region.call("GET", f"{path}/wait?state=started&from_event_id={launch}")).status == 200
    newest = (await region.call("GET", path + "/events?limit=1")).json[0]["id"]
    late = await region.call("GET", f"{path}/wait?state=started&from_event_id={newest}&timeout=1")
    assert late.status == 408


async def test_an_update_makes_a_version_and_leaves_a_machine_that_was_not_started_so(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    config = {"image": "busybox:2", "env": {"A": "2"}}
    body = {"config": config, "current_version": machine["instance_id"], "name": "two"}
    updated = await region.call("POST", path, body)
    assert updated.status == 200, updated
    assert updated.json["instance_id"] != machine["instance_id"]
    assert updated.json["name"] == "two"
    assert updated.json["image_ref"]["tag"] == "2"
    assert updated.json["config"] == {"init": {}, **config}
    assert updated.json["state"] in ("created", "stopped")
    read = await region.call("GET", path)
    assert {**read.json, "events": []} == {**updated.json, "events": []}
    again = await region.call("POST", path, body)
    assert (again.status, again.json["status"]) == (409, "version_mismatch")
    replaced = await region.call("GET", f"{path}/wait?state=stopped&instance_id={machine['instance_id']}", timeout=5)
    assert replaced.status == 400
    assert "replaced" in replaced.json["error"]


async def test_an_update_is_refused_for_everything_that_is_wrong_with_it(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    body = {"config": {"image": ""}, "name": "a b", "region": "ams"}
    answer = await region.call("POST", f"/v1/apps/{app}/machines/{machine['id']}", body)
    assert {violation["field"] for violation in answer.json["fields"]} == {"name", "region", "config.image"}


async def test_a_running_machine_is_restarted_into_its_new_version(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app, skip_launch=False)
    await region.worker.started(machine["id"])
    path = f"/v1/apps/{app}/machines/{machine['id']}"
    updated = await region.call("POST", path, {"config": {"image": "busybox", "guest": {"memory_mb": 512}}})
    assert updated.status == 200
    assert updated.json["state"] not in ("started", "stopped")
    await region.worker.started(machine["id"])
    settled = await region.call("GET", f"{path}/wait?state=settled&version={updated.json['instance_id']}")
    assert settled.status == 200
    assert await state_of(region, app, machine["id"]) == "started"


async def test_machines_are_listed_and_filtered(region: TestRegion) -> None:
    app = await region.app()
    path = f"/v1/apps/{app}/machines"
    one = await region.machine(app, config={"image": "busybox", "metadata": {"team": "edge", "role": "web"}})
    two = await region.machine(app, config={"image": "busybox", "metadata": {"team": "edge"}}, skip_launch=False)
    await region.worker.started(two["id"])
    gone = await region.machine(app)
    await region.call("DELETE", f"{path}/{gone['id']}")
    await region.worker.destroyed(gone["id"])

    async def listed(query: str) -> list[str]:
        answer = await region.call("GET", f"{path}?{query}")
        assert answer.status == 200, answer
        return [machine["id"] for machine in answer.json]

    assert await listed("") == [one["id"], two["id"]]
    assert await listed("started") == [one["id"], two["id"]]
    assert await listed("include_deleted=true") == [one["id"], two["id"], gone["id"]]
    assert await listed("state=started") == [two["id"]]
    assert await listed("state=started&state=created") == [one["id"], two["id"]]
    assert await listed("state=destroyed") == [gone["id"]]
    assert await listed("metadata.team=edge") == [one["id"], two["id"]]
    assert await listed("metadata.team=edge&metadata.role=web") == [one["id"]]
    assert await listed("metadata.team=other") == []
    assert await listed("region=syd") == [one["id"], two["id"]]
    assert (await region.call("GET", f"{path}?state=nowhere")).status == 400
    whole = (await region.call("GET", path)).json[0]
    summary = (await region.call("GET", f"{path}?summary=true")).json[0]
    assert whole["config"]["image"] == "busybox"
    assert "config" not in summary
    assert (summary["id"], summary["state"], summary["image_ref"]) == (one["id"], "created", {})


async def test_machines_of_one_app_are_not_reached_through_another(region: TestRegion) -> None:
    app, other = await region.app(), await region.app()
    machine = await region.machine(app)
    for verb, rest in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/wait?timeout=1"), ("POST", "/start")):
        answer = await region.call(verb, f"/v1/apps/{other}/machines/{machine['id']}{rest}")
        assert (answer.status, answer.json["status"]) == (404, "not_found"), (verb, rest)
    answer = await region.call("POST", f"/v1/apps/{other}/machines/{machine['id']}", {"config": {"image": "x"}})
    assert answer.status == 404


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("stop", {"signal": "SIGWINCHED"}, "signal"),
        ("stop", {"timeout": "fifteen"}, "timeout"),
        ("restart", {"timeout": -5}, "timeout"),
    ],
)
async def test_how_to_stop_is_checked_by_field(region: TestRegion, verb: str, body: Any, field: str) -> None:
    app = await region.app()
    machine = await region.machine(app)
    answer = await region.call("POST", f"/v1/apps/{app}/machines/{machine['id']}/{verb}", body)
    assert (answer.status, answer.json["fields"][0]["field"]) == (400, field)


async def test_how_long_a_stop_may_take_is_a_duration_or_whole_seconds(region: TestRegion) -> None:
    app = await region.app()
    machine = await region.machine(app)
    for timeout in ("10s", "10"):
        answer = await region.call("POST", f"/v1/apps/{app}/machines/{machine['id']}/restart?timeout={timeout}")
        assert (answer.status, answer.json) == (200, {"ok": True})


async def test_nothing_has_room_says_why(region: TestRegion) -> None:
    app = await region.app()
    size = {"cpu_kind": "performance", "cpus": 16, "memory_mb": 16 * 2048, "gpu_kind": "l40s", "gpus": 1}
    body = {"config": {"image": "busybox", "guest": size}}
    answer = await region.call("POST", f"/v1/apps/{app}/machines", body)
    assert (answer.status, answer.json["status"]) == (422, "insufficient_capacity")
    assert answer.json["error"] == (
        "no worker of region syd has room for this machine: of 1 workers, 1 too few GPUs of that kind "
        "(needed 1, most free 0). The nearest that would fit: 16 performance CPUs, 32768 MB of memory, no GPUs; "
        "or ask for another region"
    )


async def test_apps_are_created_listed_read_and_deleted(region: TestRegion) -> None:
    answer = await region.call("POST", "/v1/apps?wait=true", {"app_name": "zz-shop", "org_slug": "personal"})
    assert answer.status == 201
    assert answer.json["name"] == "zz-shop"
    assert answer.json["status"] == "pending"
    assert answer.json["organization"] == {"name": "Personal", "slug": "personal", "internal_numeric_id": 1}
    again = await region.call("POST", "/v1/apps", {"name": "zz-shop", "app_name": "zz-shop"})
    assert (again.status, again.json["status"]) == (422, "name_taken")
    machine = await region.machine("zz-shop")
    read = await region.call("GET", "/v1/apps/zz-shop")
    assert (read.json["status"], read.json["machine_count"]) == ("deployed", 1)
    listed = (await region.call("GET", "/v1/apps?org_slug=personal")).json
    assert listed["total_apps"] == len(listed["apps"])
    assert read.json in listed["apps"]
    assert (await region.call("DELETE", "/v1/apps/zz-shop")).status == 202
    assert (await region.call("GET", "/v1/apps/zz-shop")).status == 404
    gone = await eventually(lambda: _not_found(region, f"/v1/apps/zz-shop/machines/{machine['id']}"))
    assert gone


async def _not_found(region: TestRegion, path: str) -> bool:
    return (await region.call("GET", path)).status == 404


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "-a", "a" * 64, None])
async def test_a_bad_name_of_an_app_is_refused_by_its_field(region: TestRegion, name: str | None) -> None:
    answer = await region.call("POST", "/v1/apps", {"name": name})
    assert (answer.status, answer.json["fields"][0]["field"]) == (400, "name")


async def test_over_grpc_a_machine_lives_the_same_life(region: TestRegion) -> None:
    app = await region.app()
    api_ = region.machines
    create = api.CreateMachineRequest(app_name=app, name="one", config=MachineConfig(image="busybox"))
    machine = (await api_.CreateMachine(create, metadata=BEARER)).machine
    with pytest.raises(NameTaken):
        await api_.CreateMachine(create, metadata=BEARER)
    await region.worker.started(machine.id)
    named = {"app_name": app, "machine_id": machine.id}
    await api_.WaitMachine(api.WaitMachineRequest(**named), metadata=BEARER)
    with pytest.raises(StillRunning):
        await api_.DeleteMachine(api.DeleteMachineRequest(**named), metadata=BEARER)
    await api_.StopMachine(api.StopMachineRequest(**named), metadata=BEARER)
    await region.worker.exited(machine.id)
    started = await api_.StartMachine(api.StartMachineRequest(**named), metadata=BEARER)
    assert (started.status, started.previous_state) == ("starting", "stopped")
    await api_.RestartMachine(api.RestartMachineRequest(**named), metadata=BEARER)
    updated = await api_.UpdateMachine(
        api.UpdateMachineRequest(**named, config=MachineConfig(image="b")), metadata=BEARER
    )
    assert updated.machine.instance_id != machine.instance_id
    listed = await api_.ListMachines(api.ListMachinesRequest(app_name=app), metadata=BEARER)
    assert [each.id for each in listed.machines] == [machine.id]
    events = await api_.ListMachineEvents(api.ListMachineEventsRequest(**named), metadata=BEARER)
    assert events.events[-1].type == "launch"
    await api_.DeleteMachine(api.DeleteMachineRequest(**named, kill=True), metadata=BEARER)
    read = (await api_.GetMachine(api.GetMachineRequest(**named), metadata=BEARER)).machine
    assert read.state in (STATES["destroying"], STATES["destroyed"])
    assert (await api_.GetApp(api.GetAppRequest(app_name=app), metadata=BEARER)).app.name == app
    apps = await api_.ListApps(api.ListAppsRequest(), metadata=BEARER)
    assert apps.total_apps == len(apps.apps)
    await api_.DeleteApp(api.DeleteAppRequest(app_name=app), metadata=BEARER)
