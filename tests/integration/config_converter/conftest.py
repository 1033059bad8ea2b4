from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest


@pytest.fixture
async def dsn(fresh_database: Callable[[], Awaitable[str]]) -> str:
    """A new database for a machine-store."""
    return await fresh_database()
