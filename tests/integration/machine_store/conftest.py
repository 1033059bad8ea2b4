"""A machine-store with one worker and one app, on a database of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.machine_store.stores import MakeDatabase, Store, running_store


@pytest.fixture
async def dsn(fresh_database: MakeDatabase) -> str:
    return await fresh_database()


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[Store]:
    async with running_store(dsn) as store:
        await store.worker()
        await store.app()
        yield store
