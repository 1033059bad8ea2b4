"""What an operator may tell a scheduler."""

from __future__ import annotations

from pydantic import Field

from services.runtime.settings import Section


class SchedulingSettings(Section):
    """Table `[scheduler]` of the settings file."""

    start_deadline: float = Field(default=60.0, gt=0)
    """Seconds after which a machine that was to run, and does not, says what it waits for."""
