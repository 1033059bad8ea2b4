"""A centre for tests: real HTTP, real PostgreSQL; and the callers that ask it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.central.service import CentralService
from services.central.settings import CentralSettings
from services.runtime.tasks import cancel

TOKEN = "a-token-of-the-centre"
GATEWAY_TOKEN = "the-centre-at-gateways"
KEY = "0f" * 32

REGION_MAP = """
[[region]]
code = "syd"
name = "Sydney, Australia"
latitude = -33.87
longitude = 151.21
cells = [{ id = "001" }, { id = "004" }]

[[region]]
code = "iad"
name = "Ashburn, Virginia (US)"
latitude = 39.04
longitude = -77.49
cells = [{ id = "002" }]
"""


class GraphQLFailed(Exception):
    """The first of an answer's errors."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.message: str = error["message"]
        self.extensions: dict[str, Any] = error["extensions"]
        self.code: str = self.extensions["code"]


@dataclass
class Centre:
    """A running instance and a client of it."""

    service: CentralService
    http: httpx.AsyncClient
    task: asyncio.Task[None]

    async def post(self, query: str, headers: dict[str, str] | None = None, **variables: Any) -> httpx.Response:
        """The raw answer to a query."""
        body = {"query": query, "variables": variables}
        return await self.http.post("/graphql", json=body, headers=headers)

    async def ask(self, query: str, headers: dict[str, str] | None = None, **variables: Any) -> dict[str, Any]:
        """The data of an answer; GraphQLFailed when it has errors."""
        answer = await self.post(query, headers, **variables)
        assert answer.status_code == 200, answer.text
        document = answer.json()
        if document.get("errors"):
            raise GraphQLFailed(document["errors"][0])
        data: dict[str, Any] = document["data"]
        return data

    async def create_app(self, name: str, **more: Any) -> dict[str, Any]:
        """A new app of the organization `personal`."""
        created = await self.ask(
            "mutation($input: CreateAppInput!) { createApp(input: $input) { app { id name homeCell } } }",
            input={"organizationId": "personal", "name": name, **more},
        )
        app: dict[str, Any] = created["createApp"]["app"]
        return app

    async def changes(self, after: str = "", limit: int = 1000, wait_ms: int = 0) -> dict[str, Any]:
        """A batch of the feed."""
        answer = await self.ask(
            "query($after: String!, $limit: Int!, $waitMs: Int)"
            " { changes(after: $after, limit: $limit, waitMs: $waitMs)"
            " { position oldest changes { position kind key deleted payload } } }",
            after=after,
            limit=limit,
            waitMs=wait_ms,
        )
        batch: dict[str, Any] = answer["changes"]
        return batch

    async def snapshot(self, page_size: int = 1000) -> tuple[str, list[dict[str, Any]]]:
        """The whole catalog, and the position that it is of."""
        records: list[dict[str, Any]] = []
        page: str | None = None
        while True:
            answer = await self.ask(
                "query($page: String, $limit: Int!) { catalogSnapshot(page: $page, limit: $limit)"
                " { position nextPage records { position kind key deleted payload } } }",
                page=page,
                limit=page_size,
            )
            found = answer["catalogSnapshot"]
            records += found["records"]
            page = found["nextPage"]
            if page is None:
                return found["position"], records


def settings_for(folder: Path, dsn: str | None, **changed: Any) -> CentralSettings:
    """Settings of an instance on `dsn`; `folder` keeps its region map."""
    region_map = folder / "regions.toml"
    region_map.write_text(REGION_MAP)
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "database": dsn,
        "token": TOKEN,
        "secret_key": KEY,
        "region_map": region_map,
        "gateway_token": GATEWAY_TOKEN,
    }
    return CentralSettings(**{**values, **changed})


@contextlib.asynccontextmanager
async def running(settings: CentralSettings) -> AsyncIterator[Centre]:
    """An instance that serves, until the block ends."""
    service = CentralService(settings)
    serves = asyncio.Event()
    task = asyncio.create_task(service.run(serves.set))
    waiting = asyncio.create_task(serves.wait())
    try:
        await asyncio.wait({task, waiting}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        assert serves.is_set()
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{service.port}",
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=40,
            trust_env=False,
        ) as http:
            yield Centre(service, http, task)
    finally:
        await cancel(task, waiting)
