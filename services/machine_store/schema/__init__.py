"""The database's schema: alembic migrations, run by the service itself when it starts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

HEAD = "0008"
"""The newest migration."""

_LOCK = 0x534B_4552_5259


async def migrate(connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
    """Bring the database that `connect` reaches to `HEAD`; of several callers one works and the others wait.

    A database that is newer than this code is left as it is. Raises what asyncpg raises.
    """
    connection = await connect()
    try:
        if await _revision(connection) == HEAD:
            return
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        if await _revision(connection) != HEAD:
            await _upgrade(connect)
    finally:
        await connection.close()


async def _revision(connection: asyncpg.Connection) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


async def _upgrade(connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
    # Imported where needed: a process that finds its database up to date does without a third of its memory.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))

    def upgrade(connection: Connection) -> None:
        attributes: dict[Any, Any] = config.attributes
        attributes["connection"] = connection
        command.upgrade(config, "head")

    try:
        async with engine.begin() as connection:
            await connection.run_sync(upgrade)
    except CommandError as error:
        if "Can't locate revision" not in str(error):
            raise
    finally:
        await engine.dispose()
