"""The routes of REST, made from the google.api.http annotations of a gRPC service: no route is written by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from urllib.parse import parse_qsl, unquote

from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from skerry.types.v1 import annotations_pb2 as options

from gateway.public_services import path_of
from gateway.rest.codec import decode, dump, invalid
from gateway.rest.forms import is_map, json_name, message_of, rule_of
from gateway.rest.reading import quoted
from gateway.rest.writing import Encode, encoder_of, map_encoder_of
from services.runtime.errors import InvalidConfig, MethodNotAllowed, NotFound, Violation

MOST_QUERY_FIELDS = 200
NO_CONTENT = 204
"""The status of an answer without a body."""
OF_ALL_REGIONS = frozenset({"GetApp", "ListApps", "ListMachines", "ListVolumes", "SimulatePlacements"})
"""Methods whose answers may lack regions."""
ITEMS_AT_ONCE = 200
"""Items of a list that are written before others have their turn."""

_PARAMETER = re.compile(r"\{(\w+)\}").fullmatch
_VERBS = ("get", "put", "post", "delete", "patch")
_BOOLS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}

FIELDS = "fields"
"""The query parameter of lists that chooses members of their items: "id,name,state"."""
_COSTLY = frozenset({"config", "image_ref", "checks", "events"})
"""Members of a machine that a summary lacks."""

Fields = frozenset[str] | None
"""Names of the members that are wanted; None for all."""

Write = Callable[..., Awaitable[bytes]]
"""Makes the body of an answer from a response and, of a list, the wanted `Fields`."""

SetParameter = Callable[[Any, str], None]
"""Puts the text of a query parameter into a request. Raises ValueError, whose text says what it must be."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of the API as REST has it.

    `template` is its path, with parameters as in "/v1/apps/{app_name}"; `parameters` are the fields those set, by the
    position of their segment. `status` is that of a success; `write` makes the body of its answer, empty with 204.
    One that `streams` answers many responses. `items` are the members of what it lists, where its answer is an array;
    `has_machine` says that it may answer one machine, `has_pages` that a list may go on elsewhere.
    """

    verb: str
    template: str
    segments: tuple[str | None, ...]
    parameters: tuple[tuple[int, str], ...]
    rpc: str
    path: str
    request: type[Message]
    response: type[Message]
    takes_body: bool
    status: int
    write: Write
    query: Mapping[str, SetParameter]
    query_maps: Mapping[str, str]
    streams: bool
    items: Fields
    has_machine: bool
    has_pages: bool

    def read(self, segments: Sequence[str], query: bytes, body: bytes) -> tuple[Any, list[str]]:
        """The request of a call to this route, and the paths in its body that are not known.

        `segments` are those of its path, decoded; `query` is undecoded. Raises InvalidConfig.
        """
        request: Any
        if self.takes_body and body:
            request, unknown = decode(self.request, body)
        else:
            request, unknown = self.request(), []
        for position, field in self.parameters:
            setattr(request, field, segments[position])
        if query:
            self._read_query(request, query)
        return request, unknown

    def names(self, segments: Sequence[str]) -> dict[str, str]:
        """What its path sets: the text by the field."""
        return {field: segments[position] for position, field in self.parameters}

    def fields(self, request: Any, query: bytes) -> Fields:
        """Which members of the listed items the query asks for; `request` then asks for no more than that needs.

        Raises InvalidConfig of `fields` for a member that the items do not have.
        """
        if self.items is None or FIELDS.encode() not in query:
            return None
        asked = [text for name, text in parse_qsl(query.decode("latin-1")) if name == FIELDS]
        wanted = frozenset(name.strip() for text in asked for name in text.split(",")) - {""}
        unknown = sorted(wanted - self.items)
        if unknown:
            known = ", ".join(sorted(self.items))
            raise invalid([Violation(FIELDS, f"has {quoted(unknown[0])}, which is none of: {known}")])
        if wanted and not wanted & _COSTLY and "summary" in self.query:
            request.summary = True
        return wanted or None

    def _read_query(self, request: Any, query: bytes) -> None:
        try:
            pairs = parse_qsl(
                query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_QUERY_FIELDS
            )
        except ValueError as error:
            raise InvalidConfig(
                f"the query is not percent-encoded UTF-8 of at most {MOST_QUERY_FIELDS} fields"
            ) from error
        violations: list[Violation] = []
        for name, text in pairs:
            if "\0" in text or "\0" in name:
                violations.append(Violation(name.replace("\0", ""), "must not hold the character NUL"))
                continue
            prefix, dot, key = name.partition(".")
            if dot and prefix in self.query_maps:
                getattr(request, self.query_maps[prefix])[key] = text
            elif text and (set_parameter := self.query.get(name)) is not None:
                try:
                    set_parameter(request, text)
                except ValueError as error:
                    violations.append(Violation(name, str(error)))
        if violations:
            raise invalid(violations)


def routes_of(*services: ServiceDescriptor) -> list[Route]:
    """The routes of every annotated method of `services`."""
    return [
        _route(method, rule)
        for service in services
        for method in service.methods
        if (rule := method.GetOptions().Extensions[annotations_pb2.http]).WhichOneof("pattern")
    ]


class Router:
    """Finds the route of a request: by the number of its segments, and by those that are no parameters."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str | None, ...], dict[str, Route]] = {}
        shapes: dict[int, set[tuple[int, ...]]] = {}
        for route in routes:
            self._routes.setdefault(route.segments, {})[route.verb] = route
            positions = tuple(position for position, _ in route.parameters)
            shapes.setdefault(len(route.segments), set()).add(positions)
        # Fewer parameters first: a path that is written out comes before one that also fits a parameter.
        self._shapes = {length: sorted(found, key=len) for length, found in shapes.items()}

    def find(self, verb: str, raw_path: str) -> tuple[Route, Sequence[str]]:
        """The route, and the decoded segments of the path.

        `raw_path` is percent-encoded, so that an encoded slash does not part segments. Raises NotFound, and
        MethodNotAllowed with the verbs that the path has in its metadata `allow`.
        """
        segments = raw_path[1:].split("/")
        if "%" in raw_path:
            try:
                segments = [unquote(segment, errors="strict") for segment in segments]
            except UnicodeDecodeError:
                segments = []
        for positions in self._shapes.get(len(segments), ()):
            key: list[str | None] = list(segments)
            for position in positions:
                key[position] = None
            by_verb = self._routes.get(tuple(key))
            if by_verb is None or not all(segments[position] for position in positions):
                continue
            route = by_verb.get(verb)
            if route is None:
                allow = ", ".join(sorted(by_verb))
                raise MethodNotAllowed(f"this path has no {verb}; it has: {allow}", metadata={"allow": allow})
            return route, segments
        raise NotFound("there is nothing at this path; the API's paths begin with /v1/apps")


