"""Settings of the hand-over: how much evidence a step needs, what is compared, and what moves a part back."""

from __future__ import annotations

from pydantic import Field

from services.runtime.settings import Section


class HandoverSettings(Section):
    """Times in seconds. Names that begin with `drill_` take a protection away: only a drill sets them."""

    sample: float = Field(default=0.1, ge=0, le=1)
    """Share of the conversions whose local-checked parts are compared with the centre."""
    min_compared: int = Field(default=1_000, gt=0)
    """Compared conversions that a promotion needs, where the operator says nothing else."""
    disagreements: int = Field(default=3, gt=0)
    """Differences that move a part back by itself, …"""
    disagreeing_apps: int = Field(default=2, gt=0)
    """… if they come from so many apps."""
    watched_after_promotion: float = Field(default=600.0, ge=0)
    """How long refusals of a local part are checked after it was promoted."""
    watched_refusals: int = Field(default=200, ge=0)
    """Refusals of a local part that an instance checks in that time, at most."""
    waiting_comparisons: int = Field(default=256, gt=0)
    """Comparisons that may wait; more are dropped and counted."""
    waiting_bytes: int = Field(default=8 << 20, gt=0)
    """Bytes of configurations that may wait to be compared."""
    comparing: int = Field(default=4, gt=0)
    """Comparisons that may ask the centre at once."""
    report_every: float = Field(default=0.5, gt=0)
    """How often the store is told what comparing has shown."""
    register_every: float = Field(default=1.0, gt=0)
    """How often the store is told that this converter lives, …"""
    lease: float = Field(default=5.0, gt=0)
    """… and how long that holds."""
    epoch_wait: float = Field(default=1.0, ge=0)
    """How long a conversion waits for an epoch of the plan that has not come here yet."""
    centre_timeout: float = Field(default=5.0, gt=0)
    """Deadline of a conversion by the centre."""
    drill_no_ownership_check: bool = False
    """A part that is missing from the centre's answer is left out of the spec, and nothing is checked."""
    drill_no_epochs: bool = False
    """Conversions do not say under which plan they were made, so that an older one's are committed."""
    drill_no_facts: bool = False
    """The centre is told nothing of what it would look up in the region."""

    @property
    def off(self) -> list[str]:
        """Protections that are taken away."""
        return [name for name in type(self).model_fields if name.startswith("drill_") and getattr(self, name)]
