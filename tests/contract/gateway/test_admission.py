"""A region that has more to do than it can turns calls away in the order of their importance, over REST and gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from skerry.machines.v1 import machines_pb2 as api

from gateway.settings import AdmissionSettings, GatewayLimits
from services.runtime.errors import DependencyDown
from tests.support import eventually
from tests.support_gateway import TOKEN, TestRegion
from tests.support_gateway import region as new_region

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = "app"
BODY = {"config": {"image": "busybox"}, "skip_launch": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def region(postgres: str) -> AsyncIterator[TestRegion]:
    """A region for which any lag of its event loop is too much."""
    limits = GatewayLimits(admission=AdmissionSettings(loop_seconds=1e-9))
    async with new_region(postgres, limits=limits) as serving:
        yield serving


async def test_creates_are_turned_away_first_and_what_makes_load_less_never(region: TestRegion) -> None:
    # What is needed for the calls below; the region needs a second to find out how it is.
    async def app_is_there() -> bool:
        return (await region.call("POST", "/v1/apps", {"name": APP, "org_slug": "personal"})).status in (201, 422)

    await eventually(app_is_there)
    created = await region.call("POST", f"/v1/apps/{APP}/machines", BODY)
    assert created.status == 200
    path = f"/v1/apps/{APP}/machines/{created.json['id']}"

    calls: dict[str, tuple[str, str, Any]] = {
        "create": ("POST", f"/v1/apps/{APP}/machines", BODY),
        "list": ("GET", f"/v1/apps/{APP}/machines", None),
        "change": ("POST", f"{path}/metadata/a", {"value": "b"}),
        "get": ("GET", path, None),
    }
    order: list[str] = []

    async def all_are_turned_away() -> bool:
        # The most important one first, so that the level does not rise between it and those before it.
        for name, call in reversed(calls.items()):
            answer = await region.call(*call)
            if answer.status == 503 and name not in order:
                assert answer.json["status"] == "dependency_down"
                assert "more to do than it can" in answer.json["error"]
                assert int(answer.headers["retry-after"]) >= 1
                order.append(name)
        return len(order) == len(calls)

    await eventually(all_are_turned_away, seconds=30)
    assert order == list(calls)

    refusals: list[DependencyDown] = []

    async def grpc_is_turned_away() -> bool:
        request = api.GetMachineRequest(app_name=APP, machine_id=created.json["id"])
        try:
            await region.machines.GetMachine(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
        except DependencyDown as error:
            refusals.append(error)
        return bool(refusals)

    await eventually(grpc_is_turned_away)
    assert refusals[0].metadata == {"dependency": "region", "class": "get"}
    assert refusals[0].retry_after is not None

    assert (await region.call("GET", f"{path}/wait?state=created")).status == 200
    assert (await region.call("GET", "/healthz")).status == 200
    assert (await region.call("DELETE", f"{path}?force=true")).status == 200
