"""The process driver: a machine is one or more processes of this host, each under a shim that outlives the agent.

On the disk, below the worker's data:
    machines/ID/root/          stands for the machine's root directory
    machines/ID/log            what its processes wrote; log.1, log.2 … are older
    machines/ID/run/N.plan     what run N is: written before anything of it is started
    machines/ID/run/N.I.state  its process I: made by the shim, whoever makes it decides whether that process starts
    machines/ID/run/N.I.exit   how that process ended
    volumes/                   what mounts lead to
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pwd
import resource
import shutil
import signal
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.store.v1.store_pb2 import MachineRecord
from skerry.types.v1.spec_pb2 import PERSIST_ROOTFS_ALWAYS, PERSIST_ROOTFS_NEVER, MachineSpec

from services.runtime.clock import Clock
from services.runtime.telemetry import log
from services.worker.drivers.commands import Command, commands_of, spec_with_files
from services.worker.drivers.driver import (
    UNKNOWN_EXIT_CODE,
    Assignment,
    CannotRun,
    CannotSuspend,
    Exit,
    Found,
    Inside,
    LaunchLost,
    Recovered,
    Run,
    Running,
)
from services.worker.drivers.filesystem import empty, prepare_root
from services.worker.drivers.fork_server import Forked, ForkFailed, ForkServer
from services.worker.drivers.limits import Cgroups, Limits, Membership
from services.worker.drivers.process_tree import ProcessTree, stands_still
from services.worker.drivers.shim import boot_id, process_folders, start_time
from services.worker.settings import ProcessSettings

_SAMPLE_SECONDS = 1.0
_SAMPLE_SHARE = 0.01
"""Part of one CPU that looking at processes may take: with many of them, it happens less often."""
_SAMPLE_CHUNK = 100
_ROTATE_SECONDS = 1.0
_RESTART_SECONDS = 0.05
_CLAIM_SECONDS = 10.0
_CLAIM_POLL_SECONDS = 0.005
_DEFAULT_STOP_SECONDS = 5.0
_STAND_STILL_SECONDS = 10.0
_STAND_STILL_POLL_SECONDS = 0.005
_STAND_STILL_LOOKS = 2

_COMMAND_ERRORS = {
    errno.ENOENT: "was not found on this worker: install it on the host, or name another one in config.init.exec",
    errno.ENOTDIR: "was not found on this worker: install it on the host, or name another one in config.init.exec",
    errno.EACCES: "may not be executed: make it executable, or name another one in config.init.exec",
    errno.ENOEXEC: "is no program of this host's kind: name another one in config.init.exec",
    errno.E2BIG: "does not fit with its environment into what the host allows: shorten config.env",
    errno.EINVAL: "cannot be executed with these words: look for a NUL in config.init and config.env",
}


@dataclass(slots=True)
class _Process:
    """One process of a run, and what watches it."""

    run_file: str
    pid: int = 0
    start: int = 0
    shim: int = 0
    shim_start: int = 0
    over_memory: bool = False
    watched: int = -1
    """A pidfd, or -1."""
    exit: Exit | None = None
    refused: str = ""

    @property
    def lives(self) -> bool:
        return self.pid > 0 and start_time(self.pid) == self.start


@dataclass(slots=True)
class _Live:
    """A run that is watched."""

    running: Running
    processes: list[_Process]
    memory_bytes: int
    stop_signal: int
    stop_seconds: float
    log_path: Path
    stopping_others: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a run is, as its plan on the disk says."""

    processes: int
    memory_bytes: int
    stop_signal: int
    stop_seconds: float
    commands: list[str]
    private_ip: str
    record: MachineRecord

    def to_json(self) -> str:
        return json.dumps(
            {
                "processes": self.processes,
                "memory_bytes": self.memory_bytes,
                "stop_signal": self.stop_signal,
                "stop_seconds": self.stop_seconds,
                "commands": self.commands,
                "private_ip": self.private_ip,
                "record": b64encode(self.record.SerializeToString()).decode(),
            }
        )

    @classmethod
    def read(cls, path: Path) -> _Plan | None:
        values = _read_json(path)
        if values is None:
            return None
        return cls(**{**values, "record": MachineRecord.FromString(b64decode(values["record"]))})


