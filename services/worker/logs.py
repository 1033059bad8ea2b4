"""Reading the log of a machine while it is written, and rotated, by others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from services.runtime.clock import Clock

_CHUNK_BYTES = 65_536
_POLL_SECONDS = 0.2


async def read_log(path: Path, tail: int, *, follow: bool, clock: Clock) -> AsyncIterator[bytes]:
    """The last `tail` bytes of the file, in pieces, and with `follow` what is written after that, until cancelled.

    A file that does not exist yet is an empty one; one that was cut off is read from its beginning. Raises OSError.
    """
    at = max(0, _size(path) - tail)
    while True:
        size = _size(path)
        if size < at:
            at = 0
        while at < size:
            data = await asyncio.to_thread(_read, path, at)
            if not data:
                break
            at += len(data)
            yield data
        if not follow:
            return
        await clock.sleep(_POLL_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(_CHUNK_BYTES)
