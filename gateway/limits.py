"""How often the public API may be called: token buckets, looked at right after the token and before any work is done.

What a method counts as stands in one table, `LIMITS`, beside that of the rights; `Limiter` says what counts together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, NamedTuple

from prometheus_client import Counter
from skerry.machines.v1.machines_pb2 import CreateMachineRequest

from gateway.auth import Principal, Tokens, current_principal, token_of
from gateway.settings import CallLimits, RateSettings
from services.runtime.errors import RateLimited
from services.runtime.registry import ServerCall, ServerInterceptor
from services.runtime.telemetry import metrics

_ROUNDING = 1e-9
"""Seconds by which sums of intervals may be off."""
_NAMES = ("app_name", "machine_id")
"""Fields of requests that calls are counted by."""
_LONGEST_NAME = 64
"""Characters of a name that count: anybody may send anything."""

_refused = Counter(
    "skerry_calls_rate_limited",
    "Calls that were refused for coming too often, by action.",
    ["action"],
    registry=metrics,
)
_refused_of = cache(_refused.labels)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a second, and so many at once after a pause. Raises ValueError for a bucket that never fills."""

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not self.per_second > 0 or self.burst < 1:
            raise ValueError("a rate is more than nothing in a second, and one at once at least")


class Buckets:
    """Token buckets by key, of which those are forgotten that were asked longest ago. A forgotten one is full.

    A bucket is kept as one number, the time when it will be full if nothing more is taken (the "theoretical arrival
    time" of the generic cell rate algorithm, ITU-T I.371): the same as counting tokens, without a clock that ticks.
    """

    def __init__(self, most: int) -> None:
        """`most`: how many are remembered."""
        self._most = most
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, wanted: Sequence[tuple[Hashable, Rate, int]], now: float) -> float:
        """Take so many tokens out of each bucket of `wanted`, or none out of any if one of them has too few.

        More than a bucket holds are as many as it holds. Returns 0 when they were taken, else the seconds until they
        can be. `now` is in seconds, and never goes back.
        """
        wait, after = self._after(wanted, now)
        if not wait:
            for key, full_at in after:
                self._full_at[key] = full_at
                self._full_at.move_to_end(key)
            while len(self._full_at) > self._most:
                self._full_at.popitem(last=False)
        return wait

    def wait(self, wanted: Sequence[tuple[Hashable, Rate, int]], now: float) -> float:
        """What `take` would return, taking nothing."""
        return self._after(wanted, now)[0]

    def _after(
        self, wanted: Sequence[tuple[Hashable, Rate, int]], now: float
    ) -> tuple[float, list[tuple[Hashable, float]]]:
        after: list[tuple[Hashable, float]] = []
        wait = 0.0
        for key, rate, tokens in wanted:
            interval = 1.0 / rate.per_second
            full_at = max(self._full_at.get(key, now), now) + min(tokens, rate.burst) * interval
            wait = max(wait, full_at - now - rate.burst * interval)
            after.append((key, full_at))
        return (wait if wait > _ROUNDING else 0.0), after


class Allowance(Enum):
    """Which of the configured rates holds."""

    ACTION = "action"
    GET = "get"


class Per(Enum):
    """What calls of a method are counted by, together with the action."""

    MACHINE = "machine"
    APP = "app"
    """And the token."""
    TOKEN = "token"


class Limit(NamedTuple):
    """What calls of a method count as. Methods of the same action are counted together."""

    action: str
    per: Per
    allowance: Allowance = Allowance.ACTION


_MACHINES: Final = "/skerry.machines.v1.Machines"
_VOLUMES: Final = "/skerry.machines.v1.Volumes"
_SECRETS: Final = "/skerry.machines.v1.Secrets"
_PLATFORM: Final = "/skerry.machines.v1.Platform"
_RELEASES: Final = "/skerry.machines.v1.Releases"