def _route(method: MethodDescriptor, rule: HttpRule) -> Route:
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS or rule.body not in ("", "*"):
        raise TypeError(f'{method.full_name}: only {", ".join(_VERBS)} with body "*" or none are known here')
    template: str = getattr(rule, verb)
    segments: list[str | None] = []
    parameters: list[tuple[int, str]] = []
    for position, segment in enumerate(template[1:].split("/")):
        parameter = _PARAMETER(segment)
        segments.append(None if parameter else segment)
        if parameter:
            parameters.append((position, parameter[1]))
    in_path = {field for _, field in parameters}
    fields = [field for field in method.input_type.fields if field.name not in in_path]
    status = method.GetOptions().Extensions[options.http_status] or 200
    body = method.output_type.fields_by_name[rule.response_body] if rule.response_body else None
    holds = body.message_type if body is not None and not is_map(body) else None
    return Route(
        verb=verb.upper(),
        template=template,
        segments=tuple(segments),
        parameters=tuple(parameters),
        rpc=method.name,
        path=path_of(method),
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        takes_body=rule.body == "*",
        status=status,
        write=_no_body if status == NO_CONTENT else _writer(method, rule.response_body),
        query={json_name(field): setter for field in fields if (setter := _setter(field)) is not None},
        query_maps={json_name(field): field.name for field in fields if _is_string_map(field)},
        streams=method.server_streaming,
        items=(
            frozenset(json_name(field) for field in holds.fields)
            if holds is not None and body is not None and body.is_repeated
            else None
        ),
        has_machine=rule.response_body == "machine",
        has_pages="next_cursor" in method.output_type.fields_by_name,
    )


