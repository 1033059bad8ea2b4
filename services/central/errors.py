"""What the centre refuses, and the codes by which programs tell refusals apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class Refusal(Exception):
    """An answer that is an error: `message` is for people, `code` and `extensions` for programs."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, extensions: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.extensions = dict(extensions or {})


class Invalid(Refusal):
    """An argument is not what it has to be; the message names it."""

    code = "INVALID"


class Unauthorized(Refusal):
    """The token is missing or is not the centre's."""

    code = "UNAUTHORIZED"


class NotAllowed(Refusal):
    """The token reaches what is named, and lacks the right."""

    code = "FORBIDDEN"


class Missing(Refusal):
    """Something that was named does not exist."""

    code = "NOT_FOUND"


class Taken(Refusal):
    """A name that is somebody else's already."""

    code = "NAME_TAKEN"


class TooOld(Refusal):
    """The feed does not reach back to that position, or it is of another feed: take a snapshot."""

    code = "TOO_OLD"


class Cycle(Refusal):
    """A region refused what the centre asked of it, since the question came from there: `chain` says how."""

    code = "DEPENDENCY_CYCLE"


class RegionRefused(Refusal):
    """A region answered something else than was asked for."""

    code = "REGION_REFUSED"


class RegionUnreachable(Refusal):
    """A region that has to be asked does not answer."""

    code = "REGION_UNREACHABLE"


class TakenByRegions(Refusal):
    """What regions do themselves, and only tell the centre."""

    code = "TAKEN_BY_REGIONS"
