"""Volumes and snapshots over REST and gRPC, against a region with real workers."""

from __future__ import annotations

from typing import Any

import pytest
from skerry.machines.v1 import volumes_pb2 as api
from skerry.machines.v1.volumes_pb2_grpc import VolumesStub

from services.runtime.channels import connect
from services.runtime.errors import MissingReference, NotFound, WrongState
from tests.support import eventually
from tests.support_gateway import TOKEN, Answer, TestRegion

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEARER = (("authorization", f"Bearer {TOKEN}"),)
GUEST = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
FIELDS = {
    "id", "name", "state", "size_gb", "region", "zone", "encrypted", "attached_machine_id", "attached_alloc_id",
    "created_at", "host_dedication_id", "snapshot_retention", "auto_backup_enabled", "host_status",
}  # fmt: skip
SNAPSHOT_FIELDS = {"id", "size", "volume_size", "digest", "created_at", "status", "retention_days"}


async def volume(region: TestRegion, app: str, **more: Any) -> dict[str, Any]:
    answer = await region.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": "syd", **more})
    assert answer.status == 200, answer
    created: dict[str, Any] = answer.json
    return created


async def reaches(region: TestRegion, app: str, volume_id: str, state: str) -> dict[str, Any]:
    """The volume, once it is in a state."""

    async def look() -> Any:
        found = (await region.call("GET", f"/v1/apps/{app}/volumes/{volume_id}")).json
        assert found["state"] == state, found
        return found

    found: dict[str, Any] = await eventually(look)
    return found


async def machine_at(
    region: TestRegion, app: str, volume: str, command: str = "sleep 3600", *, path: str = "/data", **more: Any
) -> Answer:
    config = {
        "image": "busybox",
        "init": {"exec": ["/bin/sh", "-c", command]},
        "mounts": [{"path": path, "volume": volume}],
        "guest": GUEST,
        **more,
    }
    return await region.call("POST", f"/v1/apps/{app}/machines", {"config": config, "region": "syd"})


async def started(region: TestRegion, app: str, machine_id: str) -> str:
    """The path of a machine that runs."""
    path = f"/v1/apps/{app}/machines/{machine_id}"
    assert (await region.call("GET", f"{path}/wait?state=started&timeout=20")).status == 200
    return path


async def inside(region: TestRegion, path: str, cmd: str) -> str:
    answer = await region.call("POST", f"{path}/exec", {"cmd": cmd})
    assert answer.json["exit_code"] == 0, answer
    output: str = answer.json["stdout"]
    return output


async def destroy(region: TestRegion, path: str) -> None:
    assert (await region.call("DELETE", f"{path}?force=true")).status == 200

    async def gone() -> bool:
        return bool((await region.call("GET", path)).json["state"] == "destroyed")

    await eventually(gone)


async def snapshot(region: TestRegion, app: str, volume_id: str) -> dict[str, Any]:
    """A snapshot, once it is created."""
    path = f"/v1/apps/{app}/volumes/{volume_id}/snapshots"
    answer = await region.call("POST", path)
    assert (answer.status, answer.json["status"]) == (200, "creating"), answer

    async def created() -> Any:
        listed = (await region.call("GET", path)).json
        return next((each for each in listed if each["id"] == answer.json["id"] and each["status"] == "created"), None)

    taken: dict[str, Any] = await eventually(created)
    return taken


