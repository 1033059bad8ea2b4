"""Migrates one database: `python -m services.machine_store.schema`, its DSN on standard input."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import asyncpg

from services.machine_store.database import is_away
from services.machine_store.schema import AWAY, migrate

_STEP_SECONDS = 600.0


def main() -> None:
    """Exits with AWAY, and one line, when the server is away; any other failure is a fault of ours, shown as it is."""
    connect = partial(asyncpg.connect, sys.stdin.read(), command_timeout=_STEP_SECONDS)
    try:
        asyncio.run(migrate(connect))
    except Exception as error:
        if not (is_away(error) or is_away(error.__cause__ or error)):
            raise
        print(error, file=sys.stderr)
        sys.exit(AWAY)


if __name__ == "__main__":
    main()
