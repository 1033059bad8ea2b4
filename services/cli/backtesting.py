"""A backtest as an operator runs it: with a bar and its rate, and going on by itself where it was cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.cli import inside
from services.cli.console import CommandError
from services.cli.mesh import Mesh

if TYPE_CHECKING:
    import grpc
    from skerry.handover.v1.plan_pb2 import Difference

CALL_SECONDS = 3600.0
PATIENCE_SECONDS = 30.0
"""How long a backtest that was cut tries to go on without any progress."""
_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class Backtest:
    """What a backtest of one region has shown so far."""

    region: str
    resumed_after: str = ""
    converted: int = 0
    total: int = 0
    changed: list[Difference] = field(default_factory=list)
    seconds: float = 0.0
    resume_after: str = ""

    @property
    def per_second(self) -> float:
        """Configurations converted a second."""
        return self.converted / self.seconds if self.seconds else 0.0


def run(
    mesh: Mesh,
    region: str,
    *,
    part: str = "",
    version: int = 0,
    resume_after: str = "",
    tell: Callable[[int, int], None],
) -> Backtest:
    """Convert every configuration that `region` stores again, those after the machine `resume_after` if it is given.

    All parts without `part`, at the plan's version without `version`. `tell` is told how many of how many are done.
    Where the answer is cut (a converter that died) it goes on from there. Raises CommandError for a refusal and, saying
    where to go on, when it cannot.
    """
    test = Backtest(region, resumed_after=resume_after, resume_after=resume_after)

    async def work(channel: grpc.aio.Channel) -> None:
        from skerry.handover.v1.handover_pb2 import BacktestRequest
        from skerry.handover.v1.handover_pb2_grpc import HandoverStub

        from services.runtime.errors import DependencyDown

        handover: Any = HandoverStub(channel)
        last_progress = time.monotonic()
        while True:
            before = test.converted
            request = BacktestRequest(part=part, version=version, resume_after=test.resume_after)
            try:
                async for answer in handover.Backtest(request, timeout=CALL_SECONDS):
                    test.converted = before + answer.converted
                    test.total = max(test.total, before + answer.total)
                    test.changed.extend(answer.changed)
                    test.resume_after = answer.resume_after or test.resume_after
                    last_progress = time.monotonic()
                    tell(test.converted, test.total)
                return
            except DependencyDown as error:
                if time.monotonic() - last_progress > PATIENCE_SECONDS:
                    at = f"; go on with --resume-after {test.resume_after}" if test.resume_after else ""
                    raise CommandError(
                        f"{region}: {error.message} ({test.converted} of {test.total} converted{at})"
                    ) from None
                await asyncio.sleep(_RETRY_SECONDS)

    began = time.perf_counter()
    inside.ask(mesh, region, work)
    test.seconds = time.perf_counter() - began
    return test
