from __future__ import annotations

import pytest

from services.config_converter.parts.init import PART
from tests.unit.config_converter.judging import accept, refuse


def test_what_runs_is_kept_word_by_word() -> None:
    init = {"exec": ["/bin/sh", "-c", ""], "entrypoint": ["/e"], "cmd": ["", "x"], "kernel_args": ["quiet"]}
    spec = accept(PART, {"init": init})
    assert {name: list(getattr(spec, name)) for name in init} == init


def test_an_empty_init_is_none() -> None:
    assert accept(PART, {"init": {}}) == accept(PART, {})
    assert not accept(PART, {}).tty


def test_swap_is_in_bytes_and_a_terminal_is_kept() -> None:
    spec = accept(PART, {"init": {"swap_size_mb": 512, "tty": True}})
    assert (spec.swap_bytes, spec.tty) == (512 << 20, True)


@pytest.mark.parametrize("swap", [-1, 2**63 - 1])
def test_swap_out_of_bounds_is_refused(swap: int) -> None:
    assert f"is {swap}" in refuse(PART, {"init": {"swap_size_mb": swap}})["init.swap_size_mb"]


@pytest.mark.parametrize("field", ["exec", "entrypoint"])
def test_a_command_names_a_program(field: str) -> None:
    assert list(refuse(PART, {"init": {field: ["", "x"]}})) == [f"init.{field}[0]"]
