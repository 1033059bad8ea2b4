"""The fleet as numpy columns: what every worker has, what is reserved on it, and where each app's machines are.

A cache of the store's log. A change costs the same however large the fleet is. `rank` and `explain` only read, and
nothing changes between two lines of theirs, so to them a `Fleet` is a snapshot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.store.v1.volume_store_pb2 import VOLUME_STATE_DESTROYED, VolumeRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_UNREACHABLE, MACHINE_STATE_DESTROYED, MachineState

from services.runtime.ids import AppId, MachineId, WorkerId
from services.runtime.resources import RESOURCE_FIELDS, to_vector

Amounts = NDArray[np.int64]
Rows = NDArray[np.intp]

_T = TypeVar("_T", bound=np.generic)

_FIRST_ROWS = 64
_SPARSE_WORKERS = 64
_EVERYBODY = 0
_DISK = RESOURCE_FIELDS.index("disk_bytes")
_NOWHERE: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine asks of a worker.

    `amounts` is in the order of `RESOURCE_FIELDS`. An empty `host_dedication_id` asks for a host that is everybody's,
    an empty `required_worker_id` for any worker.
    """

    app_id: AppId
    amounts: tuple[int, ...]
    host_dedication_id: str = ""
    required_worker_id: str = ""
    excluded_worker_ids: frozenset[str] = frozenset()
    columns: tuple[tuple[int, int], ...] = field(init=False)
    """The amounts that are not 0, each with its place in `RESOURCE_FIELDS`."""

    def __post_init__(self) -> None:
        asked = tuple((column, amount) for column, amount in enumerate(self.amounts) if amount > 0)
        object.__setattr__(self, "columns", asked)


class Placement(NamedTuple):
    """Where a machine is, and what is reserved for it there and on the worker it leaves.

    Amounts are in the order of `RESOURCE_FIELDS`.
    """

    app_id: AppId
    worker_id: WorkerId
    amounts: tuple[int, ...]
    leaving_worker_id: WorkerId
    leaving_amounts: tuple[int, ...]
    state: MachineState.ValueType

    @property
    def gone(self) -> bool:
        """It is destroyed; something may still be reserved on the worker that it left."""
        return self.state == MACHINE_STATE_DESTROYED


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """One worker's room, amounts in the order of `RESOURCE_FIELDS`."""

    capacity: tuple[int, ...]
    reserved: tuple[int, ...]
    cordoned: bool
    lost: bool
    host_dedication_id: str


class _Stored(NamedTuple):
    """What a volume takes on its worker, amounts in the order of `RESOURCE_FIELDS`."""

    worker_id: WorkerId
    amounts: tuple[int, ...]


@dataclass(slots=True)
class _Expected:
    """A placement that was answered and is not in the log yet."""

    key: tuple[AppId, WorkerId, tuple[int, ...]]
    amounts: Amounts
    until: float
    open: bool = True


@dataclass(slots=True)
class _Dense:
    """Machines of one app: how many in each row, and in all."""

    column: NDArray[np.int64]
    machines: int


