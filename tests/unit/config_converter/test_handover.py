from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_LOCAL_CHECKED,
    PART_MODE_SHADOW,
    PartEvidence,
    PartPlan,
)

from services.config_converter.handover import (
    BacktestMissing,
    BacktestSummary,
    Change,
    Situation,
    allowing,
    automatic_reversion,
    entry_of,
    promotion,
    reversion,
    sealed_parts,
    sealing,
    should_revert,
    unsealing,
)
from services.runtime.errors import InvalidConfig, PromotionRefused, SealRefused, WrongState
from tests.unit.config_converter.plans import entry, plan_of

SERVING = {"a": frozenset({"guest@1", "guest@2"}), "b": frozenset({"guest@1", "guest@2"})}
ENOUGH = {"compared": 1_000, "distinct_inputs": 40, "different": 0, "different_apps": 0}
CLEAN = BacktestSummary(1, 10, 0)


def situation(guest: PartPlan, serving: dict[str, frozenset[str]] = SERVING, **evidence: int) -> Situation:
    found = PartEvidence(part="guest", since_epoch=guest.since_epoch, **(evidence or ENOUGH))
    return Situation(plan_of(guest, epoch=7), {"guest": found}, serving)


def promote(
    guest: PartPlan,
    serving: dict[str, frozenset[str]] = SERVING,
    backtest: BacktestSummary | None = CLEAN,
    version: int = 0,
    **evidence: int,
) -> Change:
    return promotion(
        situation(guest, serving, **evidence), "guest", version=version, min_compared=1_000, backtest=backtest
    )


def only(change: Change | None) -> PartPlan:
    assert change is not None
    (after,) = change.entries
    return after


@pytest.mark.parametrize(
    ("mode", "then"),
    [
        (PART_MODE_CENTRAL, PART_MODE_SHADOW),
        (PART_MODE_SHADOW, PART_MODE_LOCAL_CHECKED),
        (PART_MODE_LOCAL_CHECKED, PART_MODE_LOCAL),
    ],
)
def test_a_promotion_goes_one_mode_on_and_changes_nothing_else(mode: Any, then: Any) -> None:
    before = entry("guest", mode)
    after = only(promote(before))
    assert after.mode == then
    after.mode = mode
    assert after == before


def test_the_way_to_shadow_takes_no_evidence_but_every_instance() -> None:
    assert only(promote(entry("guest", PART_MODE_CENTRAL), backtest=None, compared=0)).mode == PART_MODE_SHADOW
    with pytest.raises(PromotionRefused, match="the converter old cannot serve guest@1"):
        promote(entry("guest", PART_MODE_CENTRAL), serving={**SERVING, "old": frozenset({"image@1"})})
    with pytest.raises(PromotionRefused, match="no converter"):
        promote(entry("guest", PART_MODE_CENTRAL), serving={})


@pytest.mark.parametrize("mode", [PART_MODE_SHADOW, PART_MODE_LOCAL_CHECKED])
def test_a_refusal_has_every_reason(mode: Any) -> None:
    with pytest.raises(PromotionRefused) as refusal:
        promote(
            entry("guest", mode),
            serving={**SERVING, "old": frozenset()},
            backtest=BacktestSummary(1, 500, 3, ("m1", "m2", "m3")),
            compared=999,
            different=2,
        )
    for reason in (
        "the converter old cannot serve guest@1",
        "999 conversions were compared, 1000 are needed",
        "2 of 999 compared conversions differ",
        "the backtest changes 3 of 500 stored specs, such as m1, m2, m3",
    ):
        assert reason in refusal.value.message


def test_a_backtest_is_asked_for_only_when_nothing_else_is_missing() -> None:
    with pytest.raises(BacktestMissing) as missing:
        promote(entry("guest", PART_MODE_SHADOW), backtest=None)
    assert (missing.value.part, missing.value.version) == ("guest", 1)
    with pytest.raises(PromotionRefused):
        promote(entry("guest", PART_MODE_SHADOW), backtest=None, compared=3)


def test_a_backtest_of_another_version_is_none() -> None:
    with pytest.raises(BacktestMissing):
        promote(entry("guest", PART_MODE_SHADOW, version=2), backtest=BacktestSummary(1, 10, 0))


