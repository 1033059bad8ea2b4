"""What a filter lets through, and which versions are remembered."""

from __future__ import annotations

import pytest
from skerry.store.v1.store_pb2 import (
    RECORD_KIND_APP,
    RECORD_KIND_MACHINE,
    RECORD_KIND_WORKER,
    AppRecord,
    Change,
    MachineRecord,
    WatchFilter,
    WorkerRecord,
)
from skerry.types.v1.config_pb2 import MachineConfig

from services.machine_store.changes import Selection
from services.machine_store.queries import load
from services.machine_store.steps import Version
from services.machine_store.watch import Versions

MACHINE = Change(machine=MachineRecord(id="m1", app_id="a1", worker_id="w1", leaving_worker_id="w2"))
WORKER = Change(worker=WorkerRecord(id="w1"))
APP = Change(app=AppRecord(id="a1"))


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (WatchFilter(), "machine worker app"),
        (WatchFilter(kinds=[RECORD_KIND_MACHINE]), "machine"),
        (WatchFilter(kinds=[RECORD_KIND_WORKER, RECORD_KIND_APP]), "worker app"),
        (WatchFilter(worker_id="w1"), "machine"),
        (WatchFilter(worker_id="w2"), "machine"),
        (WatchFilter(worker_id="w3"), ""),
        (WatchFilter(app_id="a1"), "machine"),
        (WatchFilter(app_id="a2"), ""),
        (WatchFilter(machine_id="m1", app_id="a1", worker_id="w1"), "machine"),
        (WatchFilter(machine_id="m2", app_id="a1"), ""),
        (WatchFilter(worker_id="w2", kinds=[RECORD_KIND_WORKER, RECORD_KIND_MACHINE]), "machine"),
        (WatchFilter(worker_id="w1", kinds=[RECORD_KIND_WORKER]), "worker"),
        (WatchFilter(app_id="a2", kinds=[RECORD_KIND_APP]), ""),
    ],
)
def test_a_filter_lets_through_what_it_names(wanted: WatchFilter, passes: str) -> None:
    selection = Selection(wanted)
    passed = [change.WhichOneof("record") for change in (MACHINE, WORKER, APP) if selection.passes(change)]
    assert " ".join(map(str, passed)) == passes


def version(instance_id: str, image: str) -> Version:
    return Version(instance_id, MachineConfig(image=image).SerializeToString(), b"", b"")


class Table:
    """Versions that can be read, and which were."""

    def __init__(self, *versions: Version) -> None:
        self.versions = {one.instance_id: one for one in versions}
        self.read: list[list[str]] = []

    async def fetch(self, statement: str, machine_ids: list[str], instance_ids: list[str]) -> list[dict[str, object]]:
        assert len(machine_ids) == len(instance_ids)
        self.read.append(instance_ids)
        return [self.versions[one]._asdict() for one in instance_ids if one in self.versions]


def of(instance_id: str) -> Change:
    return Change(machine=MachineRecord(id=f"m-{instance_id}", instance_id=instance_id))


async def test_versions_are_read_once_and_complete_copies() -> None:
    table, versions = Table(version("i1", "nginx"), version("i2", "redis")), Versions()
    versions.keep([version("i1", "nginx")])
    changes = [of("i1"), of("i2"), WORKER, of("gone")]
    for _ in range(2):
        whole = await versions.complete(changes, table.fetch)
        assert [change.machine.config.image for change in whole] == ["nginx", "redis", "", ""]
    assert table.read == [["i2", "gone"], ["gone"]]
    assert not changes[0].machine.HasField("config")


async def test_versions_that_were_not_asked_for_longest_are_forgotten_first() -> None:
    table = Table(version("i1", "a"), version("i2", "b"), version("i3", "c"))
    versions = Versions(most_bytes=450)
    versions.keep([version("i1", "a"), version("i2", "b")])
    await versions.complete([of("i1")], table.fetch)
    versions.keep([version("i3", "c")])
    await versions.complete([of("i1"), of("i3"), of("i2")], table.fetch)
    assert table.read == [["i2"]]


def test_statements_are_found_by_their_names_with_their_descriptions() -> None:
    machines = load("machines")
    assert machines["get_machine_basic"].endswith("FROM machines WHERE id = $1")
    assert machines["get_machine_basic"].startswith("-- One machine")
    for file in ("catalog", "functions", "log", "machines", "workers"):
        for name, statement in load(file).items():
            assert statement.startswith("-- "), f"{file}.{name} has no description"
    with pytest.raises(FileNotFoundError):
        load("nothing")
