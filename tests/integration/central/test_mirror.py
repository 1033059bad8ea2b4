"""The mirror: at least once, in order, idempotent; snapshots; what clients then see of machines and releases."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.integration.central.centres import Centre, GraphQLFailed

EVENTS = "mutation($input: MirrorEventsInput!) { mirrorEvents(input: $input) { revision } }"
SNAPSHOT = "mutation($input: MirrorSnapshotInput!) { mirrorSnapshot(input: $input) { revision } }"


def machine(app_id: str, revision: int, key: str = "00100000000001", **changed: Any) -> dict[str, Any]:
    payload = {
        "id": key,
        "name": f"m-{key}",
        "app_id": app_id,
        "state": "MACHINE_STATE_STARTED",
        "region": "syd",
        "instance_id": "01ABC",
        "created_at": "2026-11-24T00:00:00Z",
        "config": {"image": "nginx"},
        "worker_id": "w1",
        "private_ip": "fdaa:0:1:2:3:4:5:6",
        **changed,
    }
    return {"revision": revision, "kind": "machine", "key": key, "payload": payload}


async def send(centre: Centre, events: list[dict[str, Any]], cell: str = "001") -> int:
    revision: int = (await centre.ask(EVENTS, input={"cell": cell, "events": events}))["mirrorEvents"]["revision"]
    return revision


async def machines(centre: Centre, app: str = "web") -> dict[str, str]:
    """Id to state of the machines that an app is seen to have."""
    answer = await centre.ask("query($app: String!) { app(name: $app) { machines { nodes { id state } } } }", app=app)
    return {node["id"]: node["state"] for node in answer["app"]["machines"]["nodes"]}


async def test_machines_that_a_cell_tells_of_are_seen_by_clients(centre: Centre) -> None:
    app = await centre.create_app("web")
    assert await send(centre, [machine(app["id"], 1), machine(app["id"], 2, "00100000000002", state="stopped")]) == 2
    assert await machines(centre) == {"00100000000001": "started", "00100000000002": "stopped"}
    answer = await centre.ask(
        "query($id: String!) { gqlmachine: machine(machineId: $id) { id name state region config createdAt host { id }"
        " ips { nodes { family kind ip maskSize } } app { name organization { id slug } } } }",
        id="00100000000001",
    )
    shown = answer["gqlmachine"]
    assert shown["app"]["name"] == "web"
    assert shown["config"] == {"image": "nginx"}
    assert shown["ips"]["nodes"][0]["ip"] == "fdaa:0:1:2:3:4:5:6"
    with pytest.raises(GraphQLFailed, match="Could not find Machine"):
        await centre.ask('{ machine(machineId: "nothing") { id } }')


async def test_events_that_come_again_change_nothing_and_a_gap_is_answered_with_where_to_go_on(centre: Centre) -> None:
    app = await centre.create_app("web")
    first = [machine(app["id"], 1), machine(app["id"], 2, state="stopped")]
    assert await send(centre, first) == 2
    assert await send(centre, first) == 2
    assert await machines(centre) == {"00100000000001": "stopped"}
    assert await send(centre, [machine(app["id"], 4, state="started")]) == 2
    assert await machines(centre) == {"00100000000001": "stopped"}
    mixed = [first[1], machine(app["id"], 3, state="suspended"), machine(app["id"], 5, state="started")]
    assert await send(centre, mixed) == 3
    assert await machines(centre) == {"00100000000001": "suspended"}
    assert await send(centre, []) == 3
    assert await send(centre, [], cell="002") == 0


async def test_a_sender_that_loses_answers_and_repeats_itself_ends_with_the_state_that_it_meant(centre: Centre) -> None:
    app = await centre.create_app("web")
    random = Random(7)
    states = ("started", "stopped", "suspended")
    log: list[dict[str, Any]] = []
    meant: dict[str, str] = {}
    for revision in range(1, 201):
        key = f"001{random.randrange(6):011x}"
        if random.random() < 0.2:
            log.append({"revision": revision, "kind": "machine", "key": key, "payload": None})
            meant.pop(key, None)
        else:
            meant[key] = random.choice(states)
            log.append(machine(app["id"], revision, key, state=meant[key]))
    acknowledged = 0
    while acknowledged < len(log):
        start = max(0, acknowledged + random.randrange(-10, 3))
        answer = await send(centre, log[start : start + random.randrange(1, 40)])
        if random.random() < 0.7:
            acknowledged = answer
    assert await machines(centre) == meant


async def test_two_cells_do_not_disturb_each_other(centre: Centre) -> None:
    app = await centre.create_app("web")
    await send(centre, [machine(app["id"], 1)])
    await send(centre, [machine(app["id"], 1, "00200000000001", region="iad")], cell="002")
    assert len(await machines(centre)) == 2
    answer = await centre.ask('{ app(name: "web") { regions { code } } }')
    assert [region["code"] for region in answer["app"]["regions"]] == ["syd", "iad"]


async def test_a_snapshot_in_pages_takes_the_place_of_everything_the_cell_told_before(centre: Centre) -> None:
    app = await centre.create_app("web")
    await send(centre, [machine(app["id"], 1), machine(app["id"], 2, "00100000000002")])
    await send(centre, [machine(app["id"], 1, "00200000000001")], cell="002")
    keys = [f"001{i:011x}" for i in range(10, 15)]
    records = [machine(app["id"], 90, key) for key in keys]
    pages = [records[:2], records[2:4], records[4:]]

    async def page(number: int) -> int:
        sent = [{name: r[name] for name in ("kind", "key", "payload")} for r in pages[number]]
        given = {"cell": "001", "revision": 90, "records": sent, "first": number == 0, "last": number == len(pages) - 1}
        revision: int = (await centre.ask(SNAPSHOT, input=given))["mirrorSnapshot"]["revision"]
        return revision

    assert await page(0) == 2
    assert await page(1) == 2
    assert await page(1) == 2  # Its answer was lost.
    assert len(await machines(centre)) == 3  # Nothing of it shows before it is whole.
    assert await page(2) == 90
    assert set(await machines(centre)) == {*keys, "00200000000001"}
    assert await send(centre, [machine(app["id"], 91, keys[0], state="stopped")]) == 91


async def test_an_app_is_pending_then_deployed_then_suspended_and_regions_are_told(centre: Centre) -> None:
    app = await centre.create_app("web")
    begin = (await centre.changes())["position"]
    await send(centre, [machine(app["id"], 1)])
    await send(centre, [machine(app["id"], 2, state="stopped")])
    await send(centre, [machine(app["id"], 3, state="MACHINE_STATE_DESTROYED")])
    await send(centre, [{"revision": 4, "kind": "machine", "key": "00100000000001", "payload": None}])
    changes = (await centre.changes(begin))["changes"]
    assert [(c["kind"], c["payload"]["status"]) for c in changes] == [("app", "deployed"), ("app", "suspended")]
    assert await machines(centre) == {}
    with pytest.raises(GraphQLFailed, match="Could not find Machine"):
        await centre.ask('{ machine(machineId: "00100000000001") { id } }')


async def test_releases_and_volumes_of_the_mirror_are_shown(centre: Centre) -> None:
    app = await centre.create_app("web")
    releases = [
        {
            "revision": version,
            "kind": "release",
            "key": f"rel-{version}",
            "payload": {
                "id": f"rel-{version}",
                "app_id": app["id"],
                "version": version,
                "status": "complete",
                "stable": True,
                "user": "me@example.com",
                "image_ref": "nginx:1",
                "created_at": "2026-11-24T00:00:00Z",
                "definition": {"app": "web"},
            },
        }
        for version in (1, 2)
    ]
    volume = {
        "revision": 3,
        "kind": "volume",
        "key": "vol_001a",
        "payload": {"app_id": app["id"], "name": "data", "state": "created", "region": "syd"},
    }
    assert await send(centre, [*releases, volume]) == 3
    answer = await centre.ask(
        '{ app(name: "web") { status currentRelease { version user { email } }'
        " currentReleaseUnprocessed { version configDefinition }"
        " releasesUnprocessed(first: 5)"
        " { nodes { id version description reason status imageRef stable user { id } createdAt } } }"
        ' volume(id: "vol_001a") { ... on Volume { app { name } state } } }'
    )
    shown = answer["app"]
    assert shown["currentRelease"] == {"version": 2, "user": {"email": "me@example.com"}}
    assert shown["currentReleaseUnprocessed"]["configDefinition"] == {"app": "web"}
    assert [node["version"] for node in shown["releasesUnprocessed"]["nodes"]] == [2, 1]
    assert shown["status"] == "suspended"
    assert answer["volume"] == {"app": {"name": "web"}, "state": "created"}
    over_rest = (await centre.http.get("/api/v1/apps/web/releases")).json()["releases"]
    assert [release["version"] for release in over_rest] == [2, 1]


async def test_revisions_may_be_larger_than_32_bits(centre: Centre) -> None:
    large = 1 << 40
    await centre.ask(SNAPSHOT, input={"cell": "001", "revision": large, "records": []})
    assert await send(centre, [machine("nobody", large + 1)]) == large + 1


@pytest.mark.parametrize(
    ("cell", "payload"),
    [("000", {}), ("xyz", {}), ("001", {"app_id": 5}), ("001", [])],
)
async def test_what_no_cell_would_send_is_refused(centre: Centre, cell: str, payload: Any) -> None:
    with pytest.raises(GraphQLFailed) as refused:
        await send(centre, [{"revision": 1, "kind": "machine", "key": "a", "payload": payload}], cell=cell)
    assert refused.value.code == "INVALID"
    assert await send(centre, []) == 0
