"""A disk that is full: what is refused has left nothing behind, what runs runs on, and room is all that it needs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.meshes import SLEEPER, RunningMesh, running_with
from tests.faults.audit import assert_each_exists_once, assert_reservations_add_up, read_books
from tests.support import eventually

APP = "full"
MARKER = "SKERRY_TEST_FULL"
MACHINES = f"/apps/{APP}/machines"
DISK_MEGABYTES = 300


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write until not one more byte fits."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def create(mesh: RunningMesh, name: str, acknowledged: dict[str, str], *, launch: bool = False) -> httpx.Response:
    """One attempt, noted when it succeeds."""
    body: dict[str, Any] = {"name": name, "config": {**SLEEPER, "env": {MARKER: name}}, "skip_launch": not launch}
    answer = mesh.request("POST", MACHINES, body, headers={"idempotency-key": name})
    if answer.is_success:
        acknowledged[name] = answer.json()["id"]
    return answer


async def test_a_full_disk_refuses_writes_by_name_loses_nothing_and_is_over_once_there_is_room(disk: Path) -> None:
    ballast = disk / "ballast"
    acknowledged: dict[str, str] = {}
    with RunningMesh(parent=disk) as mesh:
        mesh.ok("POST", "/apps", {"name": APP})
        assert create(mesh, "runs", acknowledged, launch=True).is_success
        mesh.ok("GET", f"{MACHINES}/{acknowledged['runs']}/wait?state=started&timeout=30")
        process = running_with(MARKER)["runs"]

        fill(ballast)
        refused: list[httpx.Response] = []
        for number in range(400):
            answer = create(mesh, f"m{number}", acknowledged)
            if not answer.is_success:
                refused.append(answer)
            if len(refused) == 10:
                break
        assert {(each.status_code, each.json()["status"]) for each in refused} == {(503, "dependency_down")}
        assert any("the disk of PostgreSQL is full" in each.json()["error"] for each in refused), refused[-1].text
        assert all(int(each.headers["retry-after"]) >= 1 for each in refused)
        assert {each["id"] for each in mesh.ok("GET", MACHINES)} >= set(acknowledged.values()), "reading goes on"
        assert running_with(MARKER)["runs"] == process, "what runs runs on"

        ballast.unlink()
        await eventually(lambda: create(mesh, "after", acknowledged, launch=True).is_success, seconds=30)
        mesh.ok("GET", f"{MACHINES}/{acknowledged['after']}/wait?state=started&timeout=30")
        assert running_with(MARKER)["runs"] == process
        books = await read_books(mesh.mesh)
        assert_each_exists_once(books, acknowledged)
        assert_reservations_add_up(books)
        log = next(mesh.directory.glob("syd/set-*.log")).read_text().splitlines()
        torn = [line for line in log if not is_event(line)]
        assert len(torn) <= 1, f"more than the line that was being written when the disk filled: {torn}"


def is_event(line: str) -> bool:
    """Whether a line of a log is one event."""
    try:
        return "event" in json.loads(line)
    except ValueError:
        return False