def test_evidence_from_before_the_last_change_does_not_count() -> None:
    guest = entry("guest", PART_MODE_SHADOW, since_epoch=6)
    old = PartEvidence(part="guest", compared=5_000, since_epoch=5)
    with pytest.raises(PromotionRefused, match="0 conversions were compared"):
        promotion(Situation(plan_of(guest), {"guest": old}, SERVING), "guest", min_compared=1, backtest=CLEAN)


def test_a_promotion_says_what_it_rests_on() -> None:
    change = promote(entry("guest", PART_MODE_SHADOW))
    assert change.why == "promoted, shadow to local-checked"
    assert json.loads(change.evidence) == {
        "instances": ["a", "b"],
        "compared": 1_000,
        "distinct_inputs": 40,
        "different": 0,
        "min_compared": 1_000,
        "backtest": {"version": 1, "converted": 10, "changed": 0},
    }


def test_a_local_part_goes_to_another_version_on_a_clean_backtest_alone() -> None:
    local = entry("guest", PART_MODE_LOCAL)
    after = only(promote(local, version=2, backtest=BacktestSummary(2, 10, 0), compared=0))
    assert (after.mode, after.local_version, after.previous_local_version) == (PART_MODE_LOCAL, 2, 1)
    with pytest.raises(BacktestMissing):
        promote(local, version=2, backtest=None, compared=0)
    with pytest.raises(PromotionRefused, match="the backtest changes 1 of 10"):
        promote(local, version=2, backtest=BacktestSummary(2, 10, 1, ("m",)), compared=0)
    with pytest.raises(PromotionRefused, match="a cannot serve guest@3"):
        promote(local, version=3, backtest=BacktestSummary(3, 10, 0))


def test_a_part_in_shadow_takes_another_version_and_begins_to_compare_anew() -> None:
    after = only(promote(entry("guest", PART_MODE_SHADOW), version=2, backtest=None, compared=50, different=9))
    assert (after.mode, after.local_version, after.previous_local_version) == (PART_MODE_SHADOW, 2, 0)


def test_there_is_nothing_to_promote_a_local_part_to_without_another_version() -> None:
    with pytest.raises(PromotionRefused, match="local already"):
        promote(entry("guest", PART_MODE_LOCAL))
    with pytest.raises(PromotionRefused, match="at version 1 already"):
        promote(entry("guest", PART_MODE_LOCAL), version=1)


@pytest.mark.parametrize("mode", [PART_MODE_SHADOW, PART_MODE_LOCAL_CHECKED, PART_MODE_LOCAL])
def test_a_revert_goes_to_the_centre_without_asking_anybody(mode: Any) -> None:
    change = reversion(Situation(plan_of(entry("guest", mode))), "guest", "we saw something")
    assert only(change).mode == PART_MODE_CENTRAL
    assert change.why == "we saw something"


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (entry("guest", PART_MODE_CENTRAL), "central already"),
        (entry("guest", central=()), "allows no version"),
        (entry("guest", sealed=["r2"]), "sealed by r2.*no local version before 1"),
        (entry("guest", version=9, previous=8, sealed=["r2"]), "a cannot serve guest@8"),
    ],
)
def test_a_revert_without_a_way_back_is_refused(guest: PartPlan, why: str) -> None:
    with pytest.raises(WrongState, match=why):
        reversion(situation(guest), "guest", "")


@pytest.mark.parametrize("move", [lambda s: reversion(s, "guest", ""), lambda s: automatic_reversion(s, "guest")])
def test_a_sealed_part_goes_back_to_the_version_before_and_never_to_the_centre(
    move: Callable[[Situation], Change],
) -> None:
    after = only(move(situation(entry("guest", version=2, previous=1, sealed=["r2"]))))
    assert (after.mode, after.local_version, after.previous_local_version) == (PART_MODE_LOCAL, 1, 0)
    assert list(after.sealed_by) == ["r2"]


