"""Settings of central-sync: where the centre is, and how much each class of call may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field, SecretStr, field_validator

from services.central_sync.breaker import BreakerSettings
from services.runtime.settings import Section


class CallClass(StrEnum):
    """Calls that fail and recover together."""

    CONVERSION = "conversion"
    APPS = "apps"
    PULL = "pull"
    MIRROR = "mirror"
    SECRETS = "secrets"
    TOKENS = "tokens"


class CallSettings(Section):
    """Bounds of one class of call. Times in seconds."""

    deadline: float = Field(gt=0)
    """Of one attempt; the caller's own deadline may be shorter."""
    slow_after: float = Field(gt=0)
    """A call that takes longer is a slow one."""
    concurrency: int = Field(gt=0)
    """Calls under way at once."""
    waiting: int = Field(default=256, ge=0)
    """Calls that wait for a place among those; one more is refused."""
    attempts: int = Field(default=2, ge=1)
    """Attempts at a call that may be repeated, within the retry budget."""
    breaker: BreakerSettings = BreakerSettings()


_FEW_CALLS = BreakerSettings(minimum_calls=3)
"""For classes that make one call after the other."""

CALLS: Mapping[CallClass, CallSettings] = {
    CallClass.CONVERSION: CallSettings(deadline=2.0, slow_after=0.5, concurrency=16),
    CallClass.APPS: CallSettings(deadline=5.0, slow_after=2.0, concurrency=8),
    CallClass.PULL: CallSettings(deadline=10.0, slow_after=5.0, concurrency=1, waiting=1, breaker=_FEW_CALLS),
    CallClass.MIRROR: CallSettings(deadline=10.0, slow_after=5.0, concurrency=1, waiting=1, breaker=_FEW_CALLS),
    CallClass.SECRETS: CallSettings(deadline=5.0, slow_after=2.0, concurrency=8, waiting=64),
    CallClass.TOKENS: CallSettings(deadline=5.0, slow_after=2.0, concurrency=4, waiting=64),
}
"""What holds when the settings say nothing else."""


class PullSettings(Section):
    """The pull of the catalog. Times in seconds."""

    wait: float = Field(default=5.0, ge=0)
    """How long the centre may wait for changes before it answers that there are none."""
    batch: int = Field(default=1_000, gt=0, le=1_000)
    """Changes that are asked for at once."""
    most_changes: int = Field(default=20_000, gt=0)
    """Further behind than this, a snapshot is taken."""
    held_share: float = Field(default=0.05, gt=0, lt=1)
    """A batch that deletes more than this share of the catalog's records of a kind is held back, …"""
    held_count: int = Field(default=10, gt=0)
    """… if these are so many at least."""
    held_refresh: float = Field(default=5.0, gt=0)
    """What is held back is read from the centre again this often: it may have been put right there."""
    retry_every: float = Field(default=1.0, gt=0)
    """After a failure."""


class MirrorSettings(Section):
    """The mirror of the region's log. Times in seconds."""

    rate: float = Field(default=1_000.0, gt=0)
    """Revisions a second at most, so that catching up does not cost the region much."""
    batch: int = Field(default=250, gt=0, le=2_000)
    """Revisions in one call."""
    batch_bytes: int = Field(default=1 << 20, gt=0)
    """Size of one call, give or take one record."""
    gather: float = Field(default=0.5, ge=0)
    """How long revisions are gathered into one call: of a record that changes in it repeatedly, the last goes up."""
    retry_every: float = Field(default=1.0, gt=0)
    """After a failure."""


class CentralSyncSettings(Section):
    """What central-sync is told."""

    urls: tuple[str, ...] = Field(min_length=1)
    """GraphQL endpoints of the centre, asked in turn; the next one when one cannot be reached."""
    token: SecretStr
    """central-sync's own token at the centre."""
    calls: Mapping[CallClass, CallSettings] = Field(default_factory=lambda: dict(CALLS))
    """Classes that are not named keep their defaults."""
    pull: PullSettings = PullSettings()
    mirror: MirrorSettings = MirrorSettings()
    lookup_misses: float = Field(default=2.0, ge=0)
    """How long, in seconds, an app that the centre did not have is said not to be there without asking again."""
    keep_waiting: int = Field(default=256, gt=0)
    """Answers whose conversions wait to be kept; more are not kept."""

    @field_validator("calls", mode="after")
    @classmethod
    def _every_class(cls, value: Mapping[CallClass, CallSettings]) -> Mapping[CallClass, CallSettings]:
        return {**CALLS, **value}
