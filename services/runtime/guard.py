"""The dependency guard: refuses calls that close a circle, that the table of edges does not have, or that leave the
region though they must not.

Every call carries its path so far in W3C baggage, `skerry.path=syd-1/gateway>syd-1/config-converter`: elements are
place/service, where the place names a cell. A path from outside is taken as it comes, since it can only refuse.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import NamedTuple, Never
from urllib.parse import unquote

from services.runtime import telemetry
from services.runtime.edges import CENTRAL, CLIENT, GATEWAY, Counts, count_refusal, counts_of, is_allowed
from services.runtime.errors import ForbiddenDependency
from services.runtime.telemetry import log

PATH_MEMBER = "skerry.path"
REGIONAL_MEMBER = "skerry.regional"
"""The member of the baggage that marks a call which must stay in its region."""
MOST_BAGGAGE_CHARACTERS = 4096
MOST_ELEMENTS = 32
"""A path that is longer was not made by services of ours, or is a circle that nobody noticed."""

_REMEMBERED = 1024
_ELEMENT_CHARACTERS = 64
_ELEMENT_ALPHABET = frozenset(string.ascii_letters + string.digits + "-_./:")


class Baggage(NamedTuple):
    """What the guard reads in a baggage header. `others` are its other members, as they came."""

    path: tuple[str, ...]
    regional: bool
    others: tuple[str, ...]


class _Verdict(NamedTuple):
    """What comes of a call: its counts, the baggage to carry on, and why it is refused ("" when it is not)."""

    counts: Counts
    caller: str
    onward: str
    chain: tuple[str, ...]
    refusal: str
    explanation: str


@lru_cache(_REMEMBERED)
def read_baggage(header: str) -> Baggage:
    """The guard's members of a baggage header; of one that is too long, or that nobody can read, nothing is taken."""
    if not header or len(header) > MOST_BAGGAGE_CHARACTERS:
        return Baggage((), False, ())
    path: tuple[str, ...] = ()
    regional = False
    others: list[str] = []
    for member in header.split(","):
        name, _, value = member.strip().partition("=")
        if name.rstrip() == PATH_MEMBER:
            text = unquote(value.partition(";")[0].strip())
            path += tuple(filter(None, map(_printable, text.split(">"))))
        elif name.rstrip() == REGIONAL_MEMBER:
            regional = True
        elif name and member.isascii() and member.isprintable():
            others.append(member.strip())
    return Baggage(path, regional, tuple(others))


@lru_cache(_REMEMBERED)
def marked_regional(header: str) -> str:
    """The baggage header `header`, with the mark that keeps the call in its region."""
    found = read_baggage(header)
    return header if found.regional else _header(found._replace(regional=True))


def path_of(element: str) -> str:
    """The baggage header of a call that begins at `element`."""
    return _header(Baggage((element,), False, ()))


def current_path() -> tuple[str, ...]:
    """The path of what the current task serves, up to and with the service that serves it; empty outside of a call."""
    return read_baggage(telemetry.current_baggage()).path


def current_chain(*further: str) -> str:
    """The current path and what would come next, for people."""
    return _chain((*current_path(), *further))


def stay_in_region(caller: str, callee: str) -> None:
    """To be called before anything leaves the region, with the path's element that leaves and the one it goes to.

    Raises ForbiddenDependency when what the current task serves is marked as regional.
    """
    baggage = telemetry.current_baggage()
    if REGIONAL_MEMBER in baggage and (found := read_baggage(baggage)).regional:
        path = found.path if found.path[-1:] == (caller,) else (*found.path, caller)
        count_refusal(service_of(caller), service_of(callee), "leaves_region")
        _refuse((*path, callee), "this request must not leave its region")


def service_of(element: str) -> str:
    """The service that an element of a path names."""
    return element.rpartition("/")[2]


def _place_of(element: str) -> str:
    return element.rpartition("/")[0]


