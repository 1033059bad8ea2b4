"""The hand-over in a cell: a real store, real converters, a centre that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from skerry.converter.v1.converter_pb2 import PART_OWNER_CENTRE, PART_OWNER_REGION, ConversionResult
from skerry.handover.v1 import handover_pb2 as api
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL, PART_MODE_LOCAL_CHECKED, PART_MODE_SHADOW
from skerry.store.v1.catalog_pb2 import ImageAliasRecord, OrganizationLimits, OrganizationRecord
from skerry.store.v1.catalog_store_pb2 import CatalogRecord
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import GuestSpec

from services.config_converter.part import Facts, Problems
from services.config_converter.parts import PARTS
from services.config_converter.parts.guest import convert as convert_guest
from services.config_converter.settings import HandoverSettings
from services.runtime.errors import (
    DependencyDown,
    InvalidConfig,
    PartUnserved,
    PlanMoved,
    PromotionRefused,
    SealRefused,
    WrongState,
)
from tests.integration.config_converter.cells import QUICK, Cell, cell
from tests.support import eventually
from tests.unit.config_converter.judging import config_of
from tests.unit.config_converter.plans import with_versions

NEXT_RELEASE = with_versions(PARTS, {"guest": [1, 2]})
CONFIG = config_of({"image": "nginx", "guest": {"cpus": 2}})
ALL = QUICK.model_copy(update={"sample": 1.0})


def other_guest(config: MachineConfig, facts: Facts, problems: Problems) -> GuestSpec:
    """The centre's converter with a quirk: it gives a CPU more."""
    spec = convert_guest(config, facts, problems)
    spec.cpu_millicores += 1000
    return spec


def generous_guest(config: MachineConfig, _facts: Facts, _problems: Problems) -> GuestSpec:
    """It takes what the region refuses."""
    return GuestSpec(cpu_millicores=config.guest.cpus * 1000)


def owner(result: ConversionResult, part: str = "guest") -> int:
    return next(made.owner for made in result.parts if made.part == part)


async def converts(there: Cell, times: int, apps: tuple[str, ...] = ("web",)) -> None:
    """Conversions under the present plan."""
    epoch = (await there.plan()).epoch
    for i in range(times):
        config = config_of({"image": "nginx", "env": {"I": str(i)}})
        await there.converter.convert(config, apps[i % len(apps)], min_epoch=epoch)


async def test_a_part_goes_from_the_centre_to_the_region_one_step_at_a_time(dsn: str) -> None:
    async with cell(dsn, plan="central", settings=ALL) as there:
        await there.app("web")
        assert owner(await there.converter.convert(CONFIG)) == PART_OWNER_CENTRE
        plan = await there.converter.promote()
        assert await there.mode("guest") == "SHADOW"
        with pytest.raises(PromotionRefused, match="0 conversions were compared, 20 are needed"):
            await there.converter.promote(min_compared=20)

        for step, mode in enumerate(("LOCAL_CHECKED", "LOCAL")):
            await converts(there, 20)
            await eventually(lambda: compared(there, 20))
            assert owner(await there.converter.convert(CONFIG)) == (PART_OWNER_REGION if step else PART_OWNER_CENTRE)
            plan = await there.converter.promote(min_compared=20)
            assert await there.mode("guest") == mode
        result = await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        assert (owner(result), result.epoch) == (PART_OWNER_REGION, plan.epoch)

        changes = await there.converter.handover.ListPlanChanges(api.ListPlanChangesRequest(part="guest"))
        assert [change.why for change in changes.changes] == [
            "promoted, local-checked to local",
            "promoted, shadow to local-checked",
            "promoted, central to shadow",
        ]
        assert {change.who for change in changes.changes} == {"ada"}
        assert '"backtest": {"version": 1, "converted": 0, "changed": 0}' in changes.changes[0].evidence_json


async def compared(there: Cell, count: int, part: str = "guest") -> bool:
    return bool((await there.evidence(part)).compared >= count)


