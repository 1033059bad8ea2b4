"""`skerry handover`: who converts each part of a machine's configuration, and moving that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import inside
from services.cli.console import (
    AsJson,
    CommandError,
    Directory,
    bar,
    print_json,
    print_table,
    reports_errors,
    say,
)
from services.cli.handover_calls import CALL_SECONDS, mode_name, statuses, stub

if TYPE_CHECKING:
    import grpc
    from skerry.handover.v1 import plan_pb2

app = typer.Typer(no_args_is_help=True, help="Who converts each part of the config, the centre or the regions.")

PROMOTE_SECONDS = 600.0
"""A promotion runs a backtest over everything that the region stores."""

Part = Annotated[str, typer.Argument(help="Name of the part.", metavar="PART")]
Regions = Annotated[str | None, typer.Option(help="Regions, separated by commas (default: all of the mesh).")]
_STATUS_COLUMNS = ("REGION", "PART", "MODE", "VERSION", "SEALED", "COMPARED", "DIFFERENT", "SINCE")


@app.command("status")
@reports_errors
def show_status(regions: Regions = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show the plan of every region, and what comparing has shown."""
    mesh = inside.mesh_of(directory)
    epochs: dict[str, int] = {}
    parts: list[dict[str, Any]] = []
    failures: list[str] = []
    for region, answer in statuses(mesh, inside.regions_of(mesh, regions)).items():
        if isinstance(answer, inside.Refusal):
            failures.append(str(answer))
            continue
        epochs[region] = answer.plan.epoch
        evidence = {entry.part: entry for entry in answer.evidence}
        parts.extend(_row(region, entry, evidence.get(entry.part)) for entry in answer.plan.parts)
    if as_json:
        print_json({"epoch": epochs, "parts": parts})
    else:
        print_table(_STATUS_COLUMNS, [tuple(part.values()) for part in parts], empty="no region answered")
    if failures:
        raise CommandError("; ".join(failures))


def _row(region: str, entry: plan_pb2.PartPlan, evidence: plan_pb2.PartEvidence | None) -> dict[str, Any]:
    mode = mode_name(entry.mode)
    versions = [*entry.central_versions] if mode in ("central", "shadow") else [entry.local_version]
    return {
        "region": region,
        "part": entry.part,
        "mode": mode,
        "version": versions[0] if len(versions) == 1 else ", ".join(map(str, versions)),
        "sealed": bool(entry.sealed_by),
        "compared": evidence.compared if evidence else 0,
        "different": evidence.different if evidence else 0,
        "since": entry.since.ToDatetime().isoformat(timespec="seconds") + "Z" if entry.HasField("since") else None,
    }


