"""Tokens: what they allow, who can narrow them, and that nothing else is accepted."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from typing import Any

import biscuit_auth
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.errors import InvalidConfig, Unauthenticated
from services.runtime.tokens import (
    MOST_BLOCKS,
    MOST_CHARACTERS,
    SCOPE_NAMES,
    Verifier,
    attenuate,
    inspect,
    mint,
    public_key_of,
    verify,
)

auth: Any = biscuit_auth

NOW = 1_800_000_000.0
PRIVATE = secrets.token_bytes(32)
KEYS = {7: public_key_of(PRIVATE)}
names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


def signed(source: str, *appended: str, key_id: int | None = 7) -> str:
    """A token with the right signature and any content."""
    builder = auth.BiscuitBuilder(source)
    if key_id is not None:
        builder.set_root_key_id(key_id)
    biscuit = builder.build(auth.PrivateKey.from_bytes(PRIVATE, auth.Algorithm.Ed25519))
    for block in appended:
        biscuit = biscuit.append(auth.BlockBuilder(block))
    return str(biscuit.to_base64())


@given(
    names,
    st.none() | names,
    st.sampled_from(SCOPE_NAMES),
    st.none() | st.floats(NOW + 1, NOW + 1e9),
)
@settings(deadline=None, max_examples=50)
def test_a_token_allows_what_it_was_made_for(
    organization: str, app: str | None, scope: str, expires_at: float | None
) -> None:
    token = mint(PRIVATE, 7, organization=organization, app=app, scope=scope, expires_at=expires_at)
    grant = verify(token.token, KEYS, NOW, ())
    assert grant.organization == organization
    assert grant.apps == (None if app is None else {app})
    assert grant.scopes == {scope}
    assert grant.expires_at == token.expires_at == (None if expires_at is None else int(expires_at))
    assert grant.id == token.id
    assert inspect(token.token) == grant


narrowings = st.fixed_dictionaries(
    {},
    optional={
        "app": st.sampled_from(["shop", "blog"]),
        "scope": st.sampled_from(SCOPE_NAMES),
        "expires_at": st.integers(int(NOW) + 1, int(NOW) + 1000).map(float),
    },
).filter(bool)


@given(st.lists(narrowings, min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_a_holder_narrows_a_token_and_never_widens_it(steps: list[dict[str, object]]) -> None:
    token = mint(PRIVATE, 7, organization="acme", scope="deploy", expires_at=NOW + 500)
    before = verify(token.token, KEYS, NOW, ())
    for step in steps:
        token = attenuate(token.token, **step)  # type: ignore[arg-type]
        grant = verify(token.token, KEYS, NOW, ())
        assert grant.organization == "acme"
        assert grant.scopes >= before.scopes
        assert before.apps is None or (grant.apps is not None and grant.apps <= before.apps)
        assert grant.expires_at is not None
        assert before.expires_at is not None
        assert grant.expires_at <= before.expires_at
        assert grant.revocation_ids[:-1] == before.revocation_ids
        before = grant
    apps = {step["app"] for step in steps if "app" in step}
    assert before.apps == (None if not apps else apps if len(apps) == 1 else set())


def test_a_token_has_ended_at_the_second_that_it_says() -> None:
    token = mint(PRIVATE, 7, organization="acme", expires_at=NOW + 2.9).token
    assert verify(token, KEYS, NOW + 1.999, ()).expires_at == NOW + 2
    with pytest.raises(Unauthenticated, match="expired"):
        verify(token, KEYS, NOW + 2, ())


def test_revoking_a_token_revokes_all_that_were_made_from_it_and_none_of_the_others() -> None:
    first = mint(PRIVATE, 7, organization="acme")
    second = mint(PRIVATE, 7, organization="acme")
    narrowed = attenuate(first.token, scope="read-only")
    sibling = attenuate(first.token, scope="read-only")
    again = attenuate(narrowed.token, app="shop")
    for token in (first, narrowed, again):
        with pytest.raises(Unauthenticated, match="revoked"):
            verify(token.token, KEYS, NOW, {first.id})
    with pytest.raises(Unauthenticated, match="revoked"):
        verify(again.token, KEYS, NOW, {narrowed.id})
    for token in (first, sibling, second):
        verify(token.token, KEYS, NOW, {narrowed.id})


def test_several_keys_are_good_at_once_and_a_retired_one_is_not() -> None:
    other = secrets.token_bytes(32)
    keys = {7: public_key_of(PRIVATE), 8: public_key_of(other)}
    old, new = (
        mint(PRIVATE, 7, organization="acme").token,
        mint(other, 8, organization="acme").token,
    )
    verify(old, keys, NOW, ())
    verify(new, keys, NOW, ())
    for wrong in ({8: keys[8]}, {7: keys[8], 8: keys[7]}, {}):
        with pytest.raises(Unauthenticated):
            verify(old, wrong, NOW, ())


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed('organization("a"); scope("all");', key_id=None), id="no key id"),
        pytest.param(signed('organization("a");'), id="no scope"),
        pytest.param(signed('scope("all");'), id="no organization"),
        pytest.param(signed('organization("a"); scope("root");'), id="unknown scope"),
        pytest.param(signed('organization("a"); organization("b"); scope("all");'), id="two organizations"),
        pytest.param(signed('organization("a"); scope("all"); admin(true);'), id="unknown fact"),
        pytest.param(signed('organization("a"); scope("all");', 'scope("all");'), id="a holder's fact"),
        pytest.param(signed('organization("a"); scope("all");', 'organization("b");'), id="a holder's organization"),
        pytest.param(
            signed('organization("a"); scope("all");', "scope($x) <- organization($x);"), id="a holder's rule"
        ),
        pytest.param(signed('organization("a"); scope("all");', 'check if region("syd");'), id="unknown check"),
        pytest.param(signed('organization("a"); scope("all");', 'check if app("a") or app("b");'), id="alternatives"),
        pytest.param(
            signed('organization("a"); scope("all");', "check if time($t), $t > 2020-01-01T00:00:00Z;"),
            id="a beginning",
        ),
        pytest.param("", id="empty"),
        pytest.param("x" * 100_000, id="long"),
        pytest.param("x" * (MOST_CHARACTERS + 1), id="a little too long"),
        pytest.param("tökén", id="not ASCII"),
        pytest.param("\udc80", id="a surrogate"),
    ],
)
def test_what_is_not_understood_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        verify(token, KEYS, NOW, ())
    with pytest.raises(Unauthenticated) as refused_again:
        verifier().verify(token, NOW)
    for error in (refused.value, refused_again.value):
        assert not token or token not in error.message


def test_any_change_of_a_token_is_noticed() -> None:
    token = attenuate(mint(PRIVATE, 7, organization="acme").token, scope="read-only").token
    raw = bytes(auth.Biscuit.from_base64(token, auth.PublicKey.from_bytes(KEYS[7], auth.Algorithm.Ed25519)).to_bytes())
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        try:
            grant = verify(urlsafe(bytes(changed)), KEYS, NOW, ())
        except Unauthenticated:
            continue
        assert grant.scopes == {"all", "read-only"}, f"byte {at}"
    for at in range(0, len(raw), 7):
        with pytest.raises(Unauthenticated):
            verify(urlsafe(raw[:at]), KEYS, NOW, ())


def urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


def test_a_block_of_a_third_party_is_refused() -> None:
    biscuit = auth.Biscuit.from_base64(
        mint(PRIVATE, 7, organization="acme").token, auth.PublicKey.from_bytes(KEYS[7], auth.Algorithm.Ed25519)
    )
    party = auth.KeyPair()
    block = biscuit.third_party_request().create_block(party.private_key, auth.BlockBuilder('check if app("shop");'))
    token = biscuit.append_third_party(party.public_key, block).to_base64()
    with pytest.raises(Unauthenticated):
        verify(token, KEYS, NOW, ())


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"organization": 'a"); scope("all'}, "organization"),
        ({"organization": ""}, "organization"),
        ({"organization": "a", "app": "two\nlines"}, "app"),
        ({"organization": "a", "scope": "root"}, "scope"),
        ({"organization": "a", "expires_at": 1e30}, "expires_at"),
    ],
)
def test_a_token_is_only_made_of_what_can_be_read_again(how: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        mint(PRIVATE, 7, **how)  # type: ignore[arg-type]
    assert [violation.field for violation in refused.value.violations] == [field]


def test_narrowing_needs_a_token_and_something_to_narrow() -> None:
    token = mint(PRIVATE, 7, organization="acme").token
    with pytest.raises(InvalidConfig):
        attenuate(token)
    for no_token in ("", "nonsense", token[:-10], "x" * 100_000, signed('organization("a"); scope("all");')):
        with pytest.raises(InvalidConfig):
            attenuate(no_token, scope="read-only")
    for _ in range(MOST_BLOCKS - 1):
        try:
            token = attenuate(token, scope="read-only").token
        except InvalidConfig:
            break
        verify(token, KEYS, NOW, ())
    with pytest.raises(InvalidConfig):
        attenuate(token, scope="read-only")


def test_what_a_token_says_of_itself_can_be_read_without_a_key() -> None:
    token = attenuate(mint(PRIVATE, 7, organization="acme").token, app="shop", expires_at=NOW)
    grant = inspect(token.token)
    assert (grant.organization, grant.apps, grant.expires_at, grant.key_id) == (
        "acme",
        frozenset({"shop"}),
        NOW,
        7,
    )
    assert token.token not in repr(token)
    with pytest.raises(InvalidConfig):
        inspect("nonsense")


def verifier(*, most: int = 4096) -> Verifier:
    made = Verifier(most=most)
    made.keys.update(KEYS)
    return made


def test_a_remembered_token_still_ends_is_still_revoked_and_goes_with_its_key() -> None:
    checks = verifier()
    token = mint(PRIVATE, 7, organization="acme", expires_at=NOW + 10)
    assert checks.verify(token.token, NOW) is checks.verify(token.token, NOW)
    with pytest.raises(Unauthenticated, match="expired"):
        checks.verify(token.token, NOW + 10)
    checks.revoked.add(token.id)
    with pytest.raises(Unauthenticated, match="revoked"):
        checks.verify(token.token, NOW)
    checks.revoked.clear()
    checks.verify(token.token, NOW)
    checks.keys[7] = public_key_of(secrets.token_bytes(32))
    with pytest.raises(Unauthenticated):
        checks.verify(token.token, NOW)
    del checks.keys[7]
    with pytest.raises(Unauthenticated):
        checks.verify(token.token, NOW)


def test_a_verifier_remembers_no_more_than_it_may_and_no_token() -> None:
    checks = verifier(most=3)
    tokens = [mint(PRIVATE, 7, organization="acme").token for _ in range(10)]
    for token in tokens:
        checks.verify(token, NOW)
    assert len(checks._known) == 3
    assert not any(token in repr(vars(checks)) for token in tokens)


def test_moments_are_written_in_seconds_of_utc() -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert mint(PRIVATE, 7, organization="acme", expires_at=end).expires_at == end
