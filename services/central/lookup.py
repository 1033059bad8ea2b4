"""What the legacy mounts conversion asks a region: where a volume is.

The question goes to a gateway of the machine's region, in the context of the request that made it necessary. When that
request came from the region, this closes a circle; a region that notices refuses, and the refusal is handed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from services.central.errors import Cycle, RegionRefused, RegionUnreachable
from services.runtime.telemetry import current_baggage, current_traceparent, log, traceparent_of, tracer

DEPENDENCY_CYCLE = 508

_CHAIN = re.compile(r"\S+(?: > \S+)+")
"""A chain of services, as regions write it into their errors."""


class VolumeLookup(Protocol):
    """Where volumes are."""

    async def locate(self, app_name: str, region: str, volume: str) -> dict[str, Any] | None:
        """{"region": code, "machine": id} of the machine that mounts the volume (an id or a name); None if none does.

        Raises Cycle, RegionRefused, RegionUnreachable.
        """
        ...


class GatewayLookup:
    """Asks gateways. `gateways` maps regions to base URLs; `token` is the centre's own."""

    def __init__(
        self, http: httpx.AsyncClient, gateways: Mapping[str, str], token: str, *, pass_baggage_on: bool = True
    ) -> None:
        self._http = http
        self._gateways = gateways
        self._token = token
        self._pass_baggage_on = pass_baggage_on
        self._tracer = tracer("central")

    async def locate(self, app_name: str, region: str, volume: str) -> dict[str, Any] | None:
        """See VolumeLookup."""
        base = self._gateways.get(region)
        if base is None:
            raise RegionUnreachable(f"the centre knows no gateway of the region {region!r} to ask for {volume}")
        span = self._tracer.call("GET /v1/apps/{app}/machines", {"skerry.callee": "gateway", "skerry.asked": region})
        headers = {"authorization": f"Bearer {self._token}"}
        if sent := traceparent_of(span) if span else current_traceparent():
            headers["traceparent"] = sent
        if self._pass_baggage_on and (baggage := current_baggage()):
            headers["baggage"] = baggage
        try:
            answer = await self._http.get(f"{base}/v1/apps/{quote(app_name, safe='')}/machines", headers=headers)
        except httpx.HTTPError as error:
            log.warning("central_region_unreachable", asked=region, reason=type(error).__name__)
            raise RegionUnreachable(f"the region {region} does not say where {volume} is") from error
        finally:
            if span:
                span.end()
        if answer.status_code == DEPENDENCY_CYCLE:
            raise _cycle(region, volume, answer)
        if answer.status_code != httpx.codes.OK:
            log.warning("central_region_refused", asked=region, status=answer.status_code)
            raise RegionRefused(
                f"the region {region} answers {answer.status_code} when asked where {volume} is",
                {"status": answer.status_code, "reason": _body(answer).get("status", "")},
            )
        return _mounted(answer.json(), volume)


def _cycle(region: str, volume: str, answer: httpx.Response) -> Cycle:
    body = _body(answer)
    said = str(body.get("chain") or body.get("error") or "")
    found = _CHAIN.search(said)
    chain = found[0].rstrip(":") if found else said
    log.warning("central_dependency_cycle", asked=region, chain=chain)
    return Cycle(f"the region {region} refuses to say where {volume} is: {body.get('error', '')}", {"chain": chain})


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _mounted(machines: Any, volume: str) -> dict[str, Any] | None:
    for machine in machines if isinstance(machines, list) else ():
        for mount in (machine.get("config") or {}).get("mounts") or ():
            if volume in (mount.get("volume"), mount.get("name")):
                return {"region": machine.get("region"), "machine": machine.get("id")}
    return None
