"""Clients that create machines and do not give up: what they were answered is what must hold."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from services.runtime.ids import cell_of
from tests.e2e.meshes import SLEEPER

AGAIN_AFTER_SECONDS = 0.1
REQUEST_SECONDS = 10.0


class Creators:
    """Creates machines `m-0` … with an idempotency key each, several at once, and repeats what was not answered.

    `acknowledged` is name to id; `unanswered` counts requests that were cut off or refused for the moment.
    """

    def __init__(self, base: str, token: str, app: str, *, marker: str, config: dict[str, Any] = SLEEPER) -> None:
        self.acknowledged: dict[str, str] = {}
        self.unanswered = 0
        self._base, self._headers, self._app = base, {"authorization": f"Bearer {token}"}, app
        self._marker, self._config = marker, config

    async def create(self, count: int, *, at_once: int = 4, pause: float = 0.0) -> None:
        """Create `count` machines, `at_once` at a time, each client pausing `pause` seconds after each.

        Raises AssertionError for an answer that no repetition would mend.
        """
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                async with httpx.AsyncClient(base_url=self._base, headers=self._headers) as client:
                    await self._create(client, f"m-{number}")
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(work())

    async def _create(self, client: httpx.AsyncClient, name: str) -> None:
        body = {"name": name, "config": {**self._config, "env": {self._marker: name}}}
        while True:
            try:
                answer = await client.post(
                    f"/v1/apps/{self._app}/machines",
                    json=body,
                    headers={"idempotency-key": f"key-of-{name}"},
                    timeout=REQUEST_SECONDS,
                )
            except httpx.HTTPError:
                self.unanswered += 1
            else:
                if answer.status_code == 200:
                    machine = answer.json()["id"]
                    assert cell_of(machine) is not None
                    self.acknowledged[name] = machine
                    return
                assert answer.status_code >= 500, f"{name}: {answer.status_code} {answer.text}"
                self.unanswered += 1
            await asyncio.sleep(AGAIN_AFTER_SECONDS)