@app.command()
@reports_errors
def promote(
    part: Part,
    regions: Regions = None,
    min_compared: Annotated[int, typer.Option(min=1, help="Compared conversions that are enough.")] = 1_000,
    version: Annotated[int, typer.Option(min=0, help="Move a local part to this version of the converter.")] = 0,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Move a part one mode on: central, shadow, local-checked, local. Refused without evidence."""
    from skerry.handover.v1 import handover_pb2

    request = handover_pb2.PromoteRequest(part=part, min_compared=min_compared, version=version, who=inside.operator())

    async def work(channel: grpc.aio.Channel) -> plan_pb2.PlanChange:
        return (await stub(channel).Promote(request, timeout=PROMOTE_SECONDS)).change  # type: ignore[no-any-return]

    _change_everywhere(directory, regions, work, as_json)


@app.command()
@reports_errors
def revert(
    part: Part,
    regions: Regions = None,
    why: Annotated[str, typer.Option(help="For the history.")] = "asked for by the operator",
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Move a part back to the centre; a sealed one to the local version before."""
    from skerry.handover.v1 import handover_pb2

    request = handover_pb2.RevertRequest(part=part, who=inside.operator(), why=why)

    async def work(channel: grpc.aio.Channel) -> plan_pb2.PlanChange:
        return (await stub(channel).Revert(request, timeout=CALL_SECONDS)).change  # type: ignore[no-any-return]

    _change_everywhere(directory, regions, work, as_json)


def _change_everywhere(directory: Any, regions: str | None, work: Any, as_json: bool) -> None:
    mesh = inside.mesh_of(directory)
    changed: list[dict[str, Any]] = []
    failures: list[str] = []
    for region, answer in inside.ask_all(mesh, inside.regions_of(mesh, regions), work).items():
        if isinstance(answer, inside.Refusal):
            failures.append(str(answer))
            continue
        after = answer.after
        changed.append({"region": region, "part": after.part, "mode": mode_name(after.mode), "epoch": answer.epoch})
        say(f"{region}: {after.part} is {mode_name(after.mode)} from epoch {answer.epoch} on")
    if as_json:
        print_json({"changed": changed, "refused": failures})
    if failures:
        raise CommandError("; ".join(failures))


@app.command()
@reports_errors
def unseal(part: Part, regions: Regions = None, directory: Directory = None, as_json: AsJson = False) -> None:
    """Let a sealed part go back to the centre again; the centre is asked first whether it converts it."""
    from skerry.handover.v1 import handover_pb2

    request = handover_pb2.UnsealRequest(parts=[part], who=inside.operator())

    async def work(channel: grpc.aio.Channel) -> None:
        await stub(channel).Unseal(request, timeout=CALL_SECONDS)

    mesh = inside.mesh_of(directory)
    answers = inside.ask_all(mesh, inside.regions_of(mesh, regions), work)
    refused = {code: str(answer) for code, answer in answers.items() if isinstance(answer, inside.Refusal)}
    if as_json:
        print_json({"part": part, "unsealed": [code for code in answers if code not in refused], "refused": refused})
    if refused:
        raise CommandError("; ".join(refused.values()))
    say(f"{part} is not sealed any more in {', '.join(answers)}")


@app.command()
@reports_errors
def diff(
    part: Annotated[str, typer.Argument(help="Only of this part.", metavar="PART")] = "",
    regions: Regions = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most this many a region.")] = 50,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest differences between the regions' conversions and the centre's."""
    from google.protobuf.json_format import MessageToDict
    from skerry.handover.v1 import handover_pb2

    request = handover_pb2.ListDifferencesRequest(part=part, limit=limit)

    async def work(channel: grpc.aio.Channel) -> list[plan_pb2.Difference]:
        return list((await stub(channel).ListDifferences(request, timeout=CALL_SECONDS)).differences)

    mesh = inside.mesh_of(directory)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for region, answer in inside.ask_all(mesh, inside.regions_of(mesh, regions), work).items():
        if isinstance(answer, inside.Refusal):
            failures.append(str(answer))
            continue
        for difference in answer:
            rows.append({"region": region, **MessageToDict(difference, preserving_proto_field_name=True)})
    if as_json:
        print_json({"differences": rows})
    else:
        columns = ("region", "part", "field", "local_value", "central_value", "app_name", "at")
        print_table(
            [column.upper() for column in columns],
            [tuple(row.get(column, "") for column in columns) for row in rows],
            empty="there are no differences" if not failures else "no differences in the regions that answered",
        )
    if failures:
        raise CommandError("; ".join(failures))


@app.command()
@reports_errors
def backtest(
    part: Part,
    version: Annotated[int, typer.Option(min=1, help="Version of the region's converter.")] = 1,
    regions: Regions = None,
    resume_after: Annotated[str, typer.Option(help="Go on after this machine, with one region.")] = "",
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Convert every stored configuration again, and report each machine whose spec would change; exits 1 if any would.

    It goes on by itself where it was cut by something that comes back.
    """
    from google.protobuf.json_format import MessageToDict

    from services.cli import backtesting

    mesh = inside.mesh_of(directory)
    codes = inside.regions_of(mesh, regions)
    if resume_after and len(codes) != 1:
        raise CommandError("a machine to go on after is of one region: choose it with --regions")
    results: list[dict[str, Any]] = []
    for region in codes:
        with bar(f"{region}: converting") as tell:
            test = backtesting.run(mesh, region, part=part, version=version, resume_after=resume_after, tell=tell)
        changed = [MessageToDict(each, preserving_proto_field_name=True) for each in test.changed]
        results.append(
            {
                "region": region,
                "converted": test.converted,
                "per_second": round(test.per_second, 1),
                "changed": changed,
            }
        )
    if as_json:
        print_json({"backtests": results})
    for result in results:
        say(
            f"{result['region']}: {result['converted']} converted ({result['per_second']:.0f}/s), "
            f"{len(result['changed'])} would change"
        )
        for each in result["changed"][:20]:
            say(f"  {each.get('machine_id', '')}: {each.get('part')} {each.get('field')}: {json.dumps(each)}")
    if any(result["changed"] for result in results):
        raise typer.Exit(1)


@app.command()
@reports_errors
def check(
    central: Annotated[str, typer.Option(help="Base URL of the centre that is about to be deployed.")],
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a centre about to be deployed leaves a region without a part; exits 1, naming regions and parts."""
    from services.cli import deploy

    mesh = inside.mesh_of(directory)
    release, served = deploy.converter_of(mesh, central)
    unserved = deploy.unserved(statuses(mesh, list(mesh.regions)), served)
    if as_json:
        print_json({"release": release, "unserved": unserved})
    if unserved:
        raise CommandError(deploy.refusal(release, unserved))
    say(f"release {release} of the centre serves every part that the regions need of it")