@pytest.mark.parametrize("mode", [PART_MODE_LOCAL_CHECKED, PART_MODE_LOCAL])
def test_a_part_goes_back_to_shadow_by_itself(mode: Any) -> None:
    change = automatic_reversion(situation(entry("guest", mode), compared=9, different=4, different_apps=2), "guest")
    assert only(change).mode == PART_MODE_SHADOW
    assert change.why == "4 disagreements from 2 apps"
    assert json.loads(change.evidence) == {"compared": 9, "different": 4, "different_apps": 2}


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (entry("guest", PART_MODE_SHADOW), "not used"),
        (entry("guest", PART_MODE_CENTRAL), "not used"),
        (entry("guest", central=()), "allows no version"),
        (entry("guest", sealed=["r2"]), "no local version before"),
    ],
)
def test_a_part_without_a_way_back_stays_where_it_is(guest: PartPlan, why: str) -> None:
    with pytest.raises(WrongState, match=why):
        automatic_reversion(situation(guest), "guest")


@pytest.mark.parametrize(
    ("different", "apps", "reverts"),
    [(0, 0, False), (2, 2, False), (3, 1, False), (100, 1, False), (3, 2, True), (10, 5, True)],
)
def test_one_users_oddity_moves_no_part(different: int, apps: int, reverts: bool) -> None:
    evidence = PartEvidence(compared=1_000, different=different, different_apps=apps)
    assert should_revert(evidence, disagreements=3, apps=2) is reverts


def test_a_seal_is_for_local_parts_and_names_every_other_one() -> None:
    plan = plan_of(entry("guest", PART_MODE_LOCAL_CHECKED), entry("env", PART_MODE_CENTRAL))
    with pytest.raises(SealRefused) as refusal:
        sealing(plan, ["guest", "image", "env", "quantum"], "r2")
    assert refusal.value.message == (
        "nothing is sealed: guest is local-checked, not local; env is central, not local; the plan has no part quantum"
    )
    with pytest.raises(SealRefused, match="names the release"):
        sealing(plan, ["image"], "")


def test_seals_of_several_releases_add_up_and_are_lifted_one_by_one() -> None:
    first = only(sealing(plan_of(), ["guest"], "r2"))
    both = only(sealing(plan_of(first), ["guest"], "r3"))
    assert list(both.sealed_by) == ["r2", "r3"]
    assert sealing(plan_of(both), ["guest", "guest"], "r2") is None
    lifted = only(unsealing(sealed_parts(plan_of(both), [], "r2"), "r2", None))
    assert list(lifted.sealed_by) == ["r3"]


def test_a_release_lifts_its_own_seals_without_asking_the_centre() -> None:
    plan = plan_of(entry("guest", sealed=["r2"]), entry("env", sealed=["r3"]), entry("dns", sealed=["r2", "r3"]))
    change = unsealing(sealed_parts(plan, [], "r2"), "r2", None)
    assert change is not None
    assert {found.part: list(found.sealed_by) for found in change.entries} == {"guest": [], "dns": ["r3"]}
    assert unsealing(sealed_parts(plan, ["env"], "r2"), "r2", None) is None


@pytest.mark.parametrize(
    ("central", "why"),
    [({}, "does not convert guest"), ({"guest": [2]}, "converts guest at version 2, the plan allows version 1")],
)
def test_a_seal_is_lifted_by_hand_only_if_the_centre_converts_the_part(central: Any, why: str) -> None:
    sealed = [entry("guest", sealed=["r2"])]
    with pytest.raises(SealRefused, match=why):
        unsealing(sealed, "", central)
    assert list(only(unsealing(sealed, "", {"guest": [1, 2]})).sealed_by) == []


def test_an_unsealing_of_everything_by_accident_is_refused() -> None:
    with pytest.raises(InvalidConfig):
        sealed_parts(plan_of(), [], "")


def test_versions_of_the_centre_come_and_go_but_not_the_last_one_that_is_needed() -> None:
    plan = plan_of(entry("guest", PART_MODE_SHADOW), entry("env", PART_MODE_CENTRAL))
    assert list(only(allowing(plan, {"guest": [2, 1, 2]})).central_versions) == [1, 2]
    assert allowing(plan, {"guest": [1]}) is None
    assert list(only(allowing(plan, {"image": []})).central_versions) == []
    with pytest.raises(WrongState) as refusal:
        allowing(plan, {"guest": [], "env": []})
    assert "guest is shadow" in refusal.value.message
    assert "env is central" in refusal.value.message


def test_a_part_that_the_plan_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(InvalidConfig, match="there is no part 'quantum'; the plan has image, guest"):
        entry_of(plan_of(), "quantum")
