"""A cell and a centre, each on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import Cell, running_cell


@pytest.fixture
async def centre(fresh_database: Callable[[], Awaitable[str]], tmp_path: Path) -> AsyncIterator[Centre]:
    """One instance of the first release, which fails and is slow as it is told."""
    async with running(settings_for(tmp_path, await fresh_database(), faults=True)) as started:
        yield started


@pytest.fixture
async def cell(fresh_database: Callable[[], Awaitable[str]]) -> AsyncIterator[Cell]:
    """The store of a cell."""
    async with running_cell(await fresh_database()) as started:
        yield started
