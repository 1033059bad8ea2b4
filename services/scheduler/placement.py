"""Which workers a machine fits on: filters, then the spread of one app over workers, then best fit.

All of it is arithmetic on the columns of a `Fleet`; nothing here keeps state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.runtime.ids import WorkerId
from services.runtime.resources import GPU_FIELDS, RESOURCE_FIELDS
from services.scheduler.fleet import Amounts, Fleet, Need, Rows

SAMPLING_ABOVE = 2_000
"""In a larger fleet a random sample of the workers is looked at, as long as enough of them are feasible."""
SAMPLE = 256
"""Workers in a sample; the last one of a fleet may have up to twice as many."""
ENOUGH = 32
"""Feasible workers that make a sample good enough: the best of them is expected among the best 3 % of all feasible."""
NEARLY_EQUAL = 1 / 128
"""Fits that are closer than this part of a worker are a tie, which is broken at random."""

RESOURCE_REASONS: dict[str, str] = {
    "performance_cpu_millicores": "performance_cpu",
    "shared_cpu_millicores": "shared_cpu",
    "memory_bytes": "memory",
    "disk_bytes": "disk",
    **dict.fromkeys(GPU_FIELDS.values(), "gpu"),
}
"""Amount that may be short to the reason that is given for it, in the order in which they are looked at."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that could take the machine, and how well it fits (higher is better, 0..1)."""

    worker_id: WorkerId
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Workers that were left out for one reason; `most_free` is the most any of them has of what is short."""

    reason: str
    workers: int
    most_free: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """How many equal machines find room, and how many workers can take one at least."""

    machines: int
    workers: int


@dataclass(frozen=True, slots=True)
class Present:
    """Where a machine is that is to grow, and what is reserved for it there, in the order of `RESOURCE_FIELDS`."""

    worker_id: WorkerId
    amounts: tuple[int, ...]


def rank(fleet: Fleet, need: Need, *, random: np.random.Generator, limit: int = 3) -> list[Candidate]:
    """Rank workers for `need`, best first, at most `limit`; empty if none is feasible (see `explain`).

    Fewest machines of the app come first, then the fullest after it (mean over the amounts that are asked for). All
    workers are looked at in a fleet of up to `SAMPLING_ABOVE`, or when few are feasible; else a random sample, in the
    manner of the power of k choices (Ousterhout et al., Sparrow, SOSP 2013).
    """
    if need.required_worker_id:
        row = fleet.row_of(need.required_worker_id)
        whole = slice(0, 0) if row is None else slice(row, row + 1)
    else:
        whole = slice(0, len(fleet))
        if len(fleet) > SAMPLING_ABOVE:
            rows = _feasible(fleet, fleet.usable, need, _sample(len(fleet), random))
            if len(rows) >= max(ENOUGH, limit):
                return _best(fleet, fleet.usable, need, rows, random, limit)
    rows = _feasible(fleet, fleet.usable, need, whole)
    if len(rows):
        return _best(fleet, fleet.usable, need, rows, random, limit)
    if fleet.expects:
        # What only placements under way have taken is still there for whoever commits first.
        rows = _feasible(fleet, fleet.free, need, whole)
    return _best(fleet, fleet.free, need, rows, random, limit)


def explain(fleet: Fleet, need: Need, present: Present | None = None) -> list[Rejection]:
    """Why workers of the whole fleet are left out: each counts for its first reason, so all add up with the feasible.

    `most_free` lets the user see what smaller need would have passed there. What `present` has counts as free.
    """
    size = len(fleet)
    everyone = slice(0, size)
    left = _in_question(fleet, need, present)
    free_amounts = _free(fleet, present)
    rejections = [Rejection("excluded", size - int(left.sum()))]
    for reason, passes in (
        ("host_dedication", fleet.dedicated_to(need.host_dedication_id, everyone)),
        ("worker_lost", ~fleet.lost[everyone]),
        ("cordoned", ~fleet.cordoned[everyone]),
    ):
        rejections.append(Rejection(reason, int((left & ~passes).sum())))
        left &= passes
    for name, reason in RESOURCE_REASONS.items():
        column = RESOURCE_FIELDS.index(name)
        if not need.amounts[column]:
            continue
        free = free_amounts[column]
        short = left & (free < need.amounts[column])
        left &= ~short
        rejections.append(Rejection(reason, int(short.sum()), int(free[short].max(initial=0))))
    return [rejection for rejection in rejections if rejection.workers]


def nearest(fleet: Fleet, need: Need, present: Present | None = None) -> tuple[int, ...] | None:
    """The need, lowered to what the worker that comes closest to it has free; None when none takes new machines.

    The closest is the one that has the largest share of what it has least of. What `present` has counts as free.
    """
    everyone = slice(0, len(fleet))
    takes = fleet.takes_new[everyone].copy()
    if present is not None:
        takes[fleet.rows_of([present.worker_id])] = True
    takes &= fleet.dedicated_to(need.host_dedication_id, everyone) & _in_question(fleet, need, present)
    rows = takes.nonzero()[0]
    if not len(rows) or not need.columns:
        return None
    columns = [column for column, _ in need.columns]
    wanted = np.array([amount for _, amount in need.columns], np.int64)[:, np.newaxis]
    there = np.minimum(_free(fleet, present)[columns][:, rows].clip(min=0), wanted)
    shares = there / wanted
    closest = int(np.lexsort((shares.sum(axis=0), shares.min(axis=0)))[-1])
    amounts = [0] * len(need.amounts)
    for at, column in enumerate(columns):
        amounts[column] = int(there[at, closest])
    return tuple(amounts)


def _in_question(fleet: Fleet, need: Need, present: Present | None) -> NDArray[np.bool_]:
    """By row: neither excluded nor another one than is required. Where a machine is already is never excluded."""
    left = np.ones(len(fleet), np.bool_)
    if need.required_worker_id:
        left[:] = False
        left[fleet.rows_of([need.required_worker_id])] = True
    excluded = need.excluded_worker_ids - ({present.worker_id} if present is not None else set())
    left[fleet.rows_of(excluded)] = False
    return left


def _free(fleet: Fleet, present: Present | None) -> Amounts:
    """What is free, by column and row, with what `present` has."""
    free = fleet.free[:, : len(fleet)]
    if present is None or (row := fleet.row_of(present.worker_id)) is None:
        return free
    free = free.copy()
    free[:, row] += np.array(present.amounts, np.int64)
    return free


def count_room(fleet: Fleet, need: Need, *, most: int) -> Room:
    """How many machines with `need` find room, each on its own: what no machine has reserved counts as free."""
    rows = _feasible(fleet, fleet.free, need, slice(0, len(fleet)))
    if not len(rows):
        return Room(0, 0)
    fits = np.full(len(rows), most, np.int64)
    for column, amount in need.columns:
        fits = np.minimum(fits, fleet.free[column].take(rows) // amount)
    # Each is at most `most`, so that the sum stays within 64 bits.
    return Room(min(most, int(fits.sum())), len(rows))


def _sample(size: int, random: np.random.Generator) -> slice:
    """A run of rows. Rows are in random order, so each run is a fair sample, and each row is in exactly one."""
    runs = size // SAMPLE
    run = int(random.random() * runs)
    return slice(run * SAMPLE, size if run == runs - 1 else (run + 1) * SAMPLE)


def _feasible(fleet: Fleet, available: Amounts, need: Need, rows: slice) -> Rows:
    """Those of `rows` that can take the machine, in order."""
    if need.host_dedication_id:
        fits = fleet.takes_new[rows] & fleet.dedicated_to(need.host_dedication_id, rows)
    else:
        fits = fleet.for_everybody[rows].copy()
    for column, amount in need.columns:
        fits &= available[column, rows] >= amount
    feasible: Rows = fits.nonzero()[0] + rows.start
    if need.excluded_worker_ids:
        feasible = feasible[~np.isin(feasible, fleet.rows_of(need.excluded_worker_ids))]
    return feasible


def _best(
    fleet: Fleet, available: Amounts, need: Need, rows: Rows, random: np.random.Generator, limit: int
) -> list[Candidate]:
    if not len(rows):
        return []
    order: NDArray[np.float64] = np.zeros(len(rows))
    for column, amount in need.columns:
        left = available[column].take(rows)
        left -= amount
        order += left * fleet.inverse_capacity[column].take(rows)
    # What is left is below 1 and machines are whole: the spread decides, then the fit, then chance.
    order *= (1 - NEARLY_EQUAL) / max(1, len(need.columns))
    order += random.random(len(rows)) * NEARLY_EQUAL
    counts = fleet.machines_of(need.app_id, rows)
    if counts is not None:
        order += counts
    candidates = []
    for place in _smallest(order, limit):
        rest = order[place].item()
        machines = 0 if counts is None else counts[place].item()
        reasons = (f"machines of the app: {machines}", f"full after it: {round(100 * (1 - rest + machines))} %")
        candidates.append(Candidate(fleet.worker_at(rows[place].item()), 1 / (1 + rest), reasons))
    return candidates


def _smallest(order: NDArray[np.float64], limit: int) -> list[int]:
    """Places of the `limit` smallest, smallest first: for a few, looking again is cheaper than sorting."""
    if limit > 8:
        return [int(place) for place in np.argsort(order)[:limit]]
    remaining = order.copy()
    places = []
    for _ in range(min(limit, len(order))):
        place = int(remaining.argmin())
        places.append(place)
        remaining[place] = np.inf
    return places
