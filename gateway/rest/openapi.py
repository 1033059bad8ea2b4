"""The OpenAPI 3.1 document of the REST API, made from the same descriptors and annotations as its routes."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from gateway.public_services import PUBLIC_SERVICES, path_of
from gateway.rest.codec import dump
from gateway.rest.forms import is_map, json_name, message_of
from gateway.rest.routes import FIELDS, NO_CONTENT, OF_ALL_REGIONS, Route, bodies_of, routes_of
from gateway.rest.schemas import Schema, Schemas
from services.runtime.errors import ERRORS

OPENAPI_PATH = "/openapi.json"
PAGE_PATH = "/docs"
HEALTH_PATH = "/healthz"

_INTERNAL_REASONS = frozenset({"plan_moved", "promotion_refused", "seal_refused"})
"""Reasons of errors that never leave the region's own services."""

_STATUS_TEXTS: Mapping[int, str] = {
    400: "The request is malformed, or a value of it is not what its field takes: `fields` names each.",
    401: "The token is missing, or not known here.",
    403: "The token reaches what was asked about, but may not do this with it.",
    404: "There is no such thing, or the token does not reach its app.",
    405: "The path has other methods: the header `allow` names them.",
    408: "What was waited for did not come within the time, or the body did not.",
    409: "It does not go with the present state: another version, somebody else's lease, or a state that forbids it.",
    410: "The log does not reach back that far: read the state, and watch from there.",
    412: "The machine runs: stop it first, or use force.",
    413: "The body is too large.",
    422: "It is valid, but cannot be carried out: a name in use, no room, a quota, something that it names is missing.",
    429: "Too many requests: come again after `retry-after` seconds.",
    500: "A fault of the server; the text has the trace id under which its log has the cause.",
    503: "Something that is needed is down: the text names it. Come again after `retry-after` seconds.",
    508: "A dependency that is forbidden would have been used: the text has the chain.",
}
_EVERYWHERE = (400, 401, 403, 404, 429, 500, 503, 508)
_WITH_BODY = (408, 413)
_ON_CHANGES = (409, 422)
_MORE: Mapping[str, tuple[int, ...]] = {
    "WaitMachine": (408,),
    "WatchMachines": (410,),
    "DeleteMachine": (412,),
    "ListSecrets": (422,),
    "GetSecret": (422,),
    "ListProcesses": (409,),
}
"""Further statuses of methods, by name."""

_ANSWERED_TEXT: Mapping[str, str] = {
    "fly-request-id": "Id of the request: that of the client, if it sent one.",
    "traceparent": "W3C trace context of the request.",
}
_RETRY_AFTER: Schema = {
    "description": "Seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1},
}
_QUERY_OF_CHANGES: Mapping[str, frozenset[str] | None] = {
    "CreateMachine": frozenset({"dry_run", "count"}),
    "UpdateMachine": frozenset({"dry_run"}),
    "RestartMachine": None,
    "AcquireMachineLease": frozenset({"ttl"}),
}
"""Fields of requests with a body that clients send in the query, by method; None for all. Others may, too."""
_KEYED = frozenset({"CreateMachine", "CreateVolume", "CreateSnapshot"})
"""Methods that take an idempotency key."""
_LEASED = frozenset(
    {
        "UpdateMachine", "DeleteMachine", "StartMachine", "StopMachine", "RestartMachine", "SuspendMachine",
        "SignalMachine", "CordonMachine", "UncordonMachine", "AcquireMachineLease", "ReleaseMachineLease",
        "SetMachineMetadata", "DeleteMachineMetadata",
    }
)  # fmt: skip
"""Methods that need the nonce of a lease, while one is held."""

