"""PostgreSQL as this service uses it: a pool for reads, single connections for the rest, and its errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeAlias

import asyncpg

from services.runtime.clock import Clock
from services.runtime.errors import Conflict, DependencyDown, InvalidConfig, SkerryError
from services.runtime.telemetry import log

Row: TypeAlias = asyncpg.Record
Connection: TypeAlias = asyncpg.Connection

TERM_OVER = "SK001"
"""The SQLSTATE of a write under a term that is over."""

# None of these is the fault of a statement: the server is away, going away, or not the one that can be written to.
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # What asyncpg says when the connection went away between two steps of one statement.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.InvalidCatalogNameError,
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
)
# What a connection says that died while it lay in the pool; connecting anew says something else.
_DEAD = (
    asyncpg.exceptions.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionResetError,
)
_RETRY_AFTER = 1.0
_RETRY_AFTER_ROOM = 30.0
"""Somebody has to make room first."""


class OutcomeUnknown(DependencyDown):
    """The connection was lost while a write was under way: it took effect or it did not."""


def is_away(error: BaseException) -> bool:
    """Whether `error` says that the server cannot be asked, rather than that it refuses a statement."""
    return isinstance(error, _AWAY)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that the server's disk is full: nothing of that statement was written, others may do."""
    return isinstance(error, asyncpg.exceptions.DiskFullError)


def as_error(error: Exception) -> SkerryError | None:
    """What an error of the database means to callers; None for one that is a fault of ours."""
    if is_full(error):
        return DependencyDown(
            "machine-store: the disk of PostgreSQL is full, and nothing was written: free space there, then repeat the "
            "request",
            retry_after=_RETRY_AFTER_ROOM,
        )
    if is_away(error):
        return DependencyDown(
            f"machine-store: PostgreSQL cannot be asked ({_shortly(error)}); repeat the request",
            retry_after=_RETRY_AFTER,
        )
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate == TERM_OVER:
        return Conflict(f"{error}: another leader took over")
    if isinstance(error, asyncpg.CharacterNotInRepertoireError | asyncpg.UntranslatableCharacterError):
        return InvalidConfig("a text holds a character that cannot be kept, such as NUL: leave it out")
    # Raised before anything is sent, for a number that its column could not take.
    if isinstance(error, asyncpg.DataError) and "value out of" in str(error):
        return InvalidConfig(f"a number is too large or too small to be kept: {_shortly(error)}")
    return None


class Database:
    """The region's PostgreSQL. `dsn` is asked at every connect; `pool_size` bounds the connections for reads."""

    def __init__(
        self,
        dsn: Callable[[], str],
        *,
        clock: Clock,
        random: Random,
        pool_size: int = 8,
        command_timeout: float = 5.0,
        connect_timeout: float = 5.0,
    ) -> None:
        self._dsn = dsn
        self._clock = clock
        self._random = random
        self._pool_size = pool_size
        self._command_timeout = command_timeout
        self._connect_timeout = connect_timeout
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Make the pool; it connects when it is first used."""
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=self._pool_size, connect=self._connect_for_pool, reset=_leave_as_it_is
        )

    def close(self) -> None:
        """Close what the pool holds, without waiting for anything."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def connect(self, name: str = "reader", *, command_timeout: float | None = None) -> asyncpg.Connection:
        """A connection outside of the pool, `name` telling the server's administrator what it is for.

        Raises what asyncpg raises; see `is_away`.
        """
        return await asyncpg.connect(
            self._dsn(),
            timeout=self._connect_timeout,
            command_timeout=command_timeout or self._command_timeout,
            # Every statement is short: compiling it would take longer than running it.
            server_settings={"application_name": application_name(name), "jit": "off"},
        )

    async def fetch(self, statement: str, *args: object, patience: float = 0.0) -> list[Row]:
        """The rows of a statement that may be repeated: it is, on another connection, when one turns out to be dead.

        A server that is away is waited for `patience` seconds, one whose disk is full is not. Raises DependencyDown
        when it cannot be asked, Conflict for a term that is over.
        """
        until = self._clock.monotonic() + patience
        dead = waited = 0
        while True:
            try:
                async with self._running_pool().acquire(timeout=self._connect_timeout) as connection:
                    try:
                        return list(await connection.fetch(statement, *args))
                    except asyncio.CancelledError:
                        # asyncpg may be between preparing and running, where PostgreSQL has begun a transaction.
                        try:
                            await connection.reset(timeout=self._command_timeout)
                        except Exception:
                            # Nobody knows what state it is in: the pool makes another.
                            connection.terminate()
                        raise
            except Exception as error:
                if isinstance(error, _DEAD) and dead < self._pool_size:
                    dead += 1
                    continue
                if is_away(error) and not is_full(error) and self._clock.monotonic() < until:
                    await self.back_off(waited)
                    waited += 1
                    continue
                if (known := as_error(error)) is None:
                    raise
                raise known from error

    async def fetchrow(self, statement: str, *args: object, patience: float = 0.0) -> Row | None:
        """The first row, or None; otherwise as `fetch`."""
        rows = await self.fetch(statement, *args, patience=patience)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *args: object) -> Any:
        """The first column of the first row, or None; otherwise as `fetch`."""
        rows = await self.fetch(statement, *args)
        return rows[0][0] if rows else None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        """One state of the database for several statements. Raises as `fetch`, but repeats nothing."""
        try:
            async with (
                self._running_pool().acquire(timeout=self._connect_timeout) as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                yield connection
        except Exception as error:
            if (known := as_error(error)) is None:
                raise
            raise known from error

    async def connect_at_last(self, name: str) -> asyncpg.Connection:
        """As `connect`, however long the server is away; logs, once, that it is."""
        for attempt in range(10**9):
            try:
                connection = await self.connect(name)
            except Exception as error:
                if not is_away(error):
                    raise
                if attempt == 0:
                    log.warning("postgres_away", wanted_by=name, error=_shortly(error))
                await self.back_off(attempt)
            else:
                if attempt:
                    log.info("postgres_back", wanted_by=name, attempts=attempt)
                return connection
        raise AssertionError("unreachable")

    async def back_off(self, attempt: int) -> None:
        """Wait before the next attempt: 20 ms, doubling to half a second, with jitter."""
        await self._clock.sleep(min(0.5, 0.02 * 2 ** min(attempt, 10)) * (0.5 + self._random.random() / 2))

    def _running_pool(self) -> asyncpg.Pool:
        if self._pool is None:
            raise DependencyDown(
                "machine-store: it is starting or stopping; repeat the request", retry_after=_RETRY_AFTER
            )
        return self._pool

    async def _connect_for_pool(self, *_: object, **__: object) -> asyncpg.Connection:
        return await self.connect()


def application_name(name: str) -> str:
    """What the server knows a connection by."""
    return f"skerry-machine-store/{name}"


async def _leave_as_it_is(_: object) -> None:
    """What a pool does to a connection that comes back: nothing is ever set on ours, so no round trip to reset it."""


def _shortly(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
