"""`skerry machines metadata`: list, set, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.console import (
    AppName,
    AsJson,
    Directory,
    MachineId,
    RegionCode,
    print_json,
    print_json_or_table,
    reports_errors,
    say,
)
from services.cli.leases import LeaseNonce, nonce_header
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Metadata of machines, which change without a new version.")

Key = Annotated[str, typer.Argument(help="Key of the entry.", metavar="KEY")]


@app.command("list")
@reports_errors
def list_entries(
    app_name: AppName,
    machine: MachineId,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the metadata of a machine."""
    entries = Api.of(directory, region).call("GET", "apps", app_name, "machines", machine, "metadata")
    rows = sorted(entries.items())
    print_json_or_table(entries, as_json, ("KEY", "VALUE"), rows, empty=f"{machine} has no metadata")


@app.command("set")
@reports_errors
def set_entry(
    app_name: AppName,
    machine: MachineId,
    key: Key,
    value: Annotated[str, typer.Argument(help="Its value.", metavar="VALUE")],
    lease: LeaseNonce = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Set one entry."""
    path = ("apps", app_name, "machines", machine, "metadata", key)
    Api.of(directory, region).call("POST", *path, body={"value": value}, headers=nonce_header(lease))
    if as_json:
        print_json({key: value})
    say(f"{key} of {machine} is {value!r}")


@app.command("delete")
@reports_errors
def delete_entry(
    app_name: AppName,
    machine: MachineId,
    key: Key,
    lease: LeaseNonce = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Delete one entry."""
    path = ("apps", app_name, "machines", machine, "metadata", key)
    Api.of(directory, region).call("DELETE", *path, headers=nonce_header(lease))
    if as_json:
        print_json({key: None})
    say(f"{machine} has no {key} any more")
