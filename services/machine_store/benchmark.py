"""Filling a store for a benchmark: creating so many machines would take minutes, and measure creating."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from services.machine_store.queries import load

_COPY = load("benchmark")["copy_machines"]


async def copy_machines(execute: Callable[..., Awaitable[object]], cell: str, copies: int, stored: int) -> None:
    """Make `copies` copies of the `stored` machines of a cell, behind the back of its log.

    `execute` runs a statement with its arguments on the cell's database.
    """
    await execute(_COPY, copies, cell, stored)
    await execute("ANALYZE")