async def test_a_volume_is_answered_field_by_field_and_created_by_its_worker(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    body = {"size_gb": 2, "encrypted": True, "require_unique_zone": True, "snapshot_retention": 7, "compute": GUEST}
    created = await volume(lively_region, app, **body, auto_backup_enabled=None)
    assert set(created) == FIELDS
    assert created["state"] in ("creating", "created")
    found = await reaches(lively_region, app, created["id"], "created")
    assert set(found) == FIELDS
    assert found["id"].startswith("vol_001")
    assert {name: found[name] for name in FIELDS - {"id", "zone", "created_at"}} == {
        "name": "data",
        "state": "created",
        "size_gb": 2,
        "region": "syd",
        "encrypted": True,
        "attached_machine_id": None,
        "attached_alloc_id": None,
        "host_dedication_id": "",
        "snapshot_retention": 7,
        "auto_backup_enabled": True,
        "host_status": "ok",
    }
    assert found["zone"] in ("a", "b")
    listed = await lively_region.call("GET", f"/v1/apps/{app}/volumes")
    assert listed.json == [found]
    assert (await lively_region.call("GET", f"/v1/apps/{app}")).json["volume_count"] == 1


async def test_what_a_machine_writes_into_its_volume_outlives_it(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app, size_gb=1)
    machine = (await machine_at(lively_region, app, created["id"])).json
    path = await started(lively_region, app, machine["id"])
    assert machine["config"]["mounts"] == [{"path": "/data", "volume": created["id"]}]
    await inside(lively_region, path, "echo kept > data/file")
    assert (await reaches(lively_region, app, created["id"], "created"))["attached_machine_id"] == machine["id"]
    await destroy(lively_region, path)
    assert (await reaches(lively_region, app, created["id"], "created"))["attached_machine_id"] is None
    again = (await machine_at(lively_region, app, created["id"], path="/var/lib/x")).json
    path = await started(lively_region, app, again["id"])
    assert await inside(lively_region, path, "cat var/lib/x/file") == "kept\n"


async def test_a_name_takes_a_free_volume_of_that_name(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    volumes = [await volume(lively_region, app), await volume(lively_region, app)]
    machines = [(await machine_at(lively_region, app, "data")).json for _ in volumes]
    listed = (await lively_region.call("GET", f"/v1/apps/{app}/volumes")).json
    assert {each["attached_machine_id"] for each in listed} == {machine["id"] for machine in machines}
    had = {each["attached_machine_id"]: each["id"] for each in listed}
    for machine in machines:
        assert machine["config"]["mounts"] == [{"path": "/data", "volume": had[machine["id"]], "name": "data"}]
        path = f"/v1/apps/{app}/machines/{machine['id']}"
        assert (await lively_region.call("GET", path)).json["config"] == machine["config"]
        config = {**machine["config"], "mounts": [{"path": "/data", "name": "data"}]}
        updated = (await lively_region.call("POST", path, {"config": config})).json
        assert updated["config"]["mounts"] == machine["config"]["mounts"]
    answer = await machine_at(lively_region, app, "data")
    assert (answer.status, answer.json["status"]) == (409, "wrong_state")
    answer = await machine_at(lively_region, app, "other")
    assert (answer.status, answer.json["status"]) == (422, "missing_reference")
    assert "config.mounts[0].volume" in answer.json["error"]


async def test_a_volume_that_another_machine_has_or_that_is_not_there_is_refused(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app)
    machine = (await machine_at(lively_region, app, created["id"])).json
    answer = await machine_at(lively_region, app, created["id"])
    assert (answer.status, answer.json["status"]) == (409, "wrong_state")
    assert machine["id"] in answer.json["error"]
    answer = await machine_at(lively_region, app, "vol_0010000000000000")
    assert (answer.status, answer.json["status"]) == (422, "missing_reference")
    answer = await machine_at(lively_region, app, "vol_0020000000000000")
    assert (answer.status, answer.json["status"]) == (422, "volume_elsewhere")
    other = await lively_region.app()
    answer = await machine_at(lively_region, other, created["id"])
    assert (answer.status, answer.json["status"]) == (422, "missing_reference")


async def test_an_update_keeps_the_volume_and_cannot_change_it(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created, other = await volume(lively_region, app), await volume(lively_region, app, name="other")
    machine = (await machine_at(lively_region, app, "data")).json
    path = await started(lively_region, app, machine["id"])
    for mounts in ([{"path": "/data", "volume": other["id"]}], [{"path": "/data", "volume": "other"}], []):
        answer = await lively_region.call("POST", path, {"config": {**machine["config"], "mounts": mounts}})
        assert (answer.status, answer.json["status"]) == (400, "invalid_config"), mounts
        assert answer.json["error"].startswith("config.mounts[0].volume")
    for name in (created["id"], "data"):
        config = {**machine["config"], "mounts": [{"path": "/elsewhere", "volume": name}]}
        answer = await lively_region.call("POST", path, {"config": config})
        assert answer.status == 200, answer
    bare = await lively_region.machine(app)
    config = {**bare["config"], "mounts": [{"path": "/data", "volume": other["id"]}]}
    answer = await lively_region.call("POST", f"/v1/apps/{app}/machines/{bare['id']}", {"config": config})
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")


async def test_a_volume_in_use_is_not_deleted_and_a_deleted_one_stays_listed(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app)
    at = f"/v1/apps/{app}/volumes/{created['id']}"
    machine = (await machine_at(lively_region, app, created["id"])).json
    answer = await lively_region.call("DELETE", at)
    assert (answer.status, answer.json["status"]) == (409, "wrong_state")
    assert machine["id"] in answer.json["error"]
    await destroy(lively_region, await started(lively_region, app, machine["id"]))
    answer = await lively_region.call("DELETE", at)
    assert (answer.status, answer.json["id"]) == (200, created["id"])
    assert answer.json["state"] in ("pending_destroy", "destroying", "destroyed")
    await reaches(lively_region, app, created["id"], "destroyed")
    assert [each["id"] for each in (await lively_region.call("GET", f"/v1/apps/{app}/volumes")).json] == [created["id"]]
    assert (await lively_region.call("DELETE", at)).json["state"] == "destroyed"
    assert (await lively_region.call("GET", f"/v1/apps/{app}")).json["volume_count"] == 0


async def test_a_volume_grows_and_never_shrinks(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app, size_gb=2)
    at = f"/v1/apps/{app}/volumes/{created['id']}/extend"
    await machine_at(lively_region, app, created["id"])
    answer = await lively_region.call("PUT", at, {"size_gb": 3})
    assert answer.status == 200, answer
    assert set(answer.json) == {"volume", "needs_restart"}
    assert (answer.json["volume"]["size_gb"], answer.json["needs_restart"]) == (3, False)
    for size in (2, 0, 501, None):
        answer = await lively_region.call("PUT", at, {"size_gb": size})
        assert (answer.status, answer.json["status"]) == (400, "invalid_config"), size
        assert answer.json["error"].startswith("size_gb")
    assert (await reaches(lively_region, app, created["id"], "created"))["size_gb"] == 3


async def test_snapshots_are_measured_kept_and_restored_also_of_a_destroyed_volume(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app, snapshot_retention=9)
    machine = (await machine_at(lively_region, app, created["id"])).json
    path = await started(lively_region, app, machine["id"])
    await inside(lively_region, path, "mkdir -p data/deep; printf first > data/deep/file; ln -s deep/file data/link")
    taken = await snapshot(lively_region, app, created["id"])
    assert set(taken) == SNAPSHOT_FIELDS
    assert (taken["size"], taken["volume_size"], taken["retention_days"]) == (5, 1 << 30, 9)
    assert taken["id"].startswith("vs_001")
    assert taken["digest"].startswith("sha256:")
    await inside(lively_region, path, "printf second > data/deep/file")
    later = await snapshot(lively_region, app, created["id"])
    assert later["digest"] != taken["digest"]
    listed = (await lively_region.call("GET", f"/v1/apps/{app}/volumes/{created['id']}/snapshots")).json
    assert [each["id"] for each in listed] == [later["id"], taken["id"]]

    await destroy(lively_region, path)
    await lively_region.call("DELETE", f"/v1/apps/{app}/volumes/{created['id']}")
    await reaches(lively_region, app, created["id"], "destroyed")
    listed = (await lively_region.call("GET", f"/v1/apps/{app}/volumes/{created['id']}/snapshots")).json
    assert [each["id"] for each in listed] == [later["id"], taken["id"]]

    restored = await volume(lively_region, app, name="again", snapshot_id=taken["id"], size_gb=2)
    machine = (await machine_at(lively_region, app, restored["id"])).json
    path = await started(lively_region, app, machine["id"])
    assert await inside(lively_region, path, "cat data/link") == "first"
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes/{created['id']}/snapshots")
    assert (answer.status, answer.json["status"]) == (409, "wrong_state")


async def test_a_fork_is_a_copy_in_another_zone_that_inherits_what_is_null(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    source = await volume(lively_region, app, size_gb=2, snapshot_retention=11, encrypted=False)
    machine = (await machine_at(lively_region, app, source["id"])).json
    path = await started(lively_region, app, machine["id"])
    await inside(lively_region, path, "printf copied > data/file; chmod 640 data/file; mkfifo data/pipe")
    body = {
        "source_volume_id": source["id"], "require_unique_zone": True, "name": "data", "region": None, "size_gb": None,
        "encrypted": None, "snapshot_retention": None, "auto_backup_enabled": None, "fstype": None, "snapshot_id": None,
        "compute": None,
    }  # fmt: skip
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", body)
    assert answer.status == 200, answer
    fork = await reaches(lively_region, app, answer.json["id"], "created")
    assert {fork["zone"], source["zone"]} == {"a", "b"}
    assert (fork["size_gb"], fork["snapshot_retention"], fork["encrypted"]) == (2, 11, False)
    machine = (await machine_at(lively_region, app, fork["id"])).json
    path = await started(lively_region, app, machine["id"])
    assert await inside(lively_region, path, "ls data; stat -c %a data/file; cat data/file") == "file\n640\ncopied"
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", body)
    assert (answer.status, answer.json["status"]) == (422, "insufficient_capacity")
    assert "zone" in answer.json["error"]


async def test_room_for_the_machine_is_kept_beside_its_volume(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    large = {"cpu_kind": "shared", "cpus": 8, "memory_mb": 16_384}
    kept = await volume(lively_region, app, name="kept", compute=large)
    volumes = [await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "more", "compute": large})]
    while volumes[-1].status == 200:
        volumes.append(await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "more", "compute": large}))
    assert (volumes[-1].status, volumes[-1].json["status"]) == (422, "insufficient_capacity")
    assert "memory" in volumes[-1].json["error"]
    body = {"config": {"image": "busybox", "guest": large}, "skip_launch": True}
    assert (await lively_region.call("POST", f"/v1/apps/{app}/machines", body)).status == 422
    machine = await machine_at(lively_region, app, kept["id"], guest=large)
    assert machine.status == 200, machine
    bare = await volume(lively_region, app, name="bare")
    answer = await machine_at(lively_region, app, bare["id"], guest=large)
    assert (answer.status, answer.json["status"]) == (422, "insufficient_capacity")
    assert bare["id"] in answer.json["error"]
    assert "memory" in answer.json["error"]
    for each in volumes[:-1]:
        await lively_region.call("DELETE", f"/v1/apps/{app}/volumes/{each.json['id']}")


async def test_hints_that_no_machine_could_have_are_refused(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    body = {"name": "more", "region": "syd", "compute": {**GUEST, "memory_mb": 100}}
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", body)
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert answer.json["error"].startswith("compute.memory_mb")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "No"}, "name"),
        ({"name": ""}, "name"),
        ({"size_gb": -1}, "size_gb"),
        ({"size_gb": 501}, "size_gb"),
        ({"snapshot_retention": 0}, "snapshot_retention"),
        ({"snapshot_retention": 61}, "snapshot_retention"),
        ({"fstype": "ntfs"}, "fstype"),
        ({"region": "nowhere"}, "region"),
        ({"snapshot_id": "vs_0010", "source_volume_id": "vol_0010"}, "snapshot_id"),
    ],
)
async def test_a_wrong_request_names_the_field(lively_region: TestRegion, body: Any, field: str) -> None:
    app = await lively_region.app()
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", **body})
    assert (answer.status, answer.json["status"]) == (400, "invalid_config"), answer
    assert answer.json["error"].startswith(field)


