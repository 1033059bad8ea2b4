"""An instance as a whole: its own PostgreSQL, faults for drills, stopping, and what it writes to its log."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from services.central.service import CentralService
from services.runtime import telemetry
from services.runtime.tasks import cancel
from tests.integration.central.centres import TOKEN, GraphQLFailed, running, settings_for
from tests.support import eventually

FreshDatabase = Callable[[], Awaitable[str]]


@pytest.fixture
def postgres_dir() -> Iterator[Path]:
    """Where an instance may keep a PostgreSQL: a short path that the server's own user can pass through."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-central-"))
    folder.chmod(0o755)
    yield folder / "pg"
    shutil.rmtree(folder, ignore_errors=True)


async def test_instances_that_own_a_postgresql_together_survive_its_death_and_their_own(
    postgres_dir: Path, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, None, postgres_dir=postgres_dir)
    async with running(settings) as second_to_last:
        owned = second_to_last.service.postgres
        assert owned is not None
        async with running(settings) as first:
            await eventually(lambda: owned.owned)
            await first.create_app("web")
            position = (await first.changes())["position"]
            waiting = asyncio.create_task(second_to_last.changes(position, wait_ms=20_000))
            server = owned.pid()
            assert server is not None
            os.kill(server, signal.SIGKILL)

            codes: set[str] = set()

            async def works_again() -> bool:
                try:
                    await first.create_app("after", id="after-1")
                except GraphQLFailed as error:
                    codes.add(error.code)
                    return False
                return True

            await eventually(works_again, seconds=30)
            assert owned.pid() != server
            assert codes <= {"UNAVAILABLE", "TIMEOUT"}
            try:
                batch = await waiting
            except GraphQLFailed:
                batch = await second_to_last.changes(position)
            assert [change["payload"]["name"] for change in batch["changes"]] == ["after"]
    # All instances are gone, the data stay.
    async with running(settings) as again:
        answer = await again.ask("{ apps { nodes { name } } }")
        assert [node["name"] for node in answer["apps"]["nodes"]] == ["after", "web"]
        assert again.service.postgres is not None
        await again.service.postgres.release(stop=True)


async def test_faults_are_off_unless_they_are_enabled(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, await fresh_database())) as centre:
        assert (await centre.http.post("/faults", json={"slow_ms": 1})).status_code == 404


async def test_an_instance_is_slow_and_fails_as_it_is_told_but_stays_healthy(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    async with running(settings_for(tmp_path, await fresh_database(), faults=True)) as centre:
        assert (await centre.http.get("/faults")).json() == {"slow_ms": 0, "error_rate": 0.0}
        set_to = await centre.http.post("/faults", json={"slow_ms": 300})
        assert set_to.json() == {"slow_ms": 300, "error_rate": 0.0}
        begun = time.monotonic()
        await centre.ask("{ nearestRegion { code } }")
        assert time.monotonic() - begun >= 0.3

        await centre.http.post("/faults", json={"error_rate": 0.5})
        query = "{ nearestRegion { code } }"
        answers = await asyncio.gather(*(centre.post(query) for _ in range(60)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 500}
        failed = next(answer for answer in answers if answer.status_code == 500).json()
        assert (failed["data"], failed["errors"][0]["extensions"]["code"]) == (None, "INTERNAL")
        assert (await centre.http.get("/healthz")).status_code == 200

        for wrong in ({"slow_ms": -1}, {"error_rate": 2}, {"slow_ms": "5"}, {"error_rate": True}):
            assert (await centre.http.post("/faults", json=wrong)).status_code == 400
        stranger = {"authorization": "Bearer wrong"}
        assert (await centre.http.post("/faults", json={}, headers=stranger)).status_code == 401
        assert (await centre.http.get("/faults")).json() == {"slow_ms": 0, "error_rate": 0.5}
        await centre.http.post("/faults", json={})
        await asyncio.gather(*(centre.ask(query) for _ in range(20)))


async def test_a_stopping_instance_answers_those_who_wait_for_changes(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    async with running(settings_for(tmp_path, await fresh_database())) as centre:
        position = (await centre.changes())["position"]
        waiting = asyncio.create_task(centre.changes(position, wait_ms=30_000))
        await centre.ask("{ nearestRegion { code } }")
        await cancel(centre.task)
        batch = await waiting
        assert (batch["changes"], batch["position"]) == ([], position)


async def test_an_address_that_is_taken_is_an_error_that_names_it(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        service = CentralService(settings_for(tmp_path, await fresh_database(), listen=address))
        with pytest.raises(OSError, match=address):
            await service.run(lambda: None)


async def test_no_token_and_no_secret_stands_in_the_log(
    fresh_database: FreshDatabase, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    telemetry.setup("central", "", log_level="debug")
    value = "a value that nobody may find"
    async with running(settings_for(tmp_path, await fresh_database(), faults=True)) as centre:
        await centre.create_app("web")
        await centre.ask(
            "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { version } }",
            input={"appId": "web", "secrets": [{"key": "A", "value": value}]},
        )
        await centre.post("{ nonsense }")
        await centre.post("{ viewer { ... on User { id } } }", headers={"authorization": "Bearer a-wrong-token"})
    written = capfd.readouterr().err
    events = [json.loads(line) for line in written.splitlines()]
    assert {"central_app_created", "central_secrets_changed", "central_started"} <= {e["event"] for e in events}
    assert all(secret not in written for secret in (TOKEN, value, "a-wrong-token", "0f" * 32))
