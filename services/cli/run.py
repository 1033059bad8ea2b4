"""`skerry run`: one process of a mesh, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.console import CommandError, Directory, reports_errors
from services.cli.mesh import CENTRAL, SET, SINGLE_SERVICES, Mesh, default_directory


@reports_errors
def run(
    name: Annotated[
        str,
        typer.Argument(help=f"What to run: {SET} (a whole region), {', '.join(SINGLE_SERVICES)} or {CENTRAL}."),
    ],
    region: Annotated[str | None, typer.Option(help="Region that it serves.")] = None,
    instance: Annotated[int, typer.Option(min=1, help="Which one, where a region has several.")] = 1,
    directory: Directory = None,
) -> None:
    """Run one service of a region, a whole set, or the centre, in the foreground."""
    known = (SET, *SINGLE_SERVICES, CENTRAL)
    if name not in known:
        raise CommandError(f"there is no service {name!r}; there are: {', '.join(known)}")
    where = (directory or default_directory()).absolute()
    mesh = Mesh.open(where) if (where / "mesh.json").exists() else Mesh.prepare(where, regions=region and [region])
    if name == CENTRAL:
        region = CENTRAL
    if region is None:
        if len(mesh.regions) > 1:
            raise CommandError(f"the mesh has several regions: choose one with --region ({', '.join(mesh.regions)})")
        region = mesh.regions[0]
    process = mesh.process(region, name, instance)
    # Imported last: it pulls in every service.
    from services.cli.wiring import run as run_process

    run_process(mesh, process)
