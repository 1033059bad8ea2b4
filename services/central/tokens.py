"""Tokens of the public API: the keys that sign them, and which are revoked.

Regions verify tokens themselves, with what the feed tells them:

    token_key     id -> {id, public_key (hex), created_at}; gone once the key is retired
    revocation    id of a block of a token -> {id, cell ("": the centre), revoked_at}; never gone

Moments are unix seconds. Tokens are not kept: what is known of one that was made is its id, in the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.central.database import Database, Row, Write
from services.central.errors import Invalid, Missing, Refusal, Unauthorized
from services.central.vault import Vault
from services.runtime import tokens
from services.runtime.errors import InvalidConfig, Unauthenticated
from services.runtime.telemetry import log

TOKEN_KEY = "token_key"
REVOCATION = "revocation"

_OWNER = "token key"
"""What private keys are sealed for: no id of an app has a space."""
_REVOCATION_ID = re.compile(r"[0-9a-f]{32,144}").fullmatch


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key that signed tokens which are valid: the public half. `created_at` in unix seconds."""

    id: int
    public_key: bytes
    created_at: float


class Tokens:
    """Makes and revokes tokens, and looks after the keys. `random_bytes` makes private keys."""

    def __init__(self, database: Database, vault: Vault, random_bytes: Callable[[int], bytes]) -> None:
        self._database = database
        self._vault = vault
        self._random_bytes = random_bytes

    async def seed(self) -> None:
        """Make a key if there is none that is not retired."""
        async with self._database.write() as write:
            if await write.one("newest_token_key") is None:
                await self._new_key(write)

    async def create(
        self, organization: str, *, app: str | None = None, scope: str = "all", expires_at: float | None = None
    ) -> tuple[tokens.Token, TokenKey]:
        """A token for an organization, or for one app of it, and the key that it is signed with.

        `expires_at` is in unix seconds. Raises Invalid, Missing.
        """
        async with self._database.read() as session:
            owner = await session.one("organization", organization)
            if owner is None:
                raise Missing("Could not find Organization")
            if app is not None:
                found = await session.one("app", app)
                if found is None or found["organization_id"] != owner["id"]:
                    raise Missing("Could not find App")
                app = found["name"]
            row = await session.one("newest_token_key")
        if row is None:
            raise Refusal("there is no key that signs tokens: rotate it")
        private = bytes.fromhex(self._vault.open(_OWNER, str(row["id"]), row["sealed"]))
        try:
            token = tokens.mint(
                private, row["id"], organization=owner["slug"], app=app, scope=scope, expires_at=expires_at
            )
        except InvalidConfig as error:
            raise Invalid(error.message) from None
        log.info("central_token_created", id=token.id, organization=owner["slug"], app=app, scope=scope)
        return token, await self._key(row["id"])

    async def revoke(self, revocation_id: str) -> None:
        """Revoke a token, and all that were made from it, for ever. Again changes nothing. Raises Invalid."""
        check_revocation_id(revocation_id)
        async with self._database.write() as write:
            await record_revocation(write, revocation_id, "", write.at)

    async def keys(self) -> list[TokenKey]:
        """The keys that are not retired, the newest one, which signs, first."""
        async with self._database.read() as session:
            return [_key(row) for row in await session.all("token_keys")]

    async def verify(self, token: str, now: float) -> tokens.Grant:
        """What a token allows at `now` (unix seconds). Raises Unauthorized."""
        try:
            # What is no token at all costs no look at the database.
            blocks = list(tokens.inspect(token).revocation_ids)
        except InvalidConfig:
            raise Unauthorized("the token is not valid here: get a new one") from None
        async with self._database.read() as session:
            keys = {row["id"]: bytes(row["public_key"]) for row in await session.all("token_keys")}
            revoked = {row["id"] for row in await session.all("revoked", blocks)}
        try:
            return tokens.verify(token, keys, now, revoked)
        except Unauthenticated as error:
            raise Unauthorized(error.message) from None

    async def rotate(self) -> TokenKey:
        """A new key, that signs from now on. Tokens of the keys before it stay valid until these are retired."""
        async with self._database.write() as write:
            key = await self._new_key(write)
        log.info("central_token_key_rotated", id=key.id)
        return key

    async def retire(self, key_id: int) -> None:
        """Let the tokens that a key signed be valid no more. Raises Invalid for the one that signs, Missing."""
        async with self._database.write() as write:
            newest = await write.one("newest_token_key")
            if newest is not None and newest["id"] == key_id:
                raise Invalid("that key signs new tokens: rotate it first")
            if not await write.run("retire_token_key", key_id, write.at):
                raise Missing("Could not find TokenKey")
            await write.record(TOKEN_KEY, str(key_id), None)
        log.info("central_token_key_retired", id=key_id)

    async def _key(self, key_id: int) -> TokenKey:
        for key in await self.keys():
            if key.id == key_id:
                return key
        raise Refusal("the key was retired just now: try again")

    async def _new_key(self, write: Write) -> TokenKey:
        row = await write.one("next_token_key_id")
        assert row is not None
        private = self._random_bytes(tokens.KEY_BYTES)
        key = TokenKey(row["id"], tokens.public_key_of(private), write.at)
        sealed = self._vault.seal(_OWNER, str(key.id), private.hex())
        await write.run("insert_token_key", key.id, key.public_key, sealed, key.created_at)
        await write.record(TOKEN_KEY, str(key.id), key_payload(key))
        return key


def key_payload(key: TokenKey) -> dict[str, Any]:
    """A key as the feed has it."""
    return {"id": key.id, "public_key": key.public_key.hex(), "created_at": key.created_at}


def check_revocation_id(revocation_id: str) -> None:
    """Raises Invalid for what no block of a token has as its id."""
    if not _REVOCATION_ID(revocation_id):
        raise Invalid("id must be that of a token: 32..144 lower-case hex digits")


async def record_revocation(write: Write, revocation_id: str, cell: str, at: float) -> None:
    """Keep a revocation and tell the regions, unless it is known; `cell` is where it was made, `at` unix seconds."""
    if await write.run("insert_revocation", revocation_id, cell, at):
        payload = {"id": revocation_id, "cell": cell, "revoked_at": at}
        await write.record(REVOCATION, revocation_id, payload)
        log.info("central_token_revoked", id=revocation_id, cell=cell)


def _key(row: Row) -> TokenKey:
    return TokenKey(row["id"], bytes(row["public_key"]), row["created_at"])
