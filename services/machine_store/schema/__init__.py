"""The database's schema: alembic migrations, run by the service itself when it starts."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

HEAD = "0008"
"""The newest migration."""
AWAY = 75
"""What a process that migrates exits with when the server is away (EX_TEMPFAIL of sysexits.h)."""

Connect: TypeAlias = Callable[[], Awaitable[asyncpg.Connection]]
Migrate: TypeAlias = Callable[[Connect], Awaitable[None]]

_LOCK = 0x534B_4552_5259


async def migrate(connect: Connect) -> None:
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


def migrate_apart(dsn: str) -> Migrate:
    """`migrate` in a process of its own, for one that lives long: a sixth of its memory would be what migrating took.

    Raises ConnectionError when the server went away meanwhile, and RuntimeError with what the process said last.
    """

    async def migrate_database(connect: Connect) -> None:
        connection = await connect()
        try:
            if await _revision(connection) == HEAD:
                return
        finally:
            await connection.close()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "services.machine_store.schema", stdin=PIPE, stderr=PIPE
        )
        try:
            _, said = await process.communicate(dsn.encode())
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            kind = ConnectionError if process.returncode == AWAY else RuntimeError
            raise kind(f"the process that migrates the database failed: {last}")

    return migrate_database


async def _revision(connection: asyncpg.Connection) -> str | None:
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return revision


async def _upgrade(connect: Connect) -> None:
    # Imported where needed: most processes find their database up to date.
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
