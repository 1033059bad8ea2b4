"""The rows of the machines API that change machines, over REST and gRPC, against a region with real workers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import MACHINE_STATE_STARTED, MACHINE_STATE_SUSPENDED
from typer.testing import CliRunner, Result

from services.cli.main import app as cli
from services.runtime.errors import (
    InvalidConfig,
    LeaseHeld,
    NoCapacity,
    NotFound,
    SkerryError,
    VersionMismatch,
    WaitTimeout,
    WrongState,
)
from tests.support import eventually
from tests.support_gateway import ELSEWHERE, TOKEN, Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEARER = (("authorization", f"Bearer {TOKEN}"),)
NONCE = "fly-machine-lease-nonce"
SLEEPS: dict[str, Any] = {"image": "busybox", "init": {"exec": ["/bin/sleep", "3600"]}}
NOWHERE = "00100000000000"


class At:
    """One machine, as a client sees it over REST."""

    def __init__(self, region: TestRegion, app: str, machine: Mapping[str, Any]) -> None:
        self.region = region
        self.app = app
        self.id: str = machine["id"]
        self.instance_id: str = machine["instance_id"]
        self.path = f"/v1/apps/{app}/machines/{self.id}"
        self.who: dict[str, Any] = {"app_name": app, "machine_id": self.id}

    async def call(self, verb: str, path: str = "", body: Any = None, *, nonce: str | None = None) -> Answer:
        headers = {NONCE: nonce} if nonce is not None else None
        return await self.region.call(verb, f"{self.path}{path}", body, headers=headers)

    async def get(self) -> dict[str, Any]:
        machine: dict[str, Any] = (await self.call("GET")).json
        return machine

    async def state(self) -> str:
        return str((await self.get())["state"])

    async def waits(self, query: str) -> Answer:
        return await self.call("GET", f"/wait?{query}")

    async def reaches(self, state: str) -> None:
        version = f"&version={(await self.get())['instance_id']}" if state == "stopped" else ""
        answer = await self.waits(f"state={state}&timeout=20{version}")
        assert answer.status == 200, answer

    async def events(self) -> list[tuple[str, str, str]]:
        listed = (await self.call("GET", "/events")).json
        return [(event["type"], event["status"], event["source"]) for event in listed]

    async def lease(self, query: str = "?ttl=60", *, nonce: str | None = None) -> str:
        answer = await self.call("POST", f"/lease{query}", nonce=nonce)
        assert answer.status == 201, answer
        return str(answer.json["data"]["nonce"])


async def machine(region: TestRegion, *, launch: bool = True, **more: Any) -> At:
    """A machine in an app of its own, started unless not launched."""
    app = await region.app()
    made = At(region, app, await region.machine(app, config={**SLEEPS}, skip_launch=not launch, **more))
    if launch:
        await made.reaches("started")
    return made


MUTATIONS: list[tuple[str, str, Any]] = [
    ("POST", "", {"config": SLEEPS}),
    ("POST", "/stop", {}),
    ("POST", "/restart", {}),
    ("POST", "/signal", {"signal": "SIGUSR1"}),
    ("POST", "/suspend", {}),
    ("POST", "/cordon", {}),
    ("POST", "/uncordon", {}),
    ("POST", "/metadata/k", {"value": "v"}),
    ("DELETE", "/metadata/k", None),
    ("POST", "/lease?ttl=10", None),
    ("DELETE", "/lease", None),
    ("DELETE", "?force=true", None),
]
"""Every request that changes a machine which runs."""
READS = [("GET", ""), ("GET", "/lease"), ("GET", "/metadata"), ("GET", "/metadata/k"), ("GET", "/versions"),
         ("GET", "/events"), ("GET", "/wait")]  # fmt: skip
"""Every request that reads one."""


# Leases


async def test_a_lease_is_taken_shown_refreshed_and_given_back(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    none = await at.call("GET", "/lease")
    assert (none.status, none.json["status"]) == (404, "not_found")
    taken = await at.call("POST", "/lease?ttl=60", {"description": "deploy"})
    assert taken.status == 201
    data = taken.json["data"]
    assert taken.json == {"status": "success", "data": data}
    assert set(data) == {"nonce", "expires_at", "owner", "version", "description"}
    assert (data["owner"], data["version"], data["description"]) == ("developer", at.instance_id, "deploy")
    assert isinstance(data["expires_at"], int)
    assert 55 < data["expires_at"] - time.time() <= 60
    assert (await at.call("GET", "/lease")).json == taken.json
    again = await at.call("POST", "/lease", {"ttl": 600}, nonce=data["nonce"])
    assert again.status == 201
    assert again.json["data"]["nonce"] == data["nonce"]
    assert again.json["data"]["expires_at"] > data["expires_at"] + 500
    given = await at.call("DELETE", "/lease", nonce=data["nonce"])
    assert (given.status, given.json["status"]) == (200, "success")
    assert (await at.call("DELETE", "/lease", nonce=data["nonce"])).status == 404
    assert (await at.call("GET", "/lease")).status == 404


async def test_a_leased_machine_is_changed_by_its_holder_alone(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    nonce = await at.lease()
    before = await at.get()
    for verb, path, body in MUTATIONS:
        for wrong in (None, "another"):
            refused = await at.call(verb, path, body, nonce=wrong)
            assert (refused.status, refused.json["status"]) == (409, "lease_held"), (verb, path, refused)
            assert "developer" in refused.json["error"], "it names the holder"
            assert " until 2" in refused.json["error"], "and the expiry"
    assert await at.get() == before
    for verb, path, body in MUTATIONS[5:9]:
        assert (await at.call(verb, path, body, nonce=nonce)).status in (200, 204), (verb, path)
    assert (await at.call("POST", "/stop", {}, nonce=nonce)).status == 200
    await at.reaches("stopped")
    assert (await at.call("POST", "/start")).json["status"] == "lease_held"
    assert (await at.call("DELETE", nonce=nonce)).status == 200


async def test_a_nonce_is_no_hindrance_where_no_lease_is_held(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    assert (await at.call("POST", "/metadata/k", {"value": "v"}, nonce="long-gone")).status == 204


async def test_a_lease_comes_with_a_new_machine_and_its_nonce_only_with_that_answer(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    path, headers = f"/v1/apps/{app}/machines", {"idempotency-key": "leased"}
    body = {"config": SLEEPS, "skip_launch": True, "lease_ttl": 60}
    created = await lively_region.call("POST", path, body, headers=headers)
    assert created.json["nonce"]
    repeated = await lively_region.call("POST", path, body, headers=headers)
    assert repeated.json == created.json
    at = At(lively_region, app, created.json)
    assert "nonce" not in await at.get()
    assert "nonce" not in (await lively_region.call("GET", path)).json[0]
    assert (await at.call("GET", "/lease")).json["data"]["nonce"] == created.json["nonce"]
    assert (await at.call("POST", "/start")).status == 409
    assert "nonce" not in await lively_region.machine(app)


@pytest.mark.parametrize("ttl", ["0", "-1", "86401", "soon"])
async def test_a_lease_that_cannot_be_is_refused_with_its_field(lively_region: TestRegion, ttl: str) -> None:
    at = await machine(lively_region, launch=False)
    answer = await at.call("POST", f"/lease?ttl={ttl}")
    if ttl == "0":
        assert answer.status == 201, "it is as good as not set"
        return
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert [field["field"] for field in answer.json["fields"]] == ["ttl"]
    if ttl != "soon":
        body = {"config": SLEEPS, "lease_ttl": int(ttl)}
        refused = await lively_region.call("POST", f"/v1/apps/{at.app}/machines", body)
        assert [field["field"] for field in refused.json["fields"]] == ["lease_ttl"]


async def test_a_lease_whose_holder_died_is_released_by_force_and_an_event_says_by_whom(
    lively_region: TestRegion,
) -> None:
    at = await machine(lively_region, launch=False)
    await at.lease("?ttl=86400")
    forced = await at.call("DELETE", "/lease?force=true")
    assert (forced.status, forced.json["data"]["owner"]) == (200, "developer")
    kind, status, source = (await at.events())[0]
    assert (kind, source) == ("lease_release", "user")
    assert status.startswith("taken by developer from developer")
    assert (await at.call("POST", "/start")).status == 200


async def test_leases_over_grpc_are_the_same(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    machines = lively_region.machines
    who = at.who
    with pytest.raises(NotFound):
        await machines.GetMachineLease(api.GetMachineLeaseRequest(**who), metadata=BEARER)
    taken = await machines.AcquireMachineLease(api.AcquireMachineLeaseRequest(**who, ttl=60), metadata=BEARER)
    nonce = taken.lease.data.nonce
    assert (await at.call("GET", "/lease")).json["data"]["nonce"] == nonce
    with pytest.raises(LeaseHeld) as held:
        await machines.StartMachine(api.StartMachineRequest(**who), metadata=BEARER)
    assert held.value.metadata["owner"] == "developer"
    with pytest.raises(LeaseHeld):
        await machines.AcquireMachineLease(api.AcquireMachineLeaseRequest(**who), metadata=BEARER)
    holder = (*BEARER, (NONCE, nonce))
    await machines.StartMachine(api.StartMachineRequest(**who), metadata=holder)
    released = await machines.ReleaseMachineLease(api.ReleaseMachineLeaseRequest(**who), metadata=holder)
    assert released.lease.data.nonce == nonce
    with pytest.raises(NotFound):
        await machines.ReleaseMachineLease(api.ReleaseMachineLeaseRequest(**who, force=True), metadata=holder)


async def test_of_many_who_ask_for_one_lease_at_once_one_gets_it(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    answers = await asyncio.gather(*(at.call("POST", "/lease?ttl=60") for _ in range(30)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 29


# Metadata and versions


async def test_metadata_are_set_read_and_deleted_without_a_new_version(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    set_ = await at.call("POST", "/metadata/team", {"value": "edge"})
    assert set_.status == 204
    assert (await at.call("POST", "/metadata/empty", {"value": ""})).status == 204
    assert (await at.call("GET", "/metadata")).json == {"team": "edge", "empty": ""}
    assert (await at.call("GET", "/metadata/team")).json == {"team": "edge"}
    shown = await at.get()
    assert shown["config"]["metadata"] == {"team": "edge", "empty": ""}
    assert (shown["state"], shown["instance_id"]) == ("started", at.instance_id)
    found = await lively_region.call("GET", f"/v1/apps/{at.app}/machines?metadata.team=edge")
    assert [(each["id"], each["config"]["metadata"]["team"]) for each in found.json] == [(at.id, "edge")]
    assert (await lively_region.call("GET", f"/v1/apps/{at.app}/machines?metadata.team=core")).json == []
    assert (await at.call("DELETE", "/metadata/team")).status == 204
    assert (await at.call("DELETE", "/metadata/team")).status == 204
    missing = await at.call("GET", "/metadata/team")
    assert (missing.status, missing.json["status"]) == (404, "not_found")
    assert (await at.call("GET", "/metadata")).json == {"empty": ""}
    assert len((await at.call("GET", "/versions")).json) == 1


async def test_metadata_keys_may_hold_what_paths_have_to_quote(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    assert (await at.call("POST", "/metadata/a%2Fb%20c", {"value": "x/y"})).status == 204
    assert (await at.call("GET", "/metadata")).json == {"a/b c": "x/y"}
    assert (await at.call("GET", "/metadata/a%2Fb%20c")).json == {"a/b c": "x/y"}


async def test_metadata_and_versions_over_grpc_are_the_same(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    machines, who = lively_region.machines, at.who
    await machines.SetMachineMetadata(api.SetMachineMetadataRequest(**who, key="k", value="v"), metadata=BEARER)
    read = await machines.GetMachineMetadata(api.GetMachineMetadataRequest(**who), metadata=BEARER)
    assert dict(read.metadata) == {"k": "v"}
    with pytest.raises(NotFound):
        await machines.GetMachineMetadataEntry(api.GetMachineMetadataEntryRequest(**who, key="n"), metadata=BEARER)
    with pytest.raises(InvalidConfig, match="metadata must have a key"):
        await machines.SetMachineMetadata(api.SetMachineMetadataRequest(**who, value="v"), metadata=BEARER)
    await machines.DeleteMachineMetadata(api.DeleteMachineMetadataRequest(**who, key="k"), metadata=BEARER)
    versions = await machines.ListMachineVersions(api.ListMachineVersionsRequest(**who), metadata=BEARER)
    assert [(each.version, each.user_config.image) for each in versions.versions] == [(at.instance_id, "busybox")]


async def test_versions_are_listed_newest_first_as_the_user_wrote_them(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    updated = await at.call("POST", "", {"config": {**SLEEPS, "env": {"A": ""}}})
    listed = await at.call("GET", "/versions")
    assert listed.status == 200
    assert listed.json == [
        {"version": updated.json["instance_id"], "user_config": {**SLEEPS, "env": {"A": ""}}},
        {"version": at.instance_id, "user_config": SLEEPS},
    ]
    assert len((await at.call("GET", "/versions?limit=1")).json) == 1
    refused = await at.call("GET", "/versions?limit=-1")
    assert (refused.status, refused.json["fields"][0]["field"]) == (400, "limit")


# Suspend, cordon


async def test_a_machine_is_suspended_and_goes_on_as_the_same_process(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    before = (await at.call("GET", "/ps")).json[0]["pid"]
    suspended = await at.call("POST", "/suspend")
    assert (suspended.status, suspended.json) == (200, {"ok": True})
    assert (await at.state()) in ("suspending", "suspended")
    await at.reaches("suspended")
    assert (await at.call("POST", "/suspend")).status == 200
    inside = await at.call("POST", "/signal", {"signal": 9})
    assert (inside.status, inside.json["status"]) == (409, "wrong_state")
    started = await at.call("POST", "/start")
    assert (started.status, started.json["previous_state"], started.json["status"]) == (200, "suspended", "starting")
    await at.reaches("started")
    assert (await at.call("GET", "/ps")).json[0]["pid"] == before
    assert [kind for kind, _, _ in await at.events()] == [
        "start", "start", "suspend", "suspend", "start", "launch",
    ]  # fmt: skip


async def test_a_suspended_machine_is_stopped_updated_restarted_or_destroyed_as_the_table_says(
    lively_region: TestRegion,
) -> None:
    at = await machine(lively_region)

    async def suspend() -> None:
        assert (await at.call("POST", "/suspend")).status == 200
        await at.reaches("suspended")

    await suspend()
    assert (await at.call("POST", "/stop", {})).status == 200
    assert await at.state() == "stopped"
    await at.call("POST", "/start")
    await at.reaches("started")
    await suspend()
    assert (await at.call("POST", "/restart")).status == 200
    await at.reaches("started")
    await suspend()
    assert (await at.call("POST", "", {"config": {**SLEEPS, "env": {"N": "2"}}})).json["state"] == "stopped"
    refused = await at.call("POST", "/suspend")
    assert (refused.status, refused.json["status"]) == (409, "wrong_state")
    assert "start it first" in refused.json["error"]
    await at.call("POST", "/start")
    await at.reaches("started")
    await suspend()
    assert (await at.call("DELETE")).status == 200, "it does not run: no force is needed"
    await eventually(lambda: _is(at, "destroyed"))


async def _is(at: At, state: str) -> bool:
    return await at.state() == state


async def test_suspend_and_cordon_over_grpc_are_the_same(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    machines, who = lively_region.machines, at.who

    async def get() -> api.Machine:
        request = api.GetMachineRequest(**who)
        found: api.GetMachineResponse = await machines.GetMachine(request, metadata=BEARER)
        return found.machine

    assert (await machines.CordonMachine(api.CordonMachineRequest(**who), metadata=BEARER)).ok
    assert (await get()).cordoned
    assert (await machines.UncordonMachine(api.UncordonMachineRequest(**who), metadata=BEARER)).ok
    assert not (await get()).cordoned
    assert (await machines.SuspendMachine(api.SuspendMachineRequest(**who), metadata=BEARER)).ok
    await machines.WaitMachine(api.WaitMachineRequest(**who, state=["suspended"]), metadata=BEARER)
    assert (await get()).state == MACHINE_STATE_SUSPENDED
    await machines.StartMachine(api.StartMachineRequest(**who), metadata=BEARER)
    await machines.WaitMachine(api.WaitMachineRequest(**who), metadata=BEARER)
    assert (await get()).state == MACHINE_STATE_STARTED
    for call, request in (
        (machines.SuspendMachine, api.SuspendMachineRequest(app_name=at.app, machine_id=NOWHERE)),
        (machines.CordonMachine, api.CordonMachineRequest(app_name=at.app, machine_id="nonsense")),
    ):
        with pytest.raises(NotFound):
            await call(request, metadata=BEARER)


async def test_a_cordoned_machine_says_so_until_it_is_uncordoned(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    for _ in range(2):
        answer = await at.call("POST", "/cordon")
        assert (answer.status, answer.json) == (200, {"ok": True})
    assert (await at.get())["cordoned"] is True
    updated = await at.call("POST", "", {"config": SLEEPS})
    assert updated.json["cordoned"] is True
    assert (await at.call("POST", "/uncordon")).json == {"ok": True}
    assert (await at.get())["cordoned"] is False
    assert [kind for kind, _, _ in await at.events()] == ["uncordon", "update", "cordon", "launch"]
    created = await lively_region.machine(at.app, skip_service_registration=True)
    assert created["cordoned"] is True


# Updating as the command-line client does


async def test_an_update_under_a_lease_starts_what_ran_in_its_new_version(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    nonce = await at.lease("?ttl=120")
    stale = await at.call("POST", "", {"config": SLEEPS, "current_version": "01JC000000000000000000000Z"}, nonce=nonce)
    assert (stale.status, stale.json["status"]) == (409, "version_mismatch")
    config = {**SLEEPS, "env": {"A": "2"}}
    updated = await at.call("POST", "", {"config": config, "current_version": at.instance_id}, nonce=nonce)
    assert updated.status == 200
    assert updated.json["instance_id"] != at.instance_id
    assert (await at.waits("state=settled&timeout=20")).status == 200
    after = await at.get()
    assert (after["state"], after["instance_id"]) == ("started", updated.json["instance_id"])
    assert after["config"]["env"] == {"A": "2"}
    assert (await at.call("DELETE", "/lease", nonce=nonce)).status == 200


async def test_an_update_starts_nothing_that_does_not_run_and_skip_launch_stops_what_does(
    lively_region: TestRegion,
) -> None:
    never_launched = await machine(lively_region, launch=False)
    assert (await never_launched.call("POST", "", {"config": SLEEPS})).json["state"] == "stopped"
    assert (await never_launched.waits("state=settled&timeout=5")).status == 200
    assert await never_launched.state() == "stopped"
    runs = await machine(lively_region)
    updated = await runs.call("POST", "", {"config": SLEEPS, "skip_launch": True})
    assert updated.json["state"] == "stopping"
    assert (await runs.waits("state=settled&timeout=20")).status == 200
    after = await runs.get()
    assert (after["state"], after["instance_id"]) == ("stopped", updated.json["instance_id"])


async def test_what_the_client_sends_reads_back_as_it_was_sent(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    services = [
        {
            "protocol": "tcp",
            "internal_port": 81,
            "autostop": True,
            "ports": [{"port": 80, "handlers": ["http"]}],
            "force_instance_key": None,
        }
    ]
    image = f"docker.io/library/busybox:1@sha256:{'0' * 64}"
    config = {**SLEEPS, "image": image, "dns": {}, "env": {"A": ""}, "services": services}
    body = {"config": config, "skip_launch": True, "skip_secrets": False, "min_secrets_version": None}
    created = await lively_region.call("POST", f"/v1/apps/{app}/machines", body)
    assert created.status == 200, created
    for shown in (created.json, await At(lively_region, app, created.json).get()):
        assert shown["config"]["services"] == services
        assert shown["config"]["env"] == {"A": ""}
        assert shown["image_ref"]["tag"] == "1"
        assert shown["image_ref"]["digest"] == f"sha256:{'0' * 64}"
        groups = shown["private_ip"].split(":")
        assert (len(groups), groups[0]) == (8, "fdaa")
    assert "warning" not in created.headers


# Waiting


async def test_wait_takes_every_state_several_at_once_and_both_forms_of_time(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    for query in (
        "",
        "state=started&timeout=1",
        "state=suspended&state=started",
        "state=settled&timeout=10s",
        f"state=stopped&state=started&instance_id={at.instance_id}",
        f"state=started&version={at.instance_id}&timeout=1m",
    ):
        answer = await at.waits(query)
        assert (answer.status, answer.json) == (200, {"ok": True}), (query, answer)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=nonsense", "state"),
        ("state=stopped", "instance_id"),
        ("timeout=0", "timeout"),
        ("timeout=61", "timeout"),
        ("timeout=0.5s", "timeout"),
        ("timeout=long", "timeout"),
        ("instance_id=A&version=B", "version"),
    ],
)
async def test_a_wait_that_makes_no_sense_is_refused_with_its_field(
    lively_region: TestRegion, query: str, field: str
) -> None:
    at = await machine(lively_region, launch=False)
    answer = await at.waits(query)
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert [each["field"] for each in answer.json["fields"]] == [field]


async def test_a_wait_that_is_in_vain_ends_in_time_and_says_what_the_state_is(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    began = time.monotonic()
    answer = await at.waits("state=suspended&timeout=1")
    assert (answer.status, answer.json["status"]) == (408, "timeout")
    assert "it is started" in answer.json["error"]
    assert time.monotonic() - began >= 1
    request = api.WaitMachineRequest(app_name=at.app, machine_id=at.id, state=["stopping"], timeout="1s")
    with pytest.raises(WaitTimeout):
        await lively_region.machines.WaitMachine(request, metadata=BEARER)


async def test_an_old_version_is_replaced_for_good(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    new = (await at.call("POST", "", {"config": SLEEPS})).json["instance_id"]
    assert (await at.waits(f"state=replaced&instance_id={at.instance_id}")).status == 200
    refused = await at.waits(f"state=started&instance_id={at.instance_id}")
    assert refused.status == 400
    assert new in refused.json["error"], "it names the version that is there instead"


async def test_a_wait_from_an_event_counts_what_came_after_it(lively_region: TestRegion) -> None:
    at = await machine(lively_region)
    listed = (await at.call("GET", "/events")).json
    ids = [event["id"] for event in listed]
    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids, reverse=True)
    assert (await at.waits(f"state=started&from_event_id={ids[-1]}&timeout=1")).status == 200
    assert (await at.waits(f"state=started&from_event_id={ids[0]}&timeout=1")).status == 408
    waiting = asyncio.create_task(at.waits(f"state=started&from_event_id={ids[0]}&timeout=20"))
    assert (await at.call("POST", "/restart")).status == 200
    assert (await waiting).status == 200
    newer = [kind for kind, _, _ in await at.events()]
    assert newer[:3] == ["start", "exit", "restart"]


async def test_a_waiter_is_woken_by_the_event_that_it_waits_for(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    waiting = asyncio.create_task(at.waits(f"state=stopped&timeout=60&version={at.instance_id}"))
    await eventually(lambda: lively_region.gateway.waiting > 0)
    await at.call("POST", "/stop", {})
    answer = await asyncio.wait_for(waiting, 30)
    assert (answer.status, lively_region.gateway.waiting) == (200, 0), "nothing but the event ends it before its time"


# What users of such APIs complain about


async def test_a_capacity_error_is_known_by_its_reason_and_names_constraint_and_what_would_fit(
    lively_region: TestRegion,
) -> None:
    at = await machine(lively_region, launch=False)
    machines, path = lively_region.machines, f"/v1/apps/{at.app}/machines"
    large = {"config": {**SLEEPS, "guest": {"cpu_kind": "shared", "cpus": 8, "memory_mb": 8192}}, "skip_launch": True}
    fillers = []
    while (create := await lively_region.call("POST", path, large)).status == 200:
        fillers.append(create.json["id"])
    try:
        update = await at.call("POST", "", large)
        for answer in (create, update):
            assert (answer.status, answer.json["status"]) == (422, "insufficient_capacity")
            assert re.search(r"too little (shared CPU|memory) \(needed .*, most free .*\)", answer.json["error"])
        assert "The nearest that would fit: " in update.json["error"]
        with pytest.raises(NoCapacity) as refused:
            await machines.CreateMachine(
                api.CreateMachineRequest(app_name=at.app, config=_config(8, 8192)), metadata=BEARER
            )
        assert refused.value.metadata["constraint"] in ("shared_cpu", "memory")
        with pytest.raises(NoCapacity) as refused:
            await machines.UpdateMachine(api.UpdateMachineRequest(**at.who, config=_config(8, 8192)), metadata=BEARER)
        named = refused.value.metadata
        nearest = _config(int(named["nearest_cpus"]), int(named["nearest_memory_mb"]))
        assert nearest.guest.cpus < 8
        # What is said to fit does fit, also where the machine is already.
        await machines.UpdateMachine(api.UpdateMachineRequest(**at.who, config=nearest), metadata=BEARER)
        # A machine that is stopped keeps its room, so starting it needs none.
        assert (await at.call("POST", "/start")).status == 200
        await at.reaches("started")
    finally:
        for each in (at.id, *fillers):
            assert (await lively_region.call("DELETE", f"{path}/{each}?force=true")).status == 200
            await lively_region.call("GET", f"{path}/{each}/wait?state=destroyed&timeout=20")


def _config(cpus: int, memory_mb: int) -> MachineConfig:
    config = MachineConfig(image="busybox")
    config.init.exec.extend(["/bin/sleep", "3600"])
    config.guest.cpu_kind, config.guest.cpus, config.guest.memory_mb = "shared", cpus, memory_mb
    return config


async def test_a_machine_that_waits_says_what_it_waits_for(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    # The dedicated worker never starts anything.
    guest = {"cpu_kind": "performance", "cpus": 1, "memory_mb": 2048, "host_dedication_id": ELSEWHERE}
    made = await lively_region.machine(app, config={**SLEEPS, "guest": guest}, skip_launch=False)
    assert "reason" not in made
    at = At(lively_region, app, made)
    record = (await lively_region.store.GetMachine(store.GetMachineRequest(machine_id=at.id))).machine
    await lively_region.store.ExplainDelay(
        store.ExplainDelayRequest(
            machine_id=at.id,
            expected_generation=record.generation,
            expected_state=record.state,
            reason=f"it waits for worker {record.worker_id}, which can be reached and has not started it yet",
        )
    )
    shown = await at.get()
    assert shown["reason"] == (
        f"it waits for worker {record.worker_id}, which can be reached and has not started it yet"
    )
    assert (await at.events())[0] == ("delay", shown["reason"], "flyd")
    await lively_region.worker.started(at.id)
    assert "reason" not in await at.get()


# What does not exist


async def test_what_is_asked_of_a_machine_that_does_not_exist_is_not_found(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    for machine_id in (NOWHERE, "nonsense"):
        at = At(lively_region, app, {"id": machine_id, "instance_id": ""})
        rows = [*MUTATIONS, *((verb, path, None) for verb, path in READS)]
        for verb, path, body in rows:
            answer = await at.call(verb, path, body)
            assert (answer.status, answer.json["status"]) == (404, "not_found"), (verb, path, answer)


async def test_what_is_asked_of_a_destroyed_machine_is_refused(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    assert (await at.call("DELETE")).json == {"ok": True}
    await eventually(lambda: _is(at, "destroyed"))
    for verb, path, body in MUTATIONS:
        if path not in ("/lease", "?force=true", "") or verb == "POST":
            answer = await at.call(verb, path, body)
            assert (answer.status, answer.json["status"]) == (409, "wrong_state"), (verb, path, answer)
    assert (await at.call("DELETE", "/lease")).status == 404
    assert (await at.call("DELETE")).json == {"ok": True}


async def test_each_error_has_the_same_reason_over_grpc(lively_region: TestRegion) -> None:
    at = await machine(lively_region, launch=False)
    machines, who = lively_region.machines, at.who
    config = MachineConfig(image="busybox")
    calls: list[tuple[Any, Any, type[SkerryError]]] = [
        (machines.SuspendMachine, api.SuspendMachineRequest(**who), WrongState),
        (machines.UpdateMachine, api.UpdateMachineRequest(**who, config=config, current_version="x"), VersionMismatch),
        (machines.WaitMachine, api.WaitMachineRequest(**who, state=["nonsense"]), InvalidConfig),
        (machines.AcquireMachineLease, api.AcquireMachineLeaseRequest(**who, ttl=-1), InvalidConfig),
        (machines.ReleaseMachineLease, api.ReleaseMachineLeaseRequest(**who), NotFound),
    ]
    for call, request, error in calls:
        with pytest.raises(error):
            await call(request, metadata=BEARER)


# The command line


async def test_the_commands_of_the_operator_do_the_same(lively_region: TestRegion, tmp_path: Path) -> None:
    endpoints = {"regions": {"syd": {"rest": f"http://127.0.0.1:{lively_region.rest_port}"}}, "token": TOKEN}
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    at = await machine(lively_region)

    async def skerry(*words: str) -> Result:
        command = ["machines", *words, "--dir", str(tmp_path)]
        return await asyncio.to_thread(CliRunner().invoke, cli, command)

    taken = await skerry("lease", "take", at.app, at.id, "--ttl", "60", "--for", "a test")
    nonce = taken.stdout.strip()
    assert json.loads((await skerry("lease", "show", at.app, at.id, "--json")).stdout)["data"]["nonce"] == nonce
    refused = await skerry("suspend", at.app, at.id)
    assert (refused.exit_code, "leased by developer (a test)" in refused.stderr) == (1, True)
    assert (await skerry("suspend", at.app, at.id, "--lease", nonce)).exit_code == 0
    assert await at.state() == "suspended"
    assert (await skerry("start", at.app, at.id, "--lease", nonce)).exit_code == 0
    assert (await skerry("metadata", "set", at.app, at.id, "team", "edge", "--lease", nonce)).exit_code == 0
    listed = await skerry("metadata", "list", at.app, at.id, "--json")
    assert json.loads(listed.stdout) == {"team": "edge"}
    assert (await skerry("metadata", "delete", at.app, at.id, "team", "--lease", nonce)).exit_code == 0
    assert (await skerry("lease", "release", at.app, at.id, "--force")).exit_code == 0
    assert (await skerry("lease", "show", at.app, at.id)).exit_code == 1
    assert (await skerry("cordon", at.app, at.id)).exit_code == 0
    assert (await at.get())["cordoned"] is True
    assert (await skerry("uncordon", at.app, at.id)).exit_code == 0
    assert (await skerry("update", at.app, at.id, "--env", "A=1")).exit_code == 0
    versions = json.loads((await skerry("versions", at.app, at.id, "--json")).stdout)
    assert [version["version"] for version in versions][1] == at.instance_id
