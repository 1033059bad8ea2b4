"""Errors as GraphQL has them: always with the HTTP status 200, and a code by which programs tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.runtime.errors import (
    DependencyDown,
    ForbiddenDependency,
    InvalidConfig,
    NotFound,
    PartUnserved,
    SkerryError,
    Unauthenticated,
    WaitTimeout,
)

BAD_REQUEST = "BAD_REQUEST"
"""Code of what is no operation of the schema."""
INTERNAL = "INTERNAL"

CODES: Mapping[type[SkerryError], str] = {
    NotFound: "NOT_FOUND",
    InvalidConfig: "INVALID",
    Unauthenticated: "UNAUTHORIZED",
    DependencyDown: "UNAVAILABLE",
    PartUnserved: "UNAVAILABLE",
    ForbiddenDependency: "DEPENDENCY_CYCLE",
    WaitTimeout: "TIMEOUT",
}
"""The code of an error; of those that are not here it is their reason, in upper case."""


def code_of(error: SkerryError) -> str:
    """The code of an error."""
    return CODES.get(type(error), error.reason.upper())


def shown(message: str, code: str, **more: Any) -> dict[str, Any]:
    """An error of an answer."""
    return {"message": message, "extensions": {"code": code, **more}}


def shown_error(error: SkerryError) -> dict[str, Any]:
    """The same for an error with a meaning."""
    more: dict[str, Any] = {}
    if error.retry_after is not None:
        more["retryAfter"] = error.retry_after
    if error.violations:
        more["fields"] = [{"field": each.field, "why": each.why} for each in error.violations]
    return shown(error.message, code_of(error), **more)


def refused(error: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an operation that was not run."""
    return {"data": None, "errors": [error]}
