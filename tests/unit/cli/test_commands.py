import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from services.cli.main import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_version_is_that_of_the_package() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("skerry 0.")


@pytest.mark.parametrize(
    "command",
    [["apps", "list"], ["machines", "list", "a"], ["down"], ["run", "set", "--region", "iad"]],
)
def test_without_a_mesh_commands_say_what_to_do(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "mesh.json").write_text(json.dumps({"version": 1, "regions": {}, "sets": None, "workers": 2}))
    where = tmp_path if command[0] == "run" else tmp_path / "nothing-here"
    result = runner.invoke(app, [*command, "--dir", str(where)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_with_several_regions_a_command_never_guesses(tmp_path: Path) -> None:
    endpoints = {
        "regions": {"syd": {"rest": "http://127.0.0.1:9"}, "iad": {"rest": "http://127.0.0.1:9"}},
        "token": "t",
    }
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    result = runner.invoke(app, ["apps", "list", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "--region (syd, iad)" in result.stderr


def test_a_gateway_that_is_not_there_is_told_of_in_a_sentence(tmp_path: Path) -> None:
    doors = [{"rest": "http://127.0.0.1:9"}, {"rest": "http://127.0.0.1:11"}]
    for region, named in (
        (doors[0], "http://127.0.0.1:9 cannot be reached"),
        ({**doors[0], "sets": doors}, "http://127.0.0.1:9, http://127.0.0.1:11 cannot be reached"),
    ):
        (tmp_path / "endpoints.json").write_text(json.dumps({"regions": {"syd": region}, "token": "t"}))
        result = runner.invoke(app, ["machines", "list", "web", "--dir", str(tmp_path), "--json"])
        assert result.exit_code == 1
        assert result.stdout == ""
        assert named in result.stderr


class Listing(BaseHTTPRequestHandler):
    """Answers every list with nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_set_that_is_not_there_is_passed_over_for_the_next(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        doors = [{"rest": "http://127.0.0.1:9"}, {"rest": f"http://127.0.0.1:{server.server_port}"}]
        endpoints = {"regions": {"syd": {**doors[0], "sets": doors}}, "token": "t"}
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
        result = runner.invoke(app, ["machines", "list", "web", "--dir", str(tmp_path), "--json"])
        server.shutdown()
    assert (result.exit_code, json.loads(result.stdout)) == (0, []), result.output


def test_a_service_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    result = runner.invoke(app, ["run", "proxy", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "machine-store" in result.stderr


def test_help_imports_no_service_and_no_network_library() -> None:
    heavy = ("grpc", "asyncpg", "numpy", "httpx", "starlette", "services.machine_store", "services.scheduler")
    code = f"import sys, services.cli.main\nprint([name for name in {heavy!r} if name in sys.modules])\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_every_command_can_print_one_json_document_but_the_one_that_stays() -> None:
    def without_json(command: Any, path: str) -> list[str]:
        if subcommands := getattr(command, "commands", None):
            return [found for name, each in subcommands.items() for found in without_json(each, f"{path} {name}")]
        return [] if any("--json" in option.opts for option in command.params) else [path]

    assert without_json(typer.main.get_command(app), "skerry") == ["skerry run"]
