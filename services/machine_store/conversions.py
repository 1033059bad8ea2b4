"""Conversions: those of the centre that were seen before, and what every machine was converted from and to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from skerry.converter.v1.converter_pb2 import ConversionResult
from skerry.store.v1.plan_store_pb2 import CentralConversion, StoredConfiguration
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec

from services.machine_store.database import Database, Row
from services.machine_store.queries import load
from services.machine_store.records import check_text, storable, timestamp

CHUNK = 500
"""Most configurations in one message."""
MOST_KEPT = 100_000
"""Most conversions of the centre that are kept."""

_SQL = load("plan")


@dataclass(frozen=True, slots=True)
class Listed:
    """Some configurations by machine id; `total` is how many there are in all, set in the first piece."""

    configurations: Sequence[StoredConfiguration]
    total: int = 0


class Conversions:
    """Conversions in the database. `most_kept` bounds those of the centre; the least recently used go first."""

    def __init__(self, database: Database, *, most_kept: int = MOST_KEPT) -> None:
        self._database = database
        self._most_kept = most_kept

    async def lookup(self, wanted: Sequence[CentralConversion]) -> list[CentralConversion]:
        """Those of the wanted conversions that are kept, in no order. Raises DependencyDown."""
        rows = await self._database.fetch(
            _SQL["lookup_conversions"],
            [storable(conversion.part) for conversion in wanted],
            [conversion.input_hash for conversion in wanted],
            [conversion.version for conversion in wanted],
        )
        return [
            CentralConversion(
                part=row["part"],
                input_hash=row["input_hash"],
                version=row["version"],
                spec=MachineSpec.FromString(row["spec"]),
            )
            for row in rows
        ]

    async def keep(self, conversions: Sequence[CentralConversion]) -> None:
        """Keep conversions; one that is kept already stays as it is. Raises InvalidConfig, DependencyDown."""
        for conversion in conversions:
            check_text(part=conversion.part)
        await self._database.fetchval(
            _SQL["keep_conversions"],
            [conversion.part for conversion in conversions],
            [conversion.input_hash for conversion in conversions],
            [conversion.version for conversion in conversions],
            [conversion.spec.SerializeToString() for conversion in conversions],
            self._most_kept,
        )

    async def configurations(self, after_machine_id: str) -> AsyncIterator[Listed]:
        """Configurations of machines that are not destroyed, by id, in pieces; one piece at least.

        All are of one moment. Raises DependencyDown.
        """
        after = storable(after_machine_id)
        async with self._database.reading() as connection:
            total: int = await connection.fetchval(_SQL["count_configurations"], after)
            cursor = await connection.cursor(_SQL["list_configurations"], after)
            rows = await cursor.fetch(CHUNK)
            yield Listed([_configuration(row) for row in rows], total)
            while rows := await cursor.fetch(CHUNK):
                yield Listed([_configuration(row) for row in rows])


def _configuration(row: Row) -> StoredConfiguration:
    return StoredConfiguration(
        machine_id=row["id"],
        app_name=row["app_name"],
        region=row["region"],
        config=MachineConfig.FromString(row["config"]),
        spec=MachineSpec.FromString(row["spec"]),
        parts=ConversionResult.FromString(row["parts"]).parts,
        at=timestamp(row["created_at"]),
    )
