from __future__ import annotations

from services.config_converter.parts.env import PART
from tests.unit.config_converter.judging import accept, refuse


def test_values_stay_as_they_are_also_empty_ones() -> None:
    env = {"A": "1", "EMPTY": "", "with space": "ü\n"}
    assert dict(accept(PART, {"env": env}).variables) == env


def test_without_an_environment_there_are_no_variables() -> None:
    assert dict(accept(PART, {}).variables) == {}


def test_a_name_without_letters_or_with_an_equals_sign_is_refused() -> None:
    problems = refuse(PART, {"env": {"": "1", "A=B": "2", "GOOD": "3"}})
    assert list(problems) == ['env[""]', 'env["A=B"]']
    assert 'without "="' in problems['env["A=B"]']
