from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from skerry.store.v1.store_pb2 import MachineRecord, WorkerRecord
from skerry.types.v1.machine_pb2 import HOST_STATUS_OK, HOST_STATUS_UNREACHABLE
from skerry.types.v1.resources_pb2 import Resources

from services.runtime.ids import AppId, WorkerId
from services.runtime.resources import to_vector
from services.scheduler.benchmark import bench_place, fleet_of
from services.scheduler.fleet import Fleet, Need
from services.scheduler.placement import (
    NEARLY_EQUAL,
    SAMPLING_ABOVE,
    Candidate,
    Present,
    Rejection,
    explain,
    nearest,
    rank,
)
from tests.support_fleet import GIB, amounts, machine, need, worker

WORKERS = [f"w{number}" for number in range(8)]

capacities = st.builds(
    amounts,
    memory=st.integers(0, 16),
    shared=st.integers(0, 16),
    performance=st.integers(0, 4),
    disk=st.integers(0, 50),
    a10=st.integers(0, 1),
)
asked = st.builds(
    amounts,
    memory=st.integers(0, 6),
    shared=st.integers(0, 6),
    performance=st.integers(0, 2),
    disk=st.integers(0, 10),
    a10=st.sampled_from([0, 0, 0, 1]),
)


@st.composite
def cells(draw: st.DrawFn) -> tuple[list[WorkerRecord], list[MachineRecord]]:
    workers = [
        worker(
            worker_id,
            draw(capacities),
            cordoned=draw(st.sampled_from([False, False, False, True])),
            status=draw(st.sampled_from([HOST_STATUS_OK, HOST_STATUS_OK, HOST_STATUS_UNREACHABLE])),
            dedication=draw(st.sampled_from(["", "", "gold"])),
        )
        for worker_id in draw(st.lists(st.sampled_from(WORKERS), unique=True))
    ]
    machines = [
        machine(
            f"m{number}",
            draw(st.sampled_from(workers)).id,
            draw(st.builds(amounts, memory=st.integers(0, 4), shared=st.integers(0, 4), disk=st.integers(0, 8))),
            app=draw(st.sampled_from(["app", "other"])),
        )
        for number in range(draw(st.integers(0, 12)) if workers else 0)
    ]
    return workers, machines


needs = st.builds(
    need,
    asked,
    dedication=st.sampled_from(["", "", "gold", "unheard-of"]),
    required=st.sampled_from(["", "", "", "w1", "nowhere"]),
    excluded=st.lists(st.sampled_from(WORKERS), max_size=3),
)


def fleet_with(workers: list[WorkerRecord], machines: list[MachineRecord], seed: int = 1) -> Fleet:
    fleet = Fleet(Random(seed))
    for each in workers:
        fleet.put_worker(each)
    for one in machines:
        fleet.put_machine(one)
    return fleet


def model(workers: list[WorkerRecord], machines: list[MachineRecord], asked_for: Need) -> dict[str, tuple[int, float]]:
    """Feasible workers, each with the app's machines there and the mean part that stays free: plain, not fast."""
    feasible = {}
    for each in workers:
        here = [one for one in machines if one.worker_id == each.id]
        capacity = to_vector(each.capacity)
        free = [have - sum(to_vector(one.reserved)[column] for one in here) for column, have in enumerate(capacity)]
        if (
            each.cordoned
            or each.status == HOST_STATUS_UNREACHABLE
            or each.host_dedication_id != asked_for.host_dedication_id
            or each.id in asked_for.excluded_worker_ids
            or asked_for.required_worker_id not in ("", each.id)
            or any(wanted > 0 and left < wanted for left, wanted in zip(free, asked_for.amounts, strict=True))
        ):
            continue
        parts = [
            (left - wanted) / have
            for left, wanted, have in zip(free, asked_for.amounts, capacity, strict=True)
            if wanted > 0
        ]
        feasible[each.id] = (
            sum(1 for one in here if one.app_id == asked_for.app_id),
            sum(parts) / len(parts) if parts else 0.0,
        )
    return feasible


@given(cells(), needs, st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=300)
def test_a_small_fleet_is_ranked_as_the_plain_model_ranks_it(
    cell: tuple[list[WorkerRecord], list[MachineRecord]], asked_for: Need, limit: int, seed: int
) -> None:
    feasible = model(*cell, asked_for)
    candidates = rank(fleet_with(*cell, seed), asked_for, random=np.random.default_rng(seed), limit=limit)
    chosen = [candidate.worker_id for candidate in candidates]
    assert len(chosen) == len(set(chosen)) == min(limit, len(feasible))
    assert set(chosen) <= set(feasible)
    assert [candidate.score for candidate in candidates] == sorted((c.score for c in candidates), reverse=True)
    for place, worker_id in enumerate(chosen):
        machines, slack = feasible[worker_id]
        for other in set(feasible) - set(chosen[:place]):
            other_machines, other_slack = feasible[other]
            assert machines <= other_machines
            if machines == other_machines:
                assert slack <= other_slack + 2 * NEARLY_EQUAL


