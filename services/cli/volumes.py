"""`skerry volumes`: list, create, show, extend, fork, destroy, and their snapshots."""

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

app = typer.Typer(no_args_is_help=True, help="Volumes: disks that outlive the machines they are attached to.")

VolumeId = Annotated[str, typer.Argument(help="Id of the volume.", metavar="VOLUME")]
UniqueZone = Annotated[
    bool, typer.Option("--unique-zone/--any-zone", help="In another zone than the app's volumes of this name.")
]

_COLUMNS = ("ID", "NAME", "STATE", "SIZE", "REGION", "ZONE", "ENCRYPTED", "MACHINE", "CREATED")
_SNAPSHOT_COLUMNS = ("ID", "STATUS", "SIZE", "DIGEST", "KEPT", "CREATED")


@app.command("list")
@reports_errors
def list_volumes(
    app_name: AppName, region: RegionCode = None, directory: Directory = None, as_json: AsJson = False
) -> None:
    """List the volumes of an app, destroyed ones too, oldest first."""
    volumes = Api.of(directory, region).call("GET", "apps", app_name, "volumes", query={"region": region})
    print_json_or_table(volumes, as_json, _COLUMNS, map(_row, volumes), empty=f"{app_name} has no volumes")


@app.command()
@reports_errors
def create(
    app_name: AppName,
    name: Annotated[str, typer.Argument(help="Name; several volumes may have the same.", metavar="NAME")],
    size: Annotated[int | None, typer.Option(help="Size, in GB (default: 1, or that of the snapshot).")] = None,
    snapshot: Annotated[str | None, typer.Option(help="Begin with this snapshot.", metavar="ID")] = None,
    retention: Annotated[int | None, typer.Option(help="Days that its snapshots are kept.")] = None,
    encrypted: Annotated[bool, typer.Option("--encrypted/--no-encryption", help="Let it lie encrypted.")] = True,
    backup: Annotated[bool, typer.Option("--backup/--no-backup", help="Take a snapshot each day.")] = True,
    unique_zone: UniqueZone = False,
    cpus: Annotated[int | None, typer.Option(help="Keep room for a machine with so many CPUs.")] = None,
    memory: Annotated[int | None, typer.Option(help="Keep room for a machine with so much memory, in MB.")] = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Create a volume."""
    body = {
        "name": name,
        "region": region,
        "size_gb": size,
        "snapshot_id": snapshot,
        "snapshot_retention": retention,
        "encrypted": encrypted,
        "auto_backup_enabled": backup,
        "require_unique_zone": unique_zone,
        "compute": compute_hint(cpus, memory),
    }
    volume = Api.of(directory, region).call("POST", "apps", app_name, "volumes", body=body)
    print_json_or_say(
        volume, as_json, f"created {volume['id']} ({volume['name']}) in zone {volume['zone']}, {volume['state']}"
    )


@app.command()
@reports_errors
def show(
    app_name: AppName,
    volume: VolumeId,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show one volume."""
    record = Api.of(directory, region).call("GET", "apps", app_name, "volumes", volume)
    print_json_or_table(record, as_json, _COLUMNS, map(_row, [record]))


@app.command()
@reports_errors
def extend(
    app_name: AppName,
    volume: VolumeId,
    size: Annotated[int, typer.Option(help="New size, in GB.")],
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Make a volume larger."""
    api = Api.of(directory, region)
    answer = api.call("PUT", "apps", app_name, "volumes", volume, "extend", body={"size_gb": size})
    after = "; restart its machine to see it" if answer["needs_restart"] else ""
    print_json_or_say(answer, as_json, f"{volume} has {answer['volume']['size_gb']} GB{after}")


@app.command()
@reports_errors
def fork(
    app_name: AppName,
    volume: VolumeId,
    name: Annotated[str | None, typer.Option(help="Name (default: that of the volume).")] = None,
    unique_zone: UniqueZone = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Copy a volume, into another zone unless told otherwise."""
    body = {"source_volume_id": volume, "name": name, "require_unique_zone": unique_zone}
    fork = Api.of(directory, region).call("POST", "apps", app_name, "volumes", body=body)
    print_json_or_say(fork, as_json, f"copying {volume} to {fork['id']} in zone {fork['zone']}")


@app.command()
@reports_errors
def destroy(
    app_name: AppName,
    volume: VolumeId,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Destroy a volume that no machine has; its snapshots stay."""
    record = Api.of(directory, region).call("DELETE", "apps", app_name, "volumes", volume)
    print_json_or_say(record, as_json, f"{volume} is {record['state']}; its snapshots stay")


@app.command()
@reports_errors
def snapshots(
    app_name: AppName,
    volume: VolumeId,
    take: Annotated[bool, typer.Option("--take", help="Take one first.")] = False,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the snapshots of a volume, also of a destroyed one, newest first."""
    api = Api.of(directory, region)
    if take:
        api.call("POST", "apps", app_name, "volumes", volume, "snapshots", body={})
    taken = api.call("GET", "apps", app_name, "volumes", volume, "snapshots")
    rows = map(_snapshot_row, taken)
    print_json_or_table(taken, as_json, _SNAPSHOT_COLUMNS, rows, empty=f"{volume} has no snapshots")


def compute_hint(cpus: int | None, memory: int | None) -> dict[str, Any] | None:
    """The machine to keep room for; None when neither is given."""
    if cpus is None and memory is None:
        return None
    count = cpus or 1
    return {"cpu_kind": "shared", "cpus": count, "memory_mb": memory or 256 * count}


def _row(volume: dict[str, Any]) -> tuple[object, ...]:
    return (
        volume["id"],
        volume["name"],
        volume["state"],
        f"{volume['size_gb']} GB",
        volume["region"],
        volume["zone"],
        "yes" if volume["encrypted"] else "no",
        volume["attached_machine_id"] or "",
        volume["created_at"],
    )


def _snapshot_row(snapshot: dict[str, Any]) -> tuple[object, ...]:
    digest = snapshot["digest"].removeprefix("sha256:")[:12]
    kept = f"{snapshot['retention_days']} days"
    return snapshot["id"], snapshot["status"], snapshot["size"], digest, kept, snapshot["created_at"]