class Fleet:
    """Workers in rows, their amounts in columns; built and kept up to date by `put_worker`, `put_machine` and
    `put_volume`.

    Rows are in random order, whatever the order the workers came in: any run of rows is a fair sample of the fleet.
    """

    free: Amounts
    """What nothing has reserved, by column and row."""
    usable: Amounts
    """`free` less the placements that were answered and are not in the log yet."""
    inverse_capacity: NDArray[np.float64]
    """1 / capacity, by column and row; 0 where there is none."""
    for_everybody: NDArray[np.bool_]
    """By row: neither cordoned nor lost, and dedicated to nobody."""
    takes_new: NDArray[np.bool_]
    """By row: neither cordoned nor lost."""
    cordoned: NDArray[np.bool_]
    """By row: its operator wants nothing new on it."""
    lost: NDArray[np.bool_]
    """By row: it cannot be reached, or nothing is known of it but that machines are on it."""

    def __init__(self, random: Random, *, expected_limit: int = 4096) -> None:
        """`random` orders the rows; of answered placements the newest `expected_limit` are remembered."""
        self.machines: dict[MachineId, Placement] = {}
        self._volumes: dict[str, _Stored] = {}
        self._random = random
        self._ids: list[WorkerId] = []
        self._row: dict[WorkerId, int] = {}
        self._capacity: Amounts = np.zeros((len(RESOURCE_FIELDS), _FIRST_ROWS), np.int64)
        self.free = np.zeros_like(self._capacity)
        self.usable = np.zeros_like(self._capacity)
        self.inverse_capacity = np.zeros(self._capacity.shape, np.float64)
        self._dedication: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self.for_everybody = np.zeros(_FIRST_ROWS, np.bool_)
        self.takes_new = np.zeros(_FIRST_ROWS, np.bool_)
        self.cordoned = np.zeros(_FIRST_ROWS, np.bool_)
        self.lost = np.zeros(_FIRST_ROWS, np.bool_)
        self._dedications: dict[str, int] = {"": _EVERYBODY}
        # An app on few workers is a dictionary, one on many a column: a loop over thousands would be too slow.
        self._sparse: dict[AppId, dict[int, int]] = {}
        self._dense: dict[AppId, _Dense] = {}
        self._apps: list[dict[AppId, int]] = []
        self._scratch: NDArray[np.int64] = np.zeros(_FIRST_ROWS, np.int64)
        self._expected: deque[_Expected] = deque()
        self._expected_by_key: dict[tuple[AppId, WorkerId, tuple[int, ...]], deque[_Expected]] = {}
        self._expected_limit = expected_limit

    def __len__(self) -> int:
        """How many workers."""
        return len(self._ids)

    def row_of(self, worker_id: str) -> int | None:
        """The row of a worker, None for one that is not known. It changes when workers are added."""
        return self._row.get(WorkerId(worker_id))

    def rows_of(self, worker_ids: Iterable[str]) -> Rows:
        """The rows of those of the workers that are known."""
        rows = [row for worker_id in worker_ids if (row := self.row_of(worker_id)) is not None]
        return np.array(rows, np.intp)

    def worker_at(self, row: int) -> WorkerId:
        """The id of the worker in a row."""
        return self._ids[row]

    def worker(self, worker_id: str) -> WorkerRoom | None:
        """A worker's room, without the placements that are not in the log yet; None for one that is not known."""
        row = self.row_of(worker_id)
        if row is None:
            return None
        capacity = self._capacity[:, row]
        dedication = next(name for name, code in self._dedications.items() if code == self._dedication[row])
        return WorkerRoom(
            capacity=tuple(capacity.tolist()),
            reserved=tuple((capacity - self.free[:, row]).tolist()),
            cordoned=bool(self.cordoned[row]),
            lost=bool(self.lost[row]),
            host_dedication_id=dedication,
        )

    def is_lost(self, worker_id: str) -> bool:
        """Whether a worker cannot be reached, or is not known."""
        row = self.row_of(worker_id)
        return row is None or bool(self.lost[row])

    def dedicated_to(self, host_dedication_id: str, rows: slice) -> NDArray[np.bool_]:
        """Which of `rows` are hosts of that dedication; of those that are everybody's for an empty one."""
        code = self._dedications.get(host_dedication_id, -1)
        dedicated: NDArray[np.bool_] = self._dedication[rows] == code
        return dedicated

    def spread(self, app_id: AppId) -> Mapping[WorkerId, int]:
        """Machines of an app by worker, with the placements that are not in the log yet."""
        dense = self._dense.get(app_id)
        if dense is None:
            return {self._ids[row]: machines for row, machines in self._sparse.get(app_id, _NOWHERE).items()}
        return {self._ids[row]: int(dense.column[row]) for row in dense.column.nonzero()[0]}

    def machines_of(self, app_id: AppId, rows: Rows) -> NDArray[np.int64] | None:
        """How many machines of an app each of `rows` (in order, at least one) has; None when none has any."""
        dense = self._dense.get(app_id)
        if dense is not None:
            return dense.column.take(rows)
        first, last = rows[0].item(), rows[-1].item()
        near = [one for one in self._sparse.get(app_id, _NOWHERE).items() if first <= one[0] <= last]
        if not near:
            return None
        for row, machines in near:
            self._scratch[row] = machines
        counts = self._scratch.take(rows)
        for row, _ in near:
            self._scratch[row] = 0
        return counts

    def put_worker(self, record: WorkerRecord) -> None:
        """Take over what the log says of a worker. Its `reserved` is not read: it follows from machines and volumes."""
        row = self._row_for(WorkerId(record.id))
        capacity = np.array(to_vector(record.capacity), np.int64)
        grown = capacity - self._capacity[:, row]
        self._capacity[:, row] = capacity
        self.free[:, row] += grown
        self.usable[:, row] += grown
        self.inverse_capacity[:, row] = np.divide(1.0, capacity, out=np.zeros(len(capacity)), where=capacity > 0)
        self.cordoned[row] = record.cordoned
        self.lost[row] = record.status == HOST_STATUS_UNREACHABLE
        code = self._dedications.setdefault(record.host_dedication_id, len(self._dedications))
        self._dedication[row] = code
        self.takes_new[row] = not (self.cordoned[row] or self.lost[row])
        self.for_everybody[row] = self.takes_new[row] and code == _EVERYBODY

    def put_machine(self, record: MachineRecord) -> None:
        """Take over what the log says of a machine."""
        machine_id = MachineId(record.id)
        before = self.machines.get(machine_id)
        after = Placement(
            app_id=AppId(record.app_id),
            worker_id=WorkerId(record.worker_id),
            amounts=tuple(to_vector(record.reserved)),
            leaving_worker_id=WorkerId(record.leaving_worker_id),
            leaving_amounts=tuple(to_vector(record.leaving_reserved)) if record.leaving_worker_id else (),
            state=record.state,
        )
        if after.gone and not after.leaving_worker_id:
            if before is not None:
                self._change(before, -1)
                del self.machines[machine_id]
            return
        self.machines[machine_id] = after
        if before is not None:
            if _same_place(before, after):
                return
            self._change(before, -1)
        self._hold(after)

    def put_volume(self, record: VolumeRecord) -> None:
        """Take over what the log says of a volume: its disk, and what is kept on its worker for a machine."""
        before = self._volumes.pop(record.id, None)
        if before is not None:
            self._reserve(before.worker_id, before.amounts, -1)
        if record.state == VOLUME_STATE_DESTROYED:
            return
        amounts = to_vector(record.kept_for_machine)
        amounts[_DISK] += record.size_bytes
        after = _Stored(WorkerId(record.worker_id), tuple(amounts))
        self._volumes[record.id] = after
        self._reserve(after.worker_id, after.amounts, +1)

    def expect(self, need: Need, worker_id: WorkerId, until: float) -> None:
        """Count a placement that was just answered as if it were in the log, until the log has it or `expire(until)`.

        It lowers `usable`, never `free`: a create that fails afterwards cannot make the fleet look full.
        """
        if len(self._expected) >= self._expected_limit:
            self._drop(self._expected.popleft())
        key = (need.app_id, worker_id, need.amounts)
        expected = _Expected(key, np.array(need.amounts, np.int64), until)
        self._expected.append(expected)
        self._expected_by_key.setdefault(key, deque()).append(expected)
        self.usable[:, self._row[worker_id]] -= expected.amounts
        self._count(need.app_id, worker_id, +1)

    def expire(self, now: float) -> None:
        """Forget the expected placements whose time has come."""
        while self._expected and (not self._expected[0].open or self._expected[0].until <= now):
            self._drop(self._expected.popleft())

    @property
    def expects(self) -> bool:
        """Whether a placement may be under way that the log does not tell of yet."""
        return bool(self._expected)

    def _drop(self, expected: _Expected) -> None:
        if not expected.open:
            return
        self._close(expected.key)
        app_id, worker_id, _ = expected.key
        self.usable[:, self._row[worker_id]] += expected.amounts
        self._count(app_id, worker_id, -1)

    def _close(self, key: tuple[AppId, WorkerId, tuple[int, ...]]) -> _Expected | None:
        """Close the oldest expectation of `key`: those of one key expire, and are met, in the order they came."""
        same = self._expected_by_key.get(key)
        if not same:
            return None
        oldest = same.popleft()
        oldest.open = False
        if not same:
            del self._expected_by_key[key]
        return oldest

    def _hold(self, placement: Placement) -> None:
        met = None if placement.gone else self._close((placement.app_id, placement.worker_id, placement.amounts))
        if met is None:
            self._change(placement, +1)
        else:
            # What was expected is counted everywhere but in `free`.
            self.free[:, self._row[placement.worker_id]] -= met.amounts
            self._reserve(placement.leaving_worker_id, placement.leaving_amounts, +1)

    def _change(self, placement: Placement, sign: int) -> None:
        self._reserve(placement.worker_id, placement.amounts, sign)
        self._reserve(placement.leaving_worker_id, placement.leaving_amounts, sign)
        if placement.worker_id and not placement.gone:
            self._count(placement.app_id, placement.worker_id, sign)

    def _reserve(self, worker_id: WorkerId, amounts: tuple[int, ...], sign: int) -> None:
        if not worker_id:
            return
        row = self._row_for(worker_id)
        taken = np.array(amounts, np.int64) * sign
        self.free[:, row] -= taken
        self.usable[:, row] -= taken

    def _count(self, app_id: AppId, worker_id: WorkerId, change: int) -> None:
        row = self._row[worker_id]
        here = self._apps[row]
        count = here.get(app_id, 0) + change
        if count:
            here[app_id] = count
        else:
            del here[app_id]
        dense = self._dense.get(app_id)
        if dense is not None:
            dense.column[row] = count
            dense.machines += change
            if not dense.machines:
                del self._dense[app_id]
            return
        sparse = self._sparse.setdefault(app_id, {})
        if count:
            sparse[row] = count
        else:
            del sparse[row]
            if not sparse:
                del self._sparse[app_id]
        if len(sparse) > _SPARSE_WORKERS:
            column = np.zeros(len(self._scratch), np.int64)
            column[list(sparse)] = list(sparse.values())
            self._dense[app_id] = _Dense(column, sum(sparse.values()))
            del self._sparse[app_id]

    def _row_for(self, worker_id: WorkerId) -> int:
        row = self._row.get(worker_id)
        return self._add(worker_id) if row is None else row

    def _add(self, worker_id: WorkerId) -> int:
        """Give a worker a row at random; the worker there moves to the end."""
        end = len(self._ids)
        if end == len(self.lost):
            self._grow()
        row = self._random.randint(0, end)
        self._ids.append(worker_id)
        self._apps.append({})
        if row < end:
            moved = self._ids[row]
            self._ids[end], self._row[moved] = moved, end
            self._ids[row] = worker_id
            self._apps[end], self._apps[row] = self._apps[row], self._apps[end]
            for app_id in self._apps[end]:
                if app_id in self._sparse:
                    self._sparse[app_id][end] = self._sparse[app_id].pop(row)
        self._row[worker_id] = row
        for column in self._columns():
            column[..., end] = column[..., row]
            column[..., row] = 0
        # What is not known beyond that machines are on it cannot be reached either.
        self.lost[row] = True
        return row

    def _grow(self) -> None:
        for name in (
            "_capacity",
            "free",
            "usable",
            "inverse_capacity",
            "_dedication",
            "for_everybody",
            "takes_new",
            "cordoned",
            "lost",
            "_scratch",
        ):
            setattr(self, name, _doubled(getattr(self, name)))
        for dense in self._dense.values():
            dense.column = _doubled(dense.column)

    def _columns(self) -> list[NDArray[np.int64] | NDArray[np.float64] | NDArray[np.bool_]]:
        return [
            self._capacity,
            self.free,
            self.usable,
            self.inverse_capacity,
            self._dedication,
            self.for_everybody,
            self.takes_new,
            self.cordoned,
            self.lost,
            *(dense.column for dense in self._dense.values()),
        ]


def _same_place(before: Placement, after: Placement) -> bool:
    return before[:-1] == after[:-1] and before.gone == after.gone


def _doubled(column: NDArray[_T]) -> NDArray[_T]:
    return np.concatenate((column, np.zeros_like(column)), axis=-1)
