"""Who calls the public API, and what they may: the check of the token that every call carries.

What a method needs stands in one table, `RIGHTS`, and is checked in one place, the interceptor that `access` makes.
Which apps a token reaches is checked in another one: `gateway.apps`.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Final

from services.runtime.edges import CENTRAL
from services.runtime.errors import Forbidden, Unauthenticated
from services.runtime.guard import Guard
from services.runtime.principals import DEVELOPER
from services.runtime.principals import EVERYTHING as EVERYTHING
from services.runtime.principals import SCOPES as SCOPES
from services.runtime.principals import Principal as Principal
from services.runtime.principals import Right as Right
from services.runtime.principals import forbidden as forbidden
from services.runtime.principals import principal_of as principal_of
from services.runtime.registry import ServerCall, ServerInterceptor
from services.runtime.tokens import Grant

SCHEMES = ("bearer", "flyv1")
"""Schemes of the authorization header, in lower case: both mean the same."""

WITHOUT_TOKEN = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
"""Beginnings of the methods that anybody may call."""


RIGHTS: Final[Mapping[str, Right]] = {
    "/skerry.machines.v1.Machines/CreateApp": Right.MANAGE_APPS,
    "/skerry.machines.v1.Machines/ListApps": Right.READ,
    "/skerry.machines.v1.Machines/GetApp": Right.READ,
    "/skerry.machines.v1.Machines/DeleteApp": Right.MANAGE_APPS,
    "/skerry.machines.v1.Machines/CreateMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/ListMachines": Right.READ,
    "/skerry.machines.v1.Machines/WatchMachines": Right.READ,
    "/skerry.machines.v1.Machines/GetMachine": Right.READ,
    "/skerry.machines.v1.Machines/UpdateMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/DeleteMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/StartMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/StopMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/RestartMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/WaitMachine": Right.READ,
    "/skerry.machines.v1.Machines/ListMachineEvents": Right.READ,
    "/skerry.machines.v1.Machines/ExecMachine": Right.EXEC,
    "/skerry.machines.v1.Machines/ListProcesses": Right.EXEC,
    "/skerry.machines.v1.Machines/SignalMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/SuspendMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/CordonMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/UncordonMachine": Right.CHANGE,
    "/skerry.machines.v1.Machines/GetMachineLease": Right.READ,
    "/skerry.machines.v1.Machines/AcquireMachineLease": Right.CHANGE,
    "/skerry.machines.v1.Machines/ReleaseMachineLease": Right.CHANGE,
    "/skerry.machines.v1.Machines/GetMachineMetadata": Right.READ,
    "/skerry.machines.v1.Machines/GetMachineMetadataEntry": Right.READ,
    "/skerry.machines.v1.Machines/SetMachineMetadata": Right.CHANGE,
    "/skerry.machines.v1.Machines/DeleteMachineMetadata": Right.CHANGE,
    "/skerry.machines.v1.Machines/ListMachineVersions": Right.READ,
    "/skerry.machines.v1.Volumes/ListVolumes": Right.READ,
    "/skerry.machines.v1.Volumes/CreateVolume": Right.CHANGE,
    "/skerry.machines.v1.Volumes/GetVolume": Right.READ,
    "/skerry.machines.v1.Volumes/UpdateVolume": Right.CHANGE,
    "/skerry.machines.v1.Volumes/DeleteVolume": Right.CHANGE,
    "/skerry.machines.v1.Volumes/ExtendVolume": Right.CHANGE,
    "/skerry.machines.v1.Volumes/ListSnapshots": Right.READ,
    "/skerry.machines.v1.Volumes/CreateSnapshot": Right.CHANGE,
    "/skerry.machines.v1.Secrets/ListSecrets": Right.READ,
    "/skerry.machines.v1.Secrets/UpdateSecrets": Right.SET_SECRETS,
    "/skerry.machines.v1.Secrets/GetSecret": Right.READ,
    "/skerry.machines.v1.Secrets/SetSecret": Right.SET_SECRETS,
    "/skerry.machines.v1.Secrets/DeleteSecret": Right.SET_SECRETS,
    "/skerry.machines.v1.Platform/ListRegions": Right.READ,
    "/skerry.machines.v1.Platform/SimulatePlacements": Right.READ,
    "/skerry.machines.v1.Platform/ListIPAssignments": Right.READ,
    "/skerry.machines.v1.Releases/CreateRelease": Right.CHANGE,
    "/skerry.machines.v1.Releases/UpdateRelease": Right.CHANGE,
    "/skerry.machines.v1.Releases/ListReleases": Right.READ,
    "/skerry.machines.v1.Releases/GetCurrentRelease": Right.READ,
    "/skerry.machines.v1.Organizations/GetOrganization": Right.READ,
    "/skerry.machines.v1.GraphQL/Execute": Right.READ,
    "/skerry.machines.v1.Cells/LocateApp": Right.READ,
}
"""The right that a method needs. Where a field of the request asks for more, the method calls `insist_on`."""

_CREATE_APP: Final = "/skerry.machines.v1.Machines/CreateApp"
"""The method whose request names an app that need not exist."""


current_principal: ContextVar[Principal | None] = ContextVar("current_principal", default=None)
"""Who calls what the current task serves; None outside of a call, and in one that needs no token."""


_authenticate_again: ContextVar[Callable[[], object] | None] = ContextVar("authenticate_again", default=None)


def insist_on_token() -> None:
    """Refuse to go on with the call that is being served if its token has ended or was revoked meanwhile.

    For calls that last. Raises Unauthenticated.
    """
    again = _authenticate_again.get()
    if again is not None:
        again()


def insist_on(right: Right) -> None:
    """Refuse the call that is being served unless its token has `right`, on an app that it reaches.

    For what the table of methods cannot tell, since a field of the request asks for it. Raises Forbidden.
    """
    principal = current_principal.get()
    if principal is not None and not principal.may(right):
        raise forbidden(right)


class Tokens:
    """The tokens that the public door knows. `authenticate` is asked about each that is offered."""

    def __init__(
        self,
        static: Sequence[str],
        central_token: str | None = None,
        *,
        grant_of: Callable[[str], Grant] | None = None,
    ) -> None:
        """`static` ones may do everything, all others what `grant_of` them says, which raises Unauthenticated.

        Raises ValueError for an empty token, which everybody would have.
        """
        if not all(static) or central_token == "":
            raise ValueError("a token must not be empty")
        self._static = tuple(token.encode() for token in static)
        self._centre = central_token.encode() if central_token is not None else None
        self._grant_of = grant_of
        self._developer = DEVELOPER
        self.central = Principal(CENTRAL)
        """The centre: what its token authenticates."""

    def authenticate(self, token: str) -> Principal:
        """Whose token it is. Raises Unauthenticated."""
        offered = token.encode()
        if self._centre is not None and hmac.compare_digest(offered, self._centre):
            return self.central
        # All are compared, so that the time it takes tells nothing.
        if sum(hmac.compare_digest(offered, known) for known in self._static):
            return self._developer
        if self._grant_of is None:
            raise Unauthenticated("the token is not known here: send `authorization: Bearer TOKEN` with a valid one")
        return principal_of(self._grant_of(token))


InsistOnReach = Callable[[str], Awaitable[None]]
"""Raises what somebody is told who does not reach the app of a name, for the current principal."""


def access(tokens: Tokens, insist_on_reach: InsistOnReach | None = None) -> ServerInterceptor:
    """An interceptor for the registry of the public API: it lets calls through whose token has the right to make them.

    It sets `current_principal`. A call with the centre's token is the centre's, whatever else it says of itself: the
    dependency guard, which comes next, refuses it. What a token may not do is forbidden where it reaches the app that
    the request names; for others there is no such app, and `insist_on_reach` says so.
    """

    async def judge(call: ServerCall) -> None:
        if call.method.startswith(WITHOUT_TOKEN):
            return
        token = token_of(call.metadata.get("authorization", ""))
        principal = tokens.authenticate(token)
        current_principal.set(principal)
        _authenticate_again.set(lambda: tokens.authenticate(token))
        if principal is tokens.central:
            call.caller = CENTRAL
        right = RIGHTS.get(call.method)
        if right is None:
            raise Forbidden(f"nobody may call {call.method}: it has no line in the table of rights")
        if right in principal.rights:
            return
        app_name = getattr(call.request, "app_name", "")
        if app_name and insist_on_reach is not None and call.method != _CREATE_APP:
            await insist_on_reach(app_name)
        raise forbidden(right)

    return judge


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
