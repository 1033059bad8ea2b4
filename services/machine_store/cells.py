"""Cells of apps: which cell of a region an app lives in, chosen once, in the region's first cell."""

from __future__ import annotations

from collections.abc import Sequence

from services.machine_store.database import Database
from services.machine_store.queries import load
from services.machine_store.records import check_text, moment
from services.runtime.clock import Clock
from services.runtime.errors import InvalidConfig, Violation

_SQL = load("cells")


class AppCells:
    """Where the apps of a region live, if this is its first cell."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def locate(self, app_id: str, cells: Sequence[str]) -> str:
        """The cell of an app; one of `cells`, the own one first among them, is chosen the first time.

        Whoever else chooses at the same moment comes to the same one. Raises InvalidConfig, DependencyDown.
        """
        for field, given in (("app_id", app_id), ("cells", cells)):
            if not given:
                raise InvalidConfig(f"{field} is missing", violations=[Violation(field, "is missing")])
        check_text(app_id=app_id)
        known = await self._database.fetchval(_SQL["cell_of_app"], app_id)
        if known is None:
            await self._database.fetch(_SQL["choose_cell"], app_id, list(cells), moment(self._clock.now()))
            known = await self._database.fetchval(_SQL["cell_of_app"], app_id)
        return str(known)
