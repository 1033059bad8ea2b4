"""The gateway does what its OpenAPI document says: every operation is called with what it allows and what not.

The region is a real one, with its centre, a worker and machines that run. Nothing that is sent may end in a 5xx, in a
status that the operation does not name, or in an answer that is not of the documented form.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.rest.openapi import document
from tests.e2e.meshes import SLEEPER, RunningMesh
from tests.samples import valid_samples

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SHORT_EXAMPLES = 4
"""Examples of each kind for an operation, in the short form."""
SOAK_EXAMPLES = 200
SEED = 20_260_101
CONFIGS: list[dict[str, Any]] = [json.loads(body)["config"] for body in valid_samples().values()]
STREAMS = frozenset({"WatchMachines"})

OPERATIONS = {
    operation["operationId"]: (path, verb)
    for path, verbs in document()["paths"].items()
    for verb, operation in verbs.items()
}
ORDER = sorted(OPERATIONS, key=lambda name: (name.startswith("Delete"), name))
"""What deletes comes last: the others then have something to work on."""


class Tenant:
    """An app of a running region with what belongs to one, made anew where an example has taken it away."""

    def __init__(self, mesh: RunningMesh) -> None:
        endpoints = mesh.endpoints
        self.base = endpoints["regions"]["syd"]["rest"]
        self.headers = {"authorization": f"Bearer {endpoints['token']}"}
        self.schema: Any = schemathesis.openapi.from_dict(copy.deepcopy(document()))
        self._client = httpx.Client(base_url=self.base, headers=self.headers, timeout=30)
        self._ids: dict[str, str] = {}

    def of_path(self, name: str) -> str:
        """What a parameter of a path may stand for."""
        match name:
            case "app_name":
                return self._app()
            case "machine_id":
                return self._machine()
            case "volume_id":
                return self._volume()
            case "release_id":
                return self._release()
            case "slug":
                return "personal"
            case _:
                return "A_NAME"

    def forget_all(self) -> None:
        """What an example may have deleted is made anew."""
        self._ids.clear()

    def _app(self) -> str:
        if "app" not in self._ids or self._client.get(f"/v1/apps/{self._ids['app']}").status_code == 404:
            name = f"fuzz-{os.urandom(4).hex()}"
            self._ok("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
            self._ids = {"app": name}
        return self._ids["app"]

    def _machine(self) -> str:
        app = self._app()
        if "machine" in self._ids:
            machine = self._client.get(f"/v1/apps/{app}/machines/{self._ids['machine']}")
            if machine.status_code == 200 and not machine.json()["state"].startswith("destroy"):
                return self._ids["machine"]
        machine_id: str = self._ok("POST", f"/v1/apps/{app}/machines", {"config": SLEEPER})["id"]
        self._ids["machine"] = machine_id
        return machine_id

    def _volume(self) -> str:
        app = self._app()
        if "volume" not in self._ids:
            self._ids["volume"] = self._ok("POST", f"/v1/apps/{app}/volumes", {"name": "data", "size_gb": 1})["id"]
        return self._ids["volume"]

    def _release(self) -> str:
        app = self._app()
        if "release" not in self._ids:
            body = {"app_name": app, "image": "busybox", "strategy": "rolling", "definition": {}}
            self._ids["release"] = self._ok("POST", "/api/v1/releases", body)["release"]["id"]
        return self._ids["release"]

    def _ok(self, verb: str, path: str, body: Any) -> Any:
        answer = self._client.request(verb, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def tenant() -> Iterator[Tenant]:
    with RunningMesh("--workers", "1") as mesh:
        yield Tenant(mesh)


def make_real(case: Any, tenant: Tenant, config: dict[str, Any]) -> None:
    """Let a case be about things that exist, with a configuration that goes through: to reach what lies behind it."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = tenant.of_path(name)
    if isinstance(case.body, dict) and "config" in case.body:
        kept = {name: value for name, value in case.body.items() if name.startswith("skip_")}
        case.body = {**kept, "config": config}


def make_bearable(case: Any) -> None:
    """Nothing waits for long, and no text that was thought up is run as a command."""
    name = case.operation.definition.raw["operationId"]
    if name == "WaitMachine":
        case.query = {**(case.query or {}), "timeout": "1s"}
    elif isinstance(case.query, dict) and "timeout" in case.query:
        case.query["timeout"] = "1s"
    if name in STREAMS and "from_revision" not in (case.query or {}):
        # Such a stream is refused; what a stream tells is tested elsewhere.
        case.query = {"from_revision": str(1 << 60)}
    body = case.body
    if isinstance(body, dict):
        if name == "ExecMachine" and isinstance(body.get("cmd"), str):
            body.update(cmd="true", timeout=1)
        if isinstance(config := body.get("config"), dict):
            for field in ("processes", "containers"):
                config.pop(field, None)
            config["init"] = {"exec": ["/bin/sleep", "1000"]}
        body.pop("count", None)


def run(tenant: Tenant, name: str, mode: GenerationMode, examples: int) -> None:
    path, verb = OPERATIONS[name]
    operation = tenant.schema[path][verb.upper()]

    @seed(SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans(), config=st.sampled_from(CONFIGS))
    def check(case: Any, is_real: bool, config: dict[str, Any]) -> None:
        if is_real:
            make_real(case, tenant, copy.deepcopy(config))
        make_bearable(case)
        response = case.call(base_url=tenant.base, headers=tenant.headers, timeout=30)
        case.validate_response(response, checks=CHECKS)

    with suppress(Unsatisfiable):
        # There is nothing wrong that could be sent to an operation that takes nothing.
        check()


@pytest.mark.parametrize("name", ORDER)
def test_an_operation_answers_as_the_document_says(tenant: Tenant, name: str) -> None:
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        run(tenant, name, mode, SHORT_EXAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize("name", ORDER)
def test_an_operation_answers_as_the_document_says_for_long(tenant: Tenant, name: str) -> None:
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        run(tenant, name, mode, SOAK_EXAMPLES)


def test_the_document_and_its_page_need_no_token(tenant: Tenant) -> None:
    served = httpx.get(f"{tenant.base}/openapi.json")
    assert (served.status_code, served.json()) == (200, document())
    page = httpx.get(f"{tenant.base}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert httpx.post(f"{tenant.base}/docs").status_code == 405


@pytest.mark.parametrize("name", ORDER)
def test_an_operation_is_refused_without_a_token_before_anything_is_read(tenant: Tenant, name: str) -> None:
    path, verb = OPERATIONS[name]
    answer = httpx.request(verb, tenant.base + path.replace("{", "").replace("}", ""))
    assert answer.status_code == (200 if document()["paths"][path][verb].get("security") == [] else 401)
