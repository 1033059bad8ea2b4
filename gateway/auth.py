"""Who calls the public API: the check of the token that every call carries."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from services.runtime.errors import Unauthenticated
from services.runtime.registry import ServerCall, ServerInterceptor

SCHEMES = ("bearer", "flyv1")
"""Schemes of the authorization header, in lower case: both mean the same."""

WITHOUT_TOKEN = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
"""Beginnings of the methods that anybody may call."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `name` is for logs and events: it is no secret."""

    name: str


current_principal: ContextVar[Principal | None] = ContextVar("current_principal", default=None)
"""Who calls what the current task serves; None outside of a call, and in one that needs no token."""


def static_tokens(tokens: Sequence[str]) -> ServerInterceptor:
    """An interceptor for the registry of the public API: it lets calls through that carry one of `tokens`.

    It sets `current_principal`. Raises ValueError for an empty token, which everybody would have.
    """
    if not all(tokens):
        raise ValueError("a token must not be empty")
    known = tuple(token.encode() for token in tokens)
    developer = Principal("developer")

    async def authenticate(call: ServerCall) -> None:
        if call.method.startswith(WITHOUT_TOKEN):
            return
        offered = token_of(call.metadata.get("authorization", "")).encode()
        # All are compared, so that the time it takes tells nothing.
        if sum(hmac.compare_digest(offered, token) for token in known) == 0:
            raise Unauthenticated("the token is not known here: send `authorization: Bearer TOKEN` with a valid one")
        current_principal.set(developer)

    return authenticate


def token_of(authorization: str) -> str:
    """The token in an authorization header ("Bearer T" or "FlyV1 T"). Raises Unauthenticated if there is none."""
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    if scheme.lower() not in SCHEMES or not token:
        raise Unauthenticated("a token is needed: send `authorization: Bearer TOKEN`")
    return token
