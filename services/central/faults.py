"""Faults on demand, for drills: answers that come late, answers that are errors."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from services.central.errors import Invalid
from services.runtime.clock import Clock

LONGEST_MS = 600_000


class Faults:
    """What is wrong with this instance at present: nothing, at first."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self._clock = clock
        self._random = random
        self.slow_ms = 0
        self.error_rate = 0.0

    def set(self, wanted: Mapping[str, Any]) -> None:
        """Take {"slow_ms": N, "error_rate": R}; what is left out becomes 0. Raises Invalid."""
        slow, rate = wanted.get("slow_ms", 0), wanted.get("error_rate", 0)
        if isinstance(slow, bool) or not isinstance(slow, int) or not 0 <= slow <= LONGEST_MS:
            raise Invalid(f"slow_ms must be an integer, 0..{LONGEST_MS}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise Invalid("error_rate must be a number, 0..1")
        self.slow_ms, self.error_rate = slow, float(rate)

    def shown(self) -> dict[str, Any]:
        """What is set."""
        return {"slow_ms": self.slow_ms, "error_rate": self.error_rate}

    async def suffer(self) -> bool:
        """Wait as long as set; whether this request fails."""
        if self.slow_ms:
            await self._clock.sleep(self.slow_ms / 1000)
        return self.error_rate > 0 and self._random.random() < self.error_rate