_CONFIG: Schema = {
    "image": "docker.io/library/nginx:latest",
    "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
    "services": [{"protocol": "tcp", "internal_port": 80, "ports": [{"port": 443, "handlers": ["tls", "http"]}]}],
}
_EXAMPLES: Mapping[str, Schema] = {
    "CreateApp": {"name": "my-app", "org_slug": "personal"},
    "CreateMachine": {"name": "web-1", "config": _CONFIG},
    "UpdateMachine": {"config": {**_CONFIG, "env": {"LOG_LEVEL": "debug"}}},
    "StopMachine": {"signal": "SIGTERM", "timeout": "10s"},
    "RestartMachine": {"timeout": "10s"},
    "SignalMachine": {"signal": "SIGHUP"},
    "ExecMachine": {"cmd": "uname -a", "timeout": 10},
    "AcquireMachineLease": {"ttl": 120, "description": "deploying"},
    "SetMachineMetadata": {"value": "blue"},
    "CreateVolume": {"name": "data", "size_gb": 10},
    "UpdateVolume": {"snapshot_retention": 7},
    "ExtendVolume": {"size_gb": 20},
    "UpdateSecrets": {"values": {"DATABASE_URL": "postgres://…", "OLD": None}},
    "SetSecret": {"value": "…"},
    "SimulatePlacements": {"compute": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}, "region": "any", "count": 3},
    "CreateRelease": {"app_name": "my-app", "image": "docker.io/library/nginx:latest", "strategy": "rolling"},
    "UpdateRelease": {"status": "complete"},
}
"""Bodies, by method."""
_PATH_EXAMPLES: Mapping[str, str] = {
    "app_name": "my-app",
    "machine_id": "0017a1b2c3d4e5",
    "volume_id": "vol_0017a1b2c3d4e5",
    "slug": "personal",
}

_INTRODUCTION = """\
The public API of a region: apps, machines, volumes, secrets. Any gateway of any region answers any request.

* `null`, `""`, `[]` and `{}` in a request mean "not set"; a field that is not set is left out of answers, unless it is
  listed as required.
* Members of a request that are not known are no error: the answer's header `warning` names them.
* Every field of a body that is a string, a number or a boolean is taken from the query, too.
* Durations are Go durations (`1m30s`) or integers of nanoseconds.
* Errors have one form, and `status` is what programs compare. A version that is not the present one is 409
  `version_mismatch`, also where it came as `if-match`.
* Lists that are arrays take `fields=id,name`: members of their items.
"""


def write_openapi() -> bytes:
    """The document as JSON. Made when it is asked for: it costs some milliseconds, and most processes never are."""
    return dump(document())


@cache
def document() -> Schema:
    """The OpenAPI document of the public services."""
    descriptions = read_descriptions()
    schemas = Schemas(lambda name: _without_author(descriptions.get(name, "")))
    methods = {path_of(method): method for service in PUBLIC_SERVICES for method in service.methods}
    paths: dict[str, Schema] = {}
    for route in routes_of(*PUBLIC_SERVICES):
        operation = _operation(route, methods[route.path], schemas)
        paths.setdefault(route.template, {})[route.verb.lower()] = operation
    paths[HEALTH_PATH] = {"get": _health()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Skerry machines API",
            "version": importlib.metadata.version("skerry"),
            "description": _INTRODUCTION,
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"flyv1": []}],
        "tags": [
            {"name": service.name, "description": descriptions.get(service.full_name, "")}
            for service in PUBLIC_SERVICES
            if any(route.path.startswith(f"/{service.full_name}/") for route in routes_of(service))
        ],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**dict(sorted(schemas.components.items())), "Error": _error()},
            "responses": {_response_name(status): _refusal(status) for status in _STATUS_TEXTS},
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _ANSWERED_TEXT.items()
            },
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`authorization: Bearer TOKEN`"},
                "flyv1": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "authorization",
                    "description": "`authorization: FlyV1 TOKEN`, the same from other clients",
                },
            },
        },
    }


def read_descriptions() -> Mapping[str, str]:
    """The comments of the public protos by full name, as they were written when the stubs were made."""
    text = resources.files("skerry.machines.v1").joinpath("descriptions.json").read_text(encoding="utf-8")
    comments: dict[str, str] = json.loads(text)
    return comments


