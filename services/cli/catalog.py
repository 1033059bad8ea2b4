"""`skerry catalog`: each region's replica of the centre's data, and the way to the centre."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from services.cli import inside
from services.cli.console import AsJson, CommandError, Directory, print_json, print_table, reports_errors, say
from services.cli.handover import Regions
from services.cli.mesh import CENTRAL_SYNC

if TYPE_CHECKING:
    import grpc
    from skerry.sync.v1 import sync_pb2

app = typer.Typer(no_args_is_help=True, help="The regions' replica of the centre's data.")

_CALL_SECONDS = 10.0
_COLUMNS = ("REGION", "FILLED", "POSITION", "STALENESS", "HELD", "MIRROR BEHIND", "BREAKERS")


@app.command("status")
@reports_errors
def show_status(regions: Regions = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show how far every region's catalog is, what is held back, and the state of the breakers."""
    from skerry.sync.v1 import sync_pb2
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

    async def work(channel: grpc.aio.Channel) -> dict[str, Any]:
        stub: Any = CentralSyncStub(channel)
        async for status in stub.WatchStatus(sync_pb2.WatchStatusRequest(), timeout=_CALL_SECONDS):
            return _document(status)
        raise CommandError("central-sync says nothing of its state")

    mesh = inside.mesh_of(directory)
    answers = inside.ask_all(mesh, inside.regions_of(mesh, regions), work, of=CENTRAL_SYNC)
    known = {region: answer for region, answer in answers.items() if not isinstance(answer, inside.Refusal)}
    if as_json:
        print_json({"regions": [{"region": region, **answer} for region, answer in known.items()]})
    else:
        rows = [
            (
                region,
                answer["filled"],
                answer["position"],
                f"{answer['staleness_s']:.1f} s",
                answer["held_reason"] or answer["held_changes"],
                answer["mirror_behind"],
                ", ".join(f"{each['class']} {each['state']}" for each in answer["breakers"]),
            )
            for region, answer in known.items()
        ]
        print_table(_COLUMNS, rows, empty="no region answered")
    if failures := [str(answer) for answer in answers.values() if isinstance(answer, inside.Refusal)]:
        raise CommandError("; ".join(failures))


def _document(status: sync_pb2.WatchStatusResponse) -> dict[str, Any]:
    from skerry.sync.v1 import sync_pb2

    pull, mirror = status.pull, status.mirror
    return {
        "filled": pull.filled,
        "position": pull.position,
        "staleness_s": pull.staleness.ToNanoseconds() / 1e9,
        "held_changes": pull.held_changes,
        "held_reason": pull.held_reason,
        "mirror_revision": mirror.revision,
        "mirror_behind": mirror.behind,
        "breakers": [
            {
                "class": breaker.call_class,
                "state": sync_pb2.BreakerState.Name(breaker.state).removeprefix("BREAKER_STATE_").lower(),
                "since": breaker.since.ToDatetime().isoformat(timespec="seconds") + "Z",
                "failure_rate": breaker.failure_rate,
                "slow_call_rate": breaker.slow_call_rate,
                "last_failure": breaker.last_failure,
            }
            for breaker in status.breakers
        ],
    }


@app.command()
@reports_errors
def accept(regions: Regions = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Let changes that were held back, because they delete much, into the catalog."""
    from skerry.sync.v1 import sync_pb2
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

    request = sync_pb2.AcceptHeldChangesRequest(who=inside.operator())

    async def work(channel: grpc.aio.Channel) -> int:
        stub: Any = CentralSyncStub(channel)
        return int((await stub.AcceptHeldChanges(request, timeout=_CALL_SECONDS)).accepted)

    mesh = inside.mesh_of(directory)
    accepted = {region: inside.ask(mesh, region, work, of=CENTRAL_SYNC) for region in inside.regions_of(mesh, regions)}
    if as_json:
        print_json({"accepted": accepted})
    for region, count in accepted.items():
        say(f"{region}: {count} changes accepted")
