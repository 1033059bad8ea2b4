"""The fork server and its shims: what is asked is one process, and a claim decides whether it starts at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.worker.drivers.driver import LaunchLost
from services.worker.drivers.fork_server import Forked, ForkFailed, ForkServer
from services.worker.drivers.shim import stat_fields
from tests.support import eventually


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ForkServer]:
    server = ForkServer(tmp_path / "complaints")
    yield server
    server.close()
    await server.gone()
    assert (tmp_path / "complaints").read_text() == ""


def request(folder: Path, *command: str, run: str = "1.0", **more: Any) -> dict[str, Any]:
    return {
        "run": str(folder / run),
        "command": command,
        "environment": {"PATH": os.environ["PATH"]},
        "directory": str(folder),
        "log": str(folder / "log"),
        "open_files": 64,
        "user": None,
        "cgroups": [],
        "alone": True,
        "oom": None,
        **more,
    }


async def exit_of(folder: Path, run: str = "1.0") -> dict[str, Any]:
    path = folder / f"{run}.exit"
    await eventually(path.exists)
    ended: dict[str, Any] = json.loads(path.read_text())
    return ended


async def test_a_command_runs_as_leader_of_its_own_group_below_a_shim_in_its_own_session(
    server: ForkServer, tmp_path: Path
) -> None:
    forked = await server.fork(request(tmp_path, "sleep", "100"))
    fields = stat_fields(f"/proc/{forked.pid}")
    assert int(fields[1]) == forked.shim
    assert int(fields[2]) == forked.pid, "it leads its process group"
    assert int(fields[3]) == forked.shim, "it is in the session of its shim"
    state = json.loads((tmp_path / "1.0.state").read_text())
    assert Forked(state["pid"], state["start"], state["shim"], state["shim_start"]) == forked
    os.kill(forked.pid, signal.SIGTERM)
    ended = await exit_of(tmp_path)
    assert (ended["code"], ended["signal"], ended["oom"]) == (143, 15, False)


async def test_a_command_is_given_its_environment_and_nothing_else(server: ForkServer, tmp_path: Path) -> None:
    script = "env; pwd; ulimit -n; awk '/SigIgn|SigBlk/' /proc/self/status; ls /proc/self/fd; exit 3"
    await server.fork(request(tmp_path, "sh", "-c", script, environment={"PATH": "/usr/bin:/bin", "A": "ß"}))
    assert (await exit_of(tmp_path))["code"] == 3
    lines = (tmp_path / "log").read_text().splitlines()
    assert {line for line in lines if "=" in line} == {"PATH=/usr/bin:/bin", "A=ß", f"PWD={tmp_path}"}
    assert "64" in lines
    assert "SigIgn:\t0000000000000000" in lines
    assert "SigBlk:\t0000000000000000" in lines
    assert {line for line in lines if line.isdigit()} == {"64", "0", "1", "2", "3"}, "3 is the listing itself"


async def test_a_run_that_somebody_has_decided_about_does_not_start(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "1.0.state").touch()
    with pytest.raises(ForkFailed) as raised:
        await server.fork(request(tmp_path, "touch", str(tmp_path / "started")))
    assert raised.value.stage == "claim"
    later = await server.fork(request(tmp_path, "true", run="2.0"))
    assert later.pid
    await exit_of(tmp_path, "2.0")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("change", "stage", "number"),
    [
        ({"command": ["no-such-command"]}, "command", errno.ENOENT),
        ({"command": ["/etc/passwd"]}, "command", errno.EACCES),
        ({"command": ["true", "x" * 200_000]}, "command", errno.E2BIG),
        ({"command": ["true", "\0"]}, "command", errno.EINVAL),
        ({"directory": "/no/such/directory"}, "directory", errno.ENOENT),
        ({"log": "/no/such/log"}, "log", errno.ENOENT),
        ({"cgroups": ["/no/such/cgroup.procs"]}, "cgroup", errno.ENOENT),
    ],
)
async def test_what_keeps_a_command_from_starting_is_told_and_written_down(
    server: ForkServer, tmp_path: Path, change: dict[str, Any], stage: str, number: int
) -> None:
    with pytest.raises(ForkFailed) as raised:
        await server.fork({**request(tmp_path, "true"), **change})
    assert (raised.value.stage, raised.value.errno) == (stage, number)
    ended = await exit_of(tmp_path)
    assert (ended["stage"], ended["errno"]) == (stage, number)


async def test_a_shim_that_cannot_keep_its_files_says_so_at_once(server: ForkServer, tmp_path: Path) -> None:
    with pytest.raises(ForkFailed) as raised:
        await server.fork(request(tmp_path, "touch", str(tmp_path / "started"), run="no such folder/1.0"))
    assert (raised.value.stage, raised.value.errno) == ("shim", errno.ENOENT)
    assert (await server.fork(request(tmp_path, "true"))).pid, "the server goes on"
    await exit_of(tmp_path)
    assert not (tmp_path / "started").exists()


async def test_shims_outlive_the_server_and_still_write_how_it_ended(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "complaints")
    forked = await server.fork(request(tmp_path, "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 6"))
    server.close()
    await server.gone()
    assert stat_fields(f"/proc/{server.pid}") == []
    assert stat_fields(f"/proc/{forked.shim}")[0] in (b"S", b"R", b"D")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(forked.shim, number)
    (tmp_path / "go").touch()
    assert (await exit_of(tmp_path))["code"] == 6


async def test_a_killed_server_fails_what_is_asked_of_it(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "complaints")
    os.kill(server.pid, signal.SIGSTOP)
    asked = asyncio.create_task(server.fork(request(tmp_path, "true")))
    await asyncio.sleep(0)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(LaunchLost):
        await asked
    await server.gone()
    with pytest.raises(LaunchLost):
        await server.fork(request(tmp_path, "true", run="2.0"))


async def test_a_request_of_a_megabyte_arrives(server: ForkServer, tmp_path: Path) -> None:
    big = {f"V{number}": "x" * 100_000 for number in range(10)}
    await server.fork(request(tmp_path, "sh", "-c", "exit 4", environment={**big, "PATH": os.environ["PATH"]}))
    assert (await exit_of(tmp_path))["code"] == 4


async def test_many_are_forked_at_once_and_none_becomes_a_zombie(server: ForkServer, tmp_path: Path) -> None:
    forked = await asyncio.gather(*(server.fork(request(tmp_path, "true", run=f"{n}.0")) for n in range(40)))
    assert len({one.pid for one in forked}) == 40
    await eventually(lambda: len(list(tmp_path.glob("*.exit"))) == 40)
    await eventually(lambda: not any(stat_fields(f"/proc/{one.shim}") for one in forked))


async def test_a_process_that_leaves_the_group_still_ends_with_its_machine(server: ForkServer, tmp_path: Path) -> None:
    escape = f"setsid sh -c 'echo $$ > {tmp_path}/escaped; exec sleep 100' &"
    script = f"{escape} while [ ! -s {tmp_path}/escaped ]; do sleep 0.02; done"
    await server.fork(request(tmp_path, "sh", "-c", script))
    await exit_of(tmp_path)
    assert stat_fields(f"/proc/{(tmp_path / 'escaped').read_text().strip()}") == []
