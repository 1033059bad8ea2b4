"""An operation of several steps, declared as a table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.runtime import telemetry


class Work(Protocol):
    """What an operation works on. Steps read and fill it."""

    @property
    def answered(self) -> bool:
        """Whether the answer is there, so that the steps that are left are not needed."""
        ...


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Step(Generic[W]):
    """One step. Raising ends the operation; only the last step leaves anything behind, so there is nothing to undo."""

    name: str
    forward: Callable[[W], Awaitable[None]]


class Saga(Generic[W]):
    """Steps in their order."""

    def __init__(self, *steps: Step[W]) -> None:
        self.steps = steps
        self._tracer = telemetry.tracer("gateway")

    async def run(self, work: W) -> W:
        """Take the steps until the answer is there; returns `work`. Raises what a step raises."""
        for step in self.steps:
            if self._tracer.exports:
                with self._tracer.span(step.name):
                    await step.forward(work)
            else:
                await step.forward(work)
            if work.answered:
                break
        return work