def _operation(route: Route, method: MethodDescriptor, schemas: Schemas) -> Schema:
    in_path = frozenset(field for _, field in route.parameters)
    text = schemas.described({}, method.full_name).get("description", method.name)
    operation: Schema = {
        "operationId": route.rpc,
        "summary": text.partition(". ")[0].rstrip("."),
        "description": text,
        "tags": [method.containing_service.name],
        "parameters": _parameters(route, method, schemas),
        "responses": {
            str(route.status): _success(route, method, schemas),
            **{
                str(status): {"$ref": f"#/components/responses/{_response_name(status)}"} for status in _statuses(route)
            },
        },
    }
    if route.takes_body:
        content: Schema = {"schema": schemas.taken(method.input_type, in_path)}
        if (example := _EXAMPLES.get(route.rpc)) is not None:
            content["example"] = example
        operation["requestBody"] = {"content": {"application/json": content}}
    return operation


def _parameters(route: Route, method: MethodDescriptor, schemas: Schemas) -> list[Schema]:
    fields = method.input_type.fields_by_name
    parameters: list[Schema] = []
    for _, name in route.parameters:
        parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        if (example := _PATH_EXAMPLES.get(name)) is not None:
            parameter["example"] = example
        parameters.append(schemas.described(parameter, fields[name].full_name))
    chosen = _QUERY_OF_CHANGES.get(route.rpc, frozenset()) if route.takes_body else None
    for field in method.input_type.fields:
        name = json_name(field)
        if name in route.query and (chosen is None or name in chosen):
            parameters.append(_query_parameter(field, schemas))
    parameters += [_keys_parameter(fields[name], schemas) for name in route.query_maps.values() if not route.takes_body]
    if route.items is not None:
        parameters.append(
            {
                "name": FIELDS,
                "in": "query",
                "style": "form",
                "explode": False,
                "description": "Members of the items that are wanted; all when not given.",
                "schema": {"type": "array", "items": {"type": "string", "enum": sorted(route.items)}},
            }
        )
    return [*parameters, *_headers(route)]


def _query_parameter(field: FieldDescriptor, schemas: Schemas) -> Schema:
    schema = schemas.taken_field(field)
    if schema.get("anyOf"):
        # What stands in a query is text.
        schema = {"type": "string"}
    return schemas.described({"name": json_name(field), "in": "query", "schema": schema}, field.full_name)


def _keys_parameter(field: FieldDescriptor, schemas: Schemas) -> Schema:
    name = json_name(field)
    parameter: Schema = {"name": f"{name}.KEY", "in": "query", "schema": {"type": "string"}}
    described = schemas.described(parameter, field.full_name)
    return {**described, "description": f"{described.get('description', '')} As `{name}.KEY=VALUE`, for each key."}


def _headers(route: Route) -> list[Schema]:
    headers: list[tuple[str, str]] = []
    if route.rpc in _KEYED:
        headers.append(("idempotency-key", "A repeat with the same key, within 24 h, makes nothing new."))
    if route.rpc in _LEASED:
        headers.append(("fly-machine-lease-nonce", "Nonce of the lease that is held on the machine."))
    if "current_version" in route.request.DESCRIPTOR.fields_by_name:
        headers.append(
            (
                "if-match",
                "ETag of the version that must be the present one, or *; 409 `version_mismatch` when it is not.",
            )
        )
    if route.streams:
        headers.append(("last-event-id", "Id of the last event that was seen; comes before `from_revision`."))
    return [{"name": name, "in": "header", "description": text, "schema": {"type": "string"}} for name, text in headers]


def _statuses(route: Route) -> list[int]:
    statuses = {*_EVERYWHERE, *_MORE.get(route.rpc, ())}
    if route.verb != "GET":
        statuses.update(_ON_CHANGES)
    if route.verb in ("POST", "PUT", "PATCH"):
        statuses.update(_WITH_BODY)
    return sorted(statuses)