class Guard:
    """The guard of one service in one place."""

    def __init__(self, place: str, service: str, *, refuses: bool = True) -> None:
        """`place` names the cell ("syd-1"). Without `refuses` it only counts, and lets everything through."""
        self.here = f"{place}/{service}"
        self._place = place
        self._service = service
        self._refuses = refuses
        self._verdicts: dict[tuple[str, str], _Verdict] = {}

    def admit(self, caller: str, baggage: str) -> Counts:
        """Let a call in that `caller` makes: what authenticated itself, "place/service" or "central"; "" for a client.

        Makes the path with this service at its end the current task's. Returns where the call counts. Raises
        ForbiddenDependency, with the whole chain.
        """
        verdict = self._verdict(caller, baggage)
        verdict.counts.calls += 1
        if verdict.refusal and self._refuses:
            self._refuse(verdict)
        telemetry.carry_baggage(verdict.onward)
        return verdict.counts

    def refuse(self, caller: str, baggage: str) -> None:
        """Refuse what `admit` would refuse, with the same error; a call that it would admit is not counted."""
        verdict = self._verdict(caller, baggage)
        if verdict.refusal and self._refuses:
            verdict.counts.calls += 1
            self._refuse(verdict)

    def _refuse(self, verdict: _Verdict) -> Never:
        verdict.counts.errors += 1
        count_refusal(verdict.caller, self._service, verdict.refusal)
        _refuse(verdict.chain, verdict.explanation)

    def _verdict(self, caller: str, baggage: str) -> _Verdict:
        verdict = self._verdicts.get((caller, baggage))
        if verdict is None:
            verdict = self._judge(caller, baggage)
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            self._verdicts[caller, baggage] = verdict
        return verdict

    def _judge(self, caller: str, baggage: str) -> _Verdict:
        found = read_baggage(baggage)
        path = found.path
        if caller and path[-1:] != (caller,):
            # A caller that did not write itself down is on the path all the same.
            path = (*path, caller)
        origin = service_of(caller) if caller else self._origin(path)
        chain = (*path, self.here)
        refusal, explanation = self._objection(origin, path)
        onward = _header(Baggage(chain, found.regional, found.others))
        return _Verdict(counts_of(origin, self._service), origin, onward, chain, refusal, explanation)

    def _origin(self, path: tuple[str, ...]) -> str:
        """Who calls the public API, as the path has it: it can only make things worse for the caller."""
        last = service_of(path[-1]) if path else ""
        return last if last in (GATEWAY, CENTRAL) else CLIENT

    def _objection(self, origin: str, path: tuple[str, ...]) -> tuple[str, str]:
        """What speaks against the call, as a word and for people; empty for nothing."""
        if len(path) > MOST_ELEMENTS:
            return "too_long", f"its path has more than {MOST_ELEMENTS} services"
        if self.here in path:
            return "circle", f"{self.here} would depend on itself"
        gateways = [element for element in path if service_of(element) == GATEWAY]
        if origin == CENTRAL and gateways:
            return "centre_on_request", "a request that a gateway serves must not depend on a region through the centre"
        if self._service == GATEWAY and gateways and gateways != [path[-1]]:
            return "second_hop", "a request goes from one gateway to another once at most"
        if not is_allowed(origin, self._service):
            return "no_such_edge", f"{origin} must not call {self._service}"
        return "", ""


def _header(baggage: Baggage) -> str:
    path = f"{PATH_MEMBER}={'>'.join(baggage.path)}" if baggage.path else ""
    mark = f"{REGIONAL_MEMBER}=1" if baggage.regional else ""
    return ",".join(filter(None, (path, mark, *baggage.others)))


def _refuse(chain: tuple[str, ...], explanation: str) -> Never:
    shown = _chain(chain)
    log.warning("dependency_refused", chain=shown, why=explanation)
    raise ForbiddenDependency(f"forbidden dependency: {shown}: {explanation}", metadata={"chain": shown})


def _chain(elements: tuple[str, ...]) -> str:
    return " > ".join(elements)


def _printable(element: str) -> str:
    """An element that came from outside, so that it can be carried on and shown."""
    return "".join(filter(_ELEMENT_ALPHABET.__contains__, element))[:_ELEMENT_CHARACTERS]
