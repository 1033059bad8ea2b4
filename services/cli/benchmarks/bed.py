"""What a benchmark runs on: meshes in a temporary folder, an app in each, and the load generator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skerry.machines.v1 import machines_pb2, machines_pb2_grpc
from skerry.types.v1 import config_pb2

from services.cli import up
from services.cli.console import CommandError
from services.cli.mesh import HOST, Mesh, Process
from services.cli.rest import Api

REGION = "syd"
APP = "bench"
_LOAD_SECONDS = 600.0
_END_SECONDS = 10.0


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, where PostgreSQL's own user can reach it too."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def mesh_in(folder: Path, *, apart: bool = False) -> Iterator[Mesh]:
    """A mesh of one region with an app, that runs until the end of the block."""
    mesh = Mesh.prepare(folder, regions=[REGION], apart=apart)
    try:
        up.start(mesh, mesh.regions)
        Api.of(folder, REGION).call("POST", "apps", body={"name": APP, "org_slug": "personal"})
        yield mesh
    finally:
        up.stop(mesh)


@contextlib.contextmanager
def echo_server(answer: machines_pb2.CreateMachineResponse) -> Iterator[str]:
    """A bare gRPC server in a process of its own that answers every create with `answer`; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "services.cli.benchmarks.echo"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdin is not None, "it was asked for"
        assert process.stdout is not None, "it was asked for"
        process.stdin.write(answer.SerializeToString())
        process.stdin.close()
        port = process.stdout.readline().decode().strip()
        if not port:
            raise CommandError("the echo server did not start")
        yield f"{HOST}:{port}"
    finally:
        process.terminate()
        process.wait(_END_SECONDS)


def door(mesh: Mesh) -> Process:
    """The process of the mesh with the public ports."""
    return next(process for process in mesh.processes(REGION) if process.has_gateway)


def grpc_target(address: str, token: str, request: machines_pb2.CreateMachineRequest) -> dict[str, Any]:
    """A target of the load generator: `request` over gRPC."""
    return {"kind": "grpc", "address": address, "token": token, "request": request.SerializeToString().hex()}


def rest_target(mesh: Mesh, body: dict[str, Any], *, wait: str | None = None) -> dict[str, Any]:
    """A target of the load generator: `body` as a create over REST, then a wait for the state `wait`, if given."""
    path = f"/v1/apps/{APP}/machines"
    port = door(mesh).rest
    return {
        "kind": "rest",
        "host": HOST,
        "port": port,
        "token": mesh.token,
        "path": path,
        "body": json.dumps(body),
        "wait": wait,
    }


def create_over_grpc(mesh: Mesh, request: machines_pb2.CreateMachineRequest) -> machines_pb2.CreateMachineResponse:
    """One create, to see what an answer looks like."""

    async def call() -> machines_pb2.CreateMachineResponse:
        import grpc

        async with grpc.aio.insecure_channel(f"{HOST}:{door(mesh).grpc}") as channel:
            stub = machines_pb2_grpc.MachinesStub(channel)
            metadata = (("authorization", f"Bearer {mesh.token}"),)
            return await stub.CreateMachine(request, metadata=metadata, timeout=10)

    return asyncio.run(call())


def generate(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the load generator, a process of its own; returns its phases. Raises CommandError with its words."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "services.cli.benchmarks.load"],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        timeout=_LOAD_SECONDS,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(
            f"the load generator failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    phases: list[dict[str, Any]] = json.loads(done.stdout)["phases"]
    return phases


WEB_CONFIG: dict[str, Any] = {
    "image": "docker.io/library/python:3.12-slim",
    "env": {"PORT": "8080", "LOG_LEVEL": "info"},
    "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
    "init": {"exec": ["python3", "-m", "http.server", "8080", "--bind", "127.0.0.1"]},
    "services": [
        {
            "protocol": "tcp",
            "internal_port": 8080,
            "autostart": True,
            "min_machines_running": 1,
            "concurrency": {"type": "requests", "soft_limit": 20, "hard_limit": 25},
            "ports": [
                {"port": 80, "handlers": ["http"], "force_https": True},
                {"port": 443, "handlers": ["tls", "http"]},
            ],
            "checks": [
                {
                    "type": "http",
                    "port": 8080,
                    "method": "GET",
                    "path": "/",
                    "interval": "15s",
                    "timeout": "10s",
                    "grace_period": "5s",
                }
            ],
        }
    ],
    "checks": {"alive": {"type": "tcp", "port": 8080, "interval": "15s", "timeout": "2s"}},
    "metadata": {"process_group": "app", "team": "edge"},
    "restart": {"policy": "on-failure", "max_retries": 5},
    "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
}
"""A usual web server, as a user would write it: services, checks, limits."""


def web_request() -> machines_pb2.CreateMachineRequest:
    """A create of `WEB_CONFIG` that is not launched, as a gRPC client would send it."""
    from google.protobuf import json_format

    config = json_format.ParseDict(WEB_CONFIG, config_pb2.MachineConfig())
    return machines_pb2.CreateMachineRequest(app_name=APP, config=config, skip_launch=True)
