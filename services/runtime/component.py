"""What a service is to the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from services.runtime.registry import Registry


class Component(Protocol):
    """One service: it registers its servicers, then works in the background until it is cancelled."""

    name: str
    """The service's name, as edges, logs and health know it: "machine-store", "scheduler", …"""

    def register(self, registry: Registry) -> None:
        """Add the service's servicers to `registry`. Called once, before anything is served."""
        ...

    async def run(self, ready: Callable[[], None]) -> None:
        """Background work until cancelled. Calls `ready()` once the service has caught up and may be asked.

        Raising, or returning before being cancelled, ends the process.
        """
        ...
