"""The log as events for the centre."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL, PartPlan, Plan
from skerry.store.v1.release_pb2 import RELEASE_STATUS_COMPLETE, RELEASE_STATUS_RUNNING, ReleaseRecord
from skerry.store.v1.store_pb2 import AppRecord, Change, Lease, MachineRecord, WorkerRecord
from skerry.store.v1.volume_store_pb2 import VOLUME_STATE_CREATED, VOLUME_STATE_DESTROYED, VolumeRecord
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.machine_pb2 import HOST_STATUS_OK, MACHINE_STATE_DESTROYED, MACHINE_STATE_STARTED

from services.central_sync.mirroring import NOTHING, events_of, state_of


def machine(revision: int, key: str = "m1", state: int = MACHINE_STATE_STARTED) -> Change:
    record = MachineRecord(id=key, app_id="a1", name=f"at-{revision}", config=MachineConfig(image="nginx"))
    record.state = state  # type: ignore[assignment]
    return Change(revision=revision, machine=record)


def test_there_is_one_event_for_each_revision_whatever_the_log_shows() -> None:
    events = events_of([machine(4, "m1"), machine(6, "m2")], 2, 8)
    assert [(event.revision, event.kind, event.key) for event in events] == [
        (3, NOTHING, ""),
        (4, "machine", "m1"),
        (5, NOTHING, ""),
        (6, "machine", "m2"),
        (7, NOTHING, ""),
        (8, NOTHING, ""),
    ]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 5))
def test_of_each_record_the_last_state_has_content_and_no_other(keys: list[str], after: int) -> None:
    changes = [machine(after + 1 + index, key) for index, key in enumerate(keys)]
    events = [*events_of(changes, after, after + len(keys))]
    assert [event.revision for event in events] == [change.revision for change in changes]
    final = {event.key: event.payload for event in events if event.payload is not None}
    assert final.keys() == set(keys)
    for key, payload in final.items():
        last = max(index for index, each in enumerate(keys) if each == key)
        assert payload["name"] == f"at-{after + 1 + last}"
    assert sum(event.payload is not None for event in events) == len(final)


def test_a_machine_goes_up_with_its_public_configuration() -> None:
    (event,) = events_of([machine(1)], 0, 1)
    assert event.payload is not None
    assert (event.payload["state"], event.payload["app_id"]) == ("started", "a1")
    assert event.payload["config"] == {"image": "nginx"}


def test_a_lease_goes_up_without_its_nonce() -> None:
    change = machine(1)
    change.machine.lease.CopyFrom(Lease(nonce="n1", owner="ann", description="deploy"))
    change.machine.lease.expires_at.FromJsonString("2026-11-24T10:00:30Z")
    (event,) = events_of([change], 0, 1)
    assert event.payload is not None
    assert event.payload["lease"] == {"owner": "ann", "description": "deploy", "expires_at": "2026-11-24T10:00:30Z"}


def test_a_destroyed_machine_is_gone() -> None:
    (event,) = events_of([machine(1, state=MACHINE_STATE_DESTROYED)], 0, 1)
    assert (event.kind, event.key, event.payload) == ("machine", "m1", None)
    assert state_of([machine(1, state=MACHINE_STATE_DESTROYED)]) == []


def test_workers_and_the_plan_go_up_and_what_the_centre_is_the_origin_of_does_not() -> None:
    changes = [
        Change(revision=1, worker=WorkerRecord(id="w1", zone="a", status=HOST_STATUS_OK)),
        Change(revision=2, plan=Plan(epoch=3, parts=[PartPlan(part="env", mode=PART_MODE_LOCAL)])),
        Change(revision=3, app=AppRecord(id="a1", name="web")),
    ]
    worker, plan, app = events_of(changes, 0, 3)
    assert worker.payload is not None
    assert (worker.payload["zone"], worker.payload["status"]) == ("a", "ok")
    assert plan.payload is not None
    assert plan.payload["parts"] == [{"part": "env", "mode": "PART_MODE_LOCAL"}]
    assert (app.kind, app.payload) == (NOTHING, None)
    assert [event.kind for event in state_of(changes)] == ["worker", "plan"]


def test_a_volume_goes_up_until_it_is_destroyed() -> None:
    record = VolumeRecord(id="vol_001a", app_id="a1", name="data", size_bytes=3 << 30, state=VOLUME_STATE_CREATED)
    (event,) = events_of([Change(revision=1, volume=record)], 0, 1)
    assert (event.kind, event.key) == ("volume", "vol_001a")
    assert event.payload is not None
    assert (event.payload["state"], event.payload["size_gb"]) == ("created", 3)
    record.state = VOLUME_STATE_DESTROYED
    (event,) = events_of([Change(revision=2, volume=record)], 1, 2)
    assert (event.key, event.payload) == ("vol_001a", None)


def test_a_release_goes_up_with_its_number_and_its_definition() -> None:
    record = ReleaseRecord(
        id="001r", app_id="a1", version=7, status=RELEASE_STATUS_RUNNING, definition_json='{"app":"web"}'
    )
    running, done = ReleaseRecord(), ReleaseRecord()
    running.CopyFrom(record)
    done.CopyFrom(record)
    done.status = RELEASE_STATUS_COMPLETE
    (event,) = events_of([Change(revision=1, release=running)], 0, 1)
    assert (event.kind, event.key) == ("release", "001r")
    assert event.payload is not None
    assert (event.payload["version"], event.payload["definition"]) == (7, {"app": "web"})
    assert (event.payload["status"], event.payload["in_progress"], event.payload["stable"]) == ("running", True, False)
    (told,) = state_of([Change(revision=2, release=done)])
    assert told.payload is not None
    assert (told.payload["status"], told.payload["in_progress"], told.payload["stable"]) == ("complete", False, True)
