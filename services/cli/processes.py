"""The processes of a mesh, found by what their command lines say: nothing on disk can be out of date about them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from services.cli.mesh import CENTRAL, Mesh, MeshError, Process

_MODULE = "services.cli.main"
_PROC = Path("/proc")
_POLL = 0.02
_KILL_SECONDS = 10.0
_LOG_LINES_READ = 200


def command(directory: Path, process: Process) -> list[str]:
    """The command line that runs `process` of the mesh in `directory`."""
    return [
        *(sys.executable, "-P", "-m", _MODULE),
        *("run", process.service, "--region", process.region, "--instance", str(process.instance)),
        *("--dir", str(directory)),
    ]


def running(mesh: Mesh) -> dict[Process, int]:
    """The processes of `mesh` that live, planned or extra, with their pids."""
    found: dict[Process, int] = {}
    for pid, arguments in _command_lines():
        key = parse(mesh.directory, arguments)
        if key is not None and key[0] in (CENTRAL, *mesh.regions):
            found[mesh.process(*key)] = pid
    return found


def spawn(mesh: Mesh, process: Process) -> int:
    """Start `process` in a session of its own, its output appended to its log file; returns the pid."""
    with mesh.log_file(process).open("ab") as log:
        child = subprocess.Popen(
            command(mesh.directory, process),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    _children[child.pid] = child
    return child.pid


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    if pid in _children:
        return _children[pid].poll() is None
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def end(pids: Iterable[int], *, grace: float) -> list[int]:
    """Ask processes to end, and kill those that have not after `grace` seconds, which are returned."""
    asked = [pid for pid in pids if _signal(pid, signal.SIGTERM)]
    if wait_until(lambda: not any(map(is_alive, asked)), grace):
        return []
    stubborn = [pid for pid in asked if is_alive(pid)]
    for pid in stubborn:
        _signal(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, stubborn)), grace)
    return stubborn


def kill(pids: Iterable[int]) -> None:
    """Kill processes without asking, and wait until they are gone."""
    hit = [pid for pid in pids if _signal(pid, signal.SIGKILL)]
    wait_until(lambda: not any(map(is_alive, hit)), _KILL_SECONDS)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def last_words(log_file: Path) -> str:
    """The last error that a process logged, or its last line; empty when it logged nothing."""
    try:
        with log_file.open(encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in deque(file, maxlen=_LOG_LINES_READ) if line.strip()]
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("level") in ("error", "critical"):
                told = {key: event[key] for key in ("error", "reason", "message") if event.get(key)}
                return " ".join([str(event.get("event", "")), *(f"{key}={value}" for key, value in told.items())])
    return lines[-1] if lines else ""


_children: dict[int, subprocess.Popen[bytes]] = {}


def parse(directory: Path, arguments: list[str]) -> tuple[str, str, int] | None:
    """Region, service and instance of a process of the mesh in `directory`; None if the command line is no such one."""
    try:
        at = arguments.index("run", 1)
    except ValueError:
        return None
    options = dict(_options(arguments[at + 2 :]))
    own = any(argument == _MODULE or argument.endswith("/skerry") for argument in arguments[:at])
    if not own or options.get("--dir") != str(directory) or "--region" not in options:
        return None
    instance = options.get("--instance", "1")
    return (options["--region"], arguments[at + 1], int(instance)) if instance.isdigit() else None


def _options(arguments: list[str]) -> Iterable[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        name, separator, value = argument.partition("=")
        if argument.startswith("--"):
            yield (name, value) if separator else (argument, next(rest, ""))


def _command_lines() -> Iterable[tuple[int, list[str]]]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise MeshError(f"process {pid} belongs to another user: it cannot be ended from here") from error
    return True


def missing(mesh: Mesh, regions: Iterable[str], alive: Mapping[Process, int]) -> list[Process]:
    """The planned processes of `regions` that are not among `alive`, in the order of starting."""
    return [process for region in regions for process in mesh.processes(region) if process not in alive]
