"""What a request of a region touches while all parts are converted there: nothing outside of the region."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from services.cli import processes
from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.support import eventually

APP = "island"
MACHINES = f"/apps/{APP}/machines"
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "alone")
"""Runs a command in a network namespace of its own that leads nowhere."""


class Span(NamedTuple):
    """What the tests look at of an exported span."""

    region: str
    service: str
    name: str
    id: bytes
    parent: bytes


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes in what is exported, by trace id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: dict[str, list[Span]] = {}

    def Export(self, request: otlp.ExportTraceServiceRequest, context: object) -> otlp.ExportTraceServiceResponse:
        with self._lock:
            for group in request.resource_spans:
                of = {each.key: each.value.string_value for each in group.resource.attributes}
                for scope in group.scope_spans:
                    for span in scope.spans:
                        self._spans.setdefault(span.trace_id.hex(), []).append(
                            Span(of["skerry.region"], of["service.name"], span.name, span.span_id, span.parent_span_id)
                        )
        return otlp.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of a trace that have arrived."""
        with self._lock:
            return list(self._spans.get(trace_id, ()))


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    taking_in = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taking_in, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield taking_in, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(scope="module")
def mesh(collector: tuple[Collector, str]) -> Iterator[RunningMesh]:
    with RunningMesh("--workers", "1", "--otlp", collector[1], regions="syd,iad") as running:
        running.ok("POST", "/apps", {"name": APP})
        yield running


async def test_every_span_of_a_create_an_update_and_a_start_is_of_the_region(
    mesh: RunningMesh, collector: tuple[Collector, str]
) -> None:
    traces: dict[str, str] = {}

    def traced(what: str, path: str, body: dict[str, Any]) -> Any:
        traces[what] = secrets.token_hex(16)
        headers = {"traceparent": f"00-{traces[what]}-{secrets.token_hex(8)}-01"}
        answer = mesh.request("POST", MACHINES + path, body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    machine = traced("create", "", {"config": SLEEPER, "skip_launch": True})
    traced("update", f"/{machine['id']}", {"config": {**SLEEPER, "env": {"A": "1"}}})
    traced("start", f"/{machine['id']}/start", {})

    for what, called in {
        "create": {"rest", "gateway", "config-converter", "scheduler", "machine-store"},
        "update": {"rest", "gateway", "config-converter", "machine-store"},
        "start": {"rest", "gateway", "machine-store"},
    }.items():

        def complete(trace_id: str = traces[what], called: set[str] = called) -> bool:
            return called <= {span.service for span in collector[0].trace(trace_id)}

        await eventually(complete, seconds=30)
        spans = collector[0].trace(traces[what])
        assert {span.region for span in spans} == {"syd"}, what
        assert {span.service for span in spans} == called, what
        ids = {span.id for span in spans}
        assert sum(span.parent not in ids for span in spans) == 1, "all hang together below one that came from outside"


@contextmanager
def alone_in_a_namespace(mesh: RunningMesh) -> Iterator[subprocess.Popen[bytes]]:
    """The region's set, killed and run again where nothing but itself can be reached; as before afterwards."""
    [process] = mesh.mesh.processes("syd")
    mesh.kill(process)
    command = [*ALONE, sys.executable, "-m", "services.cli.main", "run", "set", "--region", "syd"]
    with (mesh.directory / "alone.log").open("w") as log:
        alone = subprocess.Popen([*command, "--dir", str(mesh.directory)], stdout=log, stderr=log)
    try:
        yield alone
    finally:
        alone.terminate()
        assert processes.wait_until(lambda: alone.poll() is not None, 30)
        mesh.up()


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine lets nobody make a network namespace",
)
async def test_a_region_without_a_route_to_anywhere_creates_updates_starts_and_destroys(mesh: RunningMesh) -> None:
    with alone_in_a_namespace(mesh) as alone:

        def inside(*requests: tuple[str, str, Any]) -> list[tuple[int, Any]]:
            """Make requests from within the namespace; "ID" in a path stands for the first answer's machine."""
            document = {"base": mesh.endpoints["regions"]["syd"]["rest"], "token": mesh.mesh.token, "do": requests}
            done = subprocess.run(
                ["nsenter", f"--net=/proc/{alone.pid}/ns/net", sys.executable, "-c", _CLIENT],
                input=json.dumps(document),
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return [(status, body) for status, body in json.loads(done.stdout)]

        def is_ready() -> bool:
            assert alone.poll() is None, (mesh.directory / "alone.log").read_text()[-2000:]
            try:
                return inside(("GET", "/healthz", None))[0][0] == 200
            except AssertionError:
                return False

        await eventually(is_ready, seconds=60)
        answers = inside(
            ("POST", f"/v1{MACHINES}", {"config": SLEEPER}),
            ("GET", f"/v1{MACHINES}/ID/wait?state=started&timeout=30", None),
            ("POST", f"/v1{MACHINES}/ID", {"config": {**SLEEPER, "env": {"A": "2"}}}),
            ("GET", f"/v1{MACHINES}/ID/wait?state=started&timeout=30", None),
            ("POST", f"/v1{MACHINES}/ID/stop", {}),
            ("POST", f"/v1{MACHINES}/ID/restart", {}),
            ("DELETE", f"/v1{MACHINES}/ID?force=true", None),
            ("POST", "/v1/apps", {"name": "needs-the-centre"}),
        )
        assert [status for status, _ in answers[:5]] == [200] * 5, answers
        assert answers[6][0] == 200, answers
        assert (answers[7][0], answers[7][1]["status"]) == (503, "dependency_down"), answers[7]


_CLIENT = """
import json, sys, urllib.request, urllib.error
told = json.load(sys.stdin)
answers, machine = [], "ID"
for method, path, body in told["do"]:
    request = urllib.request.Request(
        told["base"] + path.replace("ID", machine),
        json.dumps(body).encode() if body is not None else None,
        {"authorization": "Bearer " + told["token"], "content-type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=65) as answer:
            answers.append((answer.status, json.loads(answer.read() or "null")))
    except urllib.error.HTTPError as error:
        answers.append((error.code, json.loads(error.read() or "null")))
    if machine == "ID" and method == "POST":
        machine = answers[-1][1]["id"]
print(json.dumps(answers))
"""
