"""`skerry up` and `skerry down`: the processes of a mesh on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import typer

from services.cli import ports, processes
from services.cli.console import AsJson, Directory, print_json, progress, reports_errors, say
from services.cli.mesh import CENTRAL, Mesh, MeshError, Process, default_directory, remember

READY_SECONDS = 60.0
_PORT_SECONDS = 10.0
STOP_SECONDS = 15.0
MACHINE_STOP_SECONDS = 15.0
_POLL = 0.02

Plan = Literal["local", "central"]


@reports_errors
def up(
    regions: Annotated[
        str | None, typer.Option(help="Regions, separated by commas (default: those that DIR has; syd for a new one).")
    ] = None,
    directory: Directory = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
    sets: Annotated[
        int | None, typer.Option(min=1, max=64, help="Set processes a region; workers are then processes of their own.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Workers a region (default 2).")] = None,
    otlp: Annotated[str | None, typer.Option(help="Export traces to this OTLP endpoint.")] = None,
    plan: Annotated[
        Plan | None, typer.Option(help="Who converts in a new mesh, the regions (default) or the centre.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a centre and regions on this machine, or what of them is not running, and say what to try next."""
    began = time.monotonic()
    where = (directory or default_directory()).absolute()
    codes = None if regions is None else [code.strip() for code in regions.split(",") if code.strip()]
    mesh = Mesh.prepare(where, regions=codes, sets=sets, workers=workers, otlp=otlp, plan=plan)
    with mesh.exclusively():
        started = start(mesh, codes or mesh.regions)
    remember(where)
    say(_what_next(mesh, codes or mesh.regions, len(started), time.monotonic() - began))
    if as_json:
        print_json(mesh.endpoints(processes.running(mesh)))
    if not detach:
        _stay(mesh)


@reports_errors
def down(directory: Directory = None, as_json: AsJson = False) -> None:
    """Stop everything that `up` started, machines too; data stay, and `up` starts it all again."""
    mesh = Mesh.open((directory or default_directory()).absolute())
    with mesh.exclusively():
        stop(mesh)
    if as_json:
        print_json({"stopped": str(mesh.directory)})
    say(f"stopped; the data are in {mesh.directory}")


def start(mesh: Mesh, regions: Sequence[str], *, ready_seconds: float = READY_SECONDS) -> list[Process]:
    """Start the planned processes of the centre and of `regions` that do not run, wait until all serve and every worker
    can be placed on, and write endpoints.json. Returns those that were started.

    Raises MeshError, with the last words of the one that ended, or naming what is not ready after `ready_seconds`.
    """
    alive = processes.running(mesh)
    places = [CENTRAL, *regions]
    absent = processes.missing(mesh, places, alive)
    with progress("starting"):
        _await_ports(absent)
        for process in absent:
            alive[process] = processes.spawn(mesh, process)
    planned = [process for place in places for process in mesh.processes(place)]
    with progress("waiting for the services to be ready") as tell:
        _await_ready(mesh, planned, alive, tell, ready_seconds)
    mesh.write_endpoints(alive)
    return absent


def _await_ports(absent: Sequence[Process]) -> None:
    """A process that was killed a moment ago may still hold its ports."""

    def occupied() -> list[tuple[Process, int]]:
        return [(process, port) for process in absent for port in process.served_ports if not ports.is_free(port)]

    if not processes.wait_until(lambda: not occupied(), _PORT_SECONDS):
        process, port = occupied()[0]
        raise MeshError(
            f"port {port} of {process.region}/{process.name} is in use by another program: end that one, "
            "or make a mesh in another --dir"
        )


