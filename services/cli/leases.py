"""`skerry machines lease`: show, take, release."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from services.cli.console import AsJson, Directory, RegionCode, print_json, print_table, reports_errors, say
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Leases: who holds one alone changes the machine.")

LeaseNonce = Annotated[
    str | None, typer.Option("--lease", help="Nonce of the lease that you hold on it.", metavar="NONCE")
]
AppName = Annotated[str, typer.Argument(help="Name of the app.", metavar="APP")]
MachineId = Annotated[str, typer.Argument(help="Id of the machine.", metavar="MACHINE")]

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
    if as_json:
        print_json(lease)
    else:
        print_table(_COLUMNS, [_row(lease["data"])], empty="")


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
        say(f"the lease lasts until {_until(taken['data'])}; its nonce:")
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
    if as_json:
        print_json(released)
    else:
        say(f"nobody holds a lease on {machine} now")


def _path(app_name: str, machine: str) -> tuple[str, ...]:
    return ("apps", app_name, "machines", machine, "lease")


def _row(data: dict[str, Any]) -> tuple[object, ...]:
    return data["nonce"], data.get("owner", ""), _until(data), data.get("description", "")


def _until(data: dict[str, Any]) -> str:
    return datetime.fromtimestamp(data["expires_at"], UTC).isoformat().replace("+00:00", "Z")
