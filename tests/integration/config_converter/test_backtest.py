"""Stored machines as test cases of a converter, read from a real store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from skerry.handover.v1 import handover_pb2 as api
from skerry.handover.v1.plan_pb2 import PART_MODE_LOCAL
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import EnvSpec

from services.config_converter.part import Facts, Problems
from services.config_converter.parts import PARTS
from services.config_converter.parts.env import convert as convert_env
from services.runtime.errors import InvalidConfig, PromotionRefused
from tests.integration.config_converter.cells import Cell, cell
from tests.unit.config_converter.judging import config_of


def trimming_env(config: MachineConfig, facts: Facts, problems: Problems) -> EnvSpec:
    """A next version of env, which changes some machines and refuses others."""
    spec = EnvSpec()
    spec.CopyFrom(convert_env(config, facts, problems))
    if "FORBIDDEN" in spec.variables:
        problems.add("env.FORBIDDEN", "is not taken any more")
    if "LONG" in spec.variables:
        spec.variables["LONG"] = spec.variables["LONG"][:3]
    return spec


RELEASE = tuple(
    replace(part, converters={1: part.convert, 2: trimming_env, 3: part.convert}) if part.name == "env" else part
    for part in PARTS
)


async def filled(there: Cell, *environments: dict[str, str]) -> list[str]:
    """A machine for each environment; their ids, sorted."""
    await there.app("web")
    await there.worker()
    ids = []
    for environment in environments:
        config = config_of({"image": "nginx", "env": environment})
        ids.append(await there.machine(config, await there.converter.convert(config)))
    return sorted(ids)


async def backtested(there: Cell, **fields: Any) -> list[api.BacktestResponse]:
    return [answer async for answer in there.converter.handover.Backtest(api.BacktestRequest(**fields))]


async def test_every_machine_whose_spec_would_change_is_reported_once(dsn: str) -> None:
    async with cell(dsn, releases=[RELEASE]) as there:
        await there.put(part="env", mode=PART_MODE_LOCAL, local_version=3)
        epoch = (await there.plan()).epoch
        await there.converter.convert(config_of({"image": "nginx"}), min_epoch=epoch)
        ids = await filled(there, {"A": "1"}, {"LONG": "abcdef"}, {"FORBIDDEN": ""}, {}, {"LONG": "ab"})
        answers = await backtested(there, part="env", version=2)
        last = answers[-1]
        assert (last.converted, last.total, last.changed_total, last.done) == (5, 5, 2, True)
        assert last.resume_after == ids[-1]
        changed = [found for answer in answers for found in answer.changed]
        by_field = {(found.field, found.local_value, found.central_value): found for found in changed}
        long = by_field[("variables.LONG", '"abc"', '"abcdef"')]
        assert (long.local_version, long.central_version, long.app_name) == (2, 3, "web")
        assert long.machine_id in ids
        refused = next(found for found in changed if found.local_refusal)
        assert refused.local_refusal == "env.FORBIDDEN is not taken any more"
        assert len(changed) == 2


async def test_a_backtest_of_the_version_that_made_the_specs_finds_nothing_for_any_part(dsn: str) -> None:
    async with cell(dsn, releases=[RELEASE]) as there:
        await filled(there, *({"I": str(i)} for i in range(20)))
        last = (await backtested(there))[-1]
        assert (last.converted, last.changed_total, last.done) == (20, 0, True)


async def test_a_backtest_goes_on_where_it_was_cut(dsn: str) -> None:
    async with cell(dsn, releases=[RELEASE]) as there:
        ids = await filled(there, *({"LONG": f"{i}long"} for i in range(10)))
        answers = await backtested(there, part="env", version=2, resume_after=ids[6])
        assert answers[-1].converted == 3
        assert {found.machine_id for answer in answers for found in answer.changed} == set(ids[7:])
        done = await backtested(there, part="env", version=2, resume_after=ids[-1])
        assert (done[-1].converted, done[-1].resume_after, done[-1].done) == (0, ids[-1], True)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"part": "env", "version": 9}, "env@9 cannot be served here; there is version 1, 2, 3"),
        ({"part": "quantum"}, "no part 'quantum'"),
        ({"version": 2}, "a version needs a part"),
    ],
)
async def test_a_backtest_of_what_cannot_be_served_here_is_refused(dsn: str, fields: Any, why: str) -> None:
    async with cell(dsn, releases=[RELEASE]) as there:
        with pytest.raises(InvalidConfig, match=why):
            await backtested(there, **fields)


async def test_a_version_is_promoted_on_a_clean_backtest_and_refused_on_another(dsn: str) -> None:
    async with cell(dsn, releases=[RELEASE]) as there:
        ids = await filled(there, {"A": "1"}, {"LONG": "abcdef"})
        with pytest.raises(PromotionRefused, match="the backtest changes 1 of 2 stored specs") as refusal:
            await there.converter.promote("env", version=2)
        assert any(machine in refusal.value.message for machine in ids)
        await there.converter.promote("env", version=3)
        entry = await there.entry("env")
        assert (entry.local_version, entry.previous_local_version) == (3, 1)
