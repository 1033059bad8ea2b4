"""`skerry machines`: create, list, get, update, and everything else that is done with machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.console import (
    AppName,
    AsJson,
    CommandError,
    Directory,
    MachineId,
    RegionCode,
    moment,
    print_json,
    print_json_or_say,
    print_json_or_table,
    print_table,
    reports_errors,
)
from services.cli.leases import LeaseNonce, nonce_header
from services.cli.leases import app as lease_app
from services.cli.metadata import app as metadata_app
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Machines: create them, and all that follows.")

app.add_typer(lease_app, name="lease")
app.add_typer(metadata_app, name="metadata")

RequestFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help='JSON file of the request ({"config": …, "name": …}), or of a config alone; - is stdin.'
    ),
]
Image = Annotated[str | None, typer.Option(help="Image; replaces that of --file.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE; may be repeated.")]
Cpus = Annotated[int | None, typer.Option(help="Number of CPUs.")]
Memory = Annotated[int | None, typer.Option(help="Memory, in MB.")]
MachineName = Annotated[str | None, typer.Option("--name", help="Name of the machine, unique in the app and region.")]
Command = Annotated[list[str] | None, typer.Argument(help="Command to run, after --.", metavar="[-- COMMAND…]")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Return when it has settled.")]
Signal = Annotated[str | None, typer.Option(help="Signal to stop it with, such as SIGTERM.")]
Timeout = Annotated[str | None, typer.Option(help='Time until SIGKILL, such as "10s".')]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")]

_COLUMNS = ("ID", "NAME", "STATE", "REGION", "IMAGE", "HOST", "UPDATED")
_EVENT_COLUMNS = ("WHEN", "TYPE", "STATUS", "SOURCE", "EXIT")
_SETTLE_SECONDS = 60.0


@app.command()
@reports_errors
def create(
    app_name: AppName,
    command: Command = None,
    file: RequestFile = None,
    image: Image = None,
    name: MachineName = None,
    env: Env = None,
    cpus: Cpus = None,
    memory: Memory = None,
    skip_launch: Annotated[bool, typer.Option("--skip-launch", help="Do not start it.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Makes a repeated create answer the same machine.")
    ] = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Create a machine and start it: `machines create APP --file web.json` or `… --image NAME -- COMMAND…`."""
    body = request_body(file, image=image, name=name, env=env, cpus=cpus, memory=memory, command=command)
    if skip_launch:
        body["skip_launch"] = True
    if region is not None:
        body["region"] = region
    api = Api.of(directory, region)
    headers = {"idempotency-key": idempotency_key} if idempotency_key else None
    machine = api.call("POST", "apps", app_name, "machines", body=body, headers=headers)
    if wait and not body.get("skip_launch"):
        machine = _settled(api, app_name, machine["id"])
    print_json_or_say(machine, as_json, f"created {machine['id']} ({machine['name']}), {machine['state']}")


