"""The agent's end of the fork server: requests go out, and processes come back, or what kept them from starting."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.worker.drivers.driver import LaunchLost

_SHIM = str(Path(__file__).with_name("shim.py"))
_READ_BYTES = 65_536
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Forked:
    """A process that runs under its shim; both with their start times in ticks since the host's boot."""

    pid: int
    start: int
    shim: int
    shim_start: int


class ForkFailed(Exception):
    """A process could not be started: `stage` says where, as the shim names it, `errno` why."""

    def __init__(self, stage: str, errno: int) -> None:
        super().__init__(f"{stage}: {os.strerror(errno)}")
        self.stage = stage
        self.errno = errno


class ForkServer:
    """One process that forks shims. It ends when this object is closed; what it has forked lives on."""

    def __init__(self, log: Path) -> None:
        """Start it. `log` takes what its Python has to complain about. Raises OSError."""
        self._tokens = 0
        self._waiting: dict[int, asyncio.Future[Forked]] = {}
        self._sending = asyncio.Lock()
        self._gone = asyncio.Event()
        self._buffer = b""
        control, theirs = socket.socketpair()
        answers, results = os.pipe()
        try:
            with log.open("ab") as complaints:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-E", "-X", "utf8", _SHIM, str(theirs.fileno()), str(results)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    pass_fds=(theirs.fileno(), results),
                    # Whatever this process was given stays out of /proc/PID/environ of every shim.
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
        except OSError:
            control.close()
            os.close(answers)
            raise
        finally:
            theirs.close()
            os.close(results)
        control.setblocking(False)
        os.set_blocking(answers, False)
        self._control = control
        self._answers = answers
        asyncio.get_running_loop().add_reader(answers, self._read)

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self._process.pid

    async def fork(self, request: Mapping[str, Any]) -> Forked:
        """Start a process (see shim.py for the request, to which the token is added).

        Raises ForkFailed; LaunchLost if the server went away or did not answer, which says nothing about the process.
        """
        if self._gone.is_set():
            raise LaunchLost("the fork server is gone")
        self._tokens += 1
        token = self._tokens
        answer: asyncio.Future[Forked] = asyncio.get_running_loop().create_future()
        self._waiting[token] = answer
        body = json.dumps({"token": token, **request}).encode()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                async with self._sending:
                    await asyncio.get_running_loop().sock_sendall(self._control, len(body).to_bytes(4, "big") + body)
                return await answer
        except (TimeoutError, OSError) as error:
            # A frame that was cut off would be read together with the next one.
            self.close()
            raise LaunchLost(f"the fork server did not answer: {error}") from None
        except asyncio.CancelledError:
            if not answer.done() and self._sending.locked():
                self.close()
            raise
        finally:
            self._waiting.pop(token, None)

    async def gone(self) -> None:
        """Return when the server is gone, for whatever reason."""
        await self._gone.wait()
        await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        """Let the server end, after what it has read already. May be called again."""
        if self._gone.is_set():
            return
        self._gone.set()
        asyncio.get_running_loop().remove_reader(self._answers)
        os.close(self._answers)
        self._control.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LaunchLost("the fork server is gone"))

    def _read(self) -> None:
        try:
            data = os.read(self._answers, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            # Every copy of the other end is closed: no answer can come any more.
            self.close()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, answer: Mapping[str, Any]) -> None:
        waiting = self._waiting.get(answer["token"])
        if waiting is None or waiting.done():
            return
        if "stage" in answer:
            waiting.set_exception(ForkFailed(answer["stage"], answer["errno"]))
        else:
            waiting.set_result(Forked(answer["pid"], answer["start"], answer["shim"], answer["shim_start"]))
