"""Names of apps and machines."""

from __future__ import annotations

from random import Random

import pytest

from gateway.names import is_app_name, is_machine_id, is_machine_name, new_machine_name


def test_generated_names_are_names_of_two_words_and_a_number_and_differ() -> None:
    random = Random(1)
    names = [new_machine_name(random) for _ in range(2000)]
    assert all(is_machine_name(name) for name in names)
    assert all(name.count("-") == 2 and name.rpartition("-")[2].isdigit() for name in names)
    assert len(set(names)) > 1990


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a" * 63, "my-app-2"])
def test_app_names_that_are_allowed(name: str) -> None:
    assert is_app_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a" * 64, "a_b", "a.b", "a b", "ä", "a\n", "../etc"])
def test_app_names_that_are_not(name: str) -> None:
    assert not is_app_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a" * 64, "a b", "a/b", "ä", "a\n"])
def test_machine_names_that_are_not_allowed(name: str) -> None:
    assert not is_machine_name(name)


@pytest.mark.parametrize(
    "identifier", ["", "0011223344556", "0011223344556g", "0011223344556A", "../../../etcxx", "00112233445566\n"]
)
def test_ids_of_another_form_are_no_ids(identifier: str) -> None:
    assert not is_machine_id(identifier)
