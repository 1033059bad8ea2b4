"""Lists in pages: a cursor that says, cell by cell, which machine of it came last.

So a page is right whatever is created and destroyed between it and the next, and a cell that did not answer goes on
where it was once it does.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from skerry.machines.v1 import machines_pb2 as api

from services.runtime.errors import InvalidConfig, Violation
from services.runtime.ids import cell_of

MOST_ON_A_PAGE = 1_000
_MOST_CELLS = 4_096
_NANOSECONDS = 1_000_000_000


class Position(NamedTuple):
    """A machine's place in the list of its cell: when it was created, in nanoseconds since 1970, and its id."""

    created: int
    id: str

    @property
    def created_at(self) -> Timestamp:
        """The moment as a message."""
        return Timestamp(seconds=self.created // _NANOSECONDS, nanos=self.created % _NANOSECONDS)


class Page(NamedTuple):
    """A page, and the cursor of the next one; empty when there is none."""

    machines: list[api.Machine]
    next_cursor: str


def position_of(machine: api.Machine) -> Position:
    """Where a machine stands in the list."""
    return Position(machine.created_at.seconds * _NANOSECONDS + machine.created_at.nanos, machine.id)


def cut(machines: Sequence[api.Machine], limit: int, positions: Mapping[str, Position]) -> Page:
    """The first `limit` of what the cells answered, each with up to `limit`; `positions` are where they began."""
    ordered = sorted(machines, key=position_of)
    if len(ordered) < limit:
        return Page(ordered, "")
    page = ordered[:limit]
    reached = {**positions}
    for machine in page:
        if (cell := cell_of(machine.id)) is not None:
            reached[cell] = position_of(machine)
    return Page(page, write_cursor(reached))


def write_cursor(positions: Mapping[str, Position]) -> str:
    """The cursor that stands for `positions`, by cell."""
    document = json.dumps([[cell, *position] for cell, position in sorted(positions.items())], separators=(",", ":"))
    return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> dict[str, Position]:
    """The positions by cell that a cursor stands for; none for an empty one. Raises InvalidConfig of `cursor`."""
    if not cursor:
        return {}
    try:
        document = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(document, list) or len(document) > _MOST_CELLS:
            raise ValueError
        positions: dict[str, Position] = {}
        for cell, created, machine_id in document:
            is_one = isinstance(cell, str) and type(created) is int and isinstance(machine_id, str)
            # The years 1970..9999, which is what a Timestamp holds.
            if not is_one or not 0 <= created < 253_402_300_800 * _NANOSECONDS or "\0" in machine_id:
                raise ValueError
            positions[cell] = Position(created, machine_id)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        why = "is not what a page of this list answered in skerry-next-cursor"
        raise InvalidConfig(f"cursor {why}", violations=[Violation("cursor", why)]) from None
    return positions
