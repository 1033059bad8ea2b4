from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from skerry.converter.v1.converter_pb2 import PART_OWNER_CENTRE, PART_OWNER_REGION, ConvertedPart
from skerry.handover.v1.plan_pb2 import (
    PART_MODE_CENTRAL,
    PART_MODE_LOCAL,
    PART_MODE_LOCAL_CHECKED,
    PART_MODE_SHADOW,
    PartPlan,
)
from skerry.sync.v1.sync_pb2 import ConvertPartsResponse

from services.config_converter.conversion import NO_CONTEXT, PART_NAMES, Context, convert
from services.config_converter.part import NO_FACTS, Facts, Limits
from services.config_converter.parts import PARTS
from services.config_converter.planned import Allowed, faults_of
from services.config_converter.settings import HandoverSettings
from services.runtime.errors import DependencyDown, InvalidConfig, PartUnserved
from tests.unit.config_converter.judging import config_of
from tests.unit.config_converter.plans import (
    SINCE,
    Centre,
    Watching,
    conversion_of,
    entry,
    marked,
    plan_of,
    recipe_of,
    with_versions,
)

CONFIG = config_of({"image": "nginx", "env": {"A": "1"}, "guest": {"cpus": 2}})

REGION_1 = ConvertedPart(part="guest", owner=PART_OWNER_REGION, version=1)
CENTRE_2 = ConvertedPart(part="guest", owner=PART_OWNER_CENTRE, version=2)


@pytest.mark.parametrize(
    ("owner", "versions", "made", "fault"),
    [
        (PART_OWNER_REGION, {1}, [REGION_1], None),
        (PART_OWNER_CENTRE, {1, 2}, [CENTRE_2], None),
        (PART_OWNER_REGION, {1}, [], "the region did not convert it"),
        (PART_OWNER_CENTRE, {2}, [], "the centre did not convert it: dropped"),
        (PART_OWNER_REGION, {1}, [REGION_1, REGION_1], "it was converted 2 times"),
        (PART_OWNER_CENTRE, {2}, [CENTRE_2, REGION_1], "it was converted 2 times"),
        (PART_OWNER_REGION, {1}, [CENTRE_2], "the centre converted it, and the plan wants the region"),
        (PART_OWNER_CENTRE, {1}, [REGION_1], "the region converted it, and the plan wants the centre"),
        (PART_OWNER_REGION, {2}, [REGION_1], "the region converted it at version 1, and the plan allows 2"),
        (PART_OWNER_CENTRE, {3, 1}, [CENTRE_2], "the centre converted it at version 2, and the plan allows 1, 3"),
        (PART_OWNER_CENTRE, set(), [CENTRE_2], "the centre converted it at version 2, and the plan allows none"),
    ],
)
def test_a_part_is_there_once_from_the_planned_owner_at_an_allowed_version(
    owner: Any, versions: set[int], made: list[ConvertedPart], fault: str | None
) -> None:
    why = {"guest": "dropped"} if owner == PART_OWNER_CENTRE else {}
    found = faults_of({"guest": Allowed(owner, frozenset(versions))}, made, why)
    assert found == ({} if fault is None else {"guest": fault})


def test_a_part_that_the_plan_does_not_know_is_a_fault() -> None:
    assert faults_of({}, [REGION_1]) == {"guest": "the plan does not know it"}


async def test_a_local_plan_gives_what_the_parts_give_and_asks_nobody() -> None:
    centre = Centre()
    result = await conversion_of(centre).convert(recipe_of(plan_of(epoch=7)), CONFIG, NO_CONTEXT, NO_FACTS)
    assert result.epoch == 7
    result.ClearField("epoch")
    assert result == convert(CONFIG)
    assert not centre.asked


