"""The errors that services raise and callers see, and their one mapping to gRPC, google.rpc.Status and HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

ERROR_DOMAIN = "skerry"
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong: its path in the request, as the caller wrote it, and why."""

    field: str
    why: str


class SkerryError(Exception):
    """An error with a meaning: `reason` is what programs compare, `message` what people read.

    `retry_after` is in seconds; `metadata` goes to the caller, so it never holds a secret.
    """

    reason: ClassVar[str]
    code: ClassVar[grpc.StatusCode]
    http: ClassVar[int]

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self.message))

    def _key(self) -> tuple[object, ...]:
        return (self.message, self.violations, self.metadata, self.retry_after)


class InvalidConfig(SkerryError):
    reason, code, http = "invalid_config", grpc.StatusCode.INVALID_ARGUMENT, 400


class Unauthenticated(SkerryError):
    reason, code, http = "unauthorized", grpc.StatusCode.UNAUTHENTICATED, 401


class Forbidden(SkerryError):
    reason, code, http = "forbidden", grpc.StatusCode.PERMISSION_DENIED, 403


class NotFound(SkerryError):
    reason, code, http = "not_found", grpc.StatusCode.NOT_FOUND, 404


class MethodNotAllowed(SkerryError):
    reason, code, http = "method_not_allowed", grpc.StatusCode.UNIMPLEMENTED, 405


class WaitTimeout(SkerryError):
    reason, code, http = "timeout", grpc.StatusCode.DEADLINE_EXCEEDED, 408


class VersionMismatch(SkerryError):
    reason, code, http = "version_mismatch", grpc.StatusCode.ABORTED, 409


class LeaseHeld(SkerryError):
    reason, code, http = "lease_held", grpc.StatusCode.FAILED_PRECONDITION, 409


class WrongState(SkerryError):
    reason, code, http = "wrong_state", grpc.StatusCode.FAILED_PRECONDITION, 409


class Conflict(SkerryError):
    """An optimistic write lost against another; the caller reads again and repeats."""

    reason, code, http = "conflict", grpc.StatusCode.ABORTED, 409


class PlanMoved(SkerryError):
    """A configuration was converted under a plan that is no longer the present one.

    `metadata` has the present plan's `epoch`: the caller converts once more, under that epoch or a later one.
    """

    reason, code, http = "plan_moved", grpc.StatusCode.ABORTED, 409


class PromotionRefused(SkerryError):
    """A part is not moved on; the message has every reason."""

    reason, code, http = "promotion_refused", grpc.StatusCode.FAILED_PRECONDITION, 409


class SealRefused(SkerryError):
    """Parts are not sealed, or their seals not lifted; the message has every reason."""

    reason, code, http = "seal_refused", grpc.StatusCode.FAILED_PRECONDITION, 409


class RevisionTooOld(SkerryError):
    """A watch from before the log's beginning: list again, then watch from there."""

    reason, code, http = "revision_too_old", grpc.StatusCode.OUT_OF_RANGE, 410


class StillRunning(SkerryError):
    reason, code, http = "still_running", grpc.StatusCode.FAILED_PRECONDITION, 412


class TooLarge(SkerryError):
    reason, code, http = "too_large", grpc.StatusCode.RESOURCE_EXHAUSTED, 413


class NameTaken(SkerryError):
    reason, code, http = "name_taken", grpc.StatusCode.ALREADY_EXISTS, 422


class NoCapacity(SkerryError):
    reason, code, http = "insufficient_capacity", grpc.StatusCode.RESOURCE_EXHAUSTED, 422


class IdempotencyConflict(SkerryError):
    reason, code, http = "idempotency_conflict", grpc.StatusCode.ALREADY_EXISTS, 422


class QuotaExceeded(SkerryError):
    reason, code, http = "quota_exceeded", grpc.StatusCode.RESOURCE_EXHAUSTED, 422


class MissingReference(SkerryError):
    reason, code, http = "missing_reference", grpc.StatusCode.FAILED_PRECONDITION, 422