_EVENT: Schema = {
    "type": "object",
    "description": "One event.",
    "properties": {
        "event": {"type": "string", "enum": ["machine", "caught_up", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
}


def _success(route: Route, method: MethodDescriptor, schemas: Schemas) -> Schema:
    text = schemas.described({}, method.output_type.full_name).get("description", "")
    success: Schema = {"description": text or "Done.", "headers": _answered_headers(route)}
    if route.status == NO_CONTENT:
        return success
    if route.streams:
        text = (
            "Server-sent events: `machine` (a Machine), `caught_up` and, before a stream that was cut ends, `error` "
            "(an Error). The id of an event is the revision after which to go on. A comment comes every 15 s at least."
        )
        return {**success, "description": text, "content": {"text/event-stream": {"schema": _EVENT}}}
    schema = _answer(method, schemas)
    if route.items is not None:
        # With `fields`, what is always there otherwise is not.
        some = schemas.answered_in_part(message_of(_usual_body(method)))
        schema = {"anyOf": [schema, {"type": "array", "items": some}]}
    success["content"] = {"application/json": {"schema": schema}}
    return success


def _usual_body(method: MethodDescriptor) -> FieldDescriptor:
    return bodies_of(method, method.GetOptions().Extensions[annotations_pb2.http].response_body)[-1]


def _answer(method: MethodDescriptor, schemas: Schemas) -> Schema:
    response_body = method.GetOptions().Extensions[annotations_pb2.http].response_body
    if not response_body:
        return schemas.answered(method.output_type)
    *others, usual = bodies_of(method, response_body)
    if not others:
        return _body(usual, schemas)
    return {"anyOf": [_body(usual, schemas), *(schemas.described(_body(f, schemas), f.full_name) for f in others)]}


def _body(field: FieldDescriptor, schemas: Schemas) -> Schema:
    if is_map(field) or field.is_repeated:
        return schemas.answered_field(field)
    return schemas.answered(message_of(field))


def _answered_headers(route: Route) -> Schema:
    headers: Schema = {name: {"$ref": f"#/components/headers/{name}"} for name in _ANSWERED_TEXT}
    if route.has_machine:
        text = "The machine's version; not in answers about several machines or none."
        headers["etag"] = {"description": text, "schema": {"type": "string"}}
    if route.has_pages:
        text = "What to send as `cursor` for the next page; there is none on the last one."
        headers["skerry-next-cursor"] = {"description": text, "schema": {"type": "string"}}
    if route.rpc in OF_ALL_REGIONS:
        text = "Regions that did not answer, by their codes: the answer lacks what is there."
        headers["skerry-unreachable-regions"] = {"description": text, "schema": {"type": "string"}}
    return headers


def _error() -> Schema:
    return {
        "type": "object",
        "description": "What is wrong.",
        "required": ["error", "status"],
        "properties": {
            "error": {"type": "string", "description": "What is wrong, in a sentence, and what to do."},
            "status": {"type": "string", "description": "The reason, for programs.", "enum": _reasons(None)},
            "fields": {
                "type": "array",
                "description": "The fields that are wrong.",
                "items": {
                    "type": "object",
                    "required": ["field", "why"],
                    "properties": {
                        "field": {"type": "string", "description": "Path of the field, as the request has it."},
                        "why": {"type": "string"},
                    },
                },
            },
        },
    }


def _refusal(status: int) -> Schema:
    reasons = _reasons(status)
    headers: Schema = {name: {"$ref": f"#/components/headers/{name}"} for name in _ANSWERED_TEXT}
    if status in (429, 503):
        headers["retry-after"] = _RETRY_AFTER
    schema = {"$ref": "#/components/schemas/Error", "properties": {"status": {"enum": reasons}}}
    return {
        "description": f"{_STATUS_TEXTS[status]} `status`: {', '.join(f'`{reason}`' for reason in reasons)}.",
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    }


def _reasons(status: int | None) -> list[str]:
    return [
        reason for reason, error in ERRORS.items() if reason not in _INTERNAL_REASONS and status in (None, error.http)
    ]


def _response_name(status: int) -> str:
    return f"Refused{status}"


def _refused(status: int) -> Schema:
    return {"$ref": f"#/components/responses/{_response_name(status)}"}


def _health() -> Schema:
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"const": "serving"}}}
    return {
        "operationId": "Health",
        "summary": "Whether the gateway has caught up with its region and serves",
        "tags": ["Health"],
        "security": [],
        "responses": {
            "200": {"description": "It serves.", "content": {"application/json": {"schema": schema}}},
            "503": _refused(503),
        },
    }


def _without_author(text: str) -> str:
    """A comment without the words that say which side sets the field, which a schema shows anyway."""
    return text.replace(" Set by the user.", "").replace(" Set by the gateway.", "")
