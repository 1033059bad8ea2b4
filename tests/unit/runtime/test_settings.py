"""Settings: where they come from, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field

from services.runtime.errors import InvalidConfig
from services.runtime.settings import Section, Settings

TOML = """
region = "syd"
cell = "0a1"
secret = "from the file"

[addresses]
internal = "127.0.0.1:7000"

[peers]
machine-store = ["127.0.0.1:7001", "127.0.0.1:7002"]

[process.images]
"nginx" = ["python3", "-m", "http.server"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "skerry.toml"
    path.write_text(TOML)
    return path


def test_a_file_is_read(file: Path) -> None:
    settings = Settings.load(file)
    assert settings.region == "syd"
    assert settings.addresses.internal == "127.0.0.1:7000"
    assert settings.addresses.metrics is None
    assert settings.peers["machine-store"] == ("127.0.0.1:7001", "127.0.0.1:7002")


def test_the_environment_goes_before_the_file_and_arguments_before_both(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKERRY_REGION", "iad")
    monkeypatch.setenv("SKERRY_CELL", "00b")
    monkeypatch.setenv("SKERRY_ADDRESSES__METRICS", "127.0.0.1:9000")
    settings = Settings.load(file, cell="00c")
    assert (settings.region, settings.cell) == ("iad", "00c")
    assert settings.addresses.internal == "127.0.0.1:7000"
    assert settings.addresses.metrics == "127.0.0.1:9000"


def test_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_REGION", "iad")
    assert Settings.load().region == "iad"


def test_two_files_do_not_mix(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('region = "fra"')
    assert (Settings.load(file).region, Settings.load(other).region, Settings.load(file).cell) == ("syd", "fra", "0a1")


def test_a_service_adds_sections_of_its_own(file: Path) -> None:
    class Process(Section):
        images: Mapping[str, list[str]] = Field(default_factory=dict)

    class WorkerSettings(Settings):
        process: Process = Process()

    assert WorkerSettings.load(file).process.images["nginx"][0] == "python3"


def test_wrong_settings_are_all_named_and_none_is_shown(file: Path) -> None:
    file.write_text('cell = "000"\nsecret = 17\n[limits]\nbody_bytes = -5\n[addresses]\nintrenal = "x"')
    with pytest.raises(InvalidConfig) as raised:
        Settings.load(file)
    fields = {violation.field for violation in raised.value.violations}
    assert fields == {"region", "cell", "secret", "limits.body_bytes", "addresses.intrenal"}
    assert "17" not in raised.value.message


def test_secrets_do_not_show(file: Path) -> None:
    settings = Settings.load(file)
    assert "from the file" not in f"{settings!r} {settings}"
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == "from the file"


@pytest.mark.parametrize("text", [None, "region ="])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "skerry.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidConfig, match=str(path)):
        Settings.load(path)
