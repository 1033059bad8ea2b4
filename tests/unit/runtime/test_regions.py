"""The region map."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.errors import InvalidConfig, NotFound
from services.runtime.regions import RegionMap

EXAMPLE = Path(__file__).parents[3] / "deploy" / "regions.toml"


def test_the_example_is_valid() -> None:
    regions = RegionMap.load(EXAMPLE)
    assert [region.code for region in regions.regions] == ["syd", "iad", "fra"]
    assert regions.region("fra").cells[0].gateways == ("gateway.fra.example.net:8443",)
    assert regions.region_of_cell("002").code == "iad"


def test_an_unknown_region_is_an_invalid_field_and_names_those_there_are() -> None:
    with pytest.raises(InvalidConfig, match="fra, iad, syd") as raised:
        RegionMap.load(EXAMPLE).region("lhr")
    assert [violation.field for violation in raised.value.violations] == ["region"]


def test_an_unknown_cell_is_not_found() -> None:
    with pytest.raises(NotFound, match="00f"):
        RegionMap.load(EXAMPLE).region_of_cell("00f")


@pytest.mark.parametrize(
    ("toml", "fields"),
    [
        ("", ["region"]),
        ('[[region]]\nname = "x"\ncells = []', ["region[0].code"]),
        ('[[region]]\ncode = "a"\ncells = [{}]', ["region[0].id"]),
        ('[[region]]\ncode = "a"\nlatitude = "north"\ncells = [{id = "001"}]', ["region[0]"]),
        ('[[region]]\ncode = "a"\ncells = []', ["region[0].cells"]),
        ('[[region]]\ncode = ""\ncells = [{id = "000"}]', ["region[0].code", "region[0].cells[0].id"]),
        (
            '[[region]]\ncode = "a"\ncells = [{id = "001"}]\n[[region]]\ncode = "a"\ncells = [{id = "001"}]',
            ["region[1].code", "region[1].cells[0].id"],
        ),
    ],
)
def test_a_wrong_map_names_every_entry_that_is_wrong(tmp_path: Path, toml: str, fields: list[str]) -> None:
    file = tmp_path / "regions.toml"
    file.write_text(toml)
    with pytest.raises(InvalidConfig) as raised:
        RegionMap.load(file)
    assert [violation.field for violation in raised.value.violations] == fields


def test_a_map_that_cannot_be_read_says_which(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[[")
    for file in (broken, tmp_path / "missing.toml"):
        with pytest.raises(InvalidConfig, match=str(file)):
            RegionMap.load(file)
