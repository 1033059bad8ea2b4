"""Putting a trace together again: from what a trace backend answers, and from logs."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from typer.testing import CliRunner

from services.cli.main import app
from services.cli.mesh import Mesh
from services.cli.trace import query_url, spans_of

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(name: str, start: int, parent: str = "", **more: Any) -> dict[str, Any]:
    references = [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}] if parent else []
    return {
        "traceID": TRACE,
        "spanID": name,
        "operationName": f"/{name}",
        "references": references,
        "startTime": 1_000_000 + start,
        "duration": 500,
        "processID": more.get("process", "p1"),
        "tags": more.get("tags", []),
    }


ANSWER: dict[str, Any] = {
    "data": [
        {
            "traceID": TRACE,
            "spans": [
                span("place", 900, "create", process="p2"),
                span("convert", 300, "create", tags=[{"key": "error", "type": "bool", "value": True}]),
                span("create", 100, "outside"),
                span("look", 350, "convert"),
            ],
            "processes": {
                "p1": {"serviceName": "gateway", "tags": [{"key": "skerry.region", "value": "syd"}]},
                "p2": {"serviceName": "scheduler", "tags": []},
            },
        }
    ]
}


def test_spans_come_after_what_called_them_and_tell_place_time_and_failure() -> None:
    spans = spans_of(ANSWER)
    assert [each.id for each in spans] == ["create", "convert", "look", "place"]
    assert [each.start for each in spans] == [0, 0.2, 0.25, 0.8]
    assert (spans[0].service, spans[0].region, spans[3].service, spans[3].region) == ("gateway", "syd", "scheduler", "")
    assert [each.error for each in spans] == ["", "failed", "", ""]
    assert spans_of({"data": []}) == []


def test_traces_are_asked_for_where_they_are_exported_to() -> None:
    assert query_url("http://10.0.0.7:4317") == "http://10.0.0.7:16686"
    assert query_url(None) is None


class Backend(BaseHTTPRequestHandler):
    """Answers one trace as Jaeger's query API does."""

    def do_GET(self) -> None:
        known = self.path == f"/api/traces/{TRACE}"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(ANSWER if known else {"data": None, "errors": [{"code": 404}]}).encode())

    def log_message(self, *_: object) -> None:
        pass


def run(directory: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["trace", *arguments, "--dir", str(directory), "--json"])


def test_a_backend_that_knows_the_trace_is_believed_and_the_logs_stand_in_for_it(tmp_path: Path) -> None:
    mesh = Mesh.prepare(tmp_path, regions=["syd"])
    event = {"event": "machine_created", "trace_id": TRACE, "service": "gateway", "region": "syd", "timestamp": "2"}
    lines = [json.dumps(event), "no event", json.dumps({**event, "event": "earlier", "timestamp": "1"}), f"{TRACE}"]
    (mesh.directory / "syd").mkdir(exist_ok=True)
    (mesh.directory / "syd" / "set-1.log").write_text("\n".join(lines))
    server = HTTPServer(("127.0.0.1", 0), Backend)
    Thread(target=server.serve_forever, daemon=True).start()
    jaeger = f"http://127.0.0.1:{server.server_port}"
    try:
        spans = run(tmp_path, f"00-{TRACE}-b7ad6b7169203331-01", "--jaeger", jaeger)
        assert json.loads(spans.stdout)["spans"][0]["name"] == "/create"
        logs = run(tmp_path, TRACE)
        assert [each["event"] for each in json.loads(logs.stdout)["events"]] == ["earlier", "machine_created"]
        unknown = run(tmp_path, "f" * 32, "--jaeger", jaeger)
        assert unknown.exit_code == 1
        assert "does not know it either" in unknown.stderr
        assert run(tmp_path, "xyz").exit_code == 1
    finally:
        server.shutdown()
        server.server_close()
