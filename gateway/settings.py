"""What the operator says about the public door."""

from __future__ import annotations

from pydantic import Field

from gateway.limits import Allowance, Limiter, Rate
from services.runtime.clock import Clock
from services.runtime.settings import Limits, Section


class RateSettings(Section):
    """A token bucket."""

    per_second: float = Field(gt=0, allow_inf_nan=False)
    burst: int = Field(ge=1)

    def rate(self) -> Rate:
        """As the limiter takes it."""
        return Rate(self.per_second, self.burst)


class CallLimits(Section):
    """How often the public API may be called."""

    action: RateSettings = RateSettings(per_second=1, burst=3)
    """Each action on a machine; where there is no machine, by a token on an app."""
    get: RateSettings = RateSettings(per_second=5, burst=10)
    """The same of what only looks at one thing."""
    organization: RateSettings = RateSettings(per_second=200, burst=400)
    """Everything that an organization asks for, together."""
    everybody: bool = False
    """Count also tokens that are no organization's, as the development token is."""
    buckets: int = Field(default=100_000, ge=1)
    """How many token buckets are remembered, of about 200 bytes each."""

    def limiter(self, clock: Clock) -> Limiter:
        """A limiter with these limits."""
        return Limiter(
            {Allowance.ACTION: self.action.rate(), Allowance.GET: self.get.rate()},
            together=self.organization.rate(),
            most_buckets=self.buckets,
            monotonic=clock.monotonic,
            everybody=self.everybody,
        )


class GatewayLimits(Limits):
    """Bounds on what the public door takes in."""

    calls: CallLimits = CallLimits()
