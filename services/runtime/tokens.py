"""Tokens of the public API: biscuits, that the centre signs, holders narrow, and everybody checks without asking.

A token's first block, which the centre signs, says what it is for:

    organization("acme");                        whose apps it reaches
    app("shop");                                 only that one of them (may be absent)
    scope("deploy");                             what it may do there
    key(hex:…);                                  the public key: holders need it to narrow the token; nobody trusts it
    check if time($t), $t < 2027-01-01T00:00:00Z;    when it ends (may be absent)

Every later block, which whoever holds the token may append, only takes away, in these forms:

    check if app("shop");
    check if scope("read-only");
    check if time($t), $t < 2027-01-01T00:00:00Z;

Nothing else is understood, and a token with anything else is refused: so what a token allows is a value, that can be
kept, and not a program. A token is revoked by the id of any of its blocks, and with it all that were made from it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from biscuit_auth import (
    Algorithm,
    Biscuit,
    BiscuitBlockError,
    BiscuitBuilder,
    BiscuitValidationError,
    BlockBuilder,
    KeyPair,
    PrivateKey,
    PublicKey,
    UnverifiedBiscuit,
)

from services.runtime.errors import InvalidConfig, Unauthenticated, Violation

SCOPE_NAMES: Final = ("read-only", "deploy", "exec", "all")
MOST_CHARACTERS: Final = 8192
"""A longer token is refused unread."""
MOST_BLOCKS: Final = 32
KEY_BYTES: Final = 32
MOST_KEY_ID: Final = (1 << 31) - 1

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?").fullmatch
_STATEMENT: Final = re.compile(
    r"""(?P<check>check\ if\ )?(?:
        (?P<word>organization|app|scope)\("(?P<text>[a-z0-9-]{1,63})"\)
      | key\(hex:(?P<key>[0-9a-f]{64})\)
      | time\(\$(?P<time>\w{1,20})\),\ \$(?P=time)\ <\ (?P<end>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)
    );""",
    re.VERBOSE,
).fullmatch
_ED25519: Final[object] = getattr(Algorithm, "Ed25519")  # noqa: B009
_UNKNOWN: Final = "the token is not valid here: send `authorization: Bearer TOKEN` with a valid one"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows: some apps of an organization, and there what all of `scopes` have."""

    id: str
    """What it is revoked by, for itself: no secret."""
    organization: str
    """Short name."""
    apps: frozenset[str] | None
    """Names; None for all of the organization."""
    scopes: frozenset[str]
    expires_at: float | None
    """Unix seconds; None for never."""
    revocation_ids: tuple[str, ...]
    """Of its blocks, the first one first."""
    key_id: int
    """Of the key that signed it."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and what may be said of it. `expires_at` in unix seconds."""

    token: str
    id: str
    expires_at: float | None

    def __repr__(self) -> str:
        return f"Token(id={self.id!r})"


@dataclass(frozen=True, slots=True)
class _Block:
    organization: str | None
    app: str | None
    scope: str | None
    key: str | None
    ends: tuple[float, ...]
    apps: tuple[str, ...]
    scopes: tuple[str, ...]


def mint(
    private_key: bytes,
    key_id: int,
    *,
    organization: str,
    app: str | None = None,
    scope: str = "all",
    expires_at: float | None = None,
) -> Token:
    """A new token, signed with the Ed25519 `private_key` (32 bytes) that regions know as `key_id`.

    `expires_at` is in unix seconds; a part of one is cut off. Raises InvalidConfig.
    """
    for field, name in (("organization", organization), *([("app", app)] if app is not None else [])):
        if not _NAME(name):
            raise _invalid(field, "must be 1..63 lower-case letters, digits and inner dashes")
    signer = _private_key(private_key)
    builder = BiscuitBuilder(
        "organization({organization}); scope({scope}); key({key});",
        {
            "organization": organization,
            "scope": _checked_scope(scope),
            "key": public_key_of(private_key),
        },
    )
    if app is not None:
        builder.add_code("app({app});", {"app": app})
    if expires_at is not None:
        builder.add_code("check if time($t), $t < {end};", {"end": _moment(expires_at)})
    builder.set_root_key_id(key_id)
    return _token(builder.build(signer))


def public_key_of(private_key: bytes) -> bytes:
    """The public key (32 bytes) that belongs to an Ed25519 `private_key`."""
    pair = KeyPair.from_private_key(_private_key(private_key))
    return bytes(pair.public_key.to_bytes())


