"""The `skerry` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from services.cli import (
    apps,
    bench,
    catalog,
    central,
    deps,
    drill,
    handover,
    machines,
    region,
    run,
    secrets,
    tokens,
    trace,
    up,
    volumes,
)
from services.cli.console import say

app = typer.Typer(
    name="skerry",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A regional machines control plane: every region an island.",
)
app.command("up")(up.up)
app.command("down")(up.down)
app.command("run")(run.run)
app.command("deps")(deps.deps)
app.command("trace")(trace.trace)
app.add_typer(apps.app, name="apps")
app.add_typer(machines.app, name="machines")
app.add_typer(volumes.app, name="volumes")
app.add_typer(secrets.app, name="secrets")
app.add_typer(tokens.app, name="tokens")
app.add_typer(handover.app, name="handover")
app.add_typer(central.app, name="central")
app.add_typer(catalog.app, name="catalog")
app.add_typer(region.app, name="region")
app.add_typer(drill.app, name="drill")
app.add_typer(bench.app, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"skerry {version('skerry')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A regional machines control plane: every region an island."""


def main() -> None:
    """Entry point of the console script. Unexpected errors are a line too; SKERRY_TRACEBACK=1 shows where."""
    # What this forks runs another program at once, and needs none of gRPC's preparations for that.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    try:
        app()
    except Exception as error:
        if os.environ.get("SKERRY_TRACEBACK"):
            raise
        say(f"unexpected error: {type(error).__name__}: {error} (SKERRY_TRACEBACK=1 shows where)")
        sys.exit(1)


if __name__ == "__main__":
    main()
