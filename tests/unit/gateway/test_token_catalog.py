"""Keys and revocations from the log, in the verifier."""

from __future__ import annotations

import secrets

import pytest
from skerry.store.v1.catalog_pb2 import RevocationRecord, TokenKeyRecord

from gateway.auth import Right, Tokens, principal_of
from gateway.token_catalog import TokenCatalog
from services.runtime.errors import Unauthenticated
from services.runtime.tokens import Verifier, attenuate, inspect, mint, public_key_of

PRIVATE = secrets.token_bytes(32)
NOW = 1_800_000_000.0


def key(number: int, private: bytes = PRIVATE, *, deleted: bool = False) -> TokenKeyRecord:
    return TokenKeyRecord(id=str(number), public_key=public_key_of(private), deleted=deleted)


def test_keys_come_and_go_and_revocations_stay() -> None:
    verifier = Verifier()
    catalog = TokenCatalog(verifier)
    token = mint(PRIVATE, 7, organization="acme")
    with pytest.raises(Unauthenticated):
        verifier.verify(token.token, NOW)
    catalog.apply_key(key(7))
    verifier.verify(token.token, NOW)
    catalog.apply_revocation(RevocationRecord(id=token.id))
    with pytest.raises(Unauthenticated, match="revoked"):
        verifier.verify(token.token, NOW)
    other = mint(PRIVATE, 7, organization="acme")
    verifier.verify(other.token, NOW)
    catalog.apply_key(key(7, deleted=True))
    with pytest.raises(Unauthenticated):
        verifier.verify(other.token, NOW)


def test_while_the_state_comes_anew_everything_stays_and_afterwards_what_is_in_it() -> None:
    verifier = Verifier()
    catalog = TokenCatalog(verifier)
    catalog.reset()
    catalog.apply_key(key(6))
    catalog.apply_key(key(7))
    catalog.complete()
    catalog.apply_revocation(RevocationRecord(id="ab" * 32))
    catalog.reset()
    assert set(verifier.keys) == {6, 7}
    catalog.apply_key(key(7))
    assert set(verifier.keys) == {6, 7}
    catalog.complete()
    assert set(verifier.keys) == {7}
    catalog.complete()
    assert set(verifier.keys) == {7}
    assert verifier.revoked == {"ab" * 32}


@pytest.mark.parametrize("record", [TokenKeyRecord(id="seven", public_key=bytes(32)), TokenKeyRecord(id="7")])
def test_a_key_that_is_none_is_left_out(record: TokenKeyRecord) -> None:
    verifier = Verifier()
    TokenCatalog(verifier).apply_key(record)
    assert verifier.keys == {}


def test_several_scopes_allow_what_all_of_them_do_and_a_token_keeps_its_name_when_it_is_narrowed() -> None:
    token = mint(PRIVATE, 7, organization="acme", scope="deploy").token
    narrowed = attenuate(token, scope="exec", app="shop").token
    first, second = principal_of(inspect(token)), principal_of(inspect(narrowed))
    assert first.rights == {Right.READ, Right.CHANGE, Right.SET_SECRETS}
    assert second.rights == {Right.READ}
    assert first.name == second.name
    assert (second.organization, second.apps) == ("acme", frozenset({"shop"}))
    assert token not in repr(second)


def test_a_static_token_and_the_centres_are_never_looked_for_elsewhere() -> None:
    def grant_of(token: str) -> None:
        raise AssertionError(token)

    tokens = Tokens(["static"], "central", grant_of=grant_of)  # type: ignore[arg-type]
    assert tokens.authenticate("static").name == "developer"
    assert tokens.authenticate("central") is tokens.central
