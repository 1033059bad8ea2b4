"""The region map: which regions there are, their cells, and where the gateways of each cell answer."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from services.runtime.errors import InvalidConfig, NotFound, Violation
from services.runtime.ids import is_cell


@dataclass(frozen=True, slots=True)
class Cell:
    """A set with its PostgreSQL and workers. `id` is three hex digits; `gateways` public gRPC addresses, host:port."""

    id: str
    gateways: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A region: its code ("syd"), its name for people, where it lies (degrees), its cells, of which the first leads."""

    code: str
    name: str
    latitude: float
    longitude: float
    cells: tuple[Cell, ...]


class RegionMap:
    """All regions. Codes and cells are unique."""

    def __init__(self, regions: Sequence[Region]) -> None:
        """Raises InvalidConfig, naming every entry that is wrong."""
        self.regions = tuple(regions)
        self._by_code = {region.code: region for region in self.regions}
        self._by_cell = {cell.id: region for region in self.regions for cell in region.cells}
        if violations := _violations(self.regions):
            raise InvalidConfig("the region map is not valid", violations=violations)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a TOML file of `[[region]]` tables. Raises InvalidConfig when it cannot be read or is wrong."""
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InvalidConfig(f"the region map {path} cannot be read: {error}") from error
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Build the map from parsed TOML. Raises InvalidConfig naming the field."""
        regions: list[Region] = []
        for index, table in enumerate(document.get("region", [])):
            try:
                cells = tuple(Cell(str(c["id"]), tuple(map(str, c.get("gateways", ())))) for c in table["cells"])
                regions.append(
                    Region(
                        code=str(table["code"]),
                        name=str(table.get("name", table["code"])),
                        latitude=float(table.get("latitude", 0.0)),
                        longitude=float(table.get("longitude", 0.0)),
                        cells=cells,
                    )
                )
            except KeyError as error:
                missing = Violation(f"region[{index}].{error.args[0]}", "is missing")
                raise InvalidConfig("the region map is not valid", violations=[missing]) from error
            except (TypeError, ValueError) as error:
                wrong = Violation(f"region[{index}]", str(error))
                raise InvalidConfig("the region map is not valid", violations=[wrong]) from error
        return cls(regions)

    def region(self, code: str) -> Region:
        """The region of that code. Raises InvalidConfig of the field `region` if there is none."""
        if (region := self._by_code.get(code)) is not None:
            return region
        known = ", ".join(sorted(self._by_code))
        raise InvalidConfig(
            f"there is no region {code!r}; there are: {known}",
            violations=[Violation("region", f"unknown; one of: {known}")],
        )

    def region_of_cell(self, cell: str) -> Region:
        """The region that holds `cell`. Raises NotFound if none does."""
        if (region := self._by_cell.get(cell)) is not None:
            return region
        raise NotFound(f"no region has the cell {cell!r}")

    def place_of(self, cell: str) -> str:
        """The name of `cell` in paths of calls: its region and its number there, "syd-1". Raises NotFound."""
        region = self.region_of_cell(cell)
        return f"{region.code}-{[each.id for each in region.cells].index(cell) + 1}"


def _violations(regions: Sequence[Region]) -> list[Violation]:
    violations: list[Violation] = []
    codes: set[str] = set()
    cells: set[str] = set()
    if not regions:
        violations.append(Violation("region", "at least one is needed"))
    for index, region in enumerate(regions):
        if not region.code:
            violations.append(Violation(f"region[{index}].code", "is empty"))
        if region.code in codes:
            violations.append(Violation(f"region[{index}].code", f"{region.code!r} appears twice"))
        if not region.cells:
            violations.append(Violation(f"region[{index}].cells", "at least one is needed"))
        codes.add(region.code)
        for place, cell in enumerate(region.cells):
            field = f"region[{index}].cells[{place}].id"
            if not is_cell(cell.id):
                violations.append(Violation(field, f"{cell.id!r} is not three lower-case hex digits other than 000"))
            if cell.id in cells:
                violations.append(Violation(field, f"{cell.id!r} appears twice"))
            cells.add(cell.id)
    return violations