@given(cells(), needs)
@settings(max_examples=300)
def test_rejections_and_feasible_workers_add_up_to_the_fleet(
    cell: tuple[list[WorkerRecord], list[MachineRecord]], asked_for: Need
) -> None:
    rejections = explain(fleet_with(*cell), asked_for)
    assert len({one.reason for one in rejections}) == len(rejections)
    assert sum(one.workers for one in rejections) + len(model(*cell, asked_for)) == len(cell[0])
    assert all(one.workers > 0 for one in rejections)


@given(st.integers(0, 10_000), st.integers(1, 64), st.floats(0.3, 1.0))
@settings(max_examples=15, deadline=None)
def test_a_large_fleet_never_offers_a_worker_that_is_not_feasible(seed: int, gib: int, full: float) -> None:
    fleet = fleet_of(SAMPLING_ABOVE + 500, Random(seed), full=full)
    asked_for = need(amounts(memory=gib, shared=1))
    random = np.random.default_rng(seed)
    for _ in range(5):
        for candidate in rank(fleet, asked_for, random=random):
            room = fleet.worker(candidate.worker_id)
            assert room is not None
            assert not room.cordoned
            assert not room.lost
            pairs = zip(room.capacity, room.reserved, asked_for.amounts, strict=True)
            assert all(wanted <= capacity - reserved for capacity, reserved, wanted in pairs)


def test_all_of_the_few_feasible_workers_of_a_large_fleet_are_found_every_time() -> None:
    small, large = amounts(memory=1), amounts(memory=8)
    roomy = {f"w{number}" for number in range(0, SAMPLING_ABOVE + 500, 500)}
    names = [f"w{number}" for number in range(SAMPLING_ABOVE + 500)]
    fleet = fleet_with([worker(name, large if name in roomy else small) for name in names], [])
    random = np.random.default_rng(3)
    for _ in range(50):
        candidates = rank(fleet, need(amounts(memory=4)), random=random, limit=len(roomy))
        assert {candidate.worker_id for candidate in candidates} == roomy


def test_a_sample_of_a_large_fleet_spreads_an_app_and_packs_nearly_as_tight_as_a_full_look() -> None:
    fleet = fleet_of(SAMPLING_ABOVE * 3, Random(4))
    random = np.random.default_rng(4)
    asked_for = need(amounts(memory=1, shared=1, disk=8), app="fresh")
    everyone = rank(fleet, asked_for, random=random, limit=len(fleet))
    # Only a limit beyond any sample makes `rank` look at all.
    assert len(everyone) > SAMPLING_ABOVE
    place = {candidate.worker_id: number / len(everyone) for number, candidate in enumerate(everyone)}
    sampled = [place[rank(fleet, asked_for, random=random)[0].worker_id] for _ in range(200)]
    assert sum(sampled) / len(sampled) < 0.02


def test_an_app_is_spread_before_workers_are_filled() -> None:
    fleet = fleet_with([worker(name) for name in WORKERS], [])
    random = np.random.default_rng(1)
    for number in range(3 * len(WORKERS)):
        best = rank(fleet, need(), random=random)[0]
        fleet.put_machine(machine(f"m{number}", best.worker_id))
        counts = [fleet.spread(need().app_id).get(WorkerId(name), 0) for name in WORKERS]
        assert max(counts) - min(counts) <= 1


def test_machines_of_different_apps_fill_a_worker_before_they_open_the_next() -> None:
    fleet = fleet_with([worker(name, amounts(memory=4)) for name in WORKERS], [])
    random = np.random.default_rng(1)
    used = []
    for number in range(8):
        best = rank(fleet, need(app=f"app-{number}"), random=random)[0]
        fleet.put_machine(machine(f"m{number}", best.worker_id, app=f"app-{number}"))
        used.append(best.worker_id)
    assert sorted(Counter(used).values()) == [4, 4]


def test_a_burst_spreads_before_the_log_has_told_of_any_of_it() -> None:
    fleet = fleet_with([worker(name) for name in WORKERS], [])
    random = np.random.default_rng(1)
    used: Counter[str] = Counter()
    for _ in range(2 * len(WORKERS)):
        best = rank(fleet, need(), random=random)[0]
        fleet.expect(need(), best.worker_id, until=1.0)
        used[best.worker_id] += 1
    assert set(used.values()) == {2}


def test_schedulers_that_see_the_same_fleet_choose_different_equals() -> None:
    fleet = fleet_with([worker(f"w{number}") for number in range(100)], [])
    first = {rank(fleet, need(), random=np.random.default_rng(seed))[0].worker_id for seed in range(50)}
    assert len(first) > 25


def test_what_only_placements_under_way_have_taken_is_still_offered() -> None:
    fleet = fleet_with([worker("w", amounts(memory=1))], [])
    fleet.expect(need(), WorkerId("w"), until=1.0)
    assert [candidate.worker_id for candidate in rank(fleet, need(), random=np.random.default_rng(1))] == ["w"]
    fleet.put_machine(machine("m", "w"))
    assert rank(fleet, need(), random=np.random.default_rng(1)) == []


