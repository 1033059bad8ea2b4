"""How fast machines are created, beside the floor: a gRPC echo of the same messages and a durable commit of one row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg

from services.cli.benchmarks import bed
from services.cli.benchmarks.statistics import quantile, summary
from services.cli.mesh import HOST, Mesh
from services.runtime.postgres import OwnedPostgres

ECHOES = {"set": 1, "apart": 4}
"""Calls between processes that a create cannot do without, per wiring; each also has one durable commit."""
MANY = 32

WARM_UP = {"rounds": 2, "each": 100}
SERIAL = {"concurrency": 1, "rounds": 40, "each": 10}
CONCURRENT = {"concurrency": MANY, "rounds": 4, "each": 500}


def bench_create(tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure creates in both wirings, over gRPC and REST, at concurrency 1 and 32; `tell` hears how far it is.

    Both meshes run for the whole time, and all that is compared is measured in turns, a few calls each, so that noise
    hits floors and creates alike. Raises CommandError.
    """
    request, body = bed.web_request(), {"config": bed.WEB_CONFIG, "skip_launch": True}
    with bed.temporary_folder() as folder:
        tell("starting a set, and every service in a process of its own")
        with bed.mesh_in(folder / "set") as whole, bed.mesh_in(folder / "apart", apart=True) as apart:
            answer = bed.create_over_grpc(whole, request)
            with bed.echo_server(answer) as echo:
                targets = {
                    "echo": bed.grpc_target(echo, whole.token, request),
                    "commit": {
                        "kind": "commit",
                        "dsn": _commit_table(whole),
                        "request": request.SerializeToString().hex(),
                    },
                }
                for wiring, mesh in (("set", whole), ("apart", apart)):
                    address = f"{HOST}:{bed.door(mesh).grpc}"
                    targets[f"{wiring} grpc"] = bed.grpc_target(address, mesh.token, request)
                    targets[f"{wiring} rest"] = bed.rest_target(mesh, body)
                tell("creating machines")
                creates = [name for name in targets if name not in ("echo", "commit")]
                phases = bed.generate(
                    {
                        "targets": targets,
                        "phases": [
                            {"targets": list(targets), "concurrency": 1, **WARM_UP},
                            {"targets": list(targets), **SERIAL},
                            {"targets": creates, "concurrency": MANY, **WARM_UP},
                            {"targets": creates, **CONCURRENT},
                        ],
                    }
                )
    return report(serial=phases[1], concurrent=phases[3])


def report(*, serial: dict[str, Any], concurrent: dict[str, Any]) -> dict[str, Any]:
    echo = quantile(serial["echo"]["latencies_ms"], 0.5)
    commit = quantile(serial["commit"]["latencies_ms"], 0.5)
    runs: list[dict[str, Any]] = []
    for concurrency, phase in ((1, serial), (MANY, concurrent)):
        for wiring, echoes in ECHOES.items():
            for via in ("grpc", "rest"):
                measured = phase[f"{wiring} {via}"]
                run = {
                    "wiring": wiring,
                    "via": via,
                    "concurrency": concurrency,
                    "creates": len(measured["latencies_ms"]),
                    **summary(measured["latencies_ms"], measured["seconds"]),
                    "ratio": None,
                }
                if concurrency == 1:
                    run["ratio"] = round(quantile(measured["latencies_ms"], 0.5) / (echoes * echo + commit), 3)
                runs.append(run)
    return {"floor": {"echo_ms": round(echo, 3), "commit_ms": round(commit, 3)}, "runs": runs}


def _commit_table(mesh: Mesh) -> str:
    """Make a table on the PostgreSQL of `mesh`, in a database of its own; returns that database's DSN."""
    postgres = OwnedPostgres(mesh.postgres_directory(bed.REGION))

    async def make() -> None:
        administrator = await asyncpg.connect(postgres.dsn)
        try:
            await administrator.execute("CREATE DATABASE commit_floor")
        finally:
            await administrator.close()
        connection = await asyncpg.connect(postgres.dsn_of("commit_floor"))
        try:
            await connection.execute(
                "CREATE TABLE commit_floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload bytea NOT NULL)"
            )
        finally:
            await connection.close()

    asyncio.run(make())
    return postgres.dsn_of("commit_floor")
