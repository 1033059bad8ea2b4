"""Tokens of the public API, and the keys that sign them, as GraphQL."""

from __future__ import annotations

import strawberry

from services.central import tokens
from services.central.graphql.context import Info
from services.runtime.graphql_types import field, mutation


@strawberry.type(description="A key that tokens are verified with; publicKey in hex digits, createdAt in unix seconds.")
class TokenKey:
    id: int
    public_key: str
    created_at: float

    @classmethod
    def of(cls, key: tokens.TokenKey) -> TokenKey:
        """A key as it is shown."""
        return cls(id=key.id, public_key=key.public_key.hex(), created_at=key.created_at)


@strawberry.type(description="`token` is shown once; `id` revokes it; `expiresAt` in unix seconds, null for never.")
class CreateTokenPayload:
    token: str
    id: strawberry.ID
    expires_at: float | None
    key: TokenKey


@strawberry.type
class RevokeTokenPayload:
    id: strawberry.ID


@strawberry.type
class TokenKeyPayload:
    key: TokenKey


@strawberry.type
class RetireTokenKeyPayload:
    id: int


@strawberry.input(description="`scope`: read-only, deploy, exec or all. `expiresAt` in unix seconds.")
class CreateTokenInput:
    organization_id: strawberry.ID
    app_id: strawberry.ID | None = None
    scope: str = "all"
    expires_at: float | None = None


@strawberry.input
class RevokeTokenInput:
    id: strawberry.ID


@strawberry.input
class RetireTokenKeyInput:
    id: int


@strawberry.type
class TokenQuery:
    """The reads."""

    @field("For operators: the keys that tokens are verified with, the one that signs first.")
    async def token_keys(self, info: Info) -> list[TokenKey]:
        return [TokenKey.of(key) for key in await info.context.tokens.keys()]


@strawberry.type
class TokenMutation:
    """The writes."""

    @mutation("A token of the public API for an organization, or one app of it. INVALID, NOT_FOUND.")
    async def create_token(self, info: Info, input: CreateTokenInput) -> CreateTokenPayload:
        token, key = await info.context.tokens.create(
            input.organization_id, app=input.app_id, scope=input.scope, expires_at=input.expires_at
        )
        return CreateTokenPayload(
            token=token.token, id=strawberry.ID(token.id), expires_at=token.expires_at, key=TokenKey.of(key)
        )

    @mutation("Revoke a token by its id, and all that were made from it, for ever. INVALID.")
    async def revoke_token(self, info: Info, input: RevokeTokenInput) -> RevokeTokenPayload:
        await info.context.tokens.revoke(input.id)
        return RevokeTokenPayload(id=input.id)

    @mutation("For operators: sign with a new key from now on. Tokens of older keys stay valid.")
    async def rotate_token_key(self, info: Info) -> TokenKeyPayload:
        return TokenKeyPayload(key=TokenKey.of(await info.context.tokens.rotate()))

    @mutation("For operators: let the tokens that an older key signed be valid no more. INVALID, NOT_FOUND.")
    async def retire_token_key(self, info: Info, input: RetireTokenKeyInput) -> RetireTokenKeyPayload:
        await info.context.tokens.retire(input.id)
        return RetireTokenKeyPayload(id=input.id)
