"""`skerry deps`: who may call whom, and who was seen to."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from services.cli import inside, processes
from services.cli.console import AsJson, Directory, print_json, print_table, reports_errors, say
from services.cli.mesh import HOST, Mesh, Process

_CALL_SECONDS = 5.0
_COLUMNS = ("FROM", "TO", "CALLS", "ERRORS", "ERROR RATE")


@reports_errors
def deps(directory: Directory = None, as_json: AsJson = False) -> None:
    """Draw the table of allowed dependencies, and what was really seen, with counts and error rates."""
    from services.runtime.edges import allowed_edges

    mesh = inside.mesh_of(directory)
    calls, errors = _seen(mesh)
    seen = [
        {"from": caller, "to": callee, "calls": count, "errors": errors[caller, callee]}
        for (caller, callee), count in sorted(calls.items())
    ]
    allowed = [list(edge) for edge in allowed_edges()]
    if as_json:
        print_json({"allowed": allowed, "seen": seen})
        return
    rows: list[tuple[object, ...]] = []
    for caller, callee in sorted({*allowed_edges(), *calls}):
        count, failed = calls[caller, callee], errors[caller, callee]
        rate = f"{failed / count:.1%}" if count else ""
        rows.append((caller, callee, count, failed, rate))
    print_table(_COLUMNS, rows, empty="nothing may call anything")


def _seen(mesh: Mesh) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Calls and errors by edge, of all processes that live; one that does not answer is named."""
    from services.runtime import telemetry

    telemetry.setup("cli", "", log_level="error")
    alive = [process for process in processes.running(mesh) if not process.is_central]
    calls: Counter[tuple[str, str]] = Counter()
    errors: Counter[tuple[str, str]] = Counter()
    for process, answer in zip(alive, asyncio.run(_ask(mesh, alive)), strict=True):
        if isinstance(answer, str):
            say(f"{process.region}/{process.name} does not answer: {answer}")
            continue
        for edge in answer:
            calls[edge.caller, edge.callee] += edge.calls
            errors[edge.caller, edge.callee] += edge.errors
    return calls, errors


async def _ask(mesh: Mesh, alive: list[Process]) -> list[Any]:
    from skerry.runtime.v1 import introspection_pb2
    from skerry.runtime.v1.introspection_pb2_grpc import IntrospectionStub

    from services.runtime.channels import connect
    from services.runtime.errors import SkerryError
    from services.runtime.introspection import NAME

    async def one(process: Process) -> Any:
        channel = connect(
            [f"{HOST}:{process.internal}"], caller=f"{mesh.cell(process.region)}/cli", callee=NAME, secret=mesh.secret
        )
        async with channel:
            stub: Any = IntrospectionStub(channel)
            try:
                return (await stub.ListSeenEdges(introspection_pb2.ListSeenEdgesRequest(), timeout=_CALL_SECONDS)).edges
            except SkerryError as error:
                return error.message

    return list(await asyncio.gather(*map(one, alive)))