async def test_differences_in_shadow_are_kept_with_both_outputs_and_forbid_the_next_step(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        await there.converter.promote()
        there.centre.quirks["guest"] = other_guest
        epoch = (await there.plan()).epoch
        result = await there.converter.convert(CONFIG, "web", min_epoch=epoch)
        assert result.spec.guest.cpu_millicores == 3000, "the answer is the centre's"
        await eventually(lambda: compared(there, 1))
        listed = await there.converter.handover.ListDifferences(api.ListDifferencesRequest(part="guest"))
        (found,) = listed.differences
        assert (found.field, found.local_value, found.central_value) == ("cpu_millicores", "2000", "3000")
        assert (found.app_name, found.mode, found.local_version, found.central_version) == (
            "web",
            PART_MODE_SHADOW,
            1,
            1,
        )
        assert '"cpu_millicores": "2000"' in found.local_output
        assert '"cpu_millicores": "3000"' in found.central_output
        with pytest.raises(PromotionRefused, match="1 of 1 compared conversions differ"):
            await there.converter.promote(min_compared=1)
        # Shadow is where comparing goes on: a difference moves nothing.
        await converts(there, 6, ("web", "shop"))
        await eventually(lambda: compared(there, 7))
        assert await there.mode("guest") == "SHADOW"


async def test_differences_of_the_sample_move_the_part_to_shadow_by_themselves(dsn: str) -> None:
    async with cell(dsn, plan="central", settings=ALL) as there:
        await there.put(part="guest", mode=PART_MODE_LOCAL_CHECKED)
        there.centre.quirks["guest"] = other_guest
        await converts(there, 4, ("web",))
        await eventually(lambda: compared(there, 4))
        assert await there.mode("guest") == "LOCAL_CHECKED", "one app's oddity moves nothing"
        await converts(there, 1, ("shop",))
        await eventually(lambda: has_mode(there, "SHADOW"))
        change = (await there.converter.handover.ListPlanChanges(api.ListPlanChangesRequest(limit=1))).changes[0]
        assert (change.who, change.why) == ("automatic", "5 disagreements from 2 apps")
        await eventually(lambda: is_central(there))


async def has_mode(there: Cell, mode: str, part: str = "guest") -> bool:
    return await there.mode(part) == mode


async def is_central(there: Cell) -> bool:
    return owner(await there.converter.convert(CONFIG, "nobody")) == PART_OWNER_CENTRE


BAD = config_of({"image": "nginx", "guest": {"cpus": 3}})


async def refuse(there: Cell, app: str) -> None:
    with pytest.raises(InvalidConfig):
        await there.converter.convert(BAD, app)


async def test_a_refusal_that_the_centre_shares_is_plain_bad_input(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL)
        await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        for app in ("web", "shop", "web", "shop"):
            await refuse(there, app)
        await eventually(lambda: compared(there, 4))
        assert (await there.evidence("guest")).different == 0
        assert await there.mode("guest") == "LOCAL"


async def test_refusals_of_what_the_centre_accepts_move_a_promoted_part_back(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        there.centre.quirks["guest"] = generous_guest
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL)
        await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        for app in ("web", "shop", "web"):
            await refuse(there, app)
        await eventually(lambda: has_mode(there, "SHADOW"))
        listed = await there.converter.handover.ListDifferences(api.ListDifferencesRequest(part="guest"))
        assert {found.local_refusal != "" for found in listed.differences} == {True}
        assert await there.converter.convert(BAD, "web", min_epoch=plan.epoch + 1)


async def test_a_sealed_part_is_compared_with_its_version_before_and_goes_back_to_it(dsn: str) -> None:
    lenient = tuple(part if part.name != "guest" else with_versions([part], {"guest": [1, 2]})[0] for part in PARTS)
    lenient[1].converters[1] = generous_guest  # type: ignore[index]
    async with cell(dsn, plan="central", releases=[lenient]) as there:
        await there.put(part="guest", mode=PART_MODE_LOCAL)
        await there.converter.handover.Seal(api.SealRequest(parts=["guest"], release="r2", who="deploy"))
        there.centre.versions["guest"] = set()
        plan = await there.converter.promote(version=2)
        await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        asked = len(there.centre.asked)
        for app in ("web", "shop", "web"):
            await refuse(there, app)
        await eventually(lambda: has_version(there, 1))
        entry = await there.entry("guest")
        assert (entry.mode, list(entry.sealed_by), entry.previous_local_version) == (PART_MODE_LOCAL, ["r2"], 0)
        wanted = {want.part for request in there.centre.asked[asked:] for want in request.parts}
        assert "guest" not in wanted


async def has_version(there: Cell, version: int) -> bool:
    return (await there.entry("guest")).local_version == version


async def test_a_sealed_part_without_a_version_before_stays_where_it_is(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        await there.put(part="guest", mode=PART_MODE_LOCAL)
        await there.converter.handover.Seal(api.SealRequest(parts=["guest"], release="r2"))
        with pytest.raises(WrongState, match="sealed by r2"):
            await there.converter.handover.Revert(api.RevertRequest(part="guest"))


async def test_a_converter_of_the_release_before_refuses_the_part_by_name_and_says_so_in_its_health(dsn: str) -> None:
    async with cell(dsn, releases=[NEXT_RELEASE, PARTS]) as there:
        new, old = there.converters
        assert old.health["part/guest"]
        with pytest.raises(PromotionRefused, match=r"c1-\w+ cannot serve guest@2"):
            await new.promote(version=2)
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL, local_version=2)
        result = await new.convert(CONFIG, min_epoch=plan.epoch)
        assert next(made.version for made in result.parts if made.part == "guest") == 2
        with pytest.raises(PartUnserved, match=r"the converter c1-\w+ cannot serve guest@2") as refusal:
            await old.convert(CONFIG, min_epoch=plan.epoch)
        assert refusal.value.metadata["part"] == "guest"
        await eventually(lambda: old.health == {f"part/{part.name}": part.name != "guest" for part in PARTS})
        assert all(new.health.values())
        # Nothing else of it stops: it still takes part in the hand-over.
        await old.handover.Seal(api.SealRequest(parts=["env"], release="r2"))


async def test_every_instance_tells_what_it_serves_and_how_far_it_is(dsn: str) -> None:
    async with cell(dsn, releases=[NEXT_RELEASE, PARTS]) as there:
        registered = {found.name[:2]: found for found in await there.registered()}
        assert "guest@2" in registered["c0"].serves
        assert "guest@2" not in registered["c1"].serves
        plan = await there.put(part="env", mode=PART_MODE_LOCAL, local_version=1, previous_local_version=3)

        async def applied() -> bool:
            return {found.applied_epoch for found in await there.registered()} == {plan.epoch}

        await eventually(applied)
        status = await there.converter.handover.GetStatus(api.GetStatusRequest())
        assert [instance.applied_epoch for instance in status.instances] == [plan.epoch] * 2
        assert len(status.evidence) == len(PARTS)
        assert status.plan == await there.plan()


async def test_an_instance_that_ends_is_no_longer_asked_for(dsn: str) -> None:
    async with cell(dsn) as there:
        assert len(await there.registered()) == 1
    async with cell(dsn) as there:
        names = [found.name for found in await there.registered()]
        assert len(names) == 1, "the one before withdrew"


async def test_a_conversion_of_an_older_plan_is_not_accepted_and_the_next_one_is(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        await there.app("web")
        await there.worker()
        old = await there.converter.convert(CONFIG)
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL)
        with pytest.raises(PlanMoved) as moved:
            await there.machine(CONFIG, old)
        assert moved.value.metadata["epoch"] == str(plan.epoch)
        again = await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        assert again.epoch == plan.epoch
        await there.machine(CONFIG, again)


async def test_an_instance_that_lags_looks_at_the_plan_before_it_refuses_what_has_moved(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        catalog = there.converter.service._catalog
        catalog._take = lambda *_: None  # type: ignore[method-assign]
        there.centre.versions["guest"] = set()
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL)
        result = await there.converter.convert(CONFIG)
        assert (owner(result), result.epoch) == (PART_OWNER_REGION, plan.epoch)
        there.centre.versions["env"] = set()
        with pytest.raises(PartUnserved, match="env"):
            await there.converter.convert(CONFIG)
        (told,) = [found.unserved_conversions for found in await there.registered()]
        assert told == 0
        await eventually(lambda: unserved(there, 1))


async def unserved(there: Cell, count: int) -> bool:
    return [found.unserved_conversions for found in await there.registered()] == [count]


async def test_a_centre_that_is_away_is_named_and_known_parts_go_on(dsn: str) -> None:
    async with cell(dsn) as there:
        there.centre.away = DependencyDown("central does not answer", metadata={"dependency": "central"})
        assert await there.converter.convert(CONFIG)
        plan = await there.put(part="guest", mode=PART_MODE_SHADOW, central_versions=[1])
        with pytest.raises(DependencyDown) as down:
            await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        assert (down.value.metadata["dependency"], down.value.metadata["parts"]) == ("central", "guest")
        first = down.value.metadata["since"]
        assert first.endswith("Z")
        assert down.value.retry_after
        with pytest.raises(DependencyDown) as down:
            await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        assert down.value.metadata["since"] == first


async def test_the_catalog_decides_what_an_organization_may_have(dsn: str) -> None:
    async with cell(dsn) as there:
        limits = OrganizationLimits(max_cpus=1)
        record = OrganizationRecord(id="o1", slug="small", name="small", limits=limits)
        alias = ImageAliasRecord(alias="acme", reference="registry.example/acme/app:7")
        await there.catalog_records(CatalogRecord(organization=record), CatalogRecord(image_alias=alias))

        async def resolved() -> bool:
            found = await there.converter.convert(MachineConfig(image="acme"))
            return found.spec.image.repository == "acme/app"

        await eventually(resolved)
        # Known to the store for a moment, and asked for before the watch has brought it.
        await there.app("tiny", "small")
        with pytest.raises(InvalidConfig, match="the organization's limit"):
            await there.converter.convert(CONFIG, "tiny")
        await there.app("large", "personal")
        assert await there.converter.convert(CONFIG, "large")


async def test_seals_are_lifted_by_their_release_or_with_the_centres_word(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        handover = there.converter.handover
        with pytest.raises(SealRefused, match="guest is central, not local"):
            await handover.Seal(api.SealRequest(parts=["guest"], release="r2"))
        await there.put(part="guest", mode=PART_MODE_LOCAL)
        for release in ("r2", "r3"):
            await handover.Seal(api.SealRequest(parts=["guest"], release=release))
        await handover.Unseal(api.UnsealRequest(release="r3"))
        assert list((await there.entry("guest")).sealed_by) == ["r2"]
        there.centre.versions["guest"] = set()
        with pytest.raises(SealRefused, match="the centre does not convert guest"):
            await handover.Unseal(api.UnsealRequest(parts=["guest"]))
        there.centre.away = DependencyDown("central does not answer")
        with pytest.raises(DependencyDown):
            await handover.Unseal(api.UnsealRequest(parts=["guest"]))
        there.centre.away = None
        there.centre.versions["guest"] = {1}
        await handover.Unseal(api.UnsealRequest(parts=["guest"]))
        assert not (await there.entry("guest")).sealed_by


async def test_versions_of_the_centre_are_allowed_for_a_deploy_and_taken_out_after_it(dsn: str) -> None:
    async with cell(dsn, plan="central") as there:
        handover = there.converter.handover
        there.centre.versions["guest"] = {2}
        with pytest.raises(PartUnserved, match="version 2, and the plan allows 1"):
            await there.converter.convert(CONFIG)
        both = [api.CentralVersions(part="guest", versions=[1, 2])]
        plan = (await handover.SetCentralVersions(api.SetCentralVersionsRequest(parts=both))).plan
        assert owner(await there.converter.convert(CONFIG, min_epoch=plan.epoch)) == PART_OWNER_CENTRE
        none = [api.CentralVersions(part="guest")]
        with pytest.raises(WrongState, match="guest is central and needs a version"):
            await handover.SetCentralVersions(api.SetCentralVersionsRequest(parts=none))


async def test_two_promotions_at_the_same_moment_do_one_step_each(dsn: str) -> None:
    async with cell(dsn, plan="central", releases=[PARTS, PARTS]) as there:
        await asyncio.gather(
            *(converter.promote(part) for converter, part in zip(there.converters, ("guest", "env"), strict=True))
        )
        assert [await there.mode(part) for part in ("guest", "env")] == ["SHADOW", "SHADOW"]
        assert (await there.plan()).epoch == 3


async def test_an_epoch_that_does_not_come_is_said_so_in_time(dsn: str) -> None:
    async with cell(dsn) as there:
        with pytest.raises(DependencyDown, match="epoch 99"):
            await there.converter.convert(CONFIG, min_epoch=99)


async def test_comparisons_that_are_too_many_are_dropped_and_hold_nobody_up(dsn: str) -> None:
    few = HandoverSettings(sample=1.0, waiting_comparisons=2, comparing=1, report_every=0.05, register_every=0.1)
    async with cell(dsn, plan="central", settings=few) as there:
        plan = await there.put(part="guest", mode=PART_MODE_LOCAL_CHECKED)
        await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        for part in PARTS:
            if part.name != "guest":
                plan = await there.put(part=part.name, mode=PART_MODE_LOCAL)
        gate = asyncio.Event()
        answered = there.centre.__call__

        async def slow(request: Any) -> Any:
            await gate.wait()
            return await answered(request)

        there.converter.service._checker._ask = slow
        await there.converter.convert(CONFIG, min_epoch=plan.epoch)
        for _ in range(20):
            await there.converter.convert(CONFIG)
        checker = there.converter.service._checker
        assert checker.dropped >= 15
        gate.set()
        await eventually(lambda: checker.idle)