async def test_what_a_volume_begins_with_must_be_there(lively_region: TestRegion) -> None:
    app, other = await lively_region.app(), await lively_region.app()
    theirs = await volume(lively_region, other)
    for body in (
        {"snapshot_id": "vs_0010000000000000"},
        {"source_volume_id": "vol_0010000000000000"},
        {"source_volume_id": theirs["id"]},
    ):
        answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "region": "syd", **body})
        assert (answer.status, answer.json["status"]) == (422, "missing_reference"), body
    answer = await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "data", "size_gb": 1_000_000})
    assert answer.status == 400


async def test_how_snapshots_are_kept_can_be_changed(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    created = await volume(lively_region, app)
    at = f"/v1/apps/{app}/volumes/{created['id']}"
    changed = await lively_region.call("PUT", at, {"snapshot_retention": 30, "auto_backup_enabled": None})
    assert (changed.json["snapshot_retention"], changed.json["auto_backup_enabled"]) == (30, True)
    changed = await lively_region.call("PUT", at, {"auto_backup_enabled": False})
    assert (changed.json["snapshot_retention"], changed.json["auto_backup_enabled"]) == (30, False)
    wrong = await lively_region.call("PUT", at, {"snapshot_retention": 0})
    assert (wrong.status, wrong.json["error"].split()[0]) == (400, "snapshot_retention")


async def test_a_volume_of_another_app_does_not_exist(lively_region: TestRegion) -> None:
    theirs = await volume(lively_region, await lively_region.app())
    app = await lively_region.app()
    for verb, path, body in (
        ("GET", "", None),
        ("PUT", "", {"snapshot_retention": 3}),
        ("DELETE", "", None),
        ("PUT", "/extend", {"size_gb": 3}),
        ("GET", "/snapshots", None),
        ("POST", "/snapshots", None),
    ):
        for volume_id in (theirs["id"], "vol_nonsense", "nonsense"):
            answer = await lively_region.call(verb, f"/v1/apps/{app}/volumes/{volume_id}{path}", body)
            assert (answer.status, answer.json["status"]) == (404, "not_found"), (verb, path, volume_id)


async def test_an_idempotency_key_makes_one_volume(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    key = {"idempotency-key": "once"}
    first, second = [
        await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "data"}, headers=key) for _ in range(2)
    ]
    assert first.json["id"] == second.json["id"]
    other = await lively_region.call("POST", f"/v1/apps/{app}/volumes", {"name": "other"}, headers=key)
    assert (other.status, other.json["status"]) == (422, "idempotency_conflict")


async def test_grpc_answers_the_same_as_rest(lively_region: TestRegion) -> None:
    app = await lively_region.app()
    async with connect([lively_region.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as channel:
        stub: Any = VolumesStub(channel)
        created = (
            await stub.CreateVolume(api.CreateVolumeRequest(app_name=app, name="data", size_gb=1), metadata=BEARER)
        ).volume
        found = await reaches(lively_region, app, created.id, "created")
        listed = (await stub.ListVolumes(api.ListVolumesRequest(app_name=app), metadata=BEARER)).volumes
        assert [(each.id, each.state, each.zone) for each in listed] == [(found["id"], "created", found["zone"])]
        machine = (await machine_at(lively_region, app, created.id)).json
        with pytest.raises(WrongState, match=machine["id"]):
            await stub.DeleteVolume(api.DeleteVolumeRequest(app_name=app, volume_id=created.id), metadata=BEARER)
        with pytest.raises(NotFound):
            await stub.GetVolume(api.GetVolumeRequest(app_name=app, volume_id="vol_0010"), metadata=BEARER)
        with pytest.raises(MissingReference):
            await stub.CreateVolume(
                api.CreateVolumeRequest(app_name=app, name="data", snapshot_id="vs_0010"), metadata=BEARER
            )
