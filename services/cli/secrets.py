"""`skerry secrets`: list, set, unset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer

from services.cli.console import (
    AppName,
    AsJson,
    CommandError,
    Directory,
    RegionCode,
    print_json_or_say,
    print_json_or_table,
    reports_errors,
)
from services.cli.rest import Api

app = typer.Typer(no_args_is_help=True, help="Secrets of apps: what their machines know, and nobody else.")

_COLUMNS = ("NAME", "DIGEST", "CREATED", "UPDATED")
_FROM_INPUT = "-"


@app.command("list")
@reports_errors
def list_secrets(
    app_name: AppName,
    version: Annotated[int | None, typer.Option(min=1, help="As of this version (default: the newest).")] = None,
    show: Annotated[bool, typer.Option("--show", help="With their values, where the token may see them.")] = False,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the secrets of an app by name."""
    query = {"version": version, "show_secrets": "true" if show else None}
    answer = Api.of(directory, region).call("GET", "apps", app_name, "secrets", query=query)
    columns = (*_COLUMNS, "VALUE") if show else _COLUMNS
    rows = (_row(secret)[: len(columns)] for secret in answer["secrets"])
    print_json_or_table(answer, as_json, columns, rows, empty="there are no secrets")


@app.command("set")
@reports_errors
def set_secrets(
    app_name: AppName,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            help="Secrets to set; NAME=- reads the value from the input, as it is. Without any, the input has lines "
            "NAME=VALUE.",
            metavar="NAME=VALUE…",
        ),
    ] = None,
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Set secrets of an app, all at once."""
    _change(app_name, read_values(values or [], sys.stdin), directory=directory, region=region, as_json=as_json)


@app.command("unset")
@reports_errors
def unset_secrets(
    app_name: AppName,
    names: Annotated[list[str], typer.Argument(help="Secrets to remove.", metavar="NAME…")],
    region: RegionCode = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Remove secrets of an app, all at once."""
    _change(app_name, dict.fromkeys(names), directory=directory, region=region, as_json=as_json)


def read_values(arguments: Sequence[str], given: TextIO) -> dict[str, str]:
    """Name to value, from arguments NAME=VALUE, where "-" stands for all of `given`; else from the lines of `given`.

    Raises CommandError, which shows no value.
    """
    values: dict[str, str] = {}
    lines = arguments or [line for line in given.read().splitlines() if line.strip() and not line.startswith("#")]
    for place, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if not equals or not name.strip():
            where = f"argument {place}" if arguments else f"line {place} of the input"
            raise CommandError(f"{where} must be NAME=VALUE")
        values[name.strip()] = value
    from_input = [name for name, value in values.items() if arguments and value == _FROM_INPUT]
    if len(from_input) > 1:
        raise CommandError(f"only one value can come from the input, not those of {' and '.join(from_input)}")
    for name in from_input:
        values[name] = given.read()
    if not values:
        raise CommandError("there is nothing to set: name secrets as NAME=VALUE, or give lines NAME=VALUE as input")
    return values


def _change(app_name: str, values: dict[str, Any], *, directory: Any, region: str | None, as_json: bool) -> None:
    answer = Api.of(directory, region).call("POST", "apps", app_name, "secrets", body={"values": values})
    version, count = answer["version"], len(answer["secrets"])
    sentence = f"version {version} of the secrets of {app_name}: {count} in all; machines get it when they start"
    print_json_or_say(answer, as_json, sentence)


def _row(secret: dict[str, Any]) -> tuple[object, ...]:
    return secret["name"], secret["digest"], secret["created_at"], secret["updated_at"], secret.get("value", "not kept")
