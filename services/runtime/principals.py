"""Who calls, and what they may: what a token of the public API stands for, at the gateways and at the centre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.runtime.errors import Forbidden
from services.runtime.tokens import Grant

MAIL_DOMAIN: Final = "skerry.internal"


class Right(Enum):
    """What a token may do with the apps that it reaches."""

    READ = "read"
    """See what there is; not what runs inside of a machine, and not the values of secrets."""
    CHANGE = "change"
    """Create, change and destroy machines, volumes and releases."""
    SET_SECRETS = "set-secrets"
    """Set and delete secrets."""
    SHOW_SECRETS = "show-secrets"
    """See the values of secrets."""
    EXEC = "exec"
    """Look into machines, and run commands there."""
    BREAK_LEASES = "break-leases"
    """Release a lease that somebody else holds."""
    MANAGE_APPS = "manage-apps"
    """Create and delete apps."""


EVERYTHING: Final = frozenset(Right)

SCOPES: Final[Mapping[str, frozenset[Right]]] = {
    "read-only": frozenset({Right.READ}),
    "deploy": frozenset({Right.READ, Right.CHANGE, Right.SET_SECRETS}),
    "exec": frozenset({Right.READ, Right.EXEC}),
    "all": EVERYTHING,
}
"""What the scope of a token allows. A token with several, by attenuation, may do what all of them allow."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling, and what they reach. `name` is for logs and events: it is no secret."""

    name: str
    organization: str | None = None
    """Short name of the organization whose apps are reached; None for all."""
    apps: frozenset[str] | None = None
    """Names of the apps that are reached, of that organization; None for all of it."""
    rights: frozenset[Right] = EVERYTHING
    """What may be done with them."""

    def may(self, right: Right) -> bool:
        """Whether the action is allowed on what is reached."""
        return right in self.rights

    def reaches_organization(self, slug: str) -> bool:
        """Whether anything of the organization is reached."""
        return self.organization is None or self.organization == slug

    def reaches(self, app_name: str, organization_slug: str) -> bool:
        """Whether an app of an organization is reached."""
        return self.reaches_organization(organization_slug) and self.may_reach(app_name)

    def may_reach(self, app_name: str) -> bool:
        """Whether an app of that name is reached if the organization is right."""
        return self.apps is None or app_name in self.apps


DEVELOPER: Final = Principal("developer")
"""Whose the development token is."""


def principal_of(grant: Grant) -> Principal:
    """Who calls with a token that allows `grant`. Tokens that were made from one another have the same name."""
    rights = EVERYTHING
    for scope in grant.scopes:
        rights &= SCOPES.get(scope, frozenset())
    return Principal(f"token-{grant.revocation_ids[0][:16]}", grant.organization, grant.apps, rights)


def email_of(principal: Principal | None) -> str:
    """What clients take for the address of whoever calls."""
    name = principal.name if principal is not None else "nobody"
    return name if "@" in name else f"{name}@{MAIL_DOMAIN}"


def forbidden(right: Right) -> Forbidden:
    """What a token is told that reaches the app, and lacks the right."""
    return Forbidden(
        f"this token may not do that: it lacks the right {right.value!r}; use one with a wider scope",
        metadata={"right": right.value},
    )
