import json
import subprocess
import sys
from pathlib import Path

from services.cli import processes
from services.cli.mesh import Mesh


def test_a_command_line_is_known_again(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, sets=2)
    for process in mesh.processes("syd"):
        arguments = processes.command(tmp_path, process)
        assert processes.parse(tmp_path, arguments) == ("syd", process.service, process.instance)


def test_a_command_typed_by_hand_is_known_too(tmp_path: Path) -> None:
    typed = ["/usr/bin/python3", "/opt/bin/skerry", "run", "gateway", f"--dir={tmp_path}", "--region", "syd"]
    assert processes.parse(tmp_path, typed) == ("syd", "gateway", 1)


def test_other_programs_and_other_meshes_are_left_alone(tmp_path: Path) -> None:
    own = processes.command(tmp_path, Mesh.prepare(tmp_path).process("syd", "set"))
    assert processes.parse(tmp_path / "other", own) is None
    for arguments in (
        ["vim", "run", "set", "--region", "syd", "--dir", str(tmp_path)],
        ["python3", "/opt/bin/skerry", "down", "--dir", str(tmp_path)],
        ["python3", "/opt/bin/skerry", "machines", "list", "run", "--dir", str(tmp_path)],
        [],
    ):
        assert processes.parse(tmp_path, arguments) is None


def test_a_process_that_ends_when_asked_is_not_killed() -> None:
    polite = subprocess.Popen([sys.executable, "-c", "import signal; print(1, flush=True); signal.pause()"], stdout=-1)
    assert polite.stdout is not None
    polite.stdout.readline()
    assert processes.end([polite.pid], grace=5) == []
    assert polite.wait(5) != 0


def test_a_process_that_does_not_end_when_asked_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    stubborn = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    assert processes.end([stubborn.pid], grace=0.2) == [stubborn.pid]
    assert stubborn.wait(5) == -9


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    try:
        assert processes.wait_until(lambda: not processes.is_alive(child.pid), 5)
        assert child.returncode is None, "nobody has waited for it, so it is a zombie still"
    finally:
        child.wait()


def test_the_last_words_are_the_last_error_and_else_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "set-1.log"
    assert processes.last_words(log) == ""
    log.write_text("Traceback …\nOSError: no room\n")
    assert processes.last_words(log) == "OSError: no room"
    events = [
        {"event": "cannot_listen", "level": "error", "error": "port 1 is taken"},
        {"event": "stopping", "level": "info"},
    ]
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert processes.last_words(log) == "cannot_listen error=port 1 is taken"