def attenuate(
    token: str, *, app: str | None = None, scope: str | None = None, expires_at: float | None = None
) -> Token:
    """A token made from `token` that allows less: only `app`, only what `scope` allows, only before `expires_at`.

    Needs nobody. Raises InvalidConfig for what is no token, and for a narrowing that is none.
    """
    statements: list[tuple[str, dict[str, object]]] = []
    if app is not None:
        if not _NAME(app):
            raise _invalid("app", "must be 1..63 lower-case letters, digits and inner dashes")
        statements.append(("check if app({app});", {"app": app}))
    if scope is not None:
        statements.append(("check if scope({scope});", {"scope": _checked_scope(scope)}))
    if expires_at is not None:
        statements.append(("check if time($t), $t < {end};", {"end": _moment(expires_at)}))
    if not statements:
        raise InvalidConfig("nothing to narrow: give an app, a scope or an end")
    block = BlockBuilder("")
    for source, values in statements:
        block.add_code(source, values)
    try:
        biscuit = Biscuit.from_base64(token, _key_within(token))
    except BiscuitValidationError:
        raise _no_token() from None
    if biscuit.block_count() >= MOST_BLOCKS:
        raise InvalidConfig(f"the token was narrowed {MOST_BLOCKS - 1} times already, which is the most that is taken")
    made = _token(biscuit.append(block))
    if len(made.token) > MOST_CHARACTERS:
        raise InvalidConfig(f"the token would have more than {MOST_CHARACTERS} characters")
    return made


def inspect(token: str) -> Grant:
    """What `token` says of itself. Nothing of it is verified. Raises InvalidConfig for what is no token."""
    if len(token) > MOST_CHARACTERS:
        raise _no_token()
    try:
        biscuit = UnverifiedBiscuit.from_base64(token)
        key_id = biscuit.root_key_id()
        if key_id is None:
            raise _no_token()
        return _grant(biscuit, key_id)
    except (BiscuitValidationError, BiscuitBlockError, ValueError):
        raise _no_token() from None


def verify(token: str, keys: Mapping[int, bytes], now: float, revoked: Container[str]) -> Grant:
    """What `token` allows at `now` (unix seconds), if one of `keys` (public, 32 bytes, by id) signed it.

    `revoked` are ids of blocks. Raises Unauthenticated, which never repeats anything of the token.
    """
    grant = _verified(token, keys)
    _insist_on_now(grant, now, revoked)
    return grant


class Verifier:
    """Verifies tokens, and remembers the signatures that were right: by a hash, so that no token is kept.

    Whether a token has ended or is revoked, and whether its key is still good, is looked at each time.
    """

    def __init__(self, *, most: int = 4096) -> None:
        """Remembers `most` tokens."""
        self.keys: dict[int, bytes] = {}
        """Public keys by id."""
        self.revoked: set[str] = set()
        """Ids of blocks."""
        self._most = most
        self._known: OrderedDict[bytes, tuple[bytes, Grant]] = OrderedDict()

    def verify(self, token: str, now: float) -> Grant:
        """As the function `verify`."""
        if len(token) > MOST_CHARACTERS:
            raise Unauthenticated(_UNKNOWN)
        name = sha256(token.encode(errors="replace")).digest()
        remembered = self._known.get(name)
        if remembered is not None and self.keys.get(remembered[1].key_id) == remembered[0]:
            grant = remembered[1]
            self._known.move_to_end(name)
        else:
            grant = _verified(token, self.keys)
            self._known[name] = (self.keys[grant.key_id], grant)
            if len(self._known) > self._most:
                self._known.popitem(last=False)
        _insist_on_now(grant, now, self.revoked)
        return grant


def _verified(token: str, keys: Mapping[int, bytes]) -> Grant:
    if len(token) > MOST_CHARACTERS:
        raise Unauthenticated(_UNKNOWN)
    asked: list[int] = []

    def key_of(key_id: int | None) -> PublicKey:
        if key_id is None or key_id not in keys:
            raise LookupError
        asked.append(key_id)
        return _public_key(keys[key_id])

    try:
        biscuit = Biscuit.from_base64(token, key_of)
        if any(biscuit.block_external_key(number) is not None for number in range(biscuit.block_count())):
            raise ValueError
        return _grant(biscuit, asked[0])
    except (BiscuitValidationError, BiscuitBlockError, ValueError):
        raise Unauthenticated(_UNKNOWN) from None


