"""The fork server of the process driver, and the shim that it forks for each process of a machine.

Started by its path as `python -I -S -E shim.py CONTROL RESULTS`: standard library only, and little of that, for every
shim is a copy of this process. CONTROL is a stream socket on which requests come (four bytes of length, then JSON),
RESULTS a pipe on which each launch is answered with one line of JSON. The server ends when CONTROL does; shims live
until their command has ended.

A request:
    token        number that the answer repeats
    run          path without suffix: RUN.state and RUN.exit are written there
    command      list of strings; the first is looked up in the PATH of `environment`
    environment  all that the command is given, and only it
    directory    where the command begins
    log          file that its output is appended to
    open_files   limit of open files, lowered to what the host allows
    user         [uid, gid], or null for those of the server
    cgroups      `cgroup.procs` files that the command joins before it begins
    alone        nobody else is in these cgroups: they are removed when the command has ended
    oom          file with an `oom_kill N` line, or null

An answer: {"token", "pid", "start", "shim", "shim_start"}, or {"token", "stage", "errno"} with what could not be done
("fork", "claim", "cgroup", "log", "directory", "limit", "user", "command").
"""

# pathlib would cost every shim memory.
# ruff: noqa: PTH104, PTH106, PTH108, PTH120, PTH123, PTH208

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import resource
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # The module itself would cost every shim memory.
    from typing import Any, Never

_SET_CHILD_SUBREAPER = 36
_SET_NAME = 15
_LENGTH = 4
_LEFTOVERS_SECONDS = 5.0
_REMOVE_ATTEMPTS = 5
_REMOVE_PAUSE_SECONDS = 0.002

_libc = ctypes.CDLL(None, use_errno=True)


