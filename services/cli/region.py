"""`skerry region`: take a region away and bring it back, for drills."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import inside, processes, up
from services.cli.console import AsJson, Directory, print_json, reports_errors, say

app = typer.Typer(no_args_is_help=True, help="Regions, for drills.")

Name = Annotated[str, typer.Argument(help="Code of the region.", metavar="NAME")]


@app.command()
@reports_errors
def kill(name: Name, directory: Directory = None, as_json: AsJson = False) -> None:
    """Kill every process of a region, as an outage would. Its machines run on."""
    mesh = inside.mesh_of(directory)
    mesh.cell(name)
    pids = [pid for process, pid in processes.running(mesh).items() if process.region == name]
    processes.kill(pids)
    if as_json:
        print_json({"region": name, "killed": pids})
    say(f"{len(pids)} processes of {name} are dead")


@app.command()
@reports_errors
def start(name: Name, directory: Directory = None, as_json: AsJson = False) -> None:
    """Start what of a region is not running."""
    mesh = inside.mesh_of(directory)
    with mesh.exclusively():
        started = up.start(mesh, [name])
    if as_json:
        print_json({"region": name, "started": [process.name for process in started if process.region == name]})
    say(f"{name} is up")
