"""`skerry apps`: create, list, get, delete."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from services.cli.console import (
    AppName,
    AsJson,
    Directory,
    RegionCode,
    print_json_or_say,
    print_json_or_table,
    reports_errors,
)
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Apps: what machines belong to.")

_COLUMNS = ("NAME", "ORGANIZATION", "STATUS", "MACHINES", "NETWORK")


def _row(record: dict[str, Any]) -> tuple[object, ...]:
    organization = record.get("organization", {}).get("slug", "")
    return record["name"], organization, record["status"], record["machine_count"], record["network"]


@app.command()
@reports_errors
def create(
    name: AppName,
    org: Annotated[str, typer.Option(help="Organization that it belongs to.")] = "personal",
    network: Annotated[str, typer.Option(help="Private network (default: the organization's).")] = "",
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Create an app."""
    body = {"name": name, "org_slug": org, "network": network}
    created = Api.of(directory, region).call("POST", "apps", body=body)
    print_json_or_say(created, as_json, f"created the app {created['name']}")


@app.command("list")
@reports_errors
def list_apps(
    org: Annotated[str, typer.Option(help="Only those of this organization.")] = "",
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List apps by name."""
    answer = Api.of(directory, region).call("GET", "apps", query={"org_slug": org})
    print_json_or_table(answer, as_json, _COLUMNS, map(_row, answer["apps"]), empty="there are no apps")


@app.command()
@reports_errors
def get(name: AppName, region: RegionCode = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show one app."""
    record = Api.of(directory, region).call("GET", "apps", name)
    print_json_or_table(record, as_json, _COLUMNS, [_row(record)])


@app.command()
@reports_errors
def delete(name: AppName, region: RegionCode = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Delete an app, and destroy its machines."""
    Api.of(directory, region).call("DELETE", "apps", name)
    print_json_or_say({"ok": True}, as_json, f"deleted the app {name}; its machines are being destroyed")
