"""How fast a region converts everything that it stores again, and that a backtest that is cut goes on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from services.cli import backtesting
from services.cli.benchmarks import bed
from services.cli.mesh import Mesh
from services.cli.rest import Api

DIFFERENT = 50
"""Different configurations among those that are stored."""
_COPY_SECONDS = 120.0


def bench_backtest(
    machines: int, tell: Callable[[str], None], tell_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Backtest `machines` stored configurations, every part of each. Raises CommandError.

    Returns converted, changed, seconds and per_second.
    """
    with bed.temporary_folder() as folder:
        tell("starting a set")
        with bed.mesh_in(folder) as mesh:
            tell(f"storing {machines} configurations")
            api = Api.of(folder, bed.REGION)
            for number in range(DIFFERENT):
                config = copy.deepcopy(bed.WEB_CONFIG)
                config["env"]["NUMBER"] = str(number)
                config["guest"]["memory_mb"] = 256 * (1 + number % 8)
                api.call("POST", "apps", bed.APP, "machines", body={"config": config, "skip_launch": True})
            asyncio.run(copy_machines(mesh, machines - DIFFERENT, DIFFERENT))
            tell("converting them again")
            test = backtesting.run(mesh, bed.REGION, tell=tell_progress)
    return {
        "converted": test.converted,
        "changed": len(test.changed),
        "seconds": round(test.seconds, 2),
        "per_second": round(test.per_second, 1),
    }


async def copy_machines(mesh: Mesh, copies: int, stored: int) -> None:
    """Make `copies` copies of the `stored` machines of a mesh's region."""
    import asyncpg

    from services.machine_store import benchmark
    from services.runtime.postgres import OwnedPostgres

    dsn = OwnedPostgres(mesh.postgres_directory(bed.REGION)).dsn
    connection = await asyncpg.connect(dsn, command_timeout=_COPY_SECONDS)
    try:
        await benchmark.copy_machines(connection.execute, mesh.cell(bed.REGION), copies, stored)
    finally:
        await connection.close()
