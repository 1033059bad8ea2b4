"""What the operator says about the public door. Light: all that reads settings imports it."""

from __future__ import annotations

from pydantic import Field

from services.runtime.settings import Limits, Section


class RateSettings(Section):
    """A token bucket."""

    per_second: float = Field(gt=0, allow_inf_nan=False)
    burst: int = Field(ge=1)


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


class AdmissionSettings(Section):
    """What a region that is not saturated stays below."""

    in_flight: int = Field(default=2000, ge=1)
    """Calls under way at once in a process, without waits and watches."""
    loop_seconds: float = Field(default=0.1, gt=0)
    """Lag of the event loop that does not go away."""
    create_seconds: float = Field(default=1.0, gt=0)
    """What every create waits for the store."""


class GatewayLimits(Limits):
    """Bounds on what the public door takes in."""

    calls: CallLimits = CallLimits()
    admission: AdmissionSettings = AdmissionSettings()