@pytest.mark.parametrize("mode", [PART_MODE_CENTRAL, PART_MODE_SHADOW])
async def test_the_centre_is_asked_once_for_exactly_its_parts(mode: Any) -> None:
    centre = Centre({"guest": [1, 2]})
    plan = plan_of(entry("guest", mode, central=(1, 2)), entry("env", PART_MODE_CENTRAL), epoch=3)
    result = await conversion_of(centre).convert(recipe_of(plan), CONFIG, Context("web", "syd"), NO_FACTS)
    (asked,) = centre.asked
    assert {(want.part, *want.versions) for want in asked.parts} == {("guest", 1, 2), ("env", 1)}
    assert all(len(want.input_hash) == 32 for want in asked.parts)
    assert (asked.app_name, asked.region, asked.config) == ("web", "syd", CONFIG)
    assert [made.part for made in result.parts] == list(PART_NAMES)
    assert [field.name for field, _ in result.spec.ListFields()] == list(PART_NAMES)
    owners = {made.part: (made.owner, made.version) for made in result.parts}
    assert owners["guest"] == (PART_OWNER_CENTRE, 2)
    assert owners["env"] == (PART_OWNER_CENTRE, 1)
    assert owners["image"] == (PART_OWNER_REGION, 1)


def centre_with(twist: Callable[[ConvertPartsResponse], None]) -> Centre:
    centre = Centre()
    centre.twist = twist
    return centre


def doubled(response: ConvertPartsResponse) -> None:
    response.parts.add().CopyFrom(response.parts[0])


def emptied(response: ConvertPartsResponse) -> None:
    response.parts[0].ClearField("spec")


def newer(response: ConvertPartsResponse) -> None:
    response.parts[0].version = 2


def unasked(response: ConvertPartsResponse) -> None:
    response.parts.add(part="image", version=1).spec.image.repository = "other"


@pytest.mark.parametrize(
    ("centre", "part", "why"),
    [
        (Centre({"guest": []}), "guest", "release r2 does not convert guest"),
        (centre_with(lambda response: response.ClearField("parts")), "guest", "the centre did not convert it"),
        (centre_with(doubled), "guest", "converted 2 times"),
        (centre_with(emptied), "guest", "did not convert it"),
        (centre_with(newer), "guest", "version 2, and the plan allows 1"),
        (centre_with(unasked), "image", "converted 2 times"),
    ],
)
async def test_what_the_centre_does_not_convert_as_planned_is_refused_by_name(
    centre: Centre, part: str, why: str
) -> None:
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL)))
    with pytest.raises(PartUnserved) as refusal:
        await conversion_of(centre).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert refusal.value.metadata["part"] == part
    assert "instance" not in refusal.value.metadata
    assert why in refusal.value.message
    assert "nothing was written" in refusal.value.message


@pytest.mark.parametrize(
    ("plan", "part", "why"),
    [
        (plan_of(entry("guest", version=2)), "guest", "the converter c1 cannot serve guest@2"),
        (plan_of(entry("guest", PART_MODE_LOCAL_CHECKED, version=2)), "guest", "c1 cannot serve guest@2"),
    ],
)
async def test_a_converter_refuses_the_part_that_it_cannot_serve_by_name(plan: Any, part: str, why: str) -> None:
    recipe = recipe_of(plan)
    assert set(recipe.unserved) == {part}
    with pytest.raises(PartUnserved, match=why) as refusal:
        await conversion_of(Centre()).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    told = refusal.value.metadata
    assert (told["part"], told["owner"], told["instance"]) == (part, "region", "c1")


def test_a_plan_that_is_newer_or_older_than_the_release_names_the_parts() -> None:
    plan = plan_of()
    plan.parts.add(part="quantum", mode=PART_MODE_LOCAL, local_version=1)
    plan.parts.remove(next(found for found in plan.parts if found.part == "dns"))
    next(found for found in plan.parts if found.part == "env").mode = 9  # type: ignore[assignment]
    assert set(recipe_of(plan).unserved) == {"quantum", "dns", "env"}


async def test_two_versions_of_a_part_are_served_side_by_side() -> None:
    env = next(part for part in PARTS if part.name == "env")
    both = replace(env, converters={1: marked(env.convert, "one"), 2: marked(env.convert, "two")})
    parts = tuple(both if part is env else part for part in PARTS)
    made = []
    for version in (1, 2):
        recipe = recipe_of(plan_of(entry("env", version=version)), parts)
        result = await conversion_of(Centre(), parts=parts).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
        made.append(result.spec.env.variables["MADE_BY"])
    assert made == ["one", "two"]


