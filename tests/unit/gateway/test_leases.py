"""Leases as the gateway has them: who may take one away, and who is kept out."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest
from skerry.machines.v1 import machines_pb2 as api
from skerry.store.v1 import store_pb2 as store

from gateway.auth import SCOPES, Principal, current_principal
from gateway.leases import check_lease, new_lease, release, ttl_violation
from gateway.surroundings import Surroundings
from services.runtime.errors import Forbidden, LeaseHeld


class Released(Exception):
    """The store was asked."""


class Store:
    """A store that only says that it was asked, and for what."""

    async def ReleaseLease(self, request: store.ReleaseLeaseRequest) -> store.ReleaseLeaseResponse:
        raise Released(request.who, request.force)


class Around:
    store = Store()


async def releasing(scope: str, *, force: bool) -> None:
    request = api.ReleaseMachineLeaseRequest(app_name="shop", machine_id="00100000000000", force=force)
    token = current_principal.set(Principal("ci@example", rights=SCOPES[scope]))
    try:
        await release(cast("Surroundings", Around()), store.AppRecord(), request)
    finally:
        current_principal.reset(token)


@pytest.mark.parametrize("scope", ["deploy", "exec", "read-only"])
async def test_a_lease_of_somebody_else_is_taken_away_only_with_the_right_to_do_so(scope: str) -> None:
    with pytest.raises(Forbidden, match="break-leases"):
        await releasing(scope, force=True)


async def test_who_may_break_leases_is_named_to_the_store() -> None:
    with pytest.raises(Released) as asked:
        await releasing("all", force=True)
    assert asked.value.args == ("ci@example", True)


async def test_ones_own_lease_is_given_back_without_that_right() -> None:
    with pytest.raises(Released):
        await releasing("deploy", force=False)


def test_new_leases_have_nonces_of_their_own_and_the_name_of_who_takes_them() -> None:
    token = current_principal.set(Principal("ci@example"))
    try:
        first, second = (new_lease(Random(seed), 30, "deploy") for seed in (1, 2))
    finally:
        current_principal.reset(token)
    assert len(first.nonce) == len(second.nonce) == 16
    assert first.nonce != second.nonce
    assert (first.owner, first.description, first.ttl.seconds) == ("ci@example", "deploy", 30)


def test_what_the_store_does_not_judge_is_refused_here_while_another_holds_the_lease() -> None:
    machine = store.MachineRecord(id="m1")
    check_lease(machine)
    machine.lease.nonce, machine.lease.owner = "n1", "ann"
    machine.lease.expires_at.FromJsonString("2026-11-24T10:00:30Z")
    with pytest.raises(LeaseHeld, match="m1 is leased by ann until 2026-11-24T10:00:30Z"):
        check_lease(machine)


@pytest.mark.parametrize(("seconds", "fine"), [(0, True), (1, True), (86_400, True), (-1, False), (86_401, False)])
def test_a_lease_lasts_a_day_at_most(seconds: int, fine: bool) -> None:
    assert (ttl_violation("ttl", seconds) is None) == fine
