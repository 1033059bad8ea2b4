"""Real meshes for tests: started by the `skerry` command in a folder of their own, driven over REST, killed by pid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from services.cli import processes
from services.cli.mesh import Mesh, Process

COMMAND_SECONDS = 120.0
SLEEPER: dict[str, Any] = {
    "image": "docker.io/library/busybox:1",
    "init": {"exec": ["/bin/sleep", "3600"]},
    "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
}
"""A machine that costs next to nothing and runs until it is stopped."""


class RunningMesh:
    """A mesh in a new folder, down and gone at the end of the `with` block."""

    def __init__(self, *options: str, regions: str = "syd", settings: str = "", parent: Path | None = None) -> None:
        """`settings` become the folder's settings.toml; `parent` is where the folder is made."""
        self.directory = Path(tempfile.mkdtemp(prefix="skerry-e2e-", dir=parent))
        self.regions = regions
        if settings:
            (self.directory / "settings.toml").write_text(settings, encoding="utf-8")
        self._options = options
        self._clients: dict[str, httpx.Client] = {}

    def __enter__(self) -> Self:
        try:
            self.up(*self._options)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        down = self.skerry("down", "--dir", str(self.directory), check=False)
        if error is not None:
            self._show_logs()
        elif kind is None and down.returncode != 0:
            raise AssertionError(f"down failed: {down.stderr}")
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def mesh(self) -> Mesh:
        """What the folder holds."""
        return Mesh.open(self.directory)

    @property
    def endpoints(self) -> dict[str, Any]:
        """endpoints.json, as it is now."""
        document: dict[str, Any] = json.loads((self.directory / "endpoints.json").read_text())
        return document

    @property
    def pid(self) -> int:
        """The region's pid of endpoints.json."""
        return int(self.endpoints["pids"]["syd"])

    def up(self, *options: str) -> None:
        """`skerry up --detach`, which fails the test if it fails."""
        self.skerry("up", "--regions", self.regions, "--dir", str(self.directory), "--detach", *options)

    def skerry(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command; its output goes through files, so that nothing it leaves running holds us."""
        state = {"XDG_STATE_HOME": str(self.directory / "state")}
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = subprocess.run(
                [sys.executable, "-m", "services.cli.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=COMMAND_SECONDS,
                env={**os.environ, **state},
                check=False,
            ).returncode
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(arguments, code, out.read(), err.read())
        if check:
            assert done.returncode == 0, f"skerry {' '.join(arguments)}: {done.stderr}"
        return done

    def request(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, door: int = 0
    ) -> httpx.Response:
        """One request to /v1PATH; `door` chooses among the sets of the region. Raises httpx.HTTPError."""
        endpoints = self.endpoints
        region = endpoints["regions"]["syd"]
        base = region["sets"][door]["rest"] if "sets" in region else region["rest"]
        client = self._clients.setdefault(base, httpx.Client(base_url=base, timeout=65))
        return client.request(
            method,
            f"/v1{path}",
            json=body,
            headers={"authorization": f"Bearer {endpoints['token']}", **(headers or {})},
        )

    def ok(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, door: int = 0
    ) -> Any:
        """The parsed answer of a request that must succeed."""
        answer = self.request(method, path, body, headers=headers, door=door)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def kill(self, process: Process) -> None:
        """`kill -9` of one process, which has to run, and wait until it is gone."""
        pid = processes.running(self.mesh)[process]
        kill_9(pid)

    def postmaster(self) -> int:
        """Pid of the region's PostgreSQL."""
        return int((self.mesh.postgres_directory("syd") / "postmaster.pid").read_text().split()[0])

    def _show_logs(self) -> None:
        for log in sorted(self.directory.rglob("*.log")):
            if "workers" not in log.parts:
                lines = log.read_text(errors="replace").splitlines()[-20:]
                print(f"--- {log.relative_to(self.directory)}", *lines, sep="\n")


def kill_9(pid: int) -> None:
    """`kill -9`, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.is_alive(pid), 10)


def running_with(variable: str) -> dict[str, list[int]]:
    """Pids of the leaders of process groups whose environment has `variable`, by its value."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if stat[0] == "Z" or stat[2] != entry.name:
            continue
        for setting in environment:
            name, _, value = setting.decode(errors="replace").partition("=")
            if name == variable:
                found[value].append(int(entry.name))
    return dict(found)
