"""Calls to the internal services of a mesh's regions, for the operator's commands."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from services.cli.console import CommandError
from services.cli.mesh import CONFIG_CONVERTER, Mesh, default_directory

if TYPE_CHECKING:
    import grpc

    from services.runtime.errors import SkerryError

R = TypeVar("R")


def mesh_of(directory: Path | None) -> Mesh:
    """The mesh in DIR. Raises MeshError when there is none."""
    return Mesh.open((directory or default_directory()).absolute())


def regions_of(mesh: Mesh, regions: str | None) -> list[str]:
    """The regions that an option names, separated by commas; all without it. Raises CommandError for an unknown one."""
    if regions is None:
        return list(mesh.regions)
    codes = [code.strip() for code in regions.split(",") if code.strip()]
    if not codes or (unknown := [code for code in codes if code not in mesh.regions]):
        named = ", ".join(unknown) if codes else "no region"
        raise CommandError(f"{named}: not in the mesh, which has {', '.join(mesh.regions)}")
    return codes


def ask(mesh: Mesh, region: str, work: Callable[[grpc.aio.Channel], Awaitable[R]], *, of: str = CONFIG_CONVERTER) -> R:
    """What `work` makes of a channel to the service `of` in `region`. Raises CommandError with the region's refusal."""
    answer = ask_all(mesh, [region], work, of=of)[region]
    if isinstance(answer, Refusal):
        raise CommandError(str(answer))
    return answer


class Refusal:
    """What a region said instead of an answer; `away` when it could not be asked."""

    def __init__(self, region: str, error: SkerryError) -> None:
        from services.runtime.errors import DependencyDown

        self.region = region
        self.error = error
        self.away = isinstance(error, DependencyDown)

    def __str__(self) -> str:
        return f"{self.region}: {self.error.message}"


def ask_all(
    mesh: Mesh,
    regions: Sequence[str],
    work: Callable[[grpc.aio.Channel], Awaitable[R]],
    *,
    of: str = CONFIG_CONVERTER,
) -> Mapping[str, R | Refusal]:
    """The same of several regions at once; one that refuses or is away does not keep the others' answers back."""
    from services.runtime import telemetry
    from services.runtime.channels import connect
    from services.runtime.errors import SkerryError

    async def one(region: str) -> R | Refusal:
        channel = connect(mesh.addresses(region, of), caller=f"{mesh.cell(region)}/cli", callee=of, secret=mesh.secret)
        async with channel:
            try:
                return await work(channel)
            except SkerryError as error:
                return Refusal(region, error)

    async def every() -> list[R | Refusal]:
        return await asyncio.gather(*(one(region) for region in regions))

    telemetry.setup("cli", "", log_level="error")
    return dict(zip(regions, asyncio.run(every()), strict=True))


def operator() -> str:
    """Who gives the command, for the history of what was changed."""
    return getpass.getuser()
