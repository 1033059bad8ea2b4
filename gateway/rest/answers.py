"""What REST answers besides the results of calls: errors, and the warning about members that nothing knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gateway.rest.codec import dump
from gateway.rest.events import EventStream
from services.runtime.errors import MethodNotAllowed, SkerryError, Unauthenticated

MOST_WARNING_CHARACTERS = 1000

Headers = list[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """The answer to a request: its HTTP status, its body and the headers beyond those that every answer has.

    `kind` is the content type of its body. What is a `stream` has no other body.
    """

    status: int
    body: bytes
    headers: Headers
    kind: bytes = b"application/json"
    stream: EventStream | None = None


def refusal(error: SkerryError) -> Answer:
    """The answer that `error` is: {"error", "status"}, and "fields" where it is about fields.

    The text names every field, whoever raised the error.
    """
    text = error.message
    unnamed = [f"{v.field} {v.why}".lstrip() for v in error.violations if v.field not in text]
    content: dict[str, object] = {"error": "; ".join([text, *unnamed]), "status": error.reason}
    if error.violations:
        content["fields"] = [{"field": v.field, "why": v.why} for v in error.violations]
    headers: Headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.metadata.get("allow", "").encode()))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return Answer(error.http, dump(content), headers)


def unknown_fields_warning(paths: Sequence[str]) -> tuple[bytes, bytes]:
    """The header that names members of a request that were not known, cut after a thousand characters."""
    named: list[str] = []
    length = 0
    for path in paths:
        shown = "".join(character if " " <= character <= "~" else "?" for character in path)
        shown = shown.replace("\\", "\\\\").replace('"', '\\"')
        length += len(shown) + 2
        if length > MOST_WARNING_CHARACTERS:
            break
        named.append(shown)
    left_out = len(paths) - len(named)
    if left_out:
        named.append(f"and {left_out} more")
    return b"warning", f'299 - "unknown fields: {", ".join(named)}"'.encode()