class ProcessDriver:
    """Runs machines as processes. One for each worker; see `Driver` for its methods."""

    name = "process"

    def __init__(
        self, data: Path, worker_id: str, settings: ProcessSettings, clock: Clock, *, search_path: str | None = None
    ) -> None:
        """`search_path` is the PATH that machines get; the worker's own by default."""
        self._machines = data / "machines"
        self._volumes = data / "volumes"
        self._complaints = data / "fork-server.log"
        self._worker_id = worker_id
        self._settings = settings
        self._clock = clock
        self._search_path = search_path or os.environ.get("PATH", os.defpath)
        self._images = settings.command_tables()
        self._boot = boot_id()
        self._cgroups: Cgroups | None = None
        self._server: ForkServer | None = None
        self._live: dict[Run, _Live] = {}

    async def work(self, ready: Callable[[], None]) -> None:
        self._machines.mkdir(parents=True, exist_ok=True)
        self._volumes.mkdir(parents=True, exist_ok=True)
        _raise_open_files()
        if self._settings.cgroups == "auto":
            self._cgroups = await asyncio.to_thread(Cgroups.find, self._worker_id)
        if self._cgroups is None:
            log.warning(
                "process_limit_not_enforced", worker=self._worker_id, why="no cgroup is writable; memory is watched"
            )
        self._server = ForkServer(self._complaints)
        ready()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_server())
                tasks.create_task(self._rotate_logs())
                tasks.create_task(self._watch_processes())
        finally:
            self._server.close()
            for live in self._live.values():
                if live.stopping_others is not None:
                    live.stopping_others.cancel()
                for process in live.processes:
                    self._unwatch(process)
            if self._cgroups is not None:
                self._cgroups.close()

    async def launch(self, run: Run, assignment: Assignment) -> Running:
        spec = assignment.record.spec
        folder = self._machines / run.machine_id
        root = folder / "root"
        commands = commands_of(assignment, self._images, root=str(root), search_path=self._search_path)
        users = [_user(command.user) for command in commands]
        (folder / "run").mkdir(parents=True, exist_ok=True)
        await self._refresh_root(root, spec, fresh=assignment.fresh)
        prepare_root(root, self._volumes, spec_with_files(assignment), assignment.record.app_id)
        if users[0] is not None:
            os.chown(root, *users[0])
        plan = _plan_of(assignment, commands)
        self._write_plan(run, plan)
        membership = self._limit(run, spec)
        processes = [_Process(self._run_file(run, at)) for at in range(len(commands))]
        answers = await asyncio.gather(
            *(
                self._fork(process, command, user, folder, membership, alone=len(commands) == 1)
                for process, command, user in zip(processes, commands, users, strict=True)
            ),
            return_exceptions=True,
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            await self._undo(processes)
            raise _launch_error(failures[0], commands[answers.index(failures[0])].words[0])
        return self._watch_run(run, plan, processes, self._clock.now())

    async def recover(self, run: Run) -> Recovered:
        plan = _Plan.read(self._plan_file(run))
        if plan is None:
            return Recovered()
        processes = [_Process(self._run_file(run, at)) for at in range(plan.processes)]
        started = [await self._find(process, plan.commands[at]) for at, process in enumerate(processes)]
        refused = next((process.refused for process in processes if process.refused), "")
        if refused or not all(started):
            await self._undo([process for process, found in zip(processes, started, strict=True) if found])
            return Recovered(refused=refused)
        if all(process.exit is not None for process in processes):
            self._lift_limits(run, processes)
            return Recovered(exit=_first_exit(processes))
        return Recovered(running=self._watch_run(run, plan, processes, _modified(processes[0])))

    def signal(self, run: Run, number: int) -> None:
        live = self._live.get(run)
        for process in live.processes if live is not None else ():
            _signal(process, number)

    def inside(self, run: Run) -> Inside | None:
        live = self._live.get(run)
        processes = [process for process in live.processes if process.lives] if live is not None else []
        if not processes:
            return None
        return Inside(
            pids=tuple(process.pid for process in processes),
            shims=tuple(process.shim for process in processes if process.shim),
            root=self._machines / run.machine_id / "root",
        )

    async def suspend(self, run: Run) -> None:
        deadline = self._clock.monotonic() + _STAND_STILL_SECONDS
        self.signal(run, signal.SIGSTOP)
        still = 0
        # What is sent a signal has not yet obeyed it, and processes may have left the groups of the commands. One that
        # is started during a look is met at the next: by then, all that could start it stood still.
        while still < _STAND_STILL_LOOKS and (inside := self.inside(run)) is not None:
            if await asyncio.to_thread(_stop_all, inside):
                still += 1
            elif self._clock.monotonic() > deadline:
                await self.resume(run)
                raise CannotSuspend(
                    f"its processes did not all stop within {_STAND_STILL_SECONDS:g} s, so it runs on: the "
                    "worker's host is too busy; try again, or stop the machine instead"
                )
            else:
                still = 0
                await self._clock.sleep(_STAND_STILL_POLL_SECONDS)

    async def resume(self, run: Run) -> None:
        inside = self.inside(run)
        # What has left the groups is stopped after them: it goes on if they do, and is not looked for at every stop.
        frozen = inside is not None and any(stands_still(pid) for pid in inside.pids)
        self.signal(run, signal.SIGCONT)
        if inside is not None and frozen:
            _signal_each(await asyncio.to_thread(_members_of, inside), signal.SIGCONT)

    async def remove(self, machine_id: str) -> None:
        folder = self._machines / machine_id
        await asyncio.to_thread(empty, folder)
        if self._cgroups is not None:
            await asyncio.to_thread(self._cgroups.remove, machine_id)

    def found(self) -> Iterable[Found]:
        for folder in self._machines.iterdir():
            numbers = [int(path.stem) for path in folder.glob("run/*.plan") if path.stem.isdigit()]
            run = Run(folder.name, max(numbers, default=0))
            plan = _Plan.read(self._plan_file(run)) if numbers else None
            yield Found(run) if plan is None else Found(run, plan.record, plan.private_ip)

    def log_of(self, machine_id: str) -> Path:
        return self._machines / machine_id / "log"

    async def _refresh_root(self, root: Path, spec: MachineSpec, *, fresh: bool) -> None:
        persist = spec.rootfs.persist
        stays = persist == PERSIST_ROOTFS_ALWAYS or (not fresh and persist != PERSIST_ROOTFS_NEVER)
        if not stays and not _gone_or_empty(root):
            await asyncio.to_thread(empty, root)

    def _write_plan(self, run: Run, plan: _Plan) -> None:
        path = self._plan_file(run)
        for older in path.parent.iterdir():
            older.unlink(missing_ok=True)
        temporary = path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(plan.to_json())
        temporary.rename(path)

    def _limit(self, run: Run, spec: MachineSpec) -> Membership:
        if self._cgroups is None:
            return Membership()
        memory = max(spec.guest.memory_bytes, spec.guest.max_memory_bytes)
        if not memory:
            return Membership()
        return self._cgroups.create(run.machine_id, Limits(memory, spec.init.swap_bytes, self._settings.max_processes))

    def _lift_limits(self, run: Run, processes: Sequence[_Process]) -> None:
        """Remove the cgroups of a run that has ended; the shim of a single process has done so already."""
        if self._cgroups is not None and len(processes) > 1:
            self._cgroups.remove(run.machine_id)

    async def _fork(
        self,
        process: _Process,
        command: Command,
        user: tuple[int, int] | None,
        folder: Path,
        membership: Membership,
        *,
        alone: bool,
    ) -> None:
        if self._server is None:
            raise LaunchLost("the driver does not work yet")
        forked = await self._server.fork(
            {
                "run": process.run_file,
                "command": command.words,
                "environment": dict(command.environment),
                "directory": str(folder / "root"),
                "log": str(folder / "log"),
                "open_files": self._settings.open_files,
                "user": user,
                "cgroups": membership.join,
                "alone": alone,
                "oom": membership.oom,
            }
        )
        _take(process, forked)

    async def _find(self, process: _Process, command: str) -> bool:
        """Learn from the disk what became of a process; False if it never started: then it never will."""
        state_path = Path(process.run_file + ".state")
        try:
            os.close(os.open(state_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return False
        except FileExistsError:
            pass
        deadline = self._clock.monotonic() + _CLAIM_SECONDS
        while True:
            if self._read_exit(process, command):
                return True
            state = _read_json(state_path)
            if state is None or state["boot"] != self._boot:
                return False
            process.shim, process.shim_start = state["shim"], state["shim_start"]
            process.pid, process.start = state["pid"], state["start"]
            shim_lives = start_time(process.shim) == process.shim_start
            if process.pid and (process.lives or shim_lives):
                return True
            if not shim_lives:
                # It may have written its last word since.
                if self._read_exit(process, command):
                    return True
                if process.pid:
                    process.exit = Exit(UNKNOWN_EXIT_CODE, 0, False, self._clock.now())
                return process.pid > 0
            if self._clock.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"the shim {process.shim} neither starts its command nor ends")
            await self._clock.sleep(_CLAIM_POLL_SECONDS)

    def _read_exit(self, process: _Process, command: str) -> bool:
        ended = _read_json(Path(process.run_file + ".exit"))
        if ended is None:
            return False
        if "stage" in ended:
            process.refused = str(_launch_error(ForkFailed(ended["stage"], ended["errno"]), command))
        else:
            oom = ended["oom"] or process.over_memory
            process.exit = Exit(ended["code"], ended["signal"], oom, ended["at"])
        return True

    async def _undo(self, processes: Sequence[_Process]) -> None:
        """Kill what was started of a run that could not be started whole."""
        for process in processes:
            while process.pid and process.exit is None and process.lives:
                _signal(process, signal.SIGKILL)
                await self._clock.sleep(_CLAIM_POLL_SECONDS)

    def _watch_run(self, run: Run, plan: _Plan, processes: list[_Process], started_at: float) -> Running:
        running = Running(run, processes[0].pid, started_at, asyncio.get_running_loop().create_future())
        live = _Live(
            running, processes, plan.memory_bytes, plan.stop_signal, plan.stop_seconds, self.log_of(run.machine_id)
        )
        self._live[run] = live
        for process in processes:
            if process.exit is None:
                self._watch(live, process)
        self._settle(live)
        return running

    def _watch(self, live: _Live, process: _Process) -> None:
        """Watch the shim, and without it the command; take note if neither lives."""
        for pid, start in ((process.shim, process.shim_start), (process.pid, process.start)):
            if pid and start_time(pid) == start:
                try:
                    fd = os.pidfd_open(pid)
                except OSError:
                    continue  # Ended just now, or no descriptor is free: the next look at all processes finds it.
                process.watched = fd
                asyncio.get_running_loop().add_reader(fd, self._ended, live, process)
                # The number may have been given to another process before the descriptor was opened.
                if start_time(pid) == start:
                    return
                self._unwatch(process)
        if not process.lives and start_time(process.shim) != process.shim_start:
            self._take_end(live, process)

    def _ended(self, live: _Live, process: _Process) -> None:
        self._unwatch(process)
        if Path(process.run_file + ".exit").exists() or not process.lives:
            self._take_end(live, process)
        else:
            log.warning("shim_lost", machine=live.running.run.machine_id, pid=process.pid)
            self._watch(live, process)
        self._settle(live)

    def _take_end(self, live: _Live, process: _Process) -> None:
        if process.exit is None and not self._read_exit(process, ""):
            code = 128 + signal.SIGKILL if process.over_memory else UNKNOWN_EXIT_CODE
            process.exit = Exit(code, 0, process.over_memory, self._clock.now())

    def _settle(self, live: _Live) -> None:
        """End the run once all its processes have; when one has, stop the others."""
        ended = [process for process in live.processes if process.exit is not None or process.refused]
        if len(ended) == len(live.processes):
            self._live.pop(live.running.run, None)
            self._lift_limits(live.running.run, live.processes)
            if live.stopping_others is not None:
                live.stopping_others.cancel()
            future = live.running.ended
            refused = next((process.refused for process in live.processes if process.refused), "")
            if not future.done() and refused:
                future.set_exception(CannotRun(refused))
            elif not future.done():
                future.set_result(_first_exit(live.processes))
        elif ended and live.stopping_others is None:
            live.stopping_others = asyncio.create_task(self._stop_others(live))

    async def _stop_others(self, live: _Live) -> None:
        self.signal(live.running.run, live.stop_signal)
        await self._clock.sleep(live.stop_seconds)
        self.signal(live.running.run, signal.SIGKILL)

    def _unwatch(self, process: _Process) -> None:
        if process.watched >= 0:
            asyncio.get_running_loop().remove_reader(process.watched)
            os.close(process.watched)
            process.watched = -1

    async def _keep_server(self) -> None:
        while True:
            assert self._server is not None
            await self._server.gone()
            log.warning("fork_server_lost", worker=self._worker_id)
            await self._clock.sleep(_RESTART_SECONDS)
            try:
                self._server = ForkServer(self._complaints)
            except OSError as error:
                log.error("fork_server_cannot_start", worker=self._worker_id, why=str(error))

    async def _watch_processes(self) -> None:
        """See to processes that no descriptor watches and, without cgroups, to the memory that machines take."""
        pause = _SAMPLE_SECONDS
        while True:
            await self._clock.sleep(pause)
            for live in list(self._live.values()):
                for process in live.processes:
                    if process.exit is None and process.watched < 0 and not process.refused:
                        self._watch(live, process)
                self._settle(live)
            if self._cgroups is None and self._live:
                began = self._clock.monotonic()
                self._kill_what_is_too_large(await self._look())
                pause = max(_SAMPLE_SECONDS, (self._clock.monotonic() - began) / _SAMPLE_SHARE)

    async def _look(self) -> ProcessTree:
        tree = ProcessTree()
        for count, folder in enumerate(process_folders()):
            if count % _SAMPLE_CHUNK == 0:
                await asyncio.sleep(0)
            tree.add(folder)
        return tree

    def _kill_what_is_too_large(self, tree: ProcessTree) -> None:
        owners = {process.shim: live for live in self._live.values() for process in live.processes}
        groups = {process.pid: live for live in self._live.values() for process in live.processes}
        used: dict[Run, int] = {}
        for pid, resident in tree.resident.items():
            owner = groups.get(tree.groups[pid])
            above = pid
            while owner is None and above in tree.parents and above > 1:
                above = tree.parents[above]
                owner = owners.get(above)
            if owner is not None and pid not in owners:
                run = owner.running.run
                used[run] = used.get(run, 0) + resident
        for run, resident in used.items():
            live = self._live.get(run)
            if live is not None and live.memory_bytes and resident > live.memory_bytes:
                log.warning("memory_exceeded", machine=run.machine_id, bytes=resident, limit=live.memory_bytes)
                for process in live.processes:
                    process.over_memory = True
                    _signal(process, signal.SIGKILL)

    async def _rotate_logs(self) -> None:
        while True:
            await self._clock.sleep(_ROTATE_SECONDS)
            for live in list(self._live.values()):
                try:
                    if live.log_path.stat().st_size > self._settings.log_bytes:
                        await asyncio.to_thread(rotate, live.log_path, self._settings.log_files)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    log.warning("log_not_rotated", machine=live.running.run.machine_id, why=str(error))

    def _plan_file(self, run: Run) -> Path:
        return self._machines / run.machine_id / "run" / f"{run.number}.plan"

    def _run_file(self, run: Run, process: int) -> str:
        return str(self._machines / run.machine_id / "run" / f"{run.number}.{process}")


def rotate(path: Path, kept: int) -> None:
    """Move the content of a log that is being written to PATH.1, what was there to PATH.2, and so on; keep `kept`.

    The file itself is copied and cut off, since its writers hold it open. Raises OSError.
    """
    for number in range(kept, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if number == kept:
            older.unlink(missing_ok=True)
        elif older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    if kept:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def _plan_of(assignment: Assignment, commands: Sequence[Command]) -> _Plan:
    record = MachineRecord()
    record.CopyFrom(assignment.record)
    for bulky in ("config", "parts", "checks", "lease"):
        record.ClearField(bulky)
    guest, stop = record.spec.guest, record.spec.stop
    return _Plan(
        processes=len(commands),
        memory_bytes=max(guest.memory_bytes, guest.max_memory_bytes),
        stop_signal=signal.Signals[stop.signal or "SIGINT"],
        stop_seconds=stop.timeout.ToNanoseconds() / 1e9 if stop.HasField("timeout") else _DEFAULT_STOP_SECONDS,
        commands=[command.words[0] for command in commands],
        private_ip=assignment.private_ip,
        record=record,
    )


def _launch_error(error: BaseException, command: str) -> BaseException:
    if not isinstance(error, ForkFailed):
        return error
    if error.stage == "claim":
        return LaunchLost("somebody else has decided about this run")
    if error.stage == "user":
        return CannotRun(
            "the worker may not run processes as another user: leave the process's user out, or run the worker as root"
        )
    if error.stage == "command" and error.errno in _COMMAND_ERRORS:
        return CannotRun(f"command {command!r} {_COMMAND_ERRORS[error.errno]}")
    return OSError(error.errno, f"{error.stage}: {os.strerror(error.errno)}")


def _user(name: str) -> tuple[int, int] | None:
    if not name:
        return None
    user, _, group = name.partition(":")
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if user.isdigit():
            return int(user), int(group) if group.isdigit() else int(user)
        raise CannotRun(
            f"there is no user {user!r} on this worker: name one that its host has, or leave it out"
        ) from None
    if entry.pw_uid == os.getuid():
        return None
    return entry.pw_uid, int(group) if group.isdigit() else entry.pw_gid


def _take(process: _Process, forked: Forked) -> None:
    process.pid, process.start = forked.pid, forked.start
    process.shim, process.shim_start = forked.shim, forked.shim_start


def _signal(process: _Process, number: int) -> None:
    """Signal the process group of a process, unless its number belongs to another process by now."""
    if process.exit is None and process.lives:
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _members_of(inside: Inside) -> list[int]:
    return ProcessTree.read().members(inside.pids, inside.shims)


def _stop_all(inside: Inside) -> bool:
    """Tell all processes of a machine to stop. Returns whether they stand still."""
    members = _members_of(inside)
    _signal_each(members, signal.SIGSTOP)
    return all(stands_still(pid) for pid in members)


def _signal_each(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _first_exit(processes: Sequence[_Process]) -> Exit:
    return min((process.exit for process in processes if process.exit is not None), key=lambda ended: ended.at)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _gone_or_empty(folder: Path) -> bool:
    """Remove a folder if that takes no time; whether it is gone."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _modified(process: _Process) -> float:
    return Path(process.run_file + ".state").stat().st_mtime


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