def _insist_on_now(grant: Grant, now: float, revoked: Container[str]) -> None:
    if grant.expires_at is not None and now >= grant.expires_at:
        raise Unauthenticated("the token has expired: get a new one")
    for block in grant.revocation_ids:
        if block in revoked:
            raise Unauthenticated("the token was revoked: get a new one")


def _grant(biscuit: Biscuit | UnverifiedBiscuit, key_id: int) -> Grant:
    """Raises ValueError for what is not understood."""
    count = biscuit.block_count()
    if count > MOST_BLOCKS:
        raise ValueError("too many blocks")
    first, *later = (_block(biscuit.block_source(number), first=number == 0) for number in range(count))
    if first.organization is None or first.scope is None:
        raise ValueError("the first block lacks something")
    wanted = {*([first.app] if first.app is not None else []), *(app for block in later for app in block.apps)}
    apps = None if not wanted else frozenset(wanted) if len(wanted) == 1 else frozenset[str]()
    ends = [end for block in (first, *later) for end in block.ends]
    revocation_ids = tuple(biscuit.revocation_ids)
    return Grant(
        id=revocation_ids[-1],
        organization=first.organization,
        apps=apps,
        scopes=frozenset({first.scope, *(scope for block in later for scope in block.scopes)}),
        expires_at=min(ends) if ends else None,
        revocation_ids=revocation_ids,
        key_id=key_id,
    )


def _block(source: str, *, first: bool) -> _Block:
    facts: dict[str, str] = {}
    checks: dict[str, list[str]] = {"app": [], "scope": []}
    ends: list[float] = []
    for is_check, word, text in _statements(source):
        if word == "time" and is_check:
            ends.append(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
        elif first and not is_check and word != "time" and word not in facts:
            facts[word] = text
        elif not first and is_check and word in checks:
            checks[word].append(text)
        else:
            raise ValueError("a statement is out of place")
    if any(scope not in SCOPE_NAMES for scope in [*checks["scope"], *([facts["scope"]] if "scope" in facts else [])]):
        raise ValueError("a scope is not known")
    return _Block(
        organization=facts.get("organization"),
        app=facts.get("app"),
        scope=facts.get("scope"),
        key=facts.get("key"),
        ends=tuple(ends),
        apps=tuple(checks["app"]),
        scopes=tuple(checks["scope"]),
    )


def _statements(source: str) -> Iterator[tuple[bool, str, str]]:
    for line in source.splitlines():
        if not line:
            continue
        match = _STATEMENT(line)
        if match is None:
            raise ValueError("a statement is not understood")
        is_check = match["check"] is not None
        if match["end"] is not None:
            yield is_check, "time", match["end"]
        elif match["key"] is not None:
            yield is_check, "key", match["key"]
        else:
            yield is_check, match["word"], match["text"]


def _key_within(token: str) -> PublicKey:
    """The public key that a token says it is signed with."""
    if len(token) > MOST_CHARACTERS:
        raise _no_token()
    try:
        key = _block(UnverifiedBiscuit.from_base64(token).block_source(0), first=True).key
    except (BiscuitValidationError, BiscuitBlockError, ValueError):
        raise _no_token() from None
    if key is None:
        raise _no_token()
    return _public_key(bytes.fromhex(key))


def _private_key(content: bytes) -> PrivateKey:
    # The library's own types do not know of the second argument.
    read: Callable[[bytes, object], PrivateKey] = getattr(PrivateKey, "from_bytes")  # noqa: B009
    return read(content, _ED25519)


def _public_key(content: bytes) -> PublicKey:
    read: Callable[[bytes, object], PublicKey] = getattr(PublicKey, "from_bytes")  # noqa: B009
    return read(content, _ED25519)


def _token(biscuit: Biscuit) -> Token:
    text = biscuit.to_base64()
    grant = inspect(text)
    return Token(text, grant.id, grant.expires_at)


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        raise _invalid("expires_at", "is no moment that can be written") from None


def _checked_scope(scope: str) -> str:
    if scope not in SCOPE_NAMES:
        raise _invalid("scope", f"must be one of {', '.join(SCOPE_NAMES)}")
    return scope


def _no_token() -> InvalidConfig:
    return _invalid("token", "is none of this API")


def _invalid(field: str, why: str) -> InvalidConfig:
    return InvalidConfig(f"{field} {why}", violations=[Violation(field, why)])
