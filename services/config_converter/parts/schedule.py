"""The part schedule: when the machine starts by itself."""

from __future__ import annotations

from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import (
    SCHEDULE_INTERVAL_DAILY,
    SCHEDULE_INTERVAL_HOURLY,
    SCHEDULE_INTERVAL_MONTHLY,
    SCHEDULE_INTERVAL_UNSPECIFIED,
    SCHEDULE_INTERVAL_WEEKLY,
    ScheduleSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.rules import one_of

INTERVALS = {
    "hourly": SCHEDULE_INTERVAL_HOURLY,
    "daily": SCHEDULE_INTERVAL_DAILY,
    "weekly": SCHEDULE_INTERVAL_WEEKLY,
    "monthly": SCHEDULE_INTERVAL_MONTHLY,
}

_NONE = ScheduleSpec()


def convert(config: MachineConfig, _facts: Facts, problems: Problems) -> ScheduleSpec:
    """Without a schedule the interval is unspecified."""
    if not config.schedule:
        return _NONE
    return ScheduleSpec(
        interval=one_of(config.schedule, INTERVALS, SCHEDULE_INTERVAL_UNSPECIFIED, "schedule", problems)
    )


PART = Part("schedule", owns=("schedule",), converters={1: convert})
