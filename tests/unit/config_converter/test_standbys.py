from __future__ import annotations

import pytest

from services.config_converter.parts.standbys import PART
from tests.unit.config_converter.judging import accept, refuse


def test_standbys_are_machine_ids() -> None:
    ids = ["148e21ea7e46e8", "00000000000000"]
    assert list(accept(PART, {"standbys": ids}).machine_ids) == ids
    assert list(accept(PART, {}).machine_ids) == []


@pytest.mark.parametrize("machine_id", ["", "148e21ea7e46e", "148e21ea7e46e80", "148E21EA7E46E8", "148e21ea7e46eg"])
def test_what_is_no_machine_id_is_refused_by_its_index(machine_id: str) -> None:
    assert list(refuse(PART, {"standbys": ["148e21ea7e46e8", machine_id]})) == ["standbys[1]"]


def test_a_machine_with_services_is_no_standby() -> None:
    config = {"standbys": ["148e21ea7e46e8"], "services": [{"internal_port": 80}]}
    assert list(refuse(PART, config)) == ["standbys"]