LIMITS: Final[Mapping[str, Limit]] = {
    f"{_MACHINES}/CreateApp": Limit("create_app", Per.TOKEN),
    f"{_MACHINES}/ListApps": Limit("list_apps", Per.TOKEN),
    f"{_MACHINES}/GetApp": Limit("get_app", Per.APP, Allowance.GET),
    f"{_MACHINES}/DeleteApp": Limit("delete_app", Per.APP),
    f"{_MACHINES}/CreateMachine": Limit("create", Per.APP),
    f"{_MACHINES}/ListMachines": Limit("list", Per.APP),
    f"{_MACHINES}/WatchMachines": Limit("watch", Per.APP),
    f"{_MACHINES}/GetMachine": Limit("get", Per.MACHINE, Allowance.GET),
    f"{_MACHINES}/UpdateMachine": Limit("update", Per.MACHINE),
    f"{_MACHINES}/DeleteMachine": Limit("delete", Per.MACHINE),
    f"{_MACHINES}/StartMachine": Limit("start", Per.MACHINE),
    f"{_MACHINES}/StopMachine": Limit("stop", Per.MACHINE),
    f"{_MACHINES}/RestartMachine": Limit("restart", Per.MACHINE),
    f"{_MACHINES}/WaitMachine": Limit("wait", Per.MACHINE, Allowance.GET),
    f"{_MACHINES}/ListMachineEvents": Limit("events", Per.MACHINE),
    f"{_MACHINES}/ExecMachine": Limit("exec", Per.MACHINE),
    f"{_MACHINES}/ListProcesses": Limit("ps", Per.MACHINE),
    f"{_MACHINES}/SignalMachine": Limit("signal", Per.MACHINE),
    f"{_MACHINES}/SuspendMachine": Limit("suspend", Per.MACHINE),
    f"{_MACHINES}/CordonMachine": Limit("cordon", Per.MACHINE),
    f"{_MACHINES}/UncordonMachine": Limit("uncordon", Per.MACHINE),
    f"{_MACHINES}/GetMachineLease": Limit("get_lease", Per.MACHINE, Allowance.GET),
    f"{_MACHINES}/AcquireMachineLease": Limit("acquire_lease", Per.MACHINE),
    f"{_MACHINES}/ReleaseMachineLease": Limit("release_lease", Per.MACHINE),
    f"{_MACHINES}/GetMachineMetadata": Limit("get_metadata", Per.MACHINE, Allowance.GET),
    f"{_MACHINES}/GetMachineMetadataEntry": Limit("get_metadata", Per.MACHINE, Allowance.GET),
    f"{_MACHINES}/SetMachineMetadata": Limit("set_metadata", Per.MACHINE),
    f"{_MACHINES}/DeleteMachineMetadata": Limit("delete_metadata", Per.MACHINE),
    f"{_MACHINES}/ListMachineVersions": Limit("versions", Per.MACHINE),
    f"{_VOLUMES}/ListVolumes": Limit("list_volumes", Per.APP),
    f"{_VOLUMES}/CreateVolume": Limit("create_volume", Per.APP),
    f"{_VOLUMES}/GetVolume": Limit("get_volume", Per.APP, Allowance.GET),
    f"{_VOLUMES}/UpdateVolume": Limit("update_volume", Per.APP),
    f"{_VOLUMES}/DeleteVolume": Limit("delete_volume", Per.APP),
    f"{_VOLUMES}/ExtendVolume": Limit("extend_volume", Per.APP),
    f"{_VOLUMES}/ListSnapshots": Limit("list_snapshots", Per.APP),
    f"{_VOLUMES}/CreateSnapshot": Limit("create_snapshot", Per.APP),
    f"{_SECRETS}/ListSecrets": Limit("list_secrets", Per.APP),
    f"{_SECRETS}/UpdateSecrets": Limit("update_secrets", Per.APP),
    f"{_SECRETS}/GetSecret": Limit("get_secret", Per.APP, Allowance.GET),
    f"{_SECRETS}/SetSecret": Limit("set_secret", Per.APP),
    f"{_SECRETS}/DeleteSecret": Limit("delete_secret", Per.APP),
    f"{_PLATFORM}/ListRegions": Limit("regions", Per.TOKEN, Allowance.GET),
    f"{_PLATFORM}/SimulatePlacements": Limit("placements", Per.TOKEN),
    f"{_PLATFORM}/ListIPAssignments": Limit("ip_assignments", Per.APP, Allowance.GET),
    f"{_RELEASES}/CreateRelease": Limit("create_release", Per.APP),
    f"{_RELEASES}/UpdateRelease": Limit("update_release", Per.TOKEN),
    f"{_RELEASES}/ListReleases": Limit("list_releases", Per.APP),
    f"{_RELEASES}/GetCurrentRelease": Limit("get_release", Per.APP, Allowance.GET),
    "/skerry.machines.v1.Organizations/GetOrganization": Limit("get_organization", Per.TOKEN, Allowance.GET),
    "/skerry.machines.v1.Cells/LocateApp": Limit("locate_app", Per.APP, Allowance.GET),
    "/skerry.machines.v1.GraphQL/Execute": Limit("graphql", Per.TOKEN, Allowance.GET),
}
"""What every public method counts as. One without a line counts as an action of its own, by the app."""