class VolumeElsewhere(SkerryError):
    reason, code, http = "volume_elsewhere", grpc.StatusCode.FAILED_PRECONDITION, 422


class SecretsNotHereYet(SkerryError):
    reason, code, http = "secrets_version", grpc.StatusCode.FAILED_PRECONDITION, 422


class RateLimited(SkerryError):
    reason, code, http = "rate_limited", grpc.StatusCode.RESOURCE_EXHAUSTED, 429


class Internal(SkerryError):
    """A fault of ours; the message carries the trace id and nothing of the cause, which is in the log."""

    reason, code, http = "internal", grpc.StatusCode.INTERNAL, 500


class DependencyDown(SkerryError):
    reason, code, http = "dependency_down", grpc.StatusCode.UNAVAILABLE, 503


class PartUnserved(SkerryError):
    reason, code, http = "part_unserved", grpc.StatusCode.UNAVAILABLE, 503


class ForbiddenDependency(SkerryError):
    reason, code, http = "dependency_cycle", grpc.StatusCode.FAILED_PRECONDITION, 508


ERRORS: Mapping[str, type[SkerryError]] = {error.reason: error for error in SkerryError.__subclasses__()}

# What a status means that carries no details: it comes from gRPC itself or from something that is not ours.
_WITHOUT_DETAILS: Mapping[grpc.StatusCode, type[SkerryError]] = {
    grpc.StatusCode.CANCELLED: DependencyDown,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidConfig,
    grpc.StatusCode.DEADLINE_EXCEEDED: DependencyDown,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: Forbidden,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.OUT_OF_RANGE: RevisionTooOld,
    grpc.StatusCode.UNAVAILABLE: DependencyDown,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def http_status(reason: str) -> int:
    """The HTTP status of an ErrorInfo reason; 500 for one that is not ours."""
    error = ERRORS.get(reason)
    return error.http if error else 500


def to_status(error: SkerryError) -> Status:
    """The google.rpc.Status of `error`: ErrorInfo always, BadRequest and RetryInfo where there is something to say."""
    status = Status(code=error.code.value[0], message=error.message)
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata))
    if error.violations:
        fields = [BadRequest.FieldViolation(field=v.field, description=v.why) for v in error.violations]
        status.details.add().Pack(BadRequest(field_violations=fields))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def from_status(status: Status) -> SkerryError:
    """The error that `status` carries. A reason that is not ours falls back to the meaning of the gRPC code."""
    kind = _WITHOUT_DETAILS.get(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), Internal)
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_after: float | None = None
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            info = ErrorInfo.FromString(detail.value)
            kind = ERRORS.get(info.reason, kind) if info.domain == ERROR_DOMAIN else kind
            metadata.update(info.metadata)
        elif detail.Is(BadRequest.DESCRIPTOR):
            request = BadRequest.FromString(detail.value)
            violations.extend(Violation(v.field, v.description) for v in request.field_violations)
        elif detail.Is(RetryInfo.DESCRIPTOR):
            retry_after = RetryInfo.FromString(detail.value).retry_delay.ToNanoseconds() / 1e9
    return kind(status.message, violations=violations, metadata=metadata, retry_after=retry_after)


def from_rpc_error(error: grpc.aio.AioRpcError, callee: str, method: str) -> SkerryError:
    """The error that a call of `method` (a path, "/package.Service/Method") at the service `callee` ended with."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_status(Status.FromString(value))
    code, details = error.code(), error.details() or ""
    kind = _WITHOUT_DETAILS.get(code, Internal)
    if kind is DependencyDown:
        why = {
            grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
            grpc.StatusCode.CANCELLED: "broke the call off",
        }.get(code, "cannot be reached")
        return DependencyDown(f"{callee} {why}; try again", metadata={"dependency": callee})
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Internal(f"{callee} does not know {method}; is it of an older version?", metadata={"dependency": callee})
    return kind(f"{callee}: {details or code.name}", metadata={"dependency": callee})
