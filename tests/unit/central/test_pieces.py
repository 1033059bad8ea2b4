"""The small pieces of the centre: releases, the vault, faults, settings, queries."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.central import releases
from services.central.database import HEAD, QUERIES, load_queries
from services.central.errors import Invalid, Refusal
from services.central.faults import Faults
from services.central.legacy import PARTS
from services.central.settings import CentralSettings
from services.central.vault import Vault
from services.runtime.clock import FakeClock

KEY = bytes(range(32))


def test_built_in_releases_tell_the_story_of_a_hand_over() -> None:
    assert set(releases.RELEASES["1"].parts) == set(PARTS)
    assert "guest" not in releases.RELEASES["2"].parts
    assert set(releases.RELEASES["3"].parts) == set(PARTS) - {"guest", "services"}
    assert releases.RELEASES["1.1"].parts["image"] == (1, 2)


def test_releases_of_a_file_come_beside_the_built_in_ones(tmp_path: Path) -> None:
    file = tmp_path / "releases.toml"
    file.write_text('[release."4"]\ndrops = ["guest", "dns"]\nversions = { image = [2, 1] }\n[release.all]\n')
    four = releases.choose("4", file)
    assert four.parts["image"] == (1, 2)
    assert not {"guest", "dns"} & set(four.parts)
    assert set(releases.choose("all", file).parts) == set(PARTS)
    assert releases.choose("1", file) == releases.RELEASES["1"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("not toml [", "cannot be read"),
        ('[release.x]\ndrops = ["tentacles"]\n', "tentacles"),
        ("[release.x]\nversions = { image = [9] }\n", "image"),
        ("[release.x]\nversions = { image = [] }\n", "image"),
        ("[release.x]\nkeeps = []\n", "drops and versions"),
        ('[release.x]\ndrops = "guest"\n', "drops"),
    ],
)
def test_a_file_of_releases_that_is_wrong_is_refused_saying_where(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "releases.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=names):
        releases.load(file)


def test_a_release_that_there_is_not_is_refused_naming_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"1\.1"):
        releases.choose("77", None)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(min_size=1, max_size=5), st.text(max_size=5))
def test_a_secret_opens_for_its_owner_only(value: str, app: str, name: str) -> None:
    vault = Vault(KEY, os.urandom)
    sealed = vault.seal(app, name, value)
    assert vault.open(app, name, sealed) == value
    for other_app, other_name in ((app + "x", name), (app, name + "x")):
        with pytest.raises(Refusal):
            vault.open(other_app, other_name, sealed)


def test_a_secret_that_was_tampered_with_does_not_open() -> None:
    vault = Vault(KEY, os.urandom)
    sealed = bytearray(vault.seal("app", "A", "value"))
    for at in range(len(sealed)):
        sealed[at] ^= 1
        with pytest.raises(Refusal):
            vault.open("app", "A", bytes(sealed))
        sealed[at] ^= 1


def test_equal_secrets_are_sealed_differently_and_have_different_digests_in_different_places() -> None:
    vault = Vault(KEY, os.urandom)
    assert vault.seal("app", "A", "value") != vault.seal("app", "A", "value")
    assert vault.digest("app", "A", "value") == vault.digest("app", "A", "value")
    assert vault.digest("app", "A", "value") != vault.digest("app", "B", "value")


async def test_a_fault_is_as_slow_and_as_frequent_as_it_was_set() -> None:
    clock = FakeClock()
    faults = Faults(clock, Random(1))
    assert not any([await faults.suffer() for _ in range(50)])
    faults.set({"error_rate": 0.3})
    failed = sum([await faults.suffer() for _ in range(1000)])
    assert 240 < failed < 360
    faults.set({"error_rate": 1})
    assert all([await faults.suffer() for _ in range(50)])
    with pytest.raises(Invalid):
        faults.set({"slow_ms": 1e9})
    assert faults.shown() == {"slow_ms": 0, "error_rate": 1.0}


REQUIRED = {"token": "t", "secret_key": "00" * 32, "region_map": "regions.toml", "database": "postgresql:///x"}


@pytest.mark.parametrize(
    "changed",
    [
        {"listen": "nowhere"},
        {"listen": "host:99999"},
        {"secret_key": "00"},
        {"secret_key": "no hex" * 10},
        {"token": ""},
        {"database": None},
        {"postgres_dir": "/somewhere"},
        {"surprise": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused_without_showing_them(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        CentralSettings(**{**REQUIRED, **changed})  # type: ignore[arg-type]
    assert "postgresql:///x" not in str(refused.value)


def test_settings_come_from_the_environment_and_hide_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**REQUIRED, "listen": "[::1]:4100", "gateways": '{"syd": "http://x"}'}.items():
        monkeypatch.setenv(f"SKERRY_CENTRAL_{name.upper()}", value)
    settings = CentralSettings()  # type: ignore[call-arg]
    assert settings.host_and_port == ("::1", 4100)
    assert settings.gateways == {"syd": "http://x"}
    assert settings.key == bytes(32)
    assert "00" * 32 not in repr(settings)


def test_queries_have_names_that_are_theirs_alone(tmp_path: Path) -> None:
    assert QUERIES["lock_feed"].endswith("FOR UPDATE")
    (tmp_path / "a.sql").write_text("-- name: one\nSELECT 1\n\n-- name: one\nSELECT 2\n")
    with pytest.raises(ValueError, match="one"):
        load_queries(tmp_path)


def test_the_newest_migration_is_the_one_that_the_program_wants() -> None:
    versions = Path(releases.__file__).parent / "schema" / "versions"
    newest = max(path.name for path in versions.glob("0*.py"))
    assert newest.startswith(HEAD)
