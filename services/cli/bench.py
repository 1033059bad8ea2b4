"""`skerry bench`: each starts what it measures in a temporary folder, and removes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Annotated, Any

import typer

from services.cli.console import AsJson, bar, print_json, print_table, progress, reports_errors, say

app = typer.Typer(no_args_is_help=True, help="Benchmarks. They need no running mesh.")

SECONDS = 5.0
"""How long placing and converting are measured."""


@app.command()
@reports_errors
def create(as_json: AsJson = False) -> None:
    """Creates a second and their latency: one process or several, gRPC or REST, 1 or 32 at once, beside their floor."""
    from services.cli.benchmarks.creating import bench_create

    result = _measured(bench_create)
    if as_json:
        print_json(result)
        return
    floor = result["floor"]
    print_table(("FLOOR", "MS"), [("gRPC echo", floor["echo_ms"]), ("durable commit", floor["commit_ms"])], empty="")
    columns = ("wiring", "via", "concurrency", "creates", "per_second", "p50_ms", "p99_ms", "ratio")
    rows = [[run[column] for column in columns] for run in result["runs"]]
    print_table([column.upper() for column in columns], rows, empty="")


@app.command()
@reports_errors
def start(as_json: AsJson = False) -> None:
    """Machines started a second, and from the request to `started`, under the process driver."""
    from services.cli.benchmarks.starting import bench_start

    _print(_measured(bench_start), as_json)


@app.command()
@reports_errors
def waiters(
    count: Annotated[int, typer.Option("--waiters", min=1, help="Callers that wait at the same time.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """What callers cost that wait for machines, and how soon they hear of an event."""
    from services.cli.benchmarks.waiting import bench_waiters

    result = _measured(partial(bench_waiters, count))
    if as_json:
        print_json(result)
        return
    runs = result["runs"]
    print_table([name.upper() for name in runs[0]], [list(run.values()) for run in runs], empty="")


@app.command()
@reports_errors
def place(
    workers: Annotated[int, typer.Option(min=1, help="Workers to place on.")] = 10_000, as_json: AsJson = False
) -> None:
    """Placements a second on a fleet, beside a plain sort of it by free memory."""
    from services.scheduler.benchmark import bench_place

    _print(_measured(lambda _: bench_place(workers, SECONDS, Random(os.urandom(8)))), as_json)


@app.command()
@reports_errors
def convert(as_json: AsJson = False) -> None:
    """Conversions of a machine's configuration a second."""
    from services.cli.benchmarks.converting import bench_convert

    _print(_measured(partial(bench_convert, SECONDS)), as_json)


@app.command()
@reports_errors
def outage(
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs for each state.")] = 12, as_json: AsJson = False
) -> None:
    """What a centre that is dead, slow (5 s) or flaky (30 % errors) changes for creates in a region: pairs of runs."""
    from services.cli.benchmarks.outage import bench_outage

    result = _measured(partial(bench_outage, pairs))
    if as_json:
        print_json(result)
        return
    states = result["states"]
    print_table([name.upper() for name in states[0]], [list(state.values()) for state in states], empty="")


@app.command()
@reports_errors
def neighbour(pairs: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 12, as_json: AsJson = False) -> None:
    """What a tenant that calls at 50 times its limit changes for another one: pairs of runs."""
    from services.cli.benchmarks.neighbour import bench_neighbour

    _print(_measured(partial(bench_neighbour, pairs)), as_json)


@app.command()
@reports_errors
def backtest(
    machines: Annotated[int, typer.Option(min=100, help="Stored machines.")] = 100_000, as_json: AsJson = False
) -> None:
    """Stored configurations that a region converts again a second, every part of each."""
    from services.cli.benchmarks.backtesting import bench_backtest

    with bar("converting") as tell_progress:
        result = bench_backtest(machines, say, tell_progress)
    _print(result, as_json)


def _measured(benchmark: Callable[[Callable[[str], None]], dict[str, Any]]) -> dict[str, Any]:
    with progress("measuring") as tell:
        return benchmark(tell)


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        print_table([name.upper() for name in result], [list(result.values())], empty="")