def stat_fields(folder: str) -> list[bytes]:
    """The fields of a process's stat file from its state on, which is the first; none when there is no such process."""
    try:
        with open(f"{folder}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since the host's boot; 0 when there is none (a zombie is none)."""
    fields = stat_fields(f"/proc/{pid}")
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else 0


def process_folders() -> list[str]:
    """The folders of all processes, "/proc/PID"."""
    return [f"/proc/{name}" for name in os.listdir("/proc") if name.isdigit()]


def boot_id() -> str:
    """What tells this boot of the host from every other."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def serve(control: int, results: int, boot: str) -> None:
    """Fork a shim for each request on `control` until it ends."""
    while (request := _read_request(control)) is not None:
        try:
            pid = os.fork()
        except OSError as error:
            _answer(results, {"token": request["token"], "stage": "fork", "errno": error.errno})
            continue
        if pid == 0:
            status = 1
            try:
                os.close(control)
                _be_shim(request, results, boot)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)


def _read_request(control: int) -> dict[str, Any] | None:
    header = _read_exactly(control, _LENGTH)
    body = _read_exactly(control, int.from_bytes(header, "big")) if header else b""
    return json.loads(body) if body else None


def _read_exactly(fd: int, size: int) -> bytes:
    pieces, missing = [], size
    while missing:
        piece = os.read(fd, missing)
        if not piece:
            return b""
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _answer(results: int, answer: dict[str, Any]) -> None:
    # Less than PIPE_BUF, so that the lines of several shims do not mix.
    line = json.dumps(answer).encode() + b"\n"
    try:
        os.write(results, line)
    except OSError:
        pass  # The agent is gone; the one that follows reads the files.


def _be_shim(request: dict[str, Any], results: int, boot: str) -> None:
    os.setsid()
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What the machine's processes leave behind comes here, and not to the host's init.
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _libc.prctl(_SET_NAME, b"skerry-shim", 0, 0, 0)
    oom_kills = _oom_kills(request["oom"])
    try:
        pid = _start(request, results, boot)
    except OSError as error:
        # The disk may be full. Without a shim, its command ends by itself.
        _answer(results, {"token": request["token"], "stage": "shim", "errno": error.errno})
        return
    os.close(results)
    if pid:
        _see_it_end(request, pid, oom_kills)


def _start(request: dict[str, Any], results: int, boot: str) -> int:
    """Start the command, and answer. Returns its process, or 0 when it does not run. Raises OSError."""
    token, run = request["token"], request["run"]
    state: dict[str, Any] = {
        "boot": boot,
        "shim": os.getpid(),
        "shim_start": start_time(os.getpid()),
        "pid": 0,
        "start": 0,
    }
    if not _claim(run + ".state", state):
        _answer(results, {"token": token, "stage": "claim", "errno": errno.EEXIST})
        return 0
    go_out, go_in = os.pipe()
    failure_out, failure_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_in)
        _be_command(request, go_out, failure_in)
    os.close(go_out)
    os.close(failure_in)
    state["pid"], state["start"] = pid, start_time(pid)
    _replace(run + ".state", state, durable=False)
    stage, number = _join(request["cgroups"], pid)
    if not stage:
        os.write(go_in, b"!")
    os.close(go_in)
    if not stage:
        stage, number = _read_failure(failure_out)
    os.close(failure_out)
    if stage:
        os.waitpid(pid, 0)
        _remove_cgroups(request)
        _replace(run + ".exit", {"stage": stage, "errno": number, "at": time.time()}, durable=True)
        _answer(results, {"token": token, "stage": stage, "errno": number})
        return 0
    _answer(results, {"token": token, **{key: state[key] for key in ("pid", "start", "shim", "shim_start")}})
    return pid


def _see_it_end(request: dict[str, Any], pid: int, oom_kills: int) -> None:
    ended = _wait(pid)
    at = time.time()
    # Not waited for yet, it holds its number: no other process group can have it.
    _kill_group(pid)
    os.waitpid(pid, 0)
    _kill_leftovers()
    by_signal = ended.si_status if ended.si_code != os.CLD_EXITED else 0
    code = 128 + by_signal if by_signal else ended.si_status
    oom = code == 128 + signal.SIGKILL and _oom_kills(request["oom"]) > oom_kills
    _remove_cgroups(request)
    _replace(request["run"] + ".exit", {"code": code, "signal": by_signal, "oom": oom, "at": at}, durable=True)


def _be_command(request: dict[str, Any], go: int, failure: int) -> Never:
    stage = "command"
    try:
        os.setpgid(0, 0)
        if not os.read(go, 1):
            os._exit(1)  # The shim ended before anybody could know of this process.
        stage = "log"
        os.umask(0o022)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stage = "directory"
        os.chdir(request["directory"])
        stage = "limit"
        _limit_open_files(request["open_files"])
        stage = "user"
        if request["user"] is not None:
            uid, gid = request["user"]
            os.setgroups([gid])
            os.setgid(gid)
            os.setuid(uid)
        stage = "command"
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        _execute(request["command"], request["environment"])
    except OSError as error:
        os.write(failure, f"{stage} {error.errno}".encode())
    except BaseException as error:
        os.write(failure, f"{stage} {errno.EINVAL}".encode())
        sys.stderr.write(f"{type(error).__name__}\n")
    finally:
        os._exit(127)


def _execute(command: list[str], environment: dict[str, str]) -> Never:
    """Become the command; raises OSError. As os.execvpe, which imports a module that another user may not read."""
    name = command[0]
    folders = (
        [""] if "/" in name else [f"{folder or '.'}/" for folder in environment.get("PATH", os.defpath).split(":")]
    )
    failure = FileNotFoundError(errno.ENOENT, name)
    denied = None
    for folder in folders:
        try:
            os.execve(folder + name, command, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            denied = error
    raise denied or failure


def _limit_open_files(wanted: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def _claim(path: str, state: dict[str, Any]) -> bool:
    temporary = f"{path}.{os.getpid()}"
    _write(temporary, state, durable=False)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)


def _replace(path: str, content: dict[str, Any], *, durable: bool) -> None:
    temporary = f"{path}.{os.getpid()}"
    _write(temporary, content, durable=durable)
    os.rename(temporary, path)
    if durable:
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def _write(path: str, content: dict[str, Any], *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, json.dumps(content).encode())
    if durable:
        os.fsync(fd)
    os.close(fd)


def _join(cgroups: list[str], pid: int) -> tuple[str, int]:
    try:
        for path in cgroups:
            fd = os.open(path, os.O_WRONLY)
            try:
                os.write(fd, str(pid).encode())
            finally:
                os.close(fd)
    except OSError as error:
        return "cgroup", error.errno or errno.EIO
    return "", 0


def _remove_cgroups(request: dict[str, Any]) -> None:
    for path in request["cgroups"] if request["alone"] else ():
        for _ in range(_REMOVE_ATTEMPTS):
            try:
                os.rmdir(os.path.dirname(path))
                break
            except FileNotFoundError:
                break
            except OSError:
                # The kernel takes a moment to let go of the last process.
                time.sleep(_REMOVE_PAUSE_SECONDS)


def _oom_kills(path: str | None) -> int:
    if path is None:
        return 0
    try:
        with open(path, encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, ValueError):
        return 0


def _read_failure(fd: int) -> tuple[str, int]:
    text = os.read(fd, 64)
    if not text:
        return "", 0
    stage, number = text.decode().split()
    return stage, int(number)


def _wait(pid: int) -> os.waitid_result:
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if ended.si_pid == pid:
            return ended
        os.waitpid(ended.si_pid, 0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass


def _kill_leftovers() -> None:
    """Kill and wait for every process that has become a child of this one; what cannot be killed stays."""
    until = time.monotonic() + _LEFTOVERS_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                continue
        except ChildProcessError:
            return
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.005)


def _children() -> list[int]:
    me = str(os.getpid()).encode()
    return [int(folder[6:]) for folder in process_folders() if stat_fields(folder)[1:2] == [me]]


def main() -> None:
    """Serve on the two file descriptors that the command line names."""
    control, results = int(sys.argv[1]), int(sys.argv[2])
    for fd in (control, results):
        os.set_inheritable(fd, False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for shims: what they have to say is on disk.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    boot = boot_id()
    # Shims share the memory of this process as long as nobody writes to it.
    gc.disable()
    gc.freeze()
    serve(control, results, boot)


if __name__ == "__main__":
    main()
