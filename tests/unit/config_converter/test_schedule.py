from __future__ import annotations

import pytest
from skerry.types.v1.spec_pb2 import SCHEDULE_INTERVAL_UNSPECIFIED, ScheduleInterval

from services.config_converter.parts.schedule import PART
from tests.unit.config_converter.judging import accept, refuse


@pytest.mark.parametrize("schedule", ["hourly", "daily", "weekly", "monthly"])
def test_a_schedule_is_one_of_four(schedule: str) -> None:
    interval = accept(PART, {"schedule": schedule}).interval
    assert ScheduleInterval.Name(interval) == f"SCHEDULE_INTERVAL_{schedule.upper()}"


def test_without_a_schedule_the_interval_is_unspecified() -> None:
    assert accept(PART, {}).interval == SCHEDULE_INTERVAL_UNSPECIFIED


@pytest.mark.parametrize("schedule", ["fortnightly", "Hourly", "0 * * * *"])
def test_any_other_schedule_is_refused(schedule: str) -> None:
    assert refuse(PART, {"schedule": schedule})["schedule"].startswith("must be hourly, daily, weekly or monthly")
