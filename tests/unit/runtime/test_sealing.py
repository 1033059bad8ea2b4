"""Secrets at rest: they open with their key, for their app and their name, and tell nothing to others."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.runtime.sealing import KEY_BYTES, CannotOpen, Keyring, Sealed, id_of

OLD, NEW = b"o" * KEY_BYTES, b"n" * KEY_BYTES
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(TEXT, NAMES, NAMES)
def test_a_secret_opens_as_it_was_sealed(value: str, app: str, name: str) -> None:
    keyring = Keyring([NEW])
    assert keyring.open(app, name, keyring.seal(app, name, value)) == value


@given(TEXT, NAMES, NAMES, NAMES, NAMES)
def test_a_secret_does_not_open_for_another_app_or_name(
    value: str, app: str, name: str, other_app: str, other_name: str
) -> None:
    assume((app, name) != (other_app, other_name))
    keyring = Keyring([NEW])
    sealed = keyring.seal(app, name, value)
    with pytest.raises(CannotOpen, match="damaged"):
        keyring.open(other_app, other_name, sealed)


@given(st.binary(min_size=1), st.data())
def test_a_secret_that_was_tampered_with_does_not_open(noise: bytes, data: st.DataObject) -> None:
    keyring = Keyring([NEW])
    sealed = keyring.seal("app", "NAME", "value")
    at = data.draw(st.integers(0, len(sealed.content) - 1))
    changed = sealed.content[:at] + noise + sealed.content[at + len(noise) :]
    assume(changed != sealed.content)
    with pytest.raises(CannotOpen):
        keyring.open("app", "NAME", Sealed(sealed.key_id, changed))


@pytest.mark.parametrize("length", range(30))
def test_what_is_cut_short_does_not_open(length: int) -> None:
    keyring = Keyring([NEW])
    sealed = keyring.seal("app", "NAME", "a value")
    with pytest.raises(CannotOpen):
        keyring.open("app", "NAME", Sealed(sealed.key_id, sealed.content[:length]))


def test_what_an_older_key_sealed_opens_while_that_key_is_there() -> None:
    sealed = Keyring([OLD]).seal("app", "NAME", "value")
    both = Keyring([NEW, OLD])
    assert both.open("app", "NAME", sealed) == "value"
    assert both.seal("app", "NAME", "value").key_id == both.present == id_of(NEW)
    with pytest.raises(CannotOpen, match="secrets_keys"):
        Keyring([NEW]).open("app", "NAME", sealed)


def test_equal_values_are_sealed_differently_and_nothing_shows_them() -> None:
    keyring = Keyring([NEW])
    first, second = keyring.seal("app", "NAME", "hunter2"), keyring.seal("app", "NAME", "hunter2")
    assert first.content != second.content
    assert b"hunter2" not in first.content
    assert "content" not in repr(first)
    assert NEW.hex() not in repr(keyring)
    assert keyring.present not in NEW.hex()


@pytest.mark.parametrize("keys", [[], [b"short"], [NEW, b"x" * (KEY_BYTES + 1)]])
def test_what_is_no_key_is_refused(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="key"):
        Keyring(keys)
