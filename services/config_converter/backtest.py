"""Converting every stored configuration again: each stored machine is a test case of a converter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import Message
from skerry.handover.v1.plan_pb2 import Difference
from skerry.store.v1.plan_store_pb2 import ListConfigurationsResponse, StoredConfiguration

from services.config_converter.comparing import Outcome, compare, outcome_here
from services.config_converter.handover import BacktestSummary, served
from services.config_converter.part import Convert, Facts, Part, Problems
from services.runtime.errors import InvalidConfig, Violation
from services.runtime.tasks import cancel

READ_AHEAD = 4
"""Messages of the store that wait while one is converted."""
AT_ONCE = 32
"""Configurations that are converted before others have their turn."""
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Tested:
    """A converter that is tested."""

    part: str
    version: int
    convert: Convert


@dataclass(slots=True)
class Progress:
    """How far a backtest is."""

    total: int = 0
    converted: int = 0
    changed: int = 0
    resume_after: str = ""
    newly_changed: list[Difference] = field(default_factory=list)
    """Since the last progress; each holds the new spec as the region's and the stored one as the centre's."""
    done: bool = False


def tested(parts: Sequence[Part], part: str, version: int, default: Callable[[str], int]) -> list[Tested]:
    """The converters that a backtest of a part (all when empty) at a version is about.

    `default` gives the version for a part when `version` is 0. Raises InvalidConfig for what cannot be served here.
    """
    table = {known.name: known for known in parts}
    if part and part not in table:
        raise InvalidConfig(
            f"there is no part {part!r}; there are {', '.join(table)}", violations=[Violation("part", "is no part")]
        )
    if version and not part:
        raise InvalidConfig("a version needs a part", violations=[Violation("part", "is required with a version")])
    found = []
    for name in [part] if part else table:
        chosen = version or default(name)
        convert = table[name].converters.get(chosen)
        if convert is None:
            has = ", ".join(map(str, sorted(table[name].converters)))
            raise InvalidConfig(
                f"{served(name, chosen)} cannot be served here; there is version {has}",
                violations=[Violation("version", f"must be one of {has}, is {chosen}")],
            )
        found.append(Tested(name, chosen, convert))
    return found


async def backtest(
    configurations: AsyncIterator[ListConfigurationsResponse],
    converters: Sequence[Tested],
    facts_of: Callable[[str], Facts],
) -> AsyncGenerator[Progress, None]:
    """Convert what `configurations` gives, and yield the progress after each message; the last one is done.

    `facts_of` gives the facts for the name of an app. What is read ahead is bounded, and others have their turn.
    """
    progress = Progress()
    async for response in _read_ahead(configurations):
        progress.total = progress.total or response.total
        for i, stored in enumerate(response.configurations):
            if i % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            changed = [*_changes(stored, converters, facts_of(stored.app_name))]
            progress.converted += 1
            progress.resume_after = stored.machine_id
            if changed:
                progress.changed += 1
                progress.newly_changed.extend(changed)
        yield progress
        progress.newly_changed = []
    progress.done = True
    progress.total = max(progress.total, progress.converted)
    yield progress


def _changes(stored: StoredConfiguration, converters: Iterable[Tested], facts: Facts) -> Iterable[Difference]:
    config, spec = stored.config, stored.spec
    for test in converters:
        problems = Problems()
        new = test.convert(config, facts, problems)
        old: Message = getattr(spec, test.part)
        if new == old and not problems.found:
            continue
        version = next((made.version for made in stored.parts if made.part == test.part), 0)
        here = outcome_here(test.convert, test.version, config, facts)
        found = compare(test.part, here, Outcome(version, old))
        if found is not None:
            found.machine_id = stored.machine_id
            found.app_name = stored.app_name
            yield found


async def summary_of(version: int, progress: AsyncIterator[Progress]) -> BacktestSummary:
    """Run a backtest to its end."""
    examples: list[str] = []
    last = Progress()
    async for last in progress:
        for found in last.newly_changed[: EXAMPLES - len(examples)]:
            examples.append(found.machine_id)
    return BacktestSummary(version, last.converted, last.changed, tuple(examples))


async def _read_ahead(
    responses: AsyncIterator[ListConfigurationsResponse],
) -> AsyncIterator[ListConfigurationsResponse]:
    """The same, with READ_AHEAD of them read while the reader works."""
    queue: asyncio.Queue[ListConfigurationsResponse | Exception | None] = asyncio.Queue(READ_AHEAD)

    async def read() -> None:
        try:
            async for response in responses:
                await queue.put(response)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    reading = asyncio.create_task(read(), name="backtest-reads")
    try:
        while (read_next := await queue.get()) is not None:
            if isinstance(read_next, Exception):
                raise read_next
            yield read_next
    finally:
        await cancel(reading)
