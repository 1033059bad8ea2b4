"""The dependency guard's judgement, and the table of edges."""

from __future__ import annotations

import string
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import telemetry
from services.runtime.edges import ALLOWED, CLIENT, allowed_edges, is_allowed, seen_edges
from services.runtime.errors import ForbiddenDependency
from services.runtime.guard import (
    MOST_ELEMENTS,
    Guard,
    current_path,
    marked_regional,
    path_of,
    read_baggage,
    stay_in_region,
)


@pytest.fixture(autouse=True)
def nothing_is_served() -> Iterator[None]:
    """What a test lets in is not on the path of the next."""
    yield
    telemetry.carry_baggage("")


def _path(*elements: str) -> str:
    return f"skerry.path={'>'.join(elements)}"


def _refused(guard: Guard, caller: str, baggage: str) -> str:
    with pytest.raises(ForbiddenDependency) as caught:
        guard.admit(caller, baggage)
    assert caught.value.metadata["chain"] in caught.value.message
    return caught.value.metadata["chain"]


@pytest.mark.parametrize("caller", [*ALLOWED, "stranger"])
@pytest.mark.parametrize("callee", sorted({callee for callees in ALLOWED.values() for callee in callees}))
def test_a_caller_is_admitted_by_the_table_and_nothing_else(caller: str, callee: str) -> None:
    guard = Guard("syd-1", callee)
    if is_allowed(caller, callee):
        guard.admit(f"syd-2/{caller}", "")
        assert (caller, callee) in allowed_edges()
    else:
        assert _refused(guard, f"syd-2/{caller}", "") == f"syd-2/{caller} > syd-1/{callee}"


def test_the_centre_never_calls_a_gateway_whether_it_tells_the_path_or_not() -> None:
    guard = Guard("syd-1", "gateway")
    told = _path("syd-1/gateway", "syd-1/config-converter", "syd-1/central-sync")
    chain = "syd-1/gateway > syd-1/config-converter > syd-1/central-sync > central > syd-1/gateway"
    assert _refused(guard, "central", told) == chain
    assert _refused(guard, "central", "") == "central > syd-1/gateway"
    assert _refused(guard, "", _path("iad-1/central-sync", "central")) == "iad-1/central-sync > central > syd-1/gateway"
    elsewhere = _refused(Guard("fra-1", "gateway"), "central", told)
    assert elsewhere.endswith("central > fra-1/gateway")


def test_a_service_that_finds_itself_on_the_path_refuses() -> None:
    guard = Guard("syd-1", "machine-store")
    path = _path("syd-1/machine-store", "syd-1/scheduler")
    assert _refused(guard, "syd-1/scheduler", path) == "syd-1/machine-store > syd-1/scheduler > syd-1/machine-store"
    guard.admit("syd-1/scheduler", _path("syd-2/machine-store", "syd-1/scheduler"))


def test_one_hop_to_the_gateway_of_another_cell_is_allowed_and_a_second_is_not() -> None:
    guard = Guard("iad-1", "gateway")
    guard.admit("", _path("syd-1/gateway"))
    assert current_path() == ("syd-1/gateway", "iad-1/gateway")
    assert _refused(guard, "", _path("fra-1/gateway", "syd-1/gateway")).endswith("> iad-1/gateway")
    assert _refused(guard, "", _path("iad-1/gateway")) == "iad-1/gateway > iad-1/gateway"
    assert _refused(guard, "", _path("syd-1/gateway", "syd-1/config-converter"))


def test_the_path_goes_on_with_this_service_and_with_what_others_carry() -> None:
    Guard("syd-1", "config-converter").admit("syd-1/gateway", "tenant=acme,skerry.path=syd-1%2Fgateway,a=b;c=d")
    assert telemetry.current_baggage() == "skerry.path=syd-1/gateway>syd-1/config-converter,tenant=acme,a=b;c=d"
    Guard("syd-1", "config-converter").admit("syd-1/gateway", "")
    assert telemetry.current_baggage() == "skerry.path=syd-1/gateway>syd-1/config-converter"


def test_a_guard_that_is_off_lets_a_circle_through_and_still_writes_the_path() -> None:
    guard = Guard("syd-1", "gateway", refuses=False)
    guard.admit("central", _path("syd-1/gateway"))
    guard.refuse("central", _path("syd-1/gateway"))
    assert current_path() == ("syd-1/gateway", "central", "syd-1/gateway")


def test_a_path_without_end_is_refused() -> None:
    endless = _path(*(f"c{number}/x" for number in range(MOST_ELEMENTS + 1)))
    assert _refused(Guard("syd-1", "gateway"), "", endless)


def test_what_is_marked_regional_does_not_leave() -> None:
    guard = Guard("syd-1", "scheduler")
    guard.admit("syd-1/gateway", _path("syd-1/gateway"))
    stay_in_region("syd-1/scheduler", "iad-1/gateway")
    guard.admit("syd-1/gateway", marked_regional(_path("syd-1/gateway")))
    with pytest.raises(ForbiddenDependency) as caught:
        stay_in_region("syd-1/scheduler", "iad-1/gateway")
    assert caught.value.metadata["chain"] == "syd-1/gateway > syd-1/scheduler > iad-1/gateway"


def test_calls_and_errors_are_counted_by_edge() -> None:
    guard = Guard("syd-1", "worker")
    before = {(edge.caller, edge.callee): edge for edge in seen_edges()}.get(("cli", "worker"))
    for _ in range(3):
        counts = guard.admit("syd-1/cli", "")
    counts.errors += 1
    after = {(edge.caller, edge.callee): edge for edge in seen_edges()}["cli", "worker"]
    assert after.calls - (before.calls if before else 0) == 3
    assert after.errors - (before.errors if before else 0) == 1
    _refused(guard, "syd-1/scheduler", "")
    assert {(edge.caller, edge.callee): edge for edge in seen_edges()}["scheduler", "worker"].errors >= 1
    refusals = telemetry.metrics.get_sample_value(
        "skerry_guard_refusals_total", {"caller": "scheduler", "callee": "worker", "reason": "no_such_edge"}
    )
    assert refusals is not None
    assert refusals >= 1


@given(st.text(max_size=200))
def test_whatever_comes_from_outside_a_client_is_admitted_or_refused_and_what_goes_on_can_be_sent(text: str) -> None:
    for header in (text, f"skerry.path={text}", f"a={text},skerry.path={text}"):
        try:
            Guard("syd-1", "gateway").admit("", header)
        except ForbiddenDependency as error:
            assert error.message.isascii()  # noqa: PT017
            assert error.message.isprintable()  # noqa: PT017
        else:
            onward = telemetry.current_baggage()
            assert onward.isascii()
            assert onward.isprintable()
            assert read_baggage(onward).path[-1:] == ("syd-1/gateway",) or len(onward) > 4096


@given(st.lists(st.text(string.ascii_lowercase + "-/", min_size=1, max_size=20), min_size=1, max_size=20))
def test_a_path_reads_back_as_it_was_written(elements: list[str]) -> None:
    assert read_baggage(_path(*elements)).path == tuple(elements)
    assert read_baggage(path_of(elements[0])).path == (elements[0],)


def test_clients_may_call_gateways_alone() -> None:
    assert [callee for caller, callee in allowed_edges() if caller == CLIENT] == ["gateway"]
