"""An embedded PostgreSQL and its owner, while one, the other, or both are killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from services.runtime import postgres as module
from services.runtime.errors import DependencyDown
from services.runtime.postgres import OwnedPostgres
from tests.support import eventually

# What owns a PostgreSQL as a process of a set does.
OWNER = """
import asyncio, sys
from pathlib import Path
from services.runtime.postgres import OwnedPostgres

asyncio.run(OwnedPostgres(Path(sys.argv[1])).own())
"""


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    # Not pytest's: PostgreSQL, another user under root, has to get there, and the path of its socket has to be short.
    path = Path(tempfile.mkdtemp(prefix="skerry-pg-"))
    os.chmod(path, 0o755)  # noqa: PTH101
    yield path
    for data_dir in (path / "pg", path / ("d" * 100) / "pg"):
        postgres = OwnedPostgres(data_dir)
        if postgres.pid() is not None:
            await asyncio.wait_for(postgres.acquire(), 20)
            await postgres.release(stop=True)
        if postgres.socket_dir != data_dir:
            shutil.rmtree(postgres.socket_dir, ignore_errors=True)
    shutil.rmtree(path)


def _own(data_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OWNER, str(data_dir)], stdout=subprocess.DEVNULL)


def _sleep() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def _query(postgres: OwnedPostgres, sql: str) -> object:
    connection = await asyncpg.connect(postgres.dsn, timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def _answers(postgres: OwnedPostgres) -> bool:
    try:
        return await _query(postgres, "SELECT count(*) FROM kept") == 1
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return False


async def _prepare(postgres: OwnedPostgres) -> None:
    await postgres.wait_until_ready()
    await _query(postgres, "CREATE TABLE kept (number int)")
    await _query(postgres, "INSERT INTO kept VALUES (1)")


async def test_the_first_owner_makes_the_data_and_keeps_what_is_acknowledged(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    await postgres.acquire()
    assert postgres.owned
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await _query(postgres, f"SHOW {setting}") == "on"
    assert await _query(postgres, "SHOW listen_addresses") == ""
    assert (folder / "pg").stat().st_mode & 0o077 == 0
    await postgres.release(stop=True)
    assert not postgres.owned
    assert postgres.pid() is None


async def test_a_server_that_is_killed_comes_back(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    await postgres.acquire()
    await _prepare(postgres)
    busy = await asyncpg.connect(postgres.dsn)
    watching = asyncio.create_task(postgres.watch())
    for _ in range(3):
        pid = postgres.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _answers(postgres))
        assert postgres.pid() not in (None, pid)
    busy.terminate()
    watching.cancel()
    await postgres.release(stop=True)


async def test_a_server_that_cannot_start_is_tried_until_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0.05)
    postgres = OwnedPostgres(folder / "pg", start_seconds=0.2)
    await postgres.acquire()
    await _prepare(postgres)
    watching = asyncio.create_task(postgres.watch())
    needed, away = folder / "pg" / "global", folder / "global"
    needed.rename(away)
    pid = postgres.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: [event["event"] for event in logs].count("postgres_does_not_start") > 1)
    assert not watching.done()
    away.rename(needed)
    await eventually(lambda: _answers(postgres))
    watching.cancel()
    await postgres.release(stop=True)


async def test_a_server_outlives_its_owner_and_the_next_one_takes_it_over(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    owner = _own(folder / "pg")
    await _prepare(postgres)
    pid = postgres.pid()
    waiting = asyncio.create_task(postgres.acquire())
    await asyncio.wait({waiting}, timeout=0.5)
    assert not waiting.done()
    _kill(owner)
    await asyncio.wait_for(waiting, 5)
    assert postgres.pid() == pid
    assert await _answers(postgres)
    await postgres.release(stop=True)


async def test_owner_and_server_killed_together_recover_under_the_next_owner(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    owner = _own(folder / "pg")
    await _prepare(postgres)
    next_owner = _own(folder / "pg")
    pid = postgres.pid()
    assert pid is not None
    _kill(owner)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: _answers(postgres), seconds=20)
    _kill(next_owner)
    await asyncio.wait_for(postgres.acquire(), 10)
    await postgres.release(stop=True)


async def test_only_one_of_many_that_start_at_once_makes_the_data(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    owners = [_own(folder / "pg") for _ in range(3)]
    await _prepare(postgres)
    assert all(owner.poll() is None for owner in owners)
    for owner in owners:
        _kill(owner)
    await asyncio.wait_for(postgres.acquire(), 10)
    assert await _answers(postgres)
    await postgres.release(stop=True)


async def test_data_that_were_not_finished_are_made_anew(folder: Path) -> None:
    unfinished = folder / "pg.new"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    postgres = OwnedPostgres(folder / "pg")
    await postgres.acquire()
    await _prepare(postgres)
    assert not unfinished.exists()
    await postgres.release(stop=True)


async def test_a_path_that_is_too_long_for_a_socket_is_no_obstacle(folder: Path) -> None:
    long = folder / ("d" * 100)
    long.mkdir(mode=0o755)
    postgres = OwnedPostgres(long / "pg")
    assert postgres.socket_dir != long / "pg"
    await postgres.acquire()
    await _prepare(postgres)
    assert postgres.socket_dir.stat().st_mode & 0o077 == 0
    await postgres.release(stop=True)


async def test_a_file_left_by_a_dead_server_whose_pid_is_another_process_does_not_stop_a_start(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    await postgres.acquire()
    await _prepare(postgres)
    await postgres.release(stop=True)
    sleeper = _sleep()
    lines = [str(sleeper.pid), str(folder / "pg"), "1", "5432", str(folder / "pg"), "", "1 1", "ready"]
    (folder / "pg" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    assert postgres.pid() is None
    await asyncio.wait_for(postgres.acquire(), 10)
    assert await _answers(postgres)
    _kill(sleeper)
    await postgres.release(stop=True)


async def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    postgres = OwnedPostgres(folder / "pg")
    await postgres.acquire()
    await postgres.release(stop=True)
    (folder / "pg" / "global" / "pg_control").unlink()
    postgres = OwnedPostgres(folder / "pg", start_seconds=0.5)
    with pytest.raises(DependencyDown, match="pg_control") as raised:
        await postgres.acquire()
    assert raised.value.metadata == {"dependency": "postgresql"}
    assert not postgres.owned


async def test_waiting_for_a_server_that_never_comes_ends(folder: Path) -> None:
    with pytest.raises(DependencyDown, match="did not start"):
        await OwnedPostgres(folder / "pg").wait_until_ready(0.1)