async def test_violations_of_both_owners_are_in_one_answer_under_the_callers_path() -> None:
    config = config_of({"image": "", "guest": {"cpus": 3}, "schedule": "never"})
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL)))
    with pytest.raises(InvalidConfig) as refusal:
        await conversion_of(Centre()).convert(recipe, config, Context(field_prefix="machine.config"), NO_FACTS)
    assert [violation.field for violation in refusal.value.violations] == [
        "machine.config.image",
        "machine.config.schedule",
        "machine.config.guest.cpus",
    ]


async def test_a_refusal_by_a_version_that_the_plan_does_not_allow_is_none() -> None:
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL)))
    config = config_of({"image": "nginx", "guest": {"cpus": 3}})
    with pytest.raises(PartUnserved, match="version 2, and the plan allows 1"):
        await conversion_of(centre_with(newer)).convert(recipe, config, NO_CONTEXT, NO_FACTS)


async def test_a_centre_that_is_away_is_named_with_its_parts_and_since_when() -> None:
    centre = Centre()
    since = "2026-01-01T00:00:00.000Z"
    centre.away = DependencyDown(
        "central does not answer", metadata={"dependency": "central", "since": since}, retry_after=4.0
    )
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL), entry("env", PART_MODE_SHADOW)))
    with pytest.raises(DependencyDown) as down:
        await conversion_of(centre).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert down.value.message.startswith("the parts guest, env would have to be converted by central")
    assert down.value.metadata == {"dependency": "central", "since": since, "parts": "guest,env"}
    assert down.value.retry_after == 4.0


async def test_what_the_region_refuses_is_refused_also_while_the_centre_is_away() -> None:
    centre = Centre()
    centre.away = DependencyDown("central does not answer")
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL)))
    with pytest.raises(InvalidConfig):
        await conversion_of(centre).convert(recipe, config_of({"image": ""}), NO_CONTEXT, NO_FACTS)


@pytest.mark.parametrize(
    ("mount", "facts", "told"),
    [
        ({"volume": "vol_1"}, NO_FACTS, {"vol_1": ""}),
        ({"volume": "vol_1"}, Facts(volume_locations={"vol_1": "w7"}), {"vol_1": "w7"}),
        ({"name": "data"}, NO_FACTS, {"data": ""}),
    ],
)
async def test_the_centre_is_told_where_volumes_are(mount: Any, facts: Facts, told: dict[str, str]) -> None:
    config = config_of({"image": "nginx", "mounts": [{**mount, "path": "/data"}]})
    recipe = recipe_of(plan_of(entry("mounts", PART_MODE_CENTRAL)))
    centre = Centre()
    await conversion_of(centre).convert(recipe, config, NO_CONTEXT, facts)
    assert dict(centre.asked[0].volume_locations) == told
    drill = Centre()
    await conversion_of(drill, settings=HandoverSettings(drill_no_facts=True)).convert(
        recipe, config, NO_CONTEXT, facts
    )
    assert drill.asked[0].without_facts
    assert not drill.asked[0].HasField("catalog")
    assert not drill.asked[0].volume_locations


async def test_the_centre_is_told_the_facts_of_the_catalog_that_the_answer_is_kept_under() -> None:
    config = config_of({"image": "base", "containers": [{"name": "side", "image": "tool"}]})
    facts = Facts(image_aliases={"base": "nginx:1", "tool": "busybox:2", "other": "x:3"}, limits=Limits(cpus=4))
    centre = Centre()
    await conversion_of(centre).convert(
        recipe_of(plan_of(entry("image", PART_MODE_CENTRAL))), config, NO_CONTEXT, facts
    )
    assert dict(centre.asked[0].catalog.image_aliases) == {"base": "nginx:1"}
    assert centre.asked[0].catalog.max_cpus == 4
    assert not centre.asked[0].catalog.HasField("max_gpus")
    both = plan_of(entry("image", PART_MODE_CENTRAL), entry("containers", PART_MODE_CENTRAL))
    await conversion_of(centre).convert(recipe_of(both), config, NO_CONTEXT, facts)
    assert dict(centre.asked[1].catalog.image_aliases) == {"base": "nginx:1", "tool": "busybox:2"}


