"""Secrets of a worker: the newest that the store has, kept sealed for when it is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from skerry.store.v1.catalog_pb2 import SecretEntry, SecretsRecord
from skerry.store.v1.store_pb2 import MachineRecord

from services.runtime.errors import DependencyDown
from services.runtime.sealing import Keyring
from services.worker.drivers.driver import CannotRun
from services.worker.secrets import AppSecrets

KEYS = Keyring([b"k" * 32])


class Store:
    """The secrets of the apps, as the store has them."""

    def __init__(self) -> None:
        self.records: dict[str, SecretsRecord] = {}
        self.away = False
        self.asked = 0

    def set(self, app_id: str, version: int, keyring: Keyring = KEYS, **values: str) -> None:
        record = SecretsRecord(app_id=app_id, version=version)
        for name, value in values.items():
            sealed = keyring.seal(app_id, name, value)
            record.secrets.append(SecretEntry(name=name, key_id=sealed.key_id, sealed=sealed.content))
        self.records[app_id] = record

    async def fetch(self, app_id: str) -> SecretsRecord | None:
        self.asked += 1
        if self.away:
            raise DependencyDown("the store is away")
        return self.records.get(app_id)


@pytest.fixture
def store() -> Store:
    return Store()


def machine(app_id: str = "app", *, min_version: int = 0, skip: bool = False) -> MachineRecord:
    record = MachineRecord(id="m", app_id=app_id)
    record.spec.secrets.min_version = min_version
    record.spec.secrets.skip = skip
    return record


async def test_every_start_gets_the_newest_secrets(store: Store, tmp_path: Path) -> None:
    secrets = AppSecrets(tmp_path / "secrets", store.fetch, KEYS)
    assert await secrets.of(machine()) == {}
    store.set("app", 1, A="one")
    assert await secrets.of(machine()) == {"A": "one"}
    store.set("app", 2, A="two", B="")
    assert await secrets.of(machine()) == {"A": "two", "B": ""}


async def test_the_last_secrets_are_there_while_the_store_is_away_also_for_the_next_agent(
    store: Store, tmp_path: Path
) -> None:
    store.set("app", 3, A="hunter2")
    await AppSecrets(tmp_path / "secrets", store.fetch, KEYS).of(machine())
    store.away = True
    again = AppSecrets(tmp_path / "secrets", store.fetch, KEYS)
    assert await again.of(machine()) == {"A": "hunter2"}
    assert await again.of(machine(min_version=3)) == {"A": "hunter2"}
    with pytest.raises(DependencyDown, match=r"version 4 of its secrets.*has version 3"):
        await again.of(machine(min_version=4))
    with pytest.raises(DependencyDown, match="away"):
        await again.of(machine("another"))


async def test_nothing_on_the_disk_shows_a_value_or_is_readable_by_others(store: Store, tmp_path: Path) -> None:
    store.set("../../app", 1, A="hunter2")
    assert await AppSecrets(tmp_path / "secrets", store.fetch, KEYS).of(machine("../../app")) == {"A": "hunter2"}
    (file,) = (tmp_path / "secrets").iterdir()
    assert b"hunter2" not in file.read_bytes()
    assert (file.stat().st_mode & 0o077, file.parent.stat().st_mode & 0o077) == (0, 0)


async def test_what_is_kept_goes_with_the_last_machine_of_its_app(store: Store, tmp_path: Path) -> None:
    secrets = AppSecrets(tmp_path / "secrets", store.fetch, KEYS)
    secrets.forget_all_but(frozenset())
    for app_id in ("one", "two"):
        store.set(app_id, 1, A=app_id)
        await secrets.of(machine(app_id))
    secrets.forget_all_but(frozenset({"two"}))
    store.away = True
    assert await secrets.of(machine("two")) == {"A": "two"}
    with pytest.raises(DependencyDown):
        await secrets.of(machine("one"))
    assert len(list((tmp_path / "secrets").iterdir())) == 1


async def test_a_machine_that_uses_no_secrets_asks_for_none(store: Store, tmp_path: Path) -> None:
    store.set("app", 1, A="one")
    secrets = AppSecrets(tmp_path, store.fetch, KEYS)
    skipping = machine(skip=True)
    assert (await secrets.of(skipping), store.asked) == ({}, 0)
    skipping.spec.files.files.add(path="/a", secret_name="A")
    assert await secrets.of(skipping) == {"A": "one"}
    assert await AppSecrets(tmp_path, store.fetch, None).of(machine()) == {}


async def test_a_machine_whose_secrets_do_not_open_cannot_run_and_the_reason_names_the_setting(
    store: Store, tmp_path: Path
) -> None:
    store.set("app", 1, Keyring([b"x" * 32]), A="hunter2")
    with pytest.raises(CannotRun, match="secrets_keys") as refused:
        await AppSecrets(tmp_path, store.fetch, KEYS).of(machine())
    assert "hunter2" not in str(refused.value)
