"""What commands have in common: what many of them take, and how they print.

Results go to stdout, prose and progress to stderr, errors are a sentence.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from services.cli.mesh import MeshError
from services.cli.ports import NoPorts

P = ParamSpec("P")
R = TypeVar("R")

_WIDTH_OF_FILES = 160
_SECONDS_BETWEEN_LINES = 2.0

AppName = Annotated[str, typer.Argument(help="Name of the app.", metavar="APP")]
MachineId = Annotated[str, typer.Argument(help="Id of the machine.", metavar="MACHINE")]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="Where the mesh lives (default: that of the last `skerry up`).")
]
RegionCode = Annotated[str | None, typer.Option("--region", help="Region to ask; needed when the mesh has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class CommandError(Exception):
    """A command could not do what it was asked; the message is for the user."""


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make expected errors of `command` a line on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (CommandError, MeshError, NoPorts) as error:
            say(f"error: {error}")
            raise typer.Exit(1) from None

    return wrapped


def say(text: str) -> None:
    """Prose, for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The one JSON document of a command."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """A table on stdout, or the sentence `empty` on stderr when there are no rows."""
    if not rows:
        say(empty)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES).print(table)


def print_json_or_say(document: Any, as_json: bool, sentence: str) -> None:
    """How a command ends that did something."""
    if as_json:
        print_json(document)
    else:
        say(sentence)


def print_json_or_table(
    document: Any, as_json: bool, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = ""
) -> None:
    """How a command ends that shows something; `rows` are made only for a table, and `empty` is said without any."""
    if as_json:
        print_json(document)
    else:
        print_table(columns, list(rows), empty=empty)


def moment(seconds: float, timespec: str = "seconds") -> str:
    """Unix seconds as people and other programs read them: 2026-01-31T12:00:00Z; `timespec` as in isoformat."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


@contextlib.contextmanager
def progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that `doing` goes on; the callable that it gives says how far it is."""
    if not sys.stderr.isatty():
        said: set[str] = set()

        def tell(text: str) -> None:
            if text not in said:
                said.add(text)
                say(text)

        yield tell
        return
    from rich.console import Console

    with Console(stderr=True).status(doing) as status:
        yield status.update


@contextlib.contextmanager
def bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how much of `doing` is done, how fast it goes and how long it will take.

    The callable that it gives is told what is done, and of how much.
    """
    from rich import progress as rich_progress
    from rich.console import Console

    if not sys.stderr.isatty():
        said = float("-inf")

        def tell(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                say(f"{doing}: {done} of {total}")

        yield tell
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TaskProgressColumn(show_speed=True),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(doing, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
