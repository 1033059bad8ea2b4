"""What tests of every service share: a real PostgreSQL, and new databases on it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from services.runtime.postgres import OwnedPostgres

_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long forms of tests run only when they are asked for: `pytest -m soak`."""
    if "soak" in (config.option.markexpr or ""):
        return
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker(pytest.mark.skip(reason="long; run it with -m soak"))


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The events that are logged from now on, whatever level an earlier test has set."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of the superuser of a PostgreSQL of this test run."""
    # Below the machine's temporary folder, not pytest's: PostgreSQL runs as another user than root, and the path of its
    # socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="skerry-tests-"))
    folder.chmod(0o755)
    server = OwnedPostgres(folder / "pg")
    asyncio.run(server.acquire())
    try:
        yield server.dsn
    finally:
        asyncio.run(server.release(stop=True))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def fresh_database(postgres: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes a new, empty database, and returns its DSN; dropped after the test."""
    made: list[str] = []

    async def make() -> str:
        name = f"t{os.getpid()}_{next(_numbers)}"
        connection = await asyncpg.connect(postgres)
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        made.append(name)
        return postgres.replace("/postgres?", f"/{name}?")

    yield make
    connection = await asyncpg.connect(postgres)
    try:
        for name in made:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()
