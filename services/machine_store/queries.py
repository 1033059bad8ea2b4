"""SQL by name: the statements lie in `sql/`, each under a `-- name:` line and a description."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FOLDER = Path(__file__).parent / "sql"
_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def load(file: str) -> MappingProxyType[str, str]:
    """The statements of `sql/{file}.sql` by name, in the order of the file.

    Raises FileNotFoundError, or ValueError if a name occurs twice.
    """
    _, *parts = _NAME.split((_FOLDER / f"{file}.sql").read_text(encoding="utf-8"))
    names, statements = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"sql/{file}.sql names a statement twice")
    return MappingProxyType(dict(zip(names, (statement.strip() for statement in statements), strict=True)))
