"""Typed identifiers.

An id begins with its cell, after the type's prefix where there is one, so that any gateway can route by it.
"""

from __future__ import annotations

from random import Random
from typing import NewType

MachineId = NewType("MachineId", str)
AppId = NewType("AppId", str)
WorkerId = NewType("WorkerId", str)

_HEX = frozenset("0123456789abcdef")
_CELL_DIGITS = 3
_MACHINE_DIGITS = 14
_VOLUME_DIGITS = 16
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def is_cell(text: str) -> bool:
    """Whether `text` can be a cell: three lower-case hex digits, not the reserved 000."""
    return len(text) == _CELL_DIGITS and _HEX.issuperset(text) and text != "000"


def new_machine_id(cell: str, random: Random) -> MachineId:
    """A new machine id: 14 lower-case hex digits, the first three of which are `cell`.

    Raises ValueError if `cell` cannot be a cell.
    """
    if not is_cell(cell):
        raise ValueError(f"{cell!r} is no cell: it takes three lower-case hex digits other than 000")
    digits = _MACHINE_DIGITS - _CELL_DIGITS
    return MachineId(f"{cell}{random.getrandbits(4 * digits):0{digits}x}")


def new_release_id(cell: str, now: float, random: Random) -> str:
    """A new release id: `cell`, and a ULID of the moment `now` (unix seconds) in lower case."""
    return f"{cell}{new_ulid(now, random).lower()}"


def new_volume_id(cell: str, random: Random) -> str:
    """A new id of a volume: `vol_`, then 16 hex digits that begin with the cell. Raises ValueError as above."""
    return _prefixed("vol_", cell, random)


def new_snapshot_id(cell: str, random: Random) -> str:
    """A new id of a snapshot: `vs_`, then 16 hex digits that begin with the cell. Raises ValueError as above."""
    return _prefixed("vs_", cell, random)


def _prefixed(prefix: str, cell: str, random: Random) -> str:
    if not is_cell(cell):
        raise ValueError(f"{cell!r} is no cell: it takes three lower-case hex digits other than 000")
    digits = _VOLUME_DIGITS - _CELL_DIGITS
    return f"{prefix}{cell}{random.getrandbits(4 * digits):0{digits}x}"


def cell_of(identifier: str) -> str | None:
    """The cell an id (`vol_…`, `vs_…`, or a bare machine id) begins with; None if it names none."""
    cell = identifier.rpartition("_")[2][:_CELL_DIGITS]
    return cell if is_cell(cell) else None


def new_ulid(now: float, random: Random) -> str:
    """A ULID, 26 Crockford base-32 characters: the moment `now` (unix seconds) in milliseconds, then 80 random bits."""
    value = (int(now * 1000) << 80) | random.getrandbits(80)
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))