def _await_ready(
    mesh: Mesh,
    planned: Sequence[Process],
    alive: dict[Process, int],
    tell: Callable[[str], None],
    ready_seconds: float,
) -> None:
    # Imported here, while the processes start: other commands do without gRPC.
    from services.cli.readiness import Probe

    deadline = time.monotonic() + ready_seconds
    with contextlib.ExitStack() as probes:
        pending = {process: probes.enter_context(Probe(mesh, process)) for process in planned}
        while pending:
            for process, probe in list(pending.items()):
                if probe.is_ready():
                    del pending[process]
                    tell(f"{process.region}/{process.name} is ready")
                elif not processes.is_alive(alive[process]):
                    raise MeshError(_obituary(mesh, process))
            if time.monotonic() > deadline:
                waiting = ", ".join(f"{process.region}/{process.name}" for process in pending)
                log_file = mesh.log_file(next(iter(pending)))
                raise MeshError(f"not ready after {ready_seconds:g} s: {waiting}; see its log, {log_file}")
            time.sleep(_POLL)


def _obituary(mesh: Mesh, process: Process) -> str:
    log_file = mesh.log_file(process)
    words = processes.last_words(log_file)
    return f"{process.region}/{process.name} ended before it was ready: {words or 'it said nothing'} (log: {log_file})"


def _what_next(mesh: Mesh, regions: Sequence[str], started: int, seconds: float) -> str:
    endpoints = mesh.endpoints({})
    doors = [
        f"  {code}: {endpoints['regions'][code]['rest']} (gRPC {endpoints['regions'][code]['grpc']})"
        for code in regions
    ]
    rest = endpoints["regions"][regions[0]]["rest"]
    headline = f"ready in {seconds:.1f} s" if started else "everything runs already"
    return "\n".join(
        [
            f"{headline}; the mesh is in {mesh.directory}",
            *doors,
            f"  the centre: {endpoints['central']['graphql']}",
            "",
            "Try:",
            f"  export TOKEN=$(cat {mesh.directory}/token) API={rest}/v1",
            '  curl -sX POST $API/apps -H "authorization: Bearer $TOKEN" -d \'{"app_name": "hello"}\'',
            '  curl -sX POST $API/apps/hello/machines -H "authorization: Bearer $TOKEN" \\',
            '    -d \'{"config": {"image": "nginx", "env": {"PORT": "8088"}, '
            '"init": {"exec": ["python3", "-m", "http.server", "8088"]}}}\'',
            '  curl -s $API/apps/hello/machines -H "authorization: Bearer $TOKEN"',
            f"  skerry machines list hello --region {regions[0]} --dir {mesh.directory}",
            f"  skerry down --dir {mesh.directory}",
        ]
    )


def _stay(mesh: Mesh) -> None:
    """Wait for Ctrl-C or SIGTERM, then take the mesh down."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    say("Ctrl-C takes it down (its data stay).")
    told: set[Process] = set()
    watched = processes.running(mesh)
    while not ended.wait(0.5):
        for process, pid in watched.items():
            if process not in told and not processes.is_alive(pid):
                told.add(process)
                say(f"{_obituary(mesh, process)}; `skerry up --dir {mesh.directory}` starts it again")
        watched |= processes.running(mesh)
    with mesh.exclusively():
        stop(mesh)
    say(f"stopped; the data are in {mesh.directory}")


def stop(mesh: Mesh) -> None:
    """End the processes of `mesh`, then the machines that its workers left running, then its PostgreSQL.

    In this order nothing starts again what was just stopped, and it makes no difference whether processes had been
    killed before. Idempotent; what could not be stopped is named by a MeshError, after everything else was.
    """
    # Imported here: it pulls in what workers are made of.
    from services.cli import wiring
    from services.runtime import telemetry
    from services.runtime.errors import SkerryError

    telemetry.setup("cli", "", log_level="error")
    failures: list[str] = []
    with progress("stopping") as tell:
        processes.end(processes.running(mesh).values(), grace=STOP_SECONDS)
        tell("stopping machines")
        for place in (*mesh.regions, CENTRAL):
            work = [wiring.stop_postgres(mesh, place)]
            if place != CENTRAL:
                work.insert(0, wiring.stop_machines(mesh, place, MACHINE_STOP_SECONDS))
            for each in work:
                try:
                    asyncio.run(each)
                except (OSError, SkerryError, MeshError) as error:
                    failures.append(f"{place}: {error}")
    if failures:
        raise MeshError("; ".join(failures))
