"""The centre's releases: which parts each converts, and at which versions.

An instance is one release. Instances of several releases share a database while a deploy rolls.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.central.legacy import CONVERTERS, PARTS


@dataclass(frozen=True, slots=True)
class Release:
    """What one release converts: part to its versions, lowest first. A part that is not there it does not convert."""

    name: str
    parts: Mapping[str, tuple[int, ...]]


def _release(name: str, *, drops: Iterable[str] = (), versions: Mapping[str, tuple[int, ...]] | None = None) -> Release:
    """All parts at version 1, but for those it drops and those of other versions."""
    dropped, given = frozenset(drops), dict(versions or {})
    return Release(name, {part: given.get(part, (1,)) for part in PARTS if part not in dropped})


RELEASES: Mapping[str, Release] = {
    release.name: release
    for release in (
        _release("1"),
        _release("1.1", versions={"image": (1, 2)}),
        _release("1.2", versions={"image": (2,), "env": (1, 2)}),
        _release("2", drops=["guest"]),
        _release("3", drops=["guest", "services"]),
    )
}
"""The built-in releases by name."""


def load(path: Path) -> dict[str, Release]:
    """The built-in releases, and those of a TOML file:

    [release."4"]
    drops = ["guest"]              # parts that it does not convert
    versions = { image = [1, 2] }  # versions other than 1

    Raises ValueError when the file cannot be read, or names a part or version that there is not.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the releases {path} cannot be read: {error}") from error
    releases = dict(RELEASES)
    for name, table in document.get("release", {}).items():
        releases[name] = _from_table(str(name), table)
    return releases


def _from_table(name: str, table: Mapping[str, Any]) -> Release:
    where = f"release {name!r}"
    if not isinstance(table, Mapping) or not table.keys() <= {"drops", "versions"}:
        raise ValueError(f"{where} may hold drops and versions")
    drops, versions = table.get("drops", []), table.get("versions", {})
    if not isinstance(drops, list) or not isinstance(versions, Mapping):
        raise ValueError(f"{where}: drops is a list of parts, versions a table of part to versions")
    if unknown := sorted({str(part) for part in (*drops, *versions)} - set(PARTS)):
        raise ValueError(f"{where} names {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    chosen: dict[str, tuple[int, ...]] = {}
    for part, given in versions.items():
        known = CONVERTERS[part]
        if not isinstance(given, list) or not given or not set(given) <= set(known):
            raise ValueError(f"{where}: versions of {part} are some of {', '.join(map(str, known))}, not {given!r}")
        chosen[part] = tuple(sorted(given))
    return _release(name, drops=drops, versions=chosen)


def choose(name: str, path: Path | None) -> Release:
    """The release of that name, built in or from the file at `path`. Raises ValueError if there is none."""
    releases = load(path) if path else RELEASES
    if (release := releases.get(name)) is not None:
        return release
    raise ValueError(f"there is no release {name!r}; there are {', '.join(releases)}")