async def test_without_the_ownership_check_a_part_that_nobody_converts_is_missing() -> None:
    settings = HandoverSettings(drill_no_ownership_check=True)
    recipe = recipe_of(plan_of(entry("guest", PART_MODE_CENTRAL)), settings=settings)
    conversion = conversion_of(Centre({"guest": []}), settings=settings)
    result = await conversion.convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert not result.spec.HasField("guest")
    assert "guest" not in {made.part for made in result.parts}
    assert settings.off == ["drill_no_ownership_check"]


async def observed(plan: Any, *, sample: float = 0.0, config: Any = CONFIG, now: float = SINCE) -> Watching:
    watching = Watching()
    settings = HandoverSettings(sample=sample)
    conversion = conversion_of(Centre(), watching, settings=settings, now=now)
    try:
        await conversion.convert(recipe_of(plan, settings=settings), config, NO_CONTEXT, NO_FACTS)
    except InvalidConfig:
        assert config is BAD
    return watching


BAD = config_of({"image": "nginx", "guest": {"cpus": 3}})
CHECKED = plan_of(entry("guest", PART_MODE_LOCAL_CHECKED))


async def test_a_shadowed_part_is_compared_with_the_answer_that_was_given() -> None:
    for config in (CONFIG, BAD):
        watching = await observed(plan_of(entry("guest", PART_MODE_SHADOW)), config=config)
        (seen,) = watching.seen
        assert [found.part for found in seen.entries] == ["guest"]
        assert seen.answers is not None
        assert set(seen.answers) == {"guest"}


async def test_only_the_sample_of_checked_parts_is_compared() -> None:
    assert not (await observed(CHECKED, sample=0.0)).seen
    (seen,) = (await observed(CHECKED, sample=1.0)).seen
    assert [found.part for found in seen.entries] == ["guest"]
    assert (seen.answers, seen.refused) == (None, False)
    assert not (await observed(plan_of(), sample=1.0)).seen


async def test_one_in_ten_is_the_sample() -> None:
    watching, settings = Watching(), HandoverSettings()
    conversion, recipe = conversion_of(Centre(), watching), recipe_of(CHECKED, settings=settings)
    for _ in range(2_000):
        await conversion.convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert 150 <= len(watching.seen) <= 250


def promoted(**fields: Any) -> PartPlan:
    return entry("guest", PART_MODE_LOCAL, since_epoch=4, **fields)


@pytest.mark.parametrize(
    ("plan", "now", "checked"),
    [
        (CHECKED, SINCE, True),
        (CHECKED, SINCE + 1e6, True),
        (plan_of(promoted()), SINCE + 599, True),
        (plan_of(promoted()), SINCE + 601, False),
        # A new cell's plan was never promoted: nothing leaves the region.
        (plan_of(), SINCE, False),
    ],
)
async def test_refusals_are_checked_always_or_for_ten_minutes_after_the_promotion(
    plan: Any, now: float, checked: bool
) -> None:
    watching = await observed(plan, config=BAD, now=now)
    assert [(seen.refused, [found.part for found in seen.entries]) for seen in watching.seen] == (
        [(True, ["guest"])] if checked else []
    )


async def test_a_part_of_the_next_release_is_served_by_who_knows_it() -> None:
    plan = plan_of(entry("guest", version=2))
    recipe = recipe_of(plan, with_versions(PARTS, {"guest": [1, 2]}))
    assert recipe.simple
    result = await conversion_of(Centre()).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert {made.part: made.version for made in result.parts}["guest"] == 2


async def test_without_epochs_a_conversion_does_not_say_under_which_plan_it_was_made() -> None:
    settings = HandoverSettings(drill_no_epochs=True)
    recipe = recipe_of(plan_of(epoch=7), settings=settings)
    result = await conversion_of(Centre(), settings=settings).convert(recipe, CONFIG, NO_CONTEXT, NO_FACTS)
    assert result.epoch == 0
