"""Looking into a machine that runs as processes of this host: commands beside its own, and what its processes are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

from services.worker.drivers.driver import Exit, Inside
from services.worker.drivers.process_tree import ProcessTree
from services.worker.drivers.shim import stat_fields

MOST_OUTPUT_BYTES = 1 << 20
"""Of each of the two outputs of a command; the rest is read, dropped and told of."""

_SHELL = "/bin/sh"
_CHUNK_BYTES = 65_536
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LISTENING = "0A"
_UNCONNECTED = "07"
_SOCKET_TABLES: Mapping[str, tuple[str, str]] = {
    "tcp": ("tcp", _LISTENING),
    "tcp6": ("tcp", _LISTENING),
    "udp": ("udp", _UNCONNECTED),
    "udp6": ("udp", _UNCONNECTED),
}
"""Table below /proc/PID/net to the protocol, and the state of a socket there that takes what comes."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a command wrote, its first MOST_OUTPUT_BYTES; `truncated` where it wrote more."""

    data: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a command. `exit_code` is 128 + signal where a signal ended it."""

    exit_code: int
    stdout: Output
    stderr: Output
    timed_out: bool


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that takes what comes: "tcp" or "udp", and address:port."""

    protocol: str
    address: str


@dataclass(frozen=True, slots=True)
class Stat:
    """A process. Times in seconds; `started_at` in unix seconds."""

    pid: int
    command: tuple[str, ...]
    directory: str
    started_at: float
    cpu: float
    system_cpu: float
    resident_bytes: int
    listeners: tuple[Listener, ...]


async def run_command(
    inside: Inside, command: str, stdin: bytes, *, seconds: float, ended: asyncio.Future[Exit]
) -> Ran:
    """Run `command` by /bin/sh as the machine's main process runs: its user, environment and limits, in its root.

    It is killed, with all that it has started in its group, after `seconds` and when `ended` is done, which is the
    machine's end. Raises OSError, also ProcessLookupError for a machine that has ended.
    """
    environment = _environment(inside.pid)
    uid, gid = _user(inside.pid)
    process = await asyncio.create_subprocess_exec(
        _SHELL,
        "-c",
        command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        cwd=inside.root,
        env=environment,
        start_new_session=True,
        preexec_fn=None if uid == os.getuid() else partial(_become, uid, gid),
    )
    try:
        _join_limits(inside.pid, process.pid)
        outputs = asyncio.gather(_feed(process, stdin), _read(process.stdout), _read(process.stderr), process.wait())
        await asyncio.wait((outputs, ended), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        timed_out = not outputs.done() and not ended.done()
        if not outputs.done():
            _kill(process)
        _, stdout, stderr, code = await outputs
    finally:
        _kill(process)
    return Ran(code if code >= 0 else 128 - code, stdout, stderr, timed_out)


def processes_of(inside: Inside) -> list[Stat]:
    """The processes of a machine, by id."""
    sockets = _sockets(inside.pid)
    members = ProcessTree.read().members(inside.pids, inside.shims)
    return [stat for pid in members if (stat := _stat(pid, sockets)) is not None]


def _user(pid: int) -> tuple[int, int]:
    """The user and the group of a process. Raises ProcessLookupError when there is none."""
    try:
        found = Path(f"/proc/{pid}").stat()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    return found.st_uid, found.st_gid


def _become(uid: int, gid: int) -> None:
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)


def _environment(pid: int) -> dict[str, str]:
    """What the process was given. Raises ProcessLookupError when there is none."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} has ended") from None
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in pairs}


def _join_limits(machine: int, pid: int) -> None:
    """Put a process into the cgroups of the machine, where it is in any of its own."""
    with contextlib.suppress(OSError):
        mine = set(Path("/proc/self/cgroup").read_text().splitlines())
        for line in Path(f"/proc/{machine}/cgroup").read_text().splitlines():
            if line in mine:
                continue
            _, controllers, path = line.split(":", 2)
            for mount in _mounts(controllers):
                (Path(mount + path) / "cgroup.procs").write_text(str(pid))


def _mounts(controllers: str) -> Iterable[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        kind, options = fields[2], set(fields[3].split(","))
        if kind == "cgroup2" if controllers == "" else kind == "cgroup" and set(controllers.split(",")) <= options:
            yield fields[1]


async def _feed(process: Process, stdin: bytes) -> None:
    assert process.stdin is not None
    # A command that does not read may have ended before; uvloop calls writing to what is closed then a RuntimeError.
    with contextlib.suppress(ConnectionError, RuntimeError):
        process.stdin.write(stdin)
        await process.stdin.drain()
    process.stdin.close()


async def _read(stream: asyncio.StreamReader | None) -> Output:
    assert stream is not None
    pieces: list[bytes] = []
    room = MOST_OUTPUT_BYTES
    truncated = False
    # To its end, also when there is no room left: a command must not block on a pipe that is full.
    while data := await stream.read(_CHUNK_BYTES):
        if room:
            pieces.append(data[:room])
        truncated = truncated or len(data) > room
        room -= min(room, len(data))
    return Output(b"".join(pieces), truncated)


def _kill(process: Process) -> None:
    # Its group, also when its leader has ended: what it has left in the background would hold the outputs open.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _stat(pid: int, sockets: Mapping[str, Listener]) -> Stat | None:
    fields = stat_fields(f"/proc/{pid}")
    if not fields:
        return None
    folder = Path(f"/proc/{pid}")
    try:
        words = folder.joinpath("cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        directory = str(folder.joinpath("cwd").readlink())
        listeners = tuple(sockets[link] for link in _links(folder / "fd") if link in sockets)
    except OSError:
        words, directory, listeners = [b""], "", ()
    user, system = int(fields[11]) / _TICKS_PER_SECOND, int(fields[12]) / _TICKS_PER_SECOND
    return Stat(
        pid=pid,
        command=tuple(word.decode(errors="replace") for word in words),
        directory=directory,
        started_at=_boot_time() + int(fields[19]) / _TICKS_PER_SECOND,
        cpu=user + system,
        system_cpu=system,
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        listeners=listeners,
    )


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _links(folder: Path) -> Iterable[str]:
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            yield str(entry.readlink())


def _sockets(pid: int) -> dict[str, Listener]:
    """Sockets of the process's network that take what comes, by what links to them say: "socket:[INODE]"."""
    found: dict[str, Listener] = {}
    for table, (protocol, state) in _SOCKET_TABLES.items():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and fields[3] == state:
                    found[f"socket:[{fields[9]}]"] = Listener(protocol, readable_address(fields[1]))
    return found


def readable_address(text: str) -> str:
    """An address of /proc/net, "0100007F:1F90", as people write it: "127.0.0.1:8080"; those of IPv6 in brackets."""
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    number = int(port, 16)
    if len(words) == 1:
        return f"{'.'.join(map(str, words[0]))}:{number}"
    return f"[{IPv6Address(b''.join(words))}]:{number}"
