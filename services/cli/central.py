"""`skerry central`: the reference centre of a mesh, for drills and deploys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli import inside, processes, up
from services.cli.console import AsJson, CommandError, Directory, print_json, print_table, progress, reports_errors, say
from services.cli.deploy import Deploy
from services.cli.mesh import CENTRAL, Mesh

app = typer.Typer(no_args_is_help=True, help="The centre: its state, faults for drills, and deploys.")

_CALL_SECONDS = 5.0


@app.command()
@reports_errors
def status(directory: Directory = None, as_json: AsJson = False) -> None:
    """Show the centre's instances, their releases, and whether they live."""
    rows = _instances(inside.mesh_of(directory))
    if as_json:
        print_json({"instances": rows})
    else:
        columns = ("INSTANCE", "RELEASE", "URL", "PID")
        print_table(columns, [tuple(row.values()) for row in rows], empty="the centre has no instance")


def _instances(mesh: Mesh) -> list[dict[str, Any]]:
    alive = processes.running(mesh)
    planned = zip(mesh.processes(CENTRAL), mesh.central_releases, mesh.central_urls, strict=True)
    return [
        {"instance": process.name, "release": release, "url": url, "pid": alive.get(process)}
        for process, release, url in planned
    ]


@app.command()
@reports_errors
def down(directory: Directory = None, as_json: AsJson = False) -> None:
    """Kill the centre, as an outage would."""
    mesh = inside.mesh_of(directory)
    alive = processes.running(mesh)
    pids = [alive[process] for process in mesh.processes(CENTRAL) if process in alive]
    processes.kill(pids)
    if as_json:
        print_json({"instances": _instances(mesh)})
    say(f"{len(pids)} instances of the centre are dead")


@app.command("up")
@reports_errors
def start(directory: Directory = None, as_json: AsJson = False) -> None:
    """Start the centre again, and end its faults."""
    mesh = inside.mesh_of(directory)
    with mesh.exclusively():
        up.start(mesh, [])
    fault(mesh, slow_ms=0, error_rate=0.0)
    if as_json:
        print_json({"instances": _instances(mesh)})
    say("the centre is up")


@app.command()
@reports_errors
def slow(
    milliseconds: Annotated[int, typer.Argument(min=0, metavar="MS")],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Let every answer of the centre take MS longer."""
    fault(inside.mesh_of(directory), slow_ms=milliseconds)
    if as_json:
        print_json({"slow_ms": milliseconds})
    say(f"every answer of the centre takes {milliseconds} ms longer")


@app.command()
@reports_errors
def errors(
    rate: Annotated[float, typer.Argument(min=0, max=1, metavar="RATE")],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Let the share RATE (0..1) of the centre's answers be errors."""
    fault(inside.mesh_of(directory), error_rate=rate)
    if as_json:
        print_json({"error_rate": rate})
    say(f"{rate:.0%} of the centre's answers are errors")


@app.command()
@reports_errors
def deploy(
    version: Annotated[str, typer.Argument(help="Release to deploy.", metavar="VERSION")],
    force: Annotated[bool, typer.Option("--force", help="Also when the check refuses.")] = False,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Deploy a release of the centre: check, seal, one instance at a time; rolled back when the regions refuse more."""
    mesh = inside.mesh_of(directory)
    with mesh.exclusively(), progress("deploying") as tell:
        done = Deploy(mesh, version, tell).run(force=force)
    if as_json:
        print_json({"release": version, "rolled_back": not done})
    if not done:
        raise CommandError(f"release {version} was rolled back: the regions refused conversions")
    say(f"the centre runs release {version}")


def fault(mesh: Mesh, **faults: Any) -> None:
    """Set faults of every instance of the centre: slow_ms, error_rate. Raises CommandError."""
    import httpx

    headers = {"authorization": f"Bearer {mesh.central_secret('central-token')}"}
    for url in mesh.central_urls:
        try:
            httpx.post(f"{url}/faults", json=faults, headers=headers, timeout=_CALL_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            raise CommandError(f"the centre at {url} cannot be told: {error}; is it up?") from None
