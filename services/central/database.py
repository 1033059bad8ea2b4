"""The centre's PostgreSQL: migrations, queries by name, and the one way to write."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from services.runtime.clock import Clock

HEAD = "0002"
"""The newest migration."""
CHANNEL = "skerry_central_changes"
"""PostgreSQL's NOTIFY channel that tells of new changes."""

_HERE = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_MIGRATION_LOCK = 0x5CE77A
_LOCK_TIMEOUT_MS = 10_000

Row = Mapping[str, Any]


def load_queries(folder: Path = _HERE / "sql") -> dict[str, str]:
    """The queries of all files in `folder`, by name. Raises ValueError for a name that is there twice."""
    queries: dict[str, str] = {}
    for path in sorted(folder.glob("*.sql")):
        _, *pieces = _NAME.split(path.read_text(encoding="utf-8"))
        for name, text in zip(pieces[::2], pieces[1::2], strict=True):
            if name in queries:
                raise ValueError(f"the query {name} of {path.name} has a name that is taken")
            queries[name] = text.strip()
    return queries


QUERIES = load_queries()


class Session:
    """Runs queries by name over one connection, in one transaction."""

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        self._connection = connection

    async def all(self, query: str, *arguments: object) -> list[Row]:
        """All rows of a query."""
        rows: list[Row] = await self._connection.fetch(QUERIES[query], *arguments)
        return rows

    async def one(self, query: str, *arguments: object) -> Row | None:
        """The first row of a query; None if it has none."""
        row: Row | None = await self._connection.fetchrow(QUERIES[query], *arguments)
        return row

    async def run(self, query: str, *arguments: object) -> int:
        """Run a query; returns how many rows it touched."""
        status: str = await self._connection.execute(QUERIES[query], *arguments)
        return int(status.rpartition(" ")[2])

    async def run_many(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a query once for each of `rows`."""
        await self._connection.executemany(QUERIES[query], rows)


class Write(Session):
    """A transaction that writes. It holds the feed's lock, so that writers follow one another in the feed's order."""

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy, position: int, at: float) -> None:
        super().__init__(connection)
        self.at = at
        """When it began, in unix seconds."""
        self.position = position
        """Position of the newest change, those of this transaction included."""

    async def record(self, kind: str, key: str, payload: Mapping[str, Any] | None) -> None:
        """Append a change to the feed: the whole record as it is now, or None when it is gone."""
        self.position += 1
        await self.run("supersede_change", kind, key, self.position)
        await self.run("append_change", self.position, kind, key, payload is None, payload, self.at)


class Database:
    """The database of one centre; its instances share it."""

    def __init__(self, pool: asyncpg.Pool, clock: Clock, acquire_timeout: float) -> None:
        self._pool = pool
        self._clock = clock
        self._acquire_timeout = acquire_timeout

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, dsn: str, clock: Clock, *, connections: int = 10, timeout: float = 10.0) -> AsyncIterator[Self]:
        """Connect, after bringing the schema up to date. `timeout`, in seconds, bounds every command.

        Raises OSError or asyncpg.PostgresError when there is no such database.
        """
        await migrate(dsn)
        async with asyncpg.create_pool(
            dsn, min_size=1, max_size=connections, command_timeout=timeout, init=_prepare
        ) as pool:
            yield cls(pool, clock, timeout)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """A view of the database as of one moment."""
        async with (
            self._pool.acquire(timeout=self._acquire_timeout) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield Session(connection)

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[Write]:
        """A transaction that may write, alone among writers. It commits unless the block raises."""
        async with self._pool.acquire(timeout=self._acquire_timeout) as connection, connection.transaction():
            # Locked before anything is read: every later statement then sees what earlier writers committed.
            row = await connection.fetchrow(QUERIES["lock_feed"])
            write = Write(connection, row["position"], self._clock.now())
            yield write
            if write.position != row["position"]:
                await connection.execute(QUERIES["advance_feed"], write.position)
                await connection.execute(QUERIES["notify"], CHANNEL)


async def connect(dsn: str, *, timeout: float) -> asyncpg.Connection:
    """One connection outside of any pool."""
    return await asyncpg.connect(dsn, timeout=timeout, command_timeout=timeout)


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.execute(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}")


async def migrate(dsn: str) -> None:
    """Bring the schema up to date. Instances that start together do it one after the other.

    Raises RuntimeError when the database is newer than this program.
    """
    connection = await connect(dsn, timeout=60)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK)
            known = await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
            present = await connection.fetchval("SELECT version_num FROM alembic_version") if known else None
            if present != HEAD:
                await connection.execute(_migration_sql(present))
    finally:
        await connection.close()


def _migration_sql(present: str | None) -> str:
    # Imported where needed: an instance that finds its database up to date does without.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_HERE / "schema"))
    try:
        command.upgrade(config, f"{present or 'base'}:head", sql=True)
    except CommandError as error:
        raise RuntimeError(f"the centre's database is of version {present}; this program knows {HEAD}") from error
    return output.getvalue()


async def ensure_database(dsn: str, name: str) -> str:
    """The DSN of the database `name` on the server that `dsn` leads to; the database is made when it is missing."""
    connection = await connect(dsn, timeout=60)
    try:
        if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            # Another instance may make it at the same moment, which PostgreSQL reports in either of two ways.
            with contextlib.suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
                await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
