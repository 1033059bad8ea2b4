"""The one adapter to the centre: what is asked stands in `graphql/*.graphql`, how the answers read stands here.

A platform with a central API of its own changes these two, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from random import Random
from typing import Any, TypeVar

import httpx
import orjson
from opentelemetry.trace import Span, Status, StatusCode

from services.central_sync.calls import Attempt, Calls, Failure, Refusal
from services.central_sync.settings import CallClass, CentralSyncSettings
from services.runtime import telemetry
from services.runtime.clock import Clock
from services.runtime.edges import CENTRAL, counts_of
from services.runtime.guard import path_of, stay_in_region
from services.runtime.telemetry import current_baggage, current_traceparent, traceparent_of

SERVICE = "central-sync"

CYCLE = "DEPENDENCY_CYCLE"
INVALID = "INVALID"
NAME_TAKEN = "NAME_TAKEN"
NOT_FOUND = "NOT_FOUND"
TOO_OLD = "TOO_OLD"

HttpFactory = Callable[[int], httpx.AsyncClient]
"""Makes the HTTP client, which may have so many connections."""

_CONNECT_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 30.0

# Codes that are no answers: whether another attempt may fare better.
_FAULTS: Mapping[str, bool] = {
    "INTERNAL": True,
    "UNAVAILABLE": True,
    "TIMEOUT": False,
    "BAD_REQUEST": False,
    "UNAUTHORIZED": False,
}
_WORDS: Mapping[type[httpx.TransportError], str] = {
    httpx.ConnectError: "it cannot be reached",
    httpx.ConnectTimeout: "it cannot be reached in time",
    httpx.PoolTimeout: "no connection was free in time",
    httpx.ReadError: "it broke the connection",
    httpx.WriteError: "it broke the connection",
    httpx.RemoteProtocolError: "it broke the connection",
    httpx.ReadTimeout: "it did not answer in time",
    httpx.WriteTimeout: "it did not read in time",
}

Json = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the centre's catalog: the record `key` of `kind` is now `payload`, or gone (None)."""

    number: int
    kind: str
    key: str
    payload: Json | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the centre's feed: which feed, and how many of its changes lie before."""

    feed: str
    number: int

    def __str__(self) -> str:
        return f"{self.feed}:{self.number}"


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in order, and the position after them."""

    changes: Sequence[Change]
    position: Position


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the catalog as of `position`; there is no next page after the last one."""

    records: Sequence[Change]
    position: Position
    next_page: str | None


@dataclass(frozen=True, slots=True)
class App:
    """An app at the centre; `created_at` is RFC 3339."""

    id: str
    internal_numeric_id: int
    name: str
    organization_slug: str
    network: str
    role: str
    home_cell: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the public API, what revokes it, and its key; `expires_at` in unix seconds."""

    token: str = field(repr=False)
    id: str
    expires_at: float | None
    key: Json


@dataclass(frozen=True, slots=True)
class PartAnswer:
    """The centre's answer for a part: a spec (JSON of the part's message), or violations, or why it is not served."""

    part: str
    version: int
    spec: Any
    violations: Sequence[tuple[str, str]]
    not_served: str


@dataclass(frozen=True, slots=True)
class Converter:
    """What a release of the centre converts: part to its versions."""

    release: str
    parts: Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class MirrorEvent:
    """Revision `revision` of the cell's log: the record `key` of `kind` is now `payload`, or gone (None)."""

    revision: int
    kind: str
    key: str
    payload: Json | None


def plain_http(connections: int) -> httpx.AsyncClient:
    """An HTTP client with so many connections at most, and without proxies from the environment."""
    limits = httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEP_ALIVE_SECONDS
    )
    return httpx.AsyncClient(limits=limits, trust_env=False)


