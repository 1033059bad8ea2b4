"""Looking at processes from outside, and addresses as the kernel writes them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from services.worker.drivers.driver import Exit, Inside
from services.worker.inside import MOST_OUTPUT_BYTES, Output, processes_of, readable_address, run_command
from tests.support import eventually


@pytest.mark.parametrize(
    ("kernels", "peoples"),
    [
        ("0100007F:1F90", "127.0.0.1:8080"),
        ("00000000:0050", "0.0.0.0:80"),
        ("00000000000000000000000000000000:01BB", "[::]:443"),
        ("00000000000000000000000001000000:0016", "[::1]:22"),
    ],
)
def test_addresses_of_the_kernel_become_those_of_people(kernels: str, peoples: str) -> None:
    assert readable_address(kernels) == peoples


def inside_of(pid: int, root: Path) -> Inside:
    return Inside(pids=(pid,), shims=(), root=root)


async def test_a_command_ends_with_its_machine(tmp_path: Path) -> None:
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        run_command(inside_of(os.getpid(), tmp_path), "echo on; sleep 600", b"", seconds=600, ended=ended)
    )
    await eventually(lambda: any("sleep 600" in line for line in _commands()))
    ended.set_result(Exit(0, 0, False, 0.0))
    ran = await asyncio.wait_for(running, 10)
    assert (ran.exit_code, ran.stdout) == (137, Output(b"on\n", truncated=False))


async def test_a_machine_that_is_gone_runs_nothing(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    with pytest.raises(ProcessLookupError):
        await run_command(
            inside_of(process.pid, tmp_path), "true", b"", seconds=1, ended=asyncio.get_running_loop().create_future()
        )


async def test_what_is_not_read_does_not_hold_a_command_up(tmp_path: Path) -> None:
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    ran = await run_command(
        inside_of(os.getpid(), tmp_path), "exec 0<&-; exit 3", b"x" * 10**6, seconds=10, ended=ended
    )
    assert ran.exit_code == 3


async def test_a_command_that_writes_on_after_the_cut_ends_by_itself_and_is_marked(tmp_path: Path) -> None:
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    ran = await run_command(inside_of(os.getpid(), tmp_path), "yes | head -c 5000000", b"", seconds=60, ended=ended)
    assert (ran.exit_code, ran.timed_out) == (0, False)
    assert ran.stdout == Output(b"y\n" * (MOST_OUTPUT_BYTES // 2), truncated=True)
    assert ran.stderr == Output(b"", truncated=False)


@pytest.mark.parametrize(("size", "truncated"), [(MOST_OUTPUT_BYTES, False), (MOST_OUTPUT_BYTES + 1, True)])
async def test_an_output_is_marked_from_the_first_byte_that_is_dropped(
    tmp_path: Path, size: int, truncated: bool
) -> None:
    ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    ran = await run_command(
        inside_of(os.getpid(), tmp_path), f"head -c {size} /dev/zero >&2; echo on", b"", seconds=60, ended=ended
    )
    assert (ran.exit_code, ran.stdout) == (0, Output(b"on\n", truncated=False))
    assert ran.stderr == Output(bytes(MOST_OUTPUT_BYTES), truncated)


async def test_processes_tell_their_words_place_times_and_sockets(tmp_path: Path) -> None:
    code = "import socket,sys,time; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1]); time.sleep(60)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-uc", code, stdout=asyncio.subprocess.PIPE, cwd=tmp_path, start_new_session=True
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        (stat,) = processes_of(inside_of(process.pid, tmp_path))
    finally:
        process.kill()
        await process.wait()
    assert stat.pid == process.pid
    assert stat.command == (sys.executable, "-uc", code)
    assert stat.directory == str(tmp_path)
    assert stat.resident_bytes > 1 << 20
    assert 0 <= stat.system_cpu <= stat.cpu
    assert [(each.protocol, each.address) for each in stat.listeners] == [("tcp", f"127.0.0.1:{port}")]


def _commands() -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
