from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from services.config_converter.parts.stop import PART
from tests.unit.config_converter.judging import accept, refuse


def test_a_machine_gets_sigint_and_five_seconds() -> None:
    spec = accept(PART, {})
    assert (spec.signal, spec.timeout) == ("SIGINT", Duration(seconds=5))
    assert accept(PART, {"stop_config": {}}) == spec


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_signal_is_one_of_seven(name: str) -> None:
    assert accept(PART, {"stop_config": {"signal": name}}).signal == name


def test_a_timeout_of_zero_is_kept() -> None:
    spec = accept(PART, {"stop_config": {"timeout": "0s"}})
    assert spec.HasField("timeout")
    assert spec.timeout == Duration()


@pytest.mark.parametrize("name", ["SIGWINCHED", "SIGSTOP", "sigterm", "TERM", "15"])
def test_any_other_signal_is_refused(name: str) -> None:
    why = refuse(PART, {"stop_config": {"signal": name}})["stop_config.signal"]
    assert "SIGUSR2 or SIGTERM" in why
    assert name in why


@pytest.mark.parametrize("timeout", ["5", "-5s", "five", "9999999h"])
def test_a_timeout_that_is_no_duration_is_refused(timeout: str) -> None:
    assert list(refuse(PART, {"stop_config": {"timeout": timeout}})) == ["stop_config.timeout"]
