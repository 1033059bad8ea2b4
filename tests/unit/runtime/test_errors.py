"""Errors: their one mapping to gRPC and HTTP, and back."""

from __future__ import annotations

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import (
    ERRORS,
    DependencyDown,
    Internal,
    InvalidConfig,
    NotFound,
    TooLarge,
    Violation,
    WaitTimeout,
    from_rpc_error,
    from_status,
    http_status,
    to_status,
)

# As the design has it: reason, gRPC code, HTTP status.
TABLE = {
    "invalid_config": ("INVALID_ARGUMENT", 400),
    "unauthorized": ("UNAUTHENTICATED", 401),
    "forbidden": ("PERMISSION_DENIED", 403),
    "not_found": ("NOT_FOUND", 404),
    "method_not_allowed": ("UNIMPLEMENTED", 405),
    "timeout": ("DEADLINE_EXCEEDED", 408),
    "version_mismatch": ("ABORTED", 409),
    "lease_held": ("FAILED_PRECONDITION", 409),
    "wrong_state": ("FAILED_PRECONDITION", 409),
    "conflict": ("ABORTED", 409),
    "plan_moved": ("ABORTED", 409),
    "promotion_refused": ("FAILED_PRECONDITION", 409),
    "seal_refused": ("FAILED_PRECONDITION", 409),
    "revision_too_old": ("OUT_OF_RANGE", 410),
    "still_running": ("FAILED_PRECONDITION", 412),
    "too_large": ("RESOURCE_EXHAUSTED", 413),
    "name_taken": ("ALREADY_EXISTS", 422),
    "insufficient_capacity": ("RESOURCE_EXHAUSTED", 422),
    "idempotency_conflict": ("ALREADY_EXISTS", 422),
    "quota_exceeded": ("RESOURCE_EXHAUSTED", 422),
    "missing_reference": ("FAILED_PRECONDITION", 422),
    "volume_elsewhere": ("FAILED_PRECONDITION", 422),
    "secrets_version": ("FAILED_PRECONDITION", 422),
    "rate_limited": ("RESOURCE_EXHAUSTED", 429),
    "internal": ("INTERNAL", 500),
    "dependency_down": ("UNAVAILABLE", 503),
    "part_unserved": ("UNAVAILABLE", 503),
    "dependency_cycle": ("FAILED_PRECONDITION", 508),
}

text = st.text(st.characters(codec="utf-8"), max_size=40)


def test_every_error_has_the_codes_of_the_table() -> None:
    assert {reason: (error.code.name, error.http) for reason, error in ERRORS.items()} == TABLE


@given(
    kind=st.sampled_from(list(ERRORS.values())),
    message=text,
    violations=st.lists(st.builds(Violation, text, text), max_size=3),
    metadata=st.dictionaries(text, text, max_size=3),
    retry_after=st.none() | st.floats(0, 1e6).map(lambda seconds: round(seconds, 6)),
)
def test_an_error_survives_the_wire(
    kind: type[InvalidConfig],
    message: str,
    violations: list[Violation],
    metadata: dict[str, str],
    retry_after: float | None,
) -> None:
    error = kind(message, violations=violations, metadata=metadata, retry_after=retry_after)
    assert from_status(Status.FromString(to_status(error).SerializeToString())) == error


def test_errors_that_differ_are_not_equal() -> None:
    assert NotFound("a") != NotFound("b")
    assert NotFound("a") != WaitTimeout("a")
    assert NotFound("a", retry_after=1) != NotFound("a")


def test_a_reason_of_somebody_else_falls_back_to_the_code() -> None:
    status = Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="gone")
    status.details.add().Pack(ErrorInfo(reason="forbidden", domain="example.com"))
    assert from_status(status) == NotFound("gone")
    assert type(from_status(Status(code=77, message="?"))) is Internal


def test_the_http_status_follows_the_reason() -> None:
    assert http_status("lease_held") == 409
    assert http_status("unheard_of") == 500


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, DependencyDown, "cannot be reached"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DependencyDown, "did not answer in time"),
        (grpc.StatusCode.CANCELLED, DependencyDown, "broke the call off"),
        (grpc.StatusCode.UNIMPLEMENTED, Internal, "does not know /s/M"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TooLarge, "details"),
        (grpc.StatusCode.UNKNOWN, Internal, "details"),
    ],
)
def test_a_failure_without_details_names_the_service(code: grpc.StatusCode, kind: type[Exception], says: str) -> None:
    failure = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="details")
    error = from_rpc_error(failure, "machine-store", "/s/M")
    assert type(error) is kind
    assert "machine-store" in error.message
    assert says in error.message
    assert error.metadata == {"dependency": "machine-store"}
