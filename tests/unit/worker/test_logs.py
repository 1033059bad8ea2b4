from __future__ import annotations

import asyncio
from pathlib import Path

from services.runtime.clock import SystemClock
from services.worker.drivers.process import rotate
from services.worker.logs import read_log
from tests.support import eventually


async def read(path: Path, tail: int) -> bytes:
    return b"".join([data async for data in read_log(path, tail, follow=False, clock=SystemClock())])


async def test_the_end_of_a_log_is_read_and_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert await read(path, 10) == b""
    path.write_bytes(b"x" * 200_000 + b"0123456789")
    assert await read(path, 10) == b"0123456789"
    assert len(await read(path, 1 << 30)) == 200_010


async def test_a_log_is_followed_over_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    read: list[bytes] = []

    async def follow() -> None:
        async for data in read_log(path, 100, follow=True, clock=SystemClock()):
            read.append(data)

    task = asyncio.create_task(follow())
    await eventually(lambda: b"".join(read) == b"before ")
    rotate(path, 1)
    with path.open("ab") as file:
        file.write(b"after")
    await eventually(lambda: b"".join(read) == b"before after")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_rotation_keeps_as_many_as_it_was_told_and_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as writer:
        for number in range(5):
            writer.write(b"%d" % number)
            writer.flush()
            rotate(path, 2)
        writer.write(b"now")
    assert path.read_bytes() == b"now"
    assert (tmp_path / "log.1").read_bytes() == b"4"
    assert (tmp_path / "log.2").read_bytes() == b"3"
    assert not (tmp_path / "log.3").exists()
    rotate(path, 0)
    assert path.read_bytes() == b""