@app.command("list")
@reports_errors
def list_machines(
    app_name: AppName,
    state: Annotated[list[str] | None, typer.Option(help="Only those in this state; may be repeated.")] = None,
    include_deleted: Annotated[bool, typer.Option("--include-deleted", help="Destroyed ones too.")] = False,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the machines of an app, oldest first."""
    query = {"state": state, "include_deleted": "true" if include_deleted else None, "region": region}
    machines = Api.of(directory, region).call("GET", "apps", app_name, "machines", query=query)
    print_json_or_table(machines, as_json, _COLUMNS, map(_row, machines), empty=f"{app_name} has no machines")


@app.command()
@reports_errors
def get(
    app_name: AppName,
    machine: MachineId,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show one machine."""
    record = Api.of(directory, region).call("GET", "apps", app_name, "machines", machine)
    if as_json:
        print_json(record)
        return
    print_table(_COLUMNS, [_row(record)], empty="")
    if checks := record.get("checks"):
        rows = [(check["name"], check["status"], check.get("output", "")) for check in checks]
        print_table(("CHECK", "STATUS", "OUTPUT"), rows, empty="")


@app.command()
@reports_errors
def update(
    app_name: AppName,
    machine: MachineId,
    command: Command = None,
    file: RequestFile = None,
    image: Image = None,
    name: MachineName = None,
    env: Env = None,
    cpus: Cpus = None,
    memory: Memory = None,
    skip_launch: Annotated[bool, typer.Option("--skip-launch", help="Stop it instead of restarting it.")] = False,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Give a machine a new version: its present configuration with what is named here, or that of --file."""
    api = Api.of(directory, region)
    present = api.call("GET", "apps", app_name, "machines", machine)
    base = None if file else {"config": present["config"]}
    body = request_body(file, base, image=image, name=name, env=env, cpus=cpus, memory=memory, command=command)
    body["current_version"] = present["instance_id"]
    if skip_launch:
        body["skip_launch"] = True
    record = api.call("POST", "apps", app_name, "machines", machine, body=body, headers=nonce_header(lease))
    if wait:
        record = _settled(api, app_name, machine)
    print_json_or_say(record, as_json, f"updated {machine} to version {record['instance_id']}, {record['state']}")


@app.command()
@reports_errors
def start(
    app_name: AppName,
    machine: MachineId,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Start a machine; one that is suspended goes on where it was."""
    _verb(Api.of(directory, region), app_name, machine, "start", lease=lease, wait=wait, as_json=as_json)


@app.command()
@reports_errors
def stop(
    app_name: AppName,
    machine: MachineId,
    signal: Signal = None,
    timeout: Timeout = None,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Stop a machine."""
    body = _stopping(signal, timeout)
    _verb(Api.of(directory, region), app_name, machine, "stop", body=body, lease=lease, wait=wait, as_json=as_json)


@app.command()
@reports_errors
def restart(
    app_name: AppName,
    machine: MachineId,
    force_stop: Annotated[bool, typer.Option("--force-stop", help="Kill it at once.")] = False,
    signal: Signal = None,
    timeout: Timeout = None,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Stop a machine and start it again."""
    query = {**_stopping(signal, timeout), "force_stop": "true" if force_stop else None}
    _verb(Api.of(directory, region), app_name, machine, "restart", query=query, lease=lease, wait=wait, as_json=as_json)


@app.command()
@reports_errors
def suspend(
    app_name: AppName,
    machine: MachineId,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Freeze a machine that runs, as it is; `start` lets it go on."""
    _verb(Api.of(directory, region), app_name, machine, "suspend", lease=lease, wait=wait, as_json=as_json)


@app.command()
@reports_errors
def cordon(
    app_name: AppName,
    machine: MachineId,
    lease: LeaseNonce = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Leave a machine out of routing."""
    answer = _post(Api.of(directory, region), app_name, machine, "cordon", lease)
    print_json_or_say(answer, as_json, f"{machine} is out of routing")


@app.command()
@reports_errors
def uncordon(
    app_name: AppName,
    machine: MachineId,
    lease: LeaseNonce = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Let a machine rejoin routing."""
    answer = _post(Api.of(directory, region), app_name, machine, "uncordon", lease)
    print_json_or_say(answer, as_json, f"{machine} has rejoined routing")


@app.command()
@reports_errors
def destroy(
    app_name: AppName,
    machine: MachineId,
    force: Annotated[bool, typer.Option("--force", help="Also when it runs.")] = False,
    lease: LeaseNonce = None,
    wait: Wait = True,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Destroy a machine."""
    api = Api.of(directory, region)
    query = {"force": "true" if force else None}
    answer = api.call("DELETE", "apps", app_name, "machines", machine, query=query, headers=nonce_header(lease))
    if wait:
        api.wait(app_name, machine, states=["destroyed"], timeout=_SETTLE_SECONDS)
    print_json_or_say(answer, as_json, f"destroyed {machine}")


@app.command()
@reports_errors
def events(
    app_name: AppName,
    machine: MachineId,
    limit: Limit = 50,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List what happened to a machine, newest first."""
    path = ("apps", app_name, "machines", machine, "events")
    happened = Api.of(directory, region).call("GET", *path, query={"limit": limit})
    rows = map(_event_row, happened)
    print_json_or_table(happened, as_json, _EVENT_COLUMNS, rows, empty=f"nothing happened to {machine}")


@app.command()
@reports_errors
def versions(
    app_name: AppName,
    machine: MachineId,
    limit: Limit = 50,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of a machine, newest first."""
    path = ("apps", app_name, "machines", machine, "versions")
    listed = Api.of(directory, region).call("GET", *path, query={"limit": limit})
    rows = ((version["version"], version["user_config"].get("image", "")) for version in listed)
    print_json_or_table(listed, as_json, ("VERSION", "IMAGE"), rows, empty=f"{machine} has no versions")


@app.command("wait")
@reports_errors
def wait_for(
    app_name: AppName,
    machine: MachineId,
    state: Annotated[
        list[str] | None, typer.Option(help="State to wait for; may be repeated (default: started).")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, max=60, help="Seconds to wait.")] = _SETTLE_SECONDS,
    instance_id: Annotated[
        str | None, typer.Option(help="Version that must be in the state; needed for stopped.")
    ] = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Block until a machine is in a state."""
    states = state or ["started"]
    api = Api.of(directory, region)
    api.wait(app_name, machine, states=states, timeout=timeout, instance_id=instance_id)
    print_json_or_say({"ok": True}, as_json, f"{machine} is {' or '.join(states)}")


def _verb(
    api: Api,
    app_name: str,
    machine: str,
    verb: str,
    *,
    body: dict[str, Any] | None = None,
    query: dict[str, Any] | None = None,
    lease: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    answer = _post(api, app_name, machine, verb, lease, body, query)
    state = _settled(api, app_name, machine)["state"] if wait else None
    print_json_or_say(answer, as_json, f"{verb} of {machine}: " + (f"it is {state} now" if state else "on its way"))


def _post(
    api: Api,
    app_name: str,
    machine: str,
    what: str,
    lease: str | None,
    body: dict[str, Any] | None = None,
    query: dict[str, Any] | None = None,
) -> Any:
    path = ("apps", app_name, "machines", machine, what)
    return api.call("POST", *path, body=body or {}, query=query, headers=nonce_header(lease))


def _settled(api: Api, app_name: str, machine: str) -> dict[str, Any]:
    api.wait(app_name, machine, states=["settled"], timeout=_SETTLE_SECONDS)
    record: dict[str, Any] = api.call("GET", "apps", app_name, "machines", machine)
    return record


def request_body(
    file: Path | None,
    base: dict[str, Any] | None = None,
    *,
    image: str | None,
    name: str | None,
    env: list[str] | None,
    cpus: int | None,
    memory: int | None,
    command: list[str] | None,
) -> dict[str, Any]:
    """The body of a create or update. Raises CommandError."""
    body = base or (_read(file) if file else {})
    config: dict[str, Any] = body.setdefault("config", {})
    if image is not None:
        config["image"] = image
    if not config.get("image"):
        raise CommandError("say what to run: --file FILE, or --image NAME [-- COMMAND…]")
    if command:
        config["init"] = {**(config.get("init") or {}), "exec": command}
    for setting in env or ():
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise CommandError(f"--env {setting!r} is not of the form NAME=VALUE")
        config.setdefault("env", {})[key] = value
    guest = {"cpus": cpus, "memory_mb": memory}
    if any(amount is not None for amount in guest.values()):
        present = config.get("guest") or {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}
        config["guest"] = {**present, **{key: amount for key, amount in guest.items() if amount is not None}}
        config.pop("size", None)
    if name is not None:
        body["name"] = name
    return body


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError as error:
        raise CommandError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CommandError(f"{file} must hold a JSON object")
    return document if "config" in document else {"config": document}


def _stopping(signal: str | None, timeout: str | None) -> dict[str, Any]:
    return {key: value for key, value in (("signal", signal), ("timeout", timeout)) if value}


def _row(machine: dict[str, Any]) -> tuple[object, ...]:
    image = machine.get("config", {}).get("image") or machine["image_ref"].get("repository", "")
    host = machine.get("host_status", "")
    return machine["id"], machine["name"], machine["state"], machine["region"], image, host, machine["updated_at"]


def _event_row(event: dict[str, Any]) -> tuple[object, ...]:
    when = moment(event["timestamp"] / 1000, "milliseconds")
    return when, event["type"], event["status"], event["source"], _exit(event)


def _exit(event: dict[str, Any]) -> str:
    exited = (event.get("request") or {}).get("exit_event")
    if not exited:
        return ""
    if exited.get("signal"):
        return f"signal {exited['signal']}"
    return f"status {exited.get('exit_code', 0)}"