async def _no_body(*_: Any) -> bytes:
    return b""


def bodies_of(method: MethodDescriptor, response_body: str) -> list[FieldDescriptor]:
    """The fields of a method's response that its answer may be: the one that its annotation names comes last.

    Others that hold messages are answered instead of it when they are set.
    """
    others = [
        field
        for field in method.output_type.fields
        if field.name != response_body and field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    ]
    return [*others, method.output_type.fields_by_name[response_body]]


def _writer(method: MethodDescriptor, response_body: str) -> Write:
    if not response_body:
        return _message_writer(encoder_of(method.output_type), lambda response: response)
    *others, usual = bodies_of(method, response_body)
    write_usual = _field_writer(usual)
    if not others:
        return write_usual
    writers = {field: _field_writer(field) for field in others}

    async def write(response: Any, fields: Fields = None) -> bytes:
        for field, _ in response.ListFields():
            if field in writers:
                return await writers[field](response)
        return await write_usual(response, fields)

    return write


def _field_writer(field: FieldDescriptor) -> Write:
    inner = attrgetter(field.name)
    if is_map(field):
        return _message_writer(map_encoder_of(field), inner)
    encode = encoder_of(message_of(field))
    return _list_writer(encode, inner) if field.is_repeated else _message_writer(encode, inner)


def _message_writer(encode: Encode, inner: Callable[[Any], Any]) -> Write:
    async def write(response: Any, _: Fields = None) -> bytes:
        return dump(encode(inner(response)))

    return write


def _list_writer(encode: Encode, inner: Callable[[Any], Any]) -> Write:
    async def write(response: Any, fields: Fields = None) -> bytes:
        items = inner(response)
        encode_item = encode if fields is None else _some_of(encode, fields)
        pieces: list[bytes] = []
        for start in range(0, len(items), ITEMS_AT_ONCE):
            if start:
                # Others have their turn while a long list is written.
                await asyncio.sleep(0)
            pieces.append(dump([encode_item(item) for item in items[start : start + ITEMS_AT_ONCE]])[1:-1])
        return b"[" + b",".join(pieces) + b"]"

    return write


def _some_of(encode: Encode, fields: frozenset[str]) -> Encode:
    return lambda item: {name: value for name, value in encode(item).items() if name in fields}


def _is_string_map(field: FieldDescriptor) -> bool:
    return is_map(field) and message_of(field).fields_by_name["value"].type == FieldDescriptor.TYPE_STRING


def _setter(field: FieldDescriptor) -> SetParameter | None:
    if rule_of(field) == options.JSON_RULE_SECRET:
        # Addresses are written down in many places.
        return None
    read = _text_reader(field)
    if read is None:
        return None
    name = field.name
    if field.is_repeated:
        return lambda request, text: getattr(request, name).append(read(text))
    return lambda request, text: setattr(request, name, read(text))


def _text_reader(field: FieldDescriptor) -> Callable[[str], Any] | None:
    if field.type == FieldDescriptor.TYPE_STRING:
        return str
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _read_bool
    if field.cpp_type in _INTEGER_BOUNDS:
        lowest, highest = _INTEGER_BOUNDS[field.cpp_type]
        return lambda text: _read_integer(text, lowest, highest)
    return None


_INTEGER_BOUNDS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def _read_bool(text: str) -> bool:
    if text not in _BOOLS:
        raise ValueError("must be true or false")
    return _BOOLS[text]


def _read_integer(text: str, lowest: int, highest: int) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and lowest <= int(text) <= highest):
        raise ValueError(f"must be a whole number of {lowest}..{highest}")
    return int(text)
