"""ETag and If-Match: a machine's version, as HTTP has it."""

from __future__ import annotations

import re
from typing import Any

from gateway.rest.routes import Route
from services.runtime.errors import InvalidConfig, Violation

_TAG = re.compile(r'"([^"]*)"').fullmatch


def etag(response: Any) -> list[tuple[bytes, bytes]]:
    """The header that names the version of the machine that `response` holds; none when it holds none.

    It changes with every update of the machine, not with its state.
    """
    return [(b"etag", b'"%s"' % version.encode())] if (version := response.machine.instance_id) else []


def insist_on_match(route: Route, request: Any, condition: str) -> None:
    """Let `request` be carried out only at the version that the header If-Match names.

    Raises InvalidConfig of `if-match` where that is no tag of a version, is not the `current_version` of the body, or
    the route cannot promise it.
    """
    if route.verb == "GET":
        return
    if "current_version" not in request.DESCRIPTOR.fields_by_name:
        raise _invalid("is only taken by the update of a machine: nothing else is done at a version")
    condition = condition.strip()
    if condition == "*":
        return
    tag = _TAG(condition)
    if tag is None:
        raise _invalid('must be one ETag of the machine, such as "01JABCDEFGHJKMNPQRSTVWXYZ0", in quotes, or *')
    if request.current_version not in ("", tag[1]):
        raise _invalid("must be the same as current_version, where both are given")
    request.current_version = tag[1]


def _invalid(why: str) -> InvalidConfig:
    return InvalidConfig(f"if-match {why}", violations=[Violation("if-match", why)])