class Limiter:
    """Which calls come too often.

    Calls about a machine are counted by action and machine, whichever token of its organization they are made with:
    what another organization asks of a machine that it does not reach is counted apart, so that nobody can use up what
    is not theirs. Others are counted by token, app and action. Beyond that, all calls of an organization together have
    a bucket, since names of apps and machines can be made up without end; every machine of a batch counts there.
    """

    def __init__(self, limits: CallLimits, monotonic: Callable[[], float]) -> None:
        """Tokens that are no organization's (the development token, operators) count only where `everybody` does."""
        self._rates = {Allowance.ACTION: _rate(limits.action), Allowance.GET: _rate(limits.get)}
        self._together = _rate(limits.organization)
        self._monotonic = monotonic
        self._everybody = limits.everybody
        self._buckets = Buckets(limits.buckets)

    def check(self, method: str, request: Any, principal: Principal) -> None:
        """Count a call. Raises RateLimited, with the seconds after which it will be served, if it comes too soon."""
        # Several machines at once are one call, and as much work as several.
        machines = max(1, request.count) if isinstance(request, CreateMachineRequest) else 1
        names = {field: str(getattr(request, field, "")) for field in _NAMES}
        self._judge(method, names, machines, principal, self._buckets.take)

    def foresee(self, method: str, names: Mapping[str, str], principal: Principal) -> None:
        """Refuse a call, of which only the names in its path are known yet, that `check` would refuse. Counts nothing.

        Raises RateLimited.
        """
        self._judge(method, names, 1, principal, self._buckets.wait)

    def _judge(
        self,
        method: str,
        names: Mapping[str, str],
        machines: int,
        principal: Principal,
        wait_for: Callable[[Sequence[tuple[Hashable, Rate, int]], float], float],
    ) -> None:
        tenant = principal.organization
        if tenant is None:
            if not self._everybody:
                return
            tenant = principal.name
        limit = LIMITS.get(method) or Limit(method.rpartition("/")[2], Per.APP)
        key: tuple[str, ...]
        match limit.per:
            case Per.MACHINE:
                key = ("machine", tenant, names.get("machine_id", "")[:_LONGEST_NAME], limit.action)
            case Per.APP:
                key = ("app", principal.name, names.get("app_name", "")[:_LONGEST_NAME], limit.action)
            case Per.TOKEN:
                key = ("token", principal.name, limit.action)
        rate = self._rates[limit.allowance]
        wait = wait_for(((key, rate, 1), ((tenant,), self._together, machines)), self._monotonic())
        if wait > 0:
            _refused_of(limit.action).inc()
            raise RateLimited(
                f"{limit.action} was asked too often: {rate.per_second:g}/s with a burst of {rate.burst} is allowed "
                f"per {limit.per.value}, and {self._together.per_second:g}/s of all calls of an organization; "
                f"try again in {wait:.1f} s",
                metadata={"action": limit.action, "per": limit.per.value},
                retry_after=wait,
            )


def _rate(settings: RateSettings) -> Rate:
    return Rate(settings.per_second, settings.burst)


def limited(limiter: Limiter) -> ServerInterceptor:
    """An interceptor for the registry of the public API, to run after the one that knows the token."""

    async def judge(call: ServerCall) -> None:
        principal = current_principal.get()
        if principal is not None:
            limiter.check(call.method, call.request, principal)

    return judge


Foresee = Callable[[str, Mapping[str, str], str], None]
"""Judges a request by its method, the names in its path and its authorization header.

Raises Unauthenticated and RateLimited.
"""


def foreseeing(limiter: Limiter, tokens: Tokens) -> Foresee:
    """For doors that parse a request before it becomes a call: what the call is refused for anyway need not be."""

    def judge(method: str, names: Mapping[str, str], authorization: str) -> None:
        limiter.foresee(method, names, tokens.authenticate(token_of(authorization)))

    return judge
