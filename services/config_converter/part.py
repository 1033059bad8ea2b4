"""What a part of the conversion is: a pure function of the configuration and of facts, with the fields that it owns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message
from skerry.types.v1.config_pb2 import MachineConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """What an organization may give one machine; None is no bound."""

    cpus: int | None = None
    memory_mb: int | None = None
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the region knows and a conversion may depend on. Parts work with none of it."""

    image_aliases: Mapping[str, str] = field(default_factory=dict)
    """Image reference as the user writes it to the reference that it stands for."""
    image_digests: Mapping[str, str] = field(default_factory=dict)
    """registry/repository:tag to digest."""
    limits: Limits = Limits()
    volume_locations: Mapping[str, str] | None = None
    """Volume id to the id of its worker; None when not known."""
    secret_names: frozenset[str] | None = None
    """Names of the app's secrets; None when not known."""


NO_FACTS = Facts()


class Problems:
    """Collects what is wrong, from one place of the configuration downwards. The first reason for a field stays.

    `found` maps the path of a field to why it is wrong. It holds MOST fields, and `left_out` of the root counts the
    others, so that no request makes an answer that is larger than itself.
    """

    MOST = 100

    __slots__ = ("_place", "_root", "found", "left_out")

    def __init__(self, place: str = "", root: Problems | None = None) -> None:
        self._place = place
        self._root = root
        self.found: dict[str, str] = {} if root is None else root.found
        self.left_out = 0

    def below(self, field: str) -> Problems:
        """Collects in the same place, under paths that begin with `field`."""
        return Problems(f"{self._place}.{field}" if self._place else field, self._root or self)

    def add(self, field: str, why: str) -> None:
        """`field` is a path from here; empty for the place itself."""
        if len(self.found) < self.MOST:
            path = f"{self._place}.{field}" if self._place and field else self._place or field
            self.found.setdefault(path, why)
        else:
            (self._root or self).left_out += 1


Convert = Callable[[MachineConfig, Facts, Problems], Message]

FactsUsed = Callable[[MachineConfig, Facts], Iterator[tuple[str, str]]]


def no_facts(_config: MachineConfig, _facts: Facts) -> Iterator[tuple[str, str]]:
    """What a part uses that depends on the configuration alone."""
    return iter(())


# Compared by identity: there is one object a part.
@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One aspect of the configuration, with every version of its converter that can be served.

    A converter returns the part's message of MachineSpec and adds what is wrong to the Problems; then what it returned
    means nothing. It may return the same message for several configurations, so callers copy it and never change it.
    It looks at nothing but the fields in `owns` and `reads`, which are paths of MachineConfig (of two owners the one
    with the longer path wins), and the facts that `facts_used` gives as names with values.
    """

    name: str
    owns: tuple[str, ...]
    converters: Mapping[int, Convert]
    reads: tuple[str, ...] = ()
    facts_used: FactsUsed = no_facts

    @property
    def version(self) -> int:
        """The newest version."""
        return max(self.converters)

    @property
    def convert(self) -> Convert:
        """The newest version's converter."""
        return self.converters[self.version]