def test_an_empty_fleet_has_no_candidates_and_no_reasons() -> None:
    assert rank(Fleet(Random(1)), need(), random=np.random.default_rng(1)) == []
    assert explain(Fleet(Random(1)), need()) == []


def test_each_reason_is_given_with_the_most_that_is_free_of_what_is_short() -> None:
    roomy: Resources = amounts(memory=16, shared=16, disk=100)
    fleet = fleet_with(
        [
            worker("excluded", roomy),
            worker("gold", roomy, dedication="gold"),
            worker("lost", roomy, status=HOST_STATUS_UNREACHABLE),
            worker("cordoned", roomy, cordoned=True),
            worker("busy", amounts(memory=16, shared=1, disk=100)),
            worker("small", amounts(memory=3, shared=16, disk=100)),
            worker("smaller", amounts(memory=2, shared=16, disk=100)),
            worker("flat", amounts(memory=16, shared=16, disk=1)),
        ],
        [],
    )
    asked_for = need(amounts(memory=4, shared=2, disk=8), excluded=["excluded"])
    assert rank(fleet, asked_for, random=np.random.default_rng(1)) == []
    assert explain(fleet, asked_for) == [
        Rejection("excluded", 1),
        Rejection("host_dedication", 1),
        Rejection("worker_lost", 1),
        Rejection("cordoned", 1),
        Rejection("shared_cpu", 1, most_free=1000),
        Rejection("memory", 2, most_free=3 * GIB),
        Rejection("disk", 1, most_free=GIB),
    ]


def test_the_nearest_that_fits_is_on_the_worker_that_has_most_of_what_it_has_least_of() -> None:
    fleet = fleet_with(
        [
            worker("much-memory", amounts(memory=64, shared=1)),
            worker("balanced", amounts(memory=5, shared=6)),
            worker("small", amounts(memory=2, shared=2)),
            worker("huge-but-lost", amounts(memory=64, shared=64), status=HOST_STATUS_UNREACHABLE),
            worker("huge-but-cordoned", amounts(memory=64, shared=64), cordoned=True),
            worker("huge-but-gold", amounts(memory=64, shared=64), dedication="gold"),
        ],
        [],
    )
    wanted = need(amounts(memory=8, shared=8))
    assert nearest(fleet, wanted) == tuple(to_vector(amounts(memory=5, shared=6)))
    besides = need(amounts(memory=8, shared=8), excluded=["balanced"])
    assert nearest(fleet, besides) == tuple(to_vector(amounts(memory=2, shared=2)))


def test_where_no_worker_takes_new_machines_nothing_is_near() -> None:
    fleet = fleet_with([worker("w", status=HOST_STATUS_UNREACHABLE)], [])
    assert nearest(fleet, need(amounts(memory=64))) is None
    assert nearest(Fleet(Random(1)), need(amounts(memory=64))) is None


def test_what_a_machine_has_where_it_is_counts_as_free_when_it_is_to_grow() -> None:
    fleet = fleet_with(
        [worker("here", amounts(memory=8)), worker("there", amounts(memory=4))],
        [machine("m", "here", amounts(memory=6)), machine("other", "here", amounts(memory=1))],
    )
    grown = need(amounts(memory=16), excluded=["here"])
    present = Present(WorkerId("here"), tuple(to_vector(amounts(memory=6))))
    assert nearest(fleet, grown, present) == tuple(to_vector(amounts(memory=7)))
    assert explain(fleet, grown, present) == [Rejection("memory", 2, most_free=7 * GIB)]


@given(cells(), asked)
def test_whatever_is_near_would_be_placed(
    cell: tuple[list[WorkerRecord], list[MachineRecord]], wanted: Resources
) -> None:
    fleet = fleet_with(*cell)
    found = nearest(fleet, need(wanted))
    if found is not None:
        smaller = Need(AppId("app"), found)
        assert rank(fleet, smaller, random=np.random.default_rng(1))
        assert all(near <= want for near, want in zip(found, to_vector(wanted), strict=True))


def test_a_candidate_says_what_made_its_score() -> None:
    fleet = fleet_with([worker("w", amounts(memory=4))], [machine("m", "w", amounts(memory=1))])
    (candidate,) = rank(fleet, need(amounts(memory=1)), random=np.random.default_rng(1))
    assert isinstance(candidate, Candidate)
    assert candidate.reasons[0] == "machines of the app: 1"
    assert candidate.reasons[1] in ("full after it: 50 %", "full after it: 49 %")
    assert 1 / 3 < candidate.score < 0.5


def test_the_benchmark_reports_what_was_measured() -> None:
    report = bench_place(200, 0.05, Random(1))
    assert report.keys() == {"workers", "per_second", "p50_ms", "p99_ms", "yardstick_per_second"}
    assert report["workers"] == 200
    assert 0 < report["p50_ms"] <= report["p99_ms"]
