"""Ports that a mesh keeps: below the ephemeral range, so that no outgoing connection takes one meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path
from random import Random

LOWEST = 15_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL_START = 32_768
_ATTEMPTS = 200


class NoPorts(Exception):
    """No block of free ports was found."""


def choose(count: int, taken: Collection[int], random: Random) -> list[int]:
    """`count` consecutive ports on which nothing listens, none of them in `taken`. Raises NoPorts."""
    highest = ephemeral_start() - count
    lowest = min(LOWEST, max(1024, highest - 1000))
    for _ in range(_ATTEMPTS):
        first = random.randrange(lowest, highest)
        block = list(range(first, first + count))
        if not set(block) & set(taken) and all(is_free(port) for port in block):
            return block
    raise NoPorts(f"no {count} free ports in a row between {lowest} and {highest}: end what listens there")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def ephemeral_start() -> int:
    """First port that the kernel gives to outgoing connections."""
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START
