"""`skerry machines lease`: show, take, release."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.console import (
    AppName,
    AsJson,
    Directory,
    MachineId,
    RegionCode,
    moment,
    print_json,
    print_json_or_say,
    print_json_or_table,
    reports_errors,
    say,
)
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Leases: who holds one alone changes the machine.")

LeaseNonce = Annotated[
    str | None, typer.Option("--lease", help="Nonce of the lease that you hold on it.", metavar="NONCE")
]

_COLUMNS = ("NONCE", "OWNER", "UNTIL", "FOR")


def nonce_header(nonce: str | None) -> dict[str, str] | None:
    """The header that shows a lease."""
    return {"fly-machine-lease-nonce": nonce} if nonce else None


@app.command()
@reports_errors
def show(
    app_name: AppName,
    machine: MachineId,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show the lease that is held on a machine."""
    lease = Api.of(directory, region).call("GET", *_path(app_name, machine))
    print_json_or_table(lease, as_json, _COLUMNS, map(_row, [lease["data"]]))


@app.command()
@reports_errors
def take(
    app_name: AppName,
    machine: MachineId,
    ttl: Annotated[int, typer.Option(min=1, max=86_400, help="How long it lasts, in seconds.")] = 30,
    description: Annotated[str | None, typer.Option("--for", help="What it is for.")] = None,
    lease: LeaseNonce = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Take a lease on a machine; with --lease, make the one that you hold last longer."""
    body = {"ttl": ttl, **({"description": description} if description else {})}
    path = _path(app_name, machine)
    taken = Api.of(directory, region).call("POST", *path, body=body, headers=nonce_header(lease))
    if as_json:
        print_json(taken)
    else:
        say(f"the lease lasts until {moment(taken['data']['expires_at'])}; its nonce:")
        typer.echo(taken["data"]["nonce"])


@app.command()
@reports_errors
def release(
    app_name: AppName,
    machine: MachineId,
    lease: LeaseNonce = None,
    force: Annotated[
        bool, typer.Option("--force", help="Whoever holds it; an event of the machine says who did it.")
    ] = False,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Give a lease back."""
    query = {"force": "true" if force else None}
    released = Api.of(directory, region).call(
        "DELETE", *_path(app_name, machine), query=query, headers=nonce_header(lease)
    )
    print_json_or_say(released, as_json, f"nobody holds a lease on {machine} now")


def _path(app_name: str, machine: str) -> tuple[str, ...]:
    return ("apps", app_name, "machines", machine, "lease")


def _row(data: dict[str, Any]) -> tuple[object, ...]:
    return data["nonce"], data.get("owner", ""), moment(data["expires_at"]), data.get("description", "")