class CentralClient:
    """The centre's operations. All raise DependencyDown when it does not answer, Refusal when it answers no, and
    ForbiddenDependency on behalf of a request that must not leave its region."""

    def __init__(
        self,
        settings: CentralSyncSettings,
        *,
        cell: str,
        place: str,
        clock: Clock,
        random: Random,
        http: HttpFactory = plain_http,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`place` names the cell on the path of a call ("syd-1"). `on_change` hears of every change of a breaker."""
        self.calls = {
            name: Calls(name, bounds, cell=cell, clock=clock, random=random, on_change=on_change)
            for name, bounds in settings.calls.items()
        }
        """The calls of each class, with their breakers."""
        # Each class may also have a probe under way.
        self._http = http(sum(bounds.concurrency + 1 for bounds in settings.calls.values()))
        self._urls = settings.urls
        self._asked = 0
        self._authorization = f"Bearer {settings.token.get_secret_value()}"
        self._cell = cell
        self._here = f"{place}/{SERVICE}"
        self._edge = counts_of(SERVICE, CENTRAL)
        self._tracer = telemetry.tracer(SERVICE)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def probes(self) -> Mapping[CallClass, Attempt[Any]]:
        """A cheap call of each class that changes nothing: what tells whether the centre is back."""
        nothing = {"parts": ["metadata"], "config": {}, "facts": {}, "appName": "", "region": ""}
        return {
            CallClass.CONVERSION: self._attempt("ConvertParts", nothing, _parts),
            CallClass.APPS: self._attempt("App", {"name": ""}, _app),
            CallClass.PULL: self._attempt("CatalogSnapshot", {"page": None, "limit": 1}, _page),
            CallClass.MIRROR: self._attempt("MirrorEvents", {"cell": self._cell, "events": []}, _events_reached),
            CallClass.SECRETS: self._attempt("SecretsRecord", {"app": ""}, _secrets),
            CallClass.TOKENS: self._attempt("TokenKeys", {}, _token_keys),
        }

    async def convert_parts(
        self, parts: Sequence[str], config: Json, facts: Json, *, app_name: str, region: str
    ) -> list[PartAnswer]:
        """The answers for `parts` (NAME or NAME@VERSION), as the centre gave them: whatever is there more or less."""
        variables = {"parts": parts, "config": config, "facts": facts, "appName": app_name, "region": region}
        return await self._run(CallClass.CONVERSION, "ConvertParts", variables, _parts, idempotent=True)

    async def converter(self) -> Converter:
        """What the centre converts."""
        return await self._run(CallClass.CONVERSION, "Converter", {}, _converter, idempotent=True)

    async def app(self, name: str) -> App:
        """An app. Raises Refusal (NOT_FOUND)."""
        return await self._run(CallClass.APPS, "App", {"name": name}, _app, idempotent=True)

    async def create_app(
        self, app_id: str, name: str, organization: str, *, region: str, network: str, role: str
    ) -> App:
        """A new app; the same one when the call is repeated. Raises Refusal (NAME_TAKEN, INVALID, NOT_FOUND)."""
        variables = {
            "id": app_id,
            "name": name,
            "organization": organization,
            "region": region,
            "network": network or None,
            "role": role or None,
        }
        return await self._run(CallClass.APPS, "CreateApp", variables, _created, idempotent=True)

    async def delete_app(self, name: str) -> None:
        """Delete an app. Raises Refusal (NOT_FOUND)."""
        await self._run(CallClass.APPS, "DeleteApp", {"name": name}, _deleted, idempotent=False)

    async def update_secrets(self, app_id: str, values: Mapping[str, str], removed: Sequence[str]) -> Json | None:
        """Set secrets of an app and remove others; answers as `secrets`. Raises Refusal (INVALID, NOT_FOUND)."""
        secrets = [{"key": name, "value": value} for name, value in values.items()]
        variables = {"app": app_id, "secrets": secrets, "unset": list(removed)}
        # Repeated, it makes one version more, of the same secrets.
        return await self._run(CallClass.SECRETS, "UpdateSecrets", variables, _updated_secrets, idempotent=True)

    async def secrets(self, app_id: str) -> Json | None:
        """The secrets of an app with their values, as the feed has them; None when it never had any.

        Raises Refusal (NOT_FOUND).
        """
        return await self._run(CallClass.SECRETS, "SecretsRecord", {"app": app_id}, _secrets, idempotent=True)

    async def create_token(self, organization: str, *, app: str, scope: str, expires_at: float | None) -> Token:
        """A token, for one app where `app` is not empty; `expires_at` in unix seconds. Raises Refusal (INVALID,
        NOT_FOUND)."""
        variables = {"organization": organization, "app": app or None, "scope": scope, "expiresAt": expires_at}
        # Repeated, it makes another one, which nobody ever sees.
        return await self._run(CallClass.TOKENS, "CreateToken", variables, _created_token, idempotent=True)

    async def revoke_token(self, revocation_id: str) -> None:
        """Revoke a token. Raises Refusal (INVALID)."""
        await self._run(CallClass.TOKENS, "RevokeToken", {"id": revocation_id}, _revoked_token, idempotent=True)

    async def changes(self, after: Position, limit: int, wait: float) -> Changes:
        """Changes after a position; waits for some, `wait` seconds at most. Raises Refusal (TOO_OLD)."""
        variables = {"after": str(after), "limit": limit, "waitMs": round(wait * 1000)}
        return await self._run(CallClass.PULL, "Changes", variables, _changes, idempotent=True, patience=wait)

    async def snapshot(self, page: str | None, limit: int) -> Page:
        """A page of the catalog, the first one without `page`. Raises Refusal (TOO_OLD)."""
        variables = {"page": page, "limit": limit}
        return await self._run(CallClass.PULL, "CatalogSnapshot", variables, _page, idempotent=True)

    async def mirror_events(self, events: Sequence[MirrorEvent]) -> int:
        """Send revisions of the cell's log up; answers up to which one the centre has all of them."""
        sent = [
            {"revision": event.revision, "kind": event.kind, "key": event.key, "payload": event.payload}
            for event in events
        ]
        variables = {"cell": self._cell, "events": sent}
        return await self._run(CallClass.MIRROR, "MirrorEvents", variables, _events_reached, idempotent=True)

    async def mirror_snapshot(self, revision: int, records: Sequence[MirrorEvent], *, first: bool, last: bool) -> int:
        """Send a page of the cell's whole state as of `revision` up; answers as `mirror_events`."""
        sent = [{"kind": record.kind, "key": record.key, "payload": record.payload} for record in records]
        variables = {"cell": self._cell, "revision": revision, "records": sent, "first": first, "last": last}
        return await self._run(CallClass.MIRROR, "MirrorSnapshot", variables, _snapshot_reached, idempotent=True)

    async def _run(
        self,
        call_class: CallClass,
        operation: str,
        variables: Json,
        parse: Callable[[Json], T],
        *,
        idempotent: bool,
        patience: float = 0.0,
    ) -> T:
        stay_in_region(self._here, CENTRAL)
        attempt = self._attempt(operation, variables, parse)
        return await self.calls[call_class].run(attempt, idempotent=idempotent, patience=patience)

    def _attempt(self, operation: str, variables: Json, parse: Callable[[Json], T]) -> Attempt[T]:
        async def attempt(seconds: float) -> T:
            data = await self._ask(operation, variables, seconds)
            try:
                return parse(data)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise Failure(f"it answers {operation} in a form that is not known here", repeat=False) from error

        return attempt

    async def _ask(self, operation: str, variables: Json, seconds: float) -> Json:
        span = self._tracer.call(f"graphql {operation}", {"peer.service": CENTRAL, "graphql.operation.name": operation})
        code = StatusCode.ERROR
        self._edge.calls += 1
        try:
            data = await self._post(operation, variables, seconds, span)
            code = StatusCode.OK
            return data
        except Refusal as error:
            if span:
                span.set_attribute("skerry.code", error.code)
            raise
        except Failure:
            self._edge.errors += 1
            raise
        finally:
            if span:
                span.set_status(Status(code))
                span.end()

    async def _post(self, operation: str, variables: Json, seconds: float, span: Span | None) -> Json:
        body = {"query": DOCUMENTS[operation], "operationName": operation, "variables": variables}
        headers = {"authorization": self._authorization, "content-type": "application/json"}
        if traceparent := traceparent_of(span) if span else current_traceparent():
            headers["traceparent"] = traceparent
        # What nobody asked for, such as the pull, begins its path here.
        headers["baggage"] = current_baggage() or path_of(self._here)
        asked = self._asked
        try:
            response = await self._http.post(
                self._urls[asked % len(self._urls)],
                content=orjson.dumps(body),
                headers=headers,
                timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
            )
        except httpx.TransportError as error:
            why = next((words for kind, words in _WORDS.items() if isinstance(error, kind)), "the call failed")
            self._turn_away_from(asked)
            # One that refuses connections does so again at once: only another instance may fare better.
            refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            timed_out = isinstance(error, httpx.TimeoutException)
            raise Failure(why, repeat=len(self._urls) > 1 if refused else not timed_out) from error
        if response.status_code != httpx.codes.OK:
            self._turn_away_from(asked)
            raise Failure(f"it answers with the HTTP status {response.status_code}", repeat=response.is_server_error)
        return _data(response.content)

    def _turn_away_from(self, asked: int) -> None:
        if self._asked == asked:
            self._asked += 1


def _data(content: bytes) -> Json:
    """The data of a GraphQL response. Raises Refusal and Failure."""
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Failure("its answer is not GraphQL", repeat=False)
    if errors := document.get("errors"):
        raise _error(errors)
    data = document.get("data")
    if not isinstance(data, dict):
        raise Failure("its answer holds neither data nor errors", repeat=False)
    return data


def _error(errors: Any) -> Exception:
    try:
        first = errors[0]
        extensions = dict(first.get("extensions") or {})
        code, message = str(extensions.pop("code", "INTERNAL")), str(first["message"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Failure("its answer is an error in a form that is not known here", repeat=False)
    if code in _FAULTS:
        return Failure(f"{code}: {message}", repeat=_FAULTS[code])
    return Refusal(code, message, extensions)


def _parts(data: Json) -> list[PartAnswer]:
    return [
        PartAnswer(
            part=str(answer["part"]),
            version=int(answer["version"]),
            spec=answer["spec"],
            violations=[(str(wrong["field"]), str(wrong["why"])) for wrong in answer["violations"]],
            not_served=answer["notServed"] or "",
        )
        for answer in data["convertParts"]
    ]


def _converter(data: Json) -> Converter:
    found = data["converter"]
    parts = {str(part["part"]): [int(version) for version in part["versions"]] for part in found["parts"]}
    return Converter(str(found["release"]), parts)


def _app(data: Json) -> App:
    return _an_app(data["app"])


def _created(data: Json) -> App:
    return _an_app(data["createApp"]["app"])


def _an_app(found: Json) -> App:
    return App(
        id=str(found["id"]),
        internal_numeric_id=int(found["internalNumericId"]),
        name=str(found["name"]),
        organization_slug=str(found["organization"]["slug"]),
        network=str(found["network"]),
        role=str(found["role"]["id"]),
        home_cell=str(found["homeCell"]),
        created_at=str(found["createdAt"]),
    )


def _deleted(data: Json) -> None:
    data["deleteApp"]["organization"]


def _updated_secrets(data: Json) -> Json | None:
    return _secrets({"secretsRecord": data["updateSecrets"]})


def _secrets(data: Json) -> Json | None:
    record = data["secretsRecord"]["record"]
    return None if record is None else dict(record)


def _created_token(data: Json) -> Token:
    found, key = data["createToken"], data["createToken"]["key"]
    return Token(
        token=str(found["token"]),
        id=str(found["id"]),
        expires_at=None if found["expiresAt"] is None else float(found["expiresAt"]),
        key={"id": key["id"], "public_key": key["publicKey"], "created_at": key["createdAt"]},
    )


def _revoked_token(data: Json) -> None:
    data["revokeToken"]["id"]


def _token_keys(data: Json) -> None:
    data["tokenKeys"]


def _changes(data: Json) -> Changes:
    found = data["changes"]
    return Changes([_change(change) for change in found["changes"]], _position(found["position"]))


def _page(data: Json) -> Page:
    found = data["catalogSnapshot"]
    return Page([_change(record) for record in found["records"]], _position(found["position"]), found["nextPage"])


def _change(found: Json) -> Change:
    payload = None if found["deleted"] else dict(found["payload"])
    return Change(_position(found["position"]).number, str(found["kind"]), str(found["key"]), payload)


def _position(text: str) -> Position:
    feed, _, number = text.rpartition(":")
    return Position(feed, int(number))


def _events_reached(data: Json) -> int:
    return int(data["mirrorEvents"]["revision"])


def _snapshot_reached(data: Json) -> int:
    return int(data["mirrorSnapshot"]["revision"])


def _load() -> dict[str, str]:
    folder = resources.files(__package__) / "graphql"
    return {
        file.name.removesuffix(".graphql"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".graphql")
    }


DOCUMENTS: Mapping[str, str] = _load()
"""What is asked of the centre, by the operation's name."""
