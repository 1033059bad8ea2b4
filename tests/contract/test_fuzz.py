"""Anything may come in at either door of a region: nothing breaks, nothing leaks, and the store's books stay right.

Every method of every public service is called with a token of one tenant, and every method of every internal service
with the secret of the set, with requests made at random.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
import skerry
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.public_services import PUBLIC_SERVICES, path_of
from services.cli.mesh import MACHINE_STORE
from services.runtime.postgres import OwnedPostgres
from services.runtime.registry import CALLER_KEY, SECRET_KEY
from tests.contract.fuzzing import Requests, in_turn
from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.support import eventually

SHORT_SECONDS = 6.0
"""For each door, in the short form."""
SOAK_SECONDS = 150.0
AT_ONCE = 8
CALL_SECONDS = 1.0
STREAM_RESPONSES = 3
DELETES_ALL = "DeleteApp"
MACHINES = 20
UNLIMITED = """
[limits.calls]
action = { per_second = 1e6, burst = 1_000_000 }
get = { per_second = 1e6, burst = 1_000_000 }
organization = { per_second = 1e6, burst = 1_000_000 }
"""
SECRET_OF_OTHERS = "canary-of-another-tenant"

_NOT_OURS = ("grpc.",)
_UNEXPECTED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)

for _folder in map(Path, skerry.__path__):
    for _file in _folder.rglob("*_pb2.py"):
        importlib.import_module(".".join(_file.relative_to(_folder.parent).with_suffix("").parts))


@dataclass
class Findings:
    """What came back: how often which status, and what should not have come."""

    statuses: Counter[str] = field(default_factory=Counter)
    methods: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Region:
    """A region with two tenants. `known` are texts that mean something in it; `theirs` the ids of the other tenant."""

    mesh: RunningMesh
    token: str
    known: Mapping[str, Sequence[str]]

    @property
    def public(self) -> str:
        """Address of the public door."""
        return str(self.mesh.endpoints["regions"]["syd"]["grpc"])

    @property
    def internal(self) -> str:
        """Address of the door of the set."""
        return self.mesh.mesh.addresses("syd", MACHINE_STORE)[0]

    def log_lines(self) -> list[dict[str, Any]]:
        """What its processes have logged as failures that nobody foresaw."""
        lines: list[dict[str, Any]] = []
        for log in sorted(self.mesh.directory.rglob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if "call_failed" in line or "servicer_failed" in line or "Traceback" in line:
                    lines.append({"log": log.name, "line": line[:20_000]})
        return lines


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    with RunningMesh("--workers", "1", settings=UNLIMITED) as mesh:
        yield populated(mesh)


def populated(mesh: RunningMesh) -> Region:
    """Two apps with a machine and a volume each, and a token for the first."""
    known: dict[str, list[str]] = {}
    for app in ("mine", "theirs"):
        mesh.ok("POST", "/apps", {"name": app, "org_slug": "personal"})
        canary = f"{SECRET_OF_OTHERS}-{os.urandom(4).hex()}" if app == "theirs" else "nothing"
        config = {**SLEEPER, "env": {"CANARY": canary}, "metadata": {"canary": canary}}
        machine = mesh.ok("POST", f"/apps/{app}/machines", {"config": config, "name": f"{app}-1"})
        more = mesh.ok("POST", f"/apps/{app}/machines", {"config": config, "skip_launch": True, "count": MACHINES})
        known.setdefault("machine_id", []).extend(each["id"] for each in more)
        volume = mesh.ok("POST", f"/apps/{app}/volumes", {"name": canary.replace("-", "_")[:30], "size_gb": 1})
        found = mesh.ok("GET", f"/apps/{app}")
        for name, text in {
            "app_name": app,
            "app_id": found["id"],
            "machine_id": machine["id"],
            "machine_ids": machine["id"],
            "instance_id": machine["instance_id"],
            "current_version": machine["instance_id"],
            "version": machine["instance_id"],
            "volume_id": volume["id"],
            "source_volume_id": volume["id"],
            "id": machine["id"],
        }.items():
            known.setdefault(name, []).append(text)
    worker = mesh.mesh.worker_id("syd", 1)
    known |= {"worker_id": [worker], "candidate_worker_ids": [worker], "required_worker_id": [worker]}
    known |= {"region": ["syd"], "image": ["busybox"], "slug": ["personal"], "org_slug": ["personal"]}
    made = mesh.skerry("tokens", "create", "--org", "personal", "--app", "mine", "--dir", str(mesh.directory), "--json")
    return Region(mesh, json.loads(made.stdout)["token"], known)


def internal_services(address: str) -> list[ServiceDescriptor]:
    """The services that the door of the set has, as it says itself."""
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        names = [
            each.name for each in next(iter(stub.ServerReflectionInfo(iter([asked])))).list_services_response.service
        ]
    return [descriptor_pool.Default().FindServiceByName(name) for name in names if not name.startswith(_NOT_OURS)]


async def fuzz(
    address: str,
    services: Sequence[ServiceDescriptor],
    metadata: Sequence[tuple[str, str]],
    known: Mapping[str, Sequence[str]],
    *,
    seconds: float,
    seed: int,
    forbidden: str = "",
    leave_out: Sequence[str] = (),
) -> Findings:
    """Call the methods of the services in turn; `forbidden` must be in nothing that comes back."""
    requests, strangers = Requests(Random(seed), known), Requests(Random(seed), {})
    methods = in_turn(services, lambda name: name in leave_out)
    findings = Findings()
    ends = time.monotonic() + seconds
    # A connection of its own: that of other tests in this process may wait for a server that was killed.
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:

        async def go_on() -> None:
            while time.monotonic() < ends:
                method = next(methods)
                # An app that is deleted would leave the other methods nothing to be about.
                raw = (strangers if method.name == DELETES_ALL else requests).bytes_for(method.input_type)
                await call(channel, method, raw, metadata, findings, forbidden)

        await asyncio.gather(*(go_on() for _ in range(AT_ONCE)))
    return findings


async def call(
    channel: Any,
    method: MethodDescriptor,
    raw: bytes,
    metadata: Sequence[tuple[str, str]],
    findings: Findings,
    forbidden: str,
) -> None:
    """One call, of raw bytes; what came back is noted."""
    path = path_of(method)
    findings.methods.add(path)
    answered: list[bytes] = []
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path)(raw, timeout=CALL_SECONDS, metadata=metadata)
            async for response in stream:
                answered.append(response)
                if len(answered) == STREAM_RESPONSES:
                    stream.cancel()
                    break
        else:
            answered.append(await channel.unary_unary(path)(raw, timeout=CALL_SECONDS, metadata=metadata))
        status = "OK"
    except grpc.aio.AioRpcError as error:
        status = error.code().name
        answered.append((error.details() or "").encode())
        answered += [
            value.encode() if isinstance(value, str) else value for _, value in error.trailing_metadata() or ()
        ]
        if error.code() in _UNEXPECTED:
            findings.wrong.append(f"{path} {status}: {error.details()} for {raw[:400]!r}")
    if forbidden and any(forbidden.encode() in each for each in answered):
        findings.wrong.append(f"{path} told of another tenant, asked with {raw[:400]!r}")
    findings.statuses[status] += 1


async def assert_books_are_right(mesh: RunningMesh) -> None:
    """What is reserved adds up, every machine has the version that it names, and the log has no gaps."""
    postgres = OwnedPostgres(mesh.mesh.postgres_directory("syd"))
    connection = await asyncpg.connect(postgres.dsn)
    try:
        orphans = await connection.fetch(
            "SELECT id FROM machines m WHERE NOT EXISTS"
            " (SELECT FROM versions v WHERE v.machine_id = m.id AND v.instance_id = m.instance_id)"
        )
        assert orphans == [], "machines without their version"
        transaction = connection.transaction()
        await transaction.start()
        term = await connection.fetchval("SELECT term FROM duties WHERE duty = 'reconcile'")
        mended = await connection.fetch("SELECT repair_reservations('reconcile', $1)", term)
        await transaction.rollback()
        assert mended == [], "reservations that do not add up"
        newest, logged, first = await connection.fetchrow(
            "SELECT (SELECT revision FROM counter), count(*), min(revision) FROM log"
        )
        assert logged == newest - first + 1, "the log has gaps"
    finally:
        await connection.close()


async def assert_it_serves(region: Region) -> None:
    """The processes are those of before, and a new machine starts."""
    mesh = region.mesh
    machine = mesh.ok("POST", "/apps/mine/machines", {"config": SLEEPER})

    async def started() -> bool:
        return str(mesh.ok("GET", f"/apps/mine/machines/{machine['id']}")["state"]) == "started"

    await eventually(started, seconds=20)


async def fuzz_both_doors(region: Region, seconds: float, seed: int) -> None:
    pids = region.mesh.endpoints["pids"]
    before = len(region.log_lines())
    public = await fuzz(
        region.public,
        PUBLIC_SERVICES,
        [("authorization", f"Bearer {region.token}")],
        region.known,
        seconds=seconds,
        seed=seed,
        forbidden=SECRET_OF_OTHERS,
    )
    assert public.wrong[:5] == []
    await assert_it_serves(region)
    secret = region.mesh.mesh.secret
    place = "syd-1"
    internal = await fuzz(
        region.internal,
        internal_services(region.internal),
        [(SECRET_KEY, secret), (CALLER_KEY, f"{place}/cli")],
        region.known,
        seconds=seconds,
        seed=seed + 1,
    )
    assert internal.wrong[:5] == []
    print("public", dict(public.statuses), "internal", dict(internal.statuses))
    assert {path_of(m) for service in PUBLIC_SERVICES for m in service.methods} == public.methods
    assert public.statuses["OK"] > 0
    assert internal.statuses["OK"] > 0
    assert region.log_lines()[before:] == []
    assert region.mesh.endpoints["pids"] == pids
    await assert_books_are_right(region.mesh)
    # Who has the secret of the set may register workers that do not exist, so a machine need not start any more.
    health = await asyncio.to_thread(httpx.get, region.mesh.endpoints["regions"]["syd"]["rest"] + "/healthz")
    assert health.status_code == 200


async def test_random_requests_at_both_doors_break_nothing_and_leak_nothing(region: Region) -> None:
    await fuzz_both_doors(region, SHORT_SECONDS, seed=1)


@pytest.mark.soak
async def test_random_requests_for_long_break_nothing_and_leak_nothing(region: Region) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    await fuzz_both_doors(region, SOAK_SECONDS, seed)
