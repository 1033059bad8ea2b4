from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.rest import Api
from services.cli.volumes import compute_hint

VOLUME = {
    "id": "vol_0010000000000001", "name": "data", "state": "created", "size_gb": 3, "region": "syd", "zone": "a",
    "encrypted": True, "attached_machine_id": None, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
SNAPSHOT = {
    "id": "vs_0010000000000001", "status": "created", "size": 7, "digest": "sha256:0123456789abcdef", "volume_size": 1,
    "retention_days": 5, "created_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


class Recorded:
    """Stands where the API stands: keeps what is sent, answers what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.answers: dict[str, Any] = {}

    def call(self, method: str, *path: str, body: Any = None, query: Any = None) -> Any:
        self.calls.append((method, "/".join(path), body))
        return self.answers[path[-1]]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(Api, "of", lambda *_: recorded)
    return recorded


@pytest.mark.parametrize(
    ("cpus", "memory", "hint"),
    [
        (None, None, None),
        (2, None, {"cpu_kind": "shared", "cpus": 2, "memory_mb": 512}),
        (None, 1024, {"cpu_kind": "shared", "cpus": 1, "memory_mb": 1024}),
    ],
)
def test_room_is_kept_for_a_machine_that_is_hinted_at(cpus: int | None, memory: int | None, hint: Any) -> None:
    assert compute_hint(cpus, memory) == hint


def test_what_is_not_said_is_left_to_the_source_of_a_fork(api: Recorded) -> None:
    api.answers["volumes"] = VOLUME
    result = CliRunner().invoke(app, ["volumes", "fork", "web", "vol_0010000000000009"])
    assert result.exit_code == 0, result.output
    body = {"source_volume_id": "vol_0010000000000009", "name": None, "require_unique_zone": True}
    assert api.calls == [("POST", "apps/web/volumes", body)]


def test_a_snapshot_is_taken_before_they_are_listed(api: Recorded) -> None:
    api.answers["snapshots"] = [SNAPSHOT]
    result = CliRunner().invoke(app, ["volumes", "snapshots", "web", "vol_0010000000000001", "--take"])
    assert result.exit_code == 0, result.output
    assert [call[0] for call in api.calls] == ["POST", "GET"]
    assert "0123456789ab" in result.output


def test_json_is_what_the_api_says(api: Recorded) -> None:
    api.answers["volumes"] = [VOLUME]
    result = CliRunner().invoke(app, ["volumes", "list", "web", "--json"])
    assert result.exit_code == 0, result.output
    assert '"vol_0010000000000001"' in result.output
