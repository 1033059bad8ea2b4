"""Where `skerry secrets set` takes values from."""

from __future__ import annotations

from io import StringIO

import pytest

from services.cli.console import CommandError
from services.cli.secrets import read_values


def test_values_come_from_arguments_and_one_of_them_from_the_input_as_it_is() -> None:
    given = StringIO("-----BEGIN KEY-----\nabc=\n")
    assert read_values(["A=1", "B=x=y", "C=", "KEY=-"], given) == {
        "A": "1",
        "B": "x=y",
        "C": "",
        "KEY": "-----BEGIN KEY-----\nabc=\n",
    }


def test_without_arguments_the_input_has_one_secret_a_line() -> None:
    assert read_values([], StringIO("A=1\n\n# a remark\n B = two \nC=-\n")) == {"A": "1", "B": " two ", "C": "-"}


@pytest.mark.parametrize(
    ("arguments", "given", "why"),
    [
        (["A=1", "hunter2"], "", "argument 2 must be NAME=VALUE"),
        ([], "A=1\nhunter2\n", "line 2 of the input must be NAME=VALUE"),
        (["=hunter2"], "", "argument 1 must be"),
        (["A=-", "B=-"], "hunter2", "only one value can come from the input, not those of A and B"),
        ([], "", "nothing to set"),
    ],
)
def test_what_is_no_secret_is_refused_without_being_shown(arguments: list[str], given: str, why: str) -> None:
    with pytest.raises(CommandError, match=why) as refused:
        read_values(arguments, StringIO(given))
    assert "hunter2" not in str(refused.value)
