"""`skerry tokens`: tokens of the public API. The centre makes them; whoever holds one narrows it without asking."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from services.cli import inside
from services.cli.console import AsJson, CommandError, Directory, RegionCode, moment, print_json, reports_errors, say
from services.cli.mesh import CENTRAL_SYNC, MACHINE_STORE

if TYPE_CHECKING:
    import grpc

app = typer.Typer(no_args_is_help=True, help="Tokens of the public API.")

R = TypeVar("R")
_CALL_SECONDS = 10.0

_Token = Annotated[str, typer.Argument(metavar="TOKEN", help="The token; - reads it from standard input.")]
_Scope = Annotated[str | None, typer.Option("--scope", help="read-only, deploy, exec or all.")]
_App = Annotated[str | None, typer.Option("--app", help="Name of the only app that it reaches.")]
_Expires = Annotated[str | None, typer.Option("--expires", metavar="DURATION", help='After how long it ends: "1h".')]


@app.command()
@reports_errors
def create(
    org: Annotated[str, typer.Option("--org", help="Short name of the organization.")],
    app_name: _App = None,
    scope: _Scope = None,
    expires: _Expires = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Have the centre make a token for an organization, or for one app of it."""
    from skerry.sync.v1 import sync_pb2
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

    request = sync_pb2.CreateTokenRequest(organization_slug=org, app_name=app_name or "", scope=scope or "all")
    if (end := _end(expires)) is not None:
        request.expires_at.FromMicroseconds(round(end * 1e6))

    async def work(channel: grpc.aio.Channel) -> sync_pb2.CreateTokenResponse:
        stub: Any = CentralSyncStub(channel)
        made: sync_pb2.CreateTokenResponse = await stub.CreateToken(request, timeout=_CALL_SECONDS)
        return made

    made = _ask_any(directory, region, work)
    ends = made.expires_at.ToMicroseconds() / 1e6 if made.HasField("expires_at") else None
    _show(made.token, made.id, ends, as_json=as_json)


@app.command()
@reports_errors
def attenuate(
    token: _Token,
    app_name: _App = None,
    scope: _Scope = None,
    expires: _Expires = None,
    directory: Directory = None,  # noqa: ARG001 - every command takes it
    as_json: AsJson = False,
) -> None:
    """Make a token from TOKEN that may do less. Nobody is asked."""
    from services.runtime.errors import InvalidConfig
    from services.runtime.tokens import attenuate

    try:
        made = attenuate(_read(token), app=app_name, scope=scope, expires_at=_end(expires))
    except InvalidConfig as error:
        raise CommandError(error.message) from None
    _show(made.token, made.id, made.expires_at, as_json=as_json)


@app.command()
@reports_errors
def inspect(
    token: _Token,
    directory: Directory = None,  # noqa: ARG001 - every command takes it
    as_json: AsJson = False,
) -> None:
    """Show what TOKEN says of itself. Nobody is asked, and nothing is verified."""
    from services.runtime.errors import InvalidConfig
    from services.runtime.tokens import inspect

    try:
        grant = inspect(_read(token))
    except InvalidConfig as error:
        raise CommandError(error.message) from None
    document = {
        "id": grant.id,
        "organization": grant.organization,
        "apps": None if grant.apps is None else sorted(grant.apps),
        "scopes": sorted(grant.scopes),
        "expires_at": _moment(grant.expires_at),
        "blocks": list(grant.revocation_ids),
        "key_id": grant.key_id,
    }
    if as_json:
        print_json(document)
        return
    apps = "all" if grant.apps is None else ", ".join(sorted(grant.apps)) or "none"
    print(f"organization  {grant.organization}")
    print(f"apps          {apps}")
    print(f"scopes        {', '.join(sorted(grant.scopes))}")
    print(f"ends          {document['expires_at'] or 'never'}")
    print(f"id            {grant.id}")
    for number, block in enumerate(grant.revocation_ids[:-1]):
        print(f"made from     {block}" if number == len(grant.revocation_ids) - 2 else f"              {block}")


@app.command()
@reports_errors
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, from when it was made.")],
    region: Annotated[
        str | None, typer.Option("--region", help="Revoke it in this region, at once and without the centre.")
    ] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a token, and all that were made from it, for ever: everywhere, or first in one region."""
    from skerry.store.v1.catalog_store_pb2 import RecordRevocationRequest
    from skerry.store.v1.catalog_store_pb2_grpc import CatalogStoreStub
    from skerry.sync.v1.sync_pb2 import RevokeTokenRequest
    from skerry.sync.v1.sync_pb2_grpc import CentralSyncStub

    async def in_region(channel: grpc.aio.Channel) -> None:
        stub: Any = CatalogStoreStub(channel)
        await stub.RecordRevocation(RecordRevocationRequest(id=token_id), timeout=_CALL_SECONDS)

    async def at_centre(channel: grpc.aio.Channel) -> None:
        stub: Any = CentralSyncStub(channel)
        await stub.RevokeToken(RevokeTokenRequest(id=token_id), timeout=_CALL_SECONDS)

    if region is not None:
        mesh = inside.mesh_of(directory)
        for code in inside.regions_of(mesh, region):
            inside.ask(mesh, code, in_region, of=MACHINE_STORE)
        say(f"revoked in {region}; the centre, and all other regions, hear of it from there")
    else:
        _ask_any(directory, None, at_centre)
        say("revoked; every region knows within seconds")
    if as_json:
        print_json({"id": token_id, "region": region})


def _ask_any(directory: Path | None, region: str | None, work: Callable[[grpc.aio.Channel], Awaitable[R]]) -> R:
    """What the centre answers through `region`, or through the first one that is there."""
    mesh = inside.mesh_of(directory)
    answer: R | inside.Refusal | None = None
    for code in inside.regions_of(mesh, region):
        answer = inside.ask_all(mesh, [code], work, of=CENTRAL_SYNC)[code]
        if not isinstance(answer, inside.Refusal):
            return answer
        if not answer.away:
            break
    raise CommandError(str(answer))


def _read(token: str) -> str:
    return sys.stdin.read().strip() if token == "-" else token


def _end(expires: str | None) -> float | None:
    """Unix seconds of the end of something that lasts `expires`. Raises CommandError."""
    if expires is None:
        return None
    number, unit = expires[:-1], expires[-1:]
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(unit)
    if seconds is None or not number.isdecimal() or int(number) == 0:
        raise CommandError('--expires must be a number and s, m, h or d, such as "1h"')
    return time.time() + int(number) * seconds


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else moment(seconds)


def _show(token: str, token_id: str, expires_at: float | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"token": token, "id": token_id, "expires_at": _moment(expires_at)})
        return
    print(token)
    say(f"id {token_id}: revokes it. Ends: {_moment(expires_at) or 'never'}. The token is not shown again.")
