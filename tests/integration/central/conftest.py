"""A centre that runs on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.central.centres import Centre, running, settings_for


@pytest.fixture
async def centre(fresh_database: Callable[[], Awaitable[str]], tmp_path: Path) -> AsyncIterator[Centre]:
    """One instance of the first release."""
    async with running(settings_for(tmp_path, await fresh_database())) as started:
        yield started
