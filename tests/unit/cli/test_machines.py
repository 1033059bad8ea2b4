import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.console import CommandError
from services.cli.machines import request_body

NOTHING: dict[str, Any] = {"image": None, "name": None, "env": None, "cpus": None, "memory": None, "command": None}


def test_an_image_and_a_command_make_a_request() -> None:
    body = request_body(None, **{**NOTHING, "image": "busybox", "command": ["sleep", "1"], "name": "one"})
    assert body == {"name": "one", "config": {"image": "busybox", "init": {"exec": ["sleep", "1"]}}}


def test_a_file_may_hold_a_request_or_a_config_alone(tmp_path: Path) -> None:
    config = {"image": "busybox", "env": {"A": "1"}}
    alone, request = tmp_path / "config.json", tmp_path / "request.json"
    alone.write_text(json.dumps(config))
    request.write_text(json.dumps({"config": config, "region": "syd"}))
    assert request_body(alone, **NOTHING) == {"config": config}
    assert request_body(request, **NOTHING) == {"config": config, "region": "syd"}


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "web.json"
    file.write_text(json.dumps({"image": "busybox", "env": {"A": "1", "B": "2"}, "size": "shared-cpu-1x"}))
    body = request_body(file, **{**NOTHING, "image": "nginx", "env": ["A=x=y", "C="], "memory": 512})
    assert body["config"] == {
        "image": "nginx",
        "env": {"A": "x=y", "B": "2", "C": ""},
        "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 512},
    }


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("{", {}, "is not JSON"),
        ("[1]", {}, "must hold a JSON object"),
        ("{}", {}, "say what to run"),
        ('{"image": "busybox"}', {"env": ["NOVALUE"]}, "NAME=VALUE"),
    ],
)
def test_what_cannot_be_sent_is_refused(tmp_path: Path, content: str, options: dict[str, Any], says: str) -> None:
    file = tmp_path / "web.json"
    file.write_text(content)
    with pytest.raises(CommandError, match=says):
        request_body(file, **{**NOTHING, **options})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"nowhere\.json cannot be read"):
        request_body(tmp_path / "nowhere.json", **NOTHING)
