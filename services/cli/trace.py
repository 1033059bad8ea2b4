"""`skerry trace`: what a request called, from the trace backend; without one, what the logs say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from services.cli import inside
from services.cli.console import AsJson, CommandError, Directory, print_json, reports_errors, say
from services.cli.mesh import Mesh

QUERY_PORT = 16686
"""Where Jaeger's query API listens, on the host that traces are exported to."""
_QUERY_SECONDS = 5.0
_TRACE_ID = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:-[0-9a-f]{16}-[0-9a-f]{2})?")


@dataclass(frozen=True, slots=True)
class Span:
    """One span of a trace; times in ms, `start` from the beginning of the trace. `parent` is "" at the top."""

    id: str
    parent: str
    service: str
    region: str
    name: str
    start: float
    duration: float
    error: str

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "id": self.id,
            "parent": self.parent,
            "service": self.service,
            "region": self.region,
            "name": self.name,
            "start_ms": round(self.start, 3),
            "duration_ms": round(self.duration, 3),
            "error": self.error,
        }


@reports_errors
def trace(
    trace_id: Annotated[
        str, typer.Argument(metavar="ID", help="A trace id, or a whole traceparent as every answer carries one.")
    ],
    jaeger: Annotated[
        str | None, typer.Option(help="Base URL of Jaeger's query API (default: where traces are exported to).")
    ] = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Show what a request called, in which region, how long it took and what failed."""
    found = _TRACE_ID.fullmatch(trace_id.strip().lower())
    if found is None:
        raise CommandError(f"{trace_id[:80]!r} is neither a trace id (32 hex digits) nor a traceparent")
    mesh = inside.mesh_of(directory)
    wanted, base = found[1], jaeger or query_url(mesh.otlp)
    spans = spans_of(_ask(base, wanted)) if base else []
    if spans:
        if as_json:
            print_json({"trace_id": wanted, "source": base, "spans": [span.document() for span in spans]})
        else:
            _print_tree(spans)
        return
    events = events_of(mesh, wanted)
    if not events:
        where = f"{base} does not know it either" if base else "traces are exported only with `skerry up --otlp URL`"
        raise CommandError(f"no log in {mesh.directory} has an event of the trace {wanted}, and {where}")
    if as_json:
        print_json({"trace_id": wanted, "source": "logs", "events": events})
        return
    say("no spans of it: this is what the logs say")
    for event in events:
        told = {key: value for key, value in event.items() if key not in _SHOWN_APART}
        print(f"{event['timestamp']}  {event.get('region', '')}/{event.get('service', '')}  {event['event']}  {told}")


_SHOWN_APART = {"timestamp", "region", "service", "event", "trace_id"}


def query_url(otlp: str | None) -> str | None:
    """Where the traces that are exported to `otlp` can be asked for; None without it."""
    host = urlsplit(otlp).hostname if otlp else None
    return f"http://{host}:{QUERY_PORT}" if host else None


def spans_of(answer: Mapping[str, Any]) -> list[Span]:
    """The spans of an answer of Jaeger's query API, parents before children, both in the order of their starts."""
    spans: dict[str, Span] = {}
    for data in answer.get("data") or ():
        processes = data["processes"]
        begin = min((span["startTime"] for span in data["spans"]), default=0)
        for span in data["spans"]:
            process = processes[span["processID"]]
            tags = _tags(span.get("tags", ()))
            parents = [each["spanID"] for each in span.get("references", ()) if each["refType"] == "CHILD_OF"]
            failed = tags.get("error") in (True, "true")
            spans[span["spanID"]] = Span(
                id=span["spanID"],
                parent=parents[0] if parents else "",
                service=process["serviceName"],
                region=str(_tags(process.get("tags", ())).get("skerry.region", "")),
                name=span["operationName"],
                start=(span["startTime"] - begin) / 1e3,
                duration=span["duration"] / 1e3,
                error=str(tags.get("otel.status_description", "failed")) if failed else "",
            )
    children: dict[str, list[Span]] = {}
    for each in sorted(spans.values(), key=lambda span: span.start):
        children.setdefault(each.parent if each.parent in spans else "", []).append(each)
    ordered: list[Span] = []
    waiting = children.get("", [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += children.get(ordered[-1].id, [])[::-1]
    return ordered


def events_of(mesh: Mesh, trace_id: str) -> list[dict[str, Any]]:
    """What the logs of a mesh say of a trace, oldest first."""
    events = [event for log in sorted(mesh.directory.rglob("*.log")) for event in _events(log, trace_id)]
    return sorted(events, key=lambda event: str(event.get("timestamp", "")))


def _events(log: Path, trace_id: str) -> Iterable[dict[str, Any]]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if trace_id not in line:
                continue
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("trace_id") == trace_id and "event" in event:
                yield event


def _tags(tags: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in tags}


def _ask(base: str, trace_id: str) -> dict[str, Any]:
    """The answer of Jaeger's query API; empty when it does not know the trace or does not answer, which is said."""
    import httpx

    try:
        answer = httpx.get(f"{base.rstrip('/')}/api/traces/{trace_id}", timeout=_QUERY_SECONDS)
        document = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        say(f"{base} does not answer as Jaeger's query API does: {error}")
        return {}
    return document if answer.is_success and isinstance(document, dict) else {}


def _print_tree(spans: list[Span]) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    root = Tree("")
    root.hide_root = True
    branches: dict[str, Tree] = {}
    for span in spans:
        line = Text.assemble(
            (f"{span.region}/" if span.region else "", "dim"),
            (span.service, "bold"),
            f" {span.name} ",
            (f"{span.duration:.2f} ms, {span.start:.2f} ms after the first", "dim"),
            (f"  {span.error}", "red"),
        )
        branches[span.id] = branches.get(span.parent, root).add(line)
    Console().print(root)
