"""`skerry run`: one process of a mesh, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.console import CommandError, Directory, reports_errors
from services.cli.mesh import SET, SINGLE_SERVICES, Mesh, default_directory


@reports_errors
def run(
    name: Annotated[
        str, typer.Argument(help=f"What to run: {SET} (all services of a region) or {', '.join(SINGLE_SERVICES)}.")
    ],
    region: Annotated[str | None, typer.Option(help="Region that it serves.")] = None,
    instance: Annotated[int, typer.Option(min=1, help="Which one, where a region has several.")] = 1,
    directory: Directory = None,
) -> None:
    """Run one service of a region, or a whole set, in the foreground."""
    if name not in (SET, *SINGLE_SERVICES):
        raise CommandError(f"there is no service {name!r}; there are: {', '.join((SET, *SINGLE_SERVICES))}")
    where = (directory or default_directory()).absolute()
    mesh = Mesh.open(where) if (where / "mesh.json").exists() else Mesh.prepare(where, regions=region and [region])
    if region is None:
        if len(mesh.regions) > 1:
            raise CommandError(f"the mesh has several regions: choose one with --region ({', '.join(mesh.regions)})")
        region = mesh.regions[0]
    process = mesh.process(region, name, instance)
    # Imported last: it pulls in every service.
    from services.cli.wiring import run as run_process

    run_process(mesh, process)
