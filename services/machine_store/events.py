"""Events of machines: their ids and what they are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.machine_pb2 import MachineEvent

from services.machine_store.records import from_timestamp, moment, timestamp
from services.machine_store.transitions import state_name
from services.runtime.clock import Clock

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Events:
    """Makes events of now. Their ids are ULIDs, each greater than the one before."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self._last = 0

    def now(self) -> datetime:
        """The time, as events and records have it."""
        return moment(self._clock.now())

    def touch(self, record: MachineRecord) -> None:
        """Note that a record changes now."""
        record.updated_at.CopyFrom(timestamp(self.now()))

    def happen(self, record: MachineRecord, kind: str, source: str, status: str | None = None) -> MachineEvent:
        """What happens to `record` now, which thereby changes; `status` is its state unless said otherwise.

        The id is greater than those of events before the record last changed, also of an instance whose clock is ahead.
        """
        event_id = self.new_id(after=from_timestamp(record.updated_at))
        self.touch(record)
        return MachineEvent(
            id=event_id,
            type=kind,
            status=state_name(record.state) if status is None else status,
            source=source,
            timestamp=record.updated_at,
        )

    def new_id(self, after: datetime | None = None) -> str:
        """An id of now, or of the millisecond after `after` if that is later."""
        milliseconds = int(self._clock.now() * 1000)
        if after is not None:
            milliseconds = max(milliseconds, (after - _EPOCH) // _MILLISECOND + 1)
        value = milliseconds << 80
        if value <= self._last:
            value = self._last + 1 + self._random.getrandbits(32)
        else:
            value |= self._random.getrandbits(79)
        self._last = value
        return "".join([_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5)])

    def new_prefix(self) -> str:
        """What, with six decimal digits, makes ids that keep the order of their numbers."""
        return self.new_id()[:-6]
