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

_COPY = """
WITH made AS (SELECT *, row_number() OVER (ORDER BY id) - 1 AS place FROM machines),
copied AS (
    INSERT INTO machines (
        id, app_id, app_name, name, region, state, desired, generation, instance_id, worker_id, worker_number,
        reserved, host_status, created_at, updated_at, created_revision, revision, details
    )
    SELECT $2 || lpad(to_hex(number), 11, '0'), app_id, app_name, 'copy-' || number, region, state, desired, generation,
        instance_id, worker_id, worker_number, reserved, host_status, created_at, updated_at, created_revision,
        revision, details
    FROM generate_series(1, $1::bigint) AS number JOIN made ON made.place = number % $3
    RETURNING id, instance_id
)
INSERT INTO versions (machine_id, instance_id, created_at, config, spec, parts)
SELECT copied.id, copied.instance_id, v.created_at, v.config, v.spec, v.parts
FROM copied JOIN versions v ON v.instance_id = copied.instance_id
"""
"""Copies the stored machines until there are enough: creating so many would take minutes and measure creating."""


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
    """Make `copies` copies of the `stored` machines of a region, behind the back of its log."""
    import asyncpg

    from services.runtime.postgres import OwnedPostgres

    connection = await asyncpg.connect(OwnedPostgres(mesh.postgres_directory(bed.REGION)).dsn)
    try:
        await connection.execute(_COPY, copies, mesh.cell(bed.REGION), stored, timeout=120)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
