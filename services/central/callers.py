"""Who calls the centre: the regions, by the centre's own token, and clients, by tokens of the public API."""

from __future__ import annotations

import hmac
from typing import Final

from services.central.errors import Unauthorized
from services.central.tokens import Tokens
from services.runtime.clock import Clock
from services.runtime.principals import Principal, principal_of

SCHEMES: Final = ("bearer", "flyv1")
"""Schemes of the authorization header, in lower case: both mean the same."""
NOT_AUTHENTICATED: Final = "You must be authenticated to view this."


class Callers:
    """Tells callers apart. `everything` are the tokens that may do everything, with whose they are."""

    def __init__(self, everything: dict[str, Principal], tokens: Tokens, clock: Clock) -> None:
        self._everything = [(token.encode(), principal) for token, principal in everything.items()]
        self._tokens = tokens
        self._clock = clock

    async def of(self, authorization: str) -> Principal:
        """Whose token an authorization header has; without an organization, one that may do everything.

        Raises Unauthorized.
        """
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() not in SCHEMES or not token:
            raise Unauthorized(NOT_AUTHENTICATED)
        offered = token.encode()
        # All are compared, so that the time it takes tells nothing.
        known = [principal for secret, principal in self._everything if hmac.compare_digest(offered, secret)]
        return known[0] if known else principal_of(await self._tokens.verify(token, self._clock.now()))
