"""The OpenAPI document: valid, whole, and equal to the routes and the codec that it is made from."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from openapi_spec_validator import OpenAPIV31SpecValidator
from skerry.machines.v1 import machines_pb2 as api
from skerry.types.v1 import config_pb2, machine_pb2

from gateway.public_services import PUBLIC_SERVICES
from gateway.rest.codec import decode, encode
from gateway.rest.openapi import HEALTH_PATH, document, read_descriptions, write_openapi
from gateway.rest.routes import routes_of
from tests.samples import valid_samples

DOCUMENT = document()
OPERATIONS = [(path, verb, operation) for path, verbs in DOCUMENT["paths"].items() for verb, operation in verbs.items()]


def check(instance: Any, name: str) -> None:
    """Raises jsonschema.ValidationError unless the instance is what the schema of that name says."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(instance)


def test_the_document_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(json.loads(write_openapi())).validate()


def test_every_route_is_an_operation_and_every_operation_a_route() -> None:
    routes = {(route.template, route.verb.lower()) for route in routes_of(*PUBLIC_SERVICES)}
    assert {(path, verb) for path, verb, _ in OPERATIONS} == routes | {(HEALTH_PATH, "get")}


@pytest.mark.parametrize(
    ("path", "verb", "operation"), OPERATIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_operation_says_what_it_does_takes_and_answers(path: str, verb: str, operation: dict[str, Any]) -> None:
    assert operation["operationId"], f"{verb} {path}"
    assert operation["summary"]
    in_path = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", path))
    assert all(each.get("description") for each in operation.get("parameters", ()))
    statuses = set(operation["responses"])
    if path != HEALTH_PATH:
        assert {"400", "401", "403", "404", "429", "500", "503"} <= statuses
    if "requestBody" in operation:
        assert "413" in statuses
        content = operation["requestBody"]["content"]["application/json"]
        if "example" in content:
            check(content["example"], content["schema"]["$ref"].rpartition("/")[2])


def test_every_field_of_the_public_messages_has_its_comment() -> None:
    without = [
        f"{name}.{member}"
        for name, schema in DOCUMENT["components"]["schemas"].items()
        for member, inner in schema.get("properties", {}).items()
        if name != "Error" and "description" not in inner
    ]
    assert without == []
    assert read_descriptions()["skerry.machines.v1.Machines.GetMachine"] == "Get one machine."


@pytest.mark.parametrize("body", valid_samples().values(), ids=valid_samples().keys())
def test_the_samples_are_bodies_that_the_document_allows_and_read_back_as_it_says(body: bytes) -> None:
    check(json.loads(body), "CreateMachineRequest")
    request, _ = decode(api.CreateMachineRequest, body)
    check(json.loads(encode(request.config)), "MachineConfig")


def test_a_machine_is_written_as_the_document_says() -> None:
    check(json.loads(encode(api.Machine())), "Machine")
    whole = api.Machine(
        id="0017a1b2c3d4e5",
        state=machine_pb2.MACHINE_STATE_STARTED,
        created_at=Timestamp(seconds=1),
        events=[machine_pb2.MachineEvent(type="start", timestamp=Timestamp(seconds=1))],
        config=config_pb2.MachineConfig(image="x", services=[config_pb2.MachineService(autostop="off")]),
    )
    check(json.loads(encode(whole)), "Machine")
    with pytest.raises(jsonschema.ValidationError):
        check({"id": "x"}, "Machine")


@pytest.mark.parametrize(
    ("duration", "is_one"),
    [
        ("1m30s", True),
        ("500ms", True),
        (15_000_000_000, True),
        (None, True),
        ("1.5h", True),
        ("soon", False),
        (True, False),
    ],
)
def test_a_duration_is_a_text_or_nanoseconds(duration: Any, is_one: bool) -> None:
    try:
        check({"timeout": duration}, "StopMachineRequest")
        assert is_one
    except jsonschema.ValidationError:
        assert not is_one
