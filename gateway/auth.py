"""Who calls the public API: the check of the token that every call carries."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from services.runtime.edges import CENTRAL
from services.runtime.errors import Unauthenticated
from services.runtime.guard import Guard
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


def static_tokens(tokens: Sequence[str], central_token: str | None = None) -> ServerInterceptor:
    """An interceptor for the registry of the public API: it lets calls through that carry one of `tokens`.

    It sets `current_principal`. A call with `central_token` is the centre's, whatever else it says of itself: the
    dependency guard, which comes next, refuses it. Raises ValueError for an empty token, which everybody would have.
    """
    if not all(tokens) or central_token == "":
        raise ValueError("a token must not be empty")
    known = tuple(token.encode() for token in tokens)
    centre = central_token.encode() if central_token is not None else None
    developer = Principal("developer")

    async def authenticate(call: ServerCall) -> None:
        if call.method.startswith(WITHOUT_TOKEN):
            return
        offered = token_of(call.metadata.get("authorization", "")).encode()
        if centre is not None and hmac.compare_digest(offered, centre):
            call.caller = CENTRAL
            current_principal.set(Principal(CENTRAL))
            return
        # All are compared, so that the time it takes tells nothing.
        if sum(hmac.compare_digest(offered, token) for token in known) == 0:
            raise Unauthenticated("the token is not known here: send `authorization: Bearer TOKEN` with a valid one")
        current_principal.set(developer)

    return authenticate


Admission = Callable[[str, str], None]
"""Judges a request by its authorization and baggage headers. Raises ForbiddenDependency."""


def admission(guard: Guard | None, central_token: str | None = None) -> Admission:
    """The judgement of the public door's `guard` over a request, for doors where not every request becomes a call.

    It counts nothing but refusals.
    """
    centre = central_token.encode() if central_token is not None else None

    def judge(authorization: str, baggage: str) -> None:
        if guard is None:
            return
        offered = authorization.strip().partition(" ")[2].strip().encode()
        is_centre = centre is not None and hmac.compare_digest(offered, centre)
        guard.refuse(CENTRAL if is_centre else "", baggage)

    return judge


def token_of(authorization: str) -> str:
    """The token in an authorization header ("Bearer T" or "FlyV1 T"). Raises Unauthenticated if there is none."""
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    if scheme.lower() not in SCHEMES or not token:
        raise Unauthenticated("a token is needed: send `authorization: Bearer TOKEN`")
    return token
