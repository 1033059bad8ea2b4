"""Rules for values that several parts share.

Each adds to the Problems what is wrong, and returns a value that a spec can hold where it returns one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from services.config_converter.part import Problems
from services.runtime.durations import SECOND, parse_go_duration

MIB = 1 << 20
GIB = 1 << 30

LARGEST_COUNT = (1 << 31) - 1
LARGEST_SECONDS = LARGEST_COUNT
LARGEST_MB = 1 << 26
LARGEST_GB = 1 << 16
LARGEST_MODE = 0o7777

T = TypeVar("T")

_SHOWN = 60
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_/-]+(?:\.[A-Za-z0-9_/-]+)*").fullmatch
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch
_HTTP_PATH = re.compile(r"/[!-~\x80-\U0010ffff]*").fullmatch
_HEADER_VALUE = re.compile(r"[\t -~\x80-\U0010ffff]*").fullmatch
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?").fullmatch
_DOMAIN_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?").fullmatch
_LONGEST_HOST_NAME = 253


def shown(value: object) -> str:
    """A user's value for an error message: quoted, on one line, cut when it is long."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= _SHOWN else value[:_SHOWN] + "…", ensure_ascii=False)
    return str(value)


def member(path: str, key: str) -> str:
    """The path of a map's entry: `env.A`, or `env["a b"]` where the key would be hard to read."""
    return f"{path}.{key}" if len(key) <= _SHOWN and _PLAIN_KEY(key) else f"{path}[{shown(key)}]"


def listed(names: Iterable[str], last: str = "or") -> str:
    """Names as one reads them: "tcp, http or udp"."""
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final


def one_of(value: str, table: Mapping[str, T], default: T, field: str, problems: Problems) -> T:
    """What `table` has for `value`; `default` when it is empty."""
    if not value:
        return default
    found = table.get(value)
    if found is None:
        problems.add(field, f"must be {listed(table)}, is {shown(value)}")
        return default
    return found


def bounded(value: int, low: int, high: int, field: str, problems: Problems) -> int:
    """The value when it is low..high, else `low`."""
    if low <= value <= high:
        return value
    problems.add(field, f"must be {low}..{high}, is {value}")
    return low


def port(value: int, field: str, problems: Problems) -> int:
    """A TCP or UDP port."""
    if 1 <= value <= 65535:
        return value
    problems.add(field, f"must be 1..65535, is {value}")
    return 1


def duration(text: str, default: int, target: Duration, field: str, problems: Problems, *, zero: bool = True) -> None:
    """Write a Go duration to `target`; `default` (nanoseconds) when `text` is empty. `zero`: it may be 0."""
    nanoseconds = default
    if text:
        try:
            nanoseconds = _usual(text) if len(text) <= _USUAL_LENGTH else parse_go_duration(text)
        except ValueError as error:
            problems.add(field, str(error))
        else:
            if not nanoseconds and not zero:
                problems.add(field, f"must be longer than 0s, is {shown(text)}")
    seconds, nanos = divmod(nanoseconds, SECOND)
    target.seconds = seconds
    if nanos:
        target.nanos = nanos


# Users write the same few durations again and again.
_USUAL_LENGTH = 16
_usual = lru_cache(maxsize=1024)(parse_go_duration)


def guest_path(path: str, field: str, problems: Problems, *, root: bool = False) -> str:
    """An absolute path inside the machine that does not climb; `root`: it may be "/"."""
    if path[:1] != "/":
        problems.add(field, f'must be an absolute path, beginning with "/", is {shown(path)}' if path else _NO_PATH)
    elif ".." in path and ".." in path.split("/"):
        problems.add(field, f'must not climb with "..", is {shown(path)}')
    elif not root and not path.strip("/."):
        problems.add(field, f"must be a path below the root, is {shown(path)}")
    return path


_NO_PATH = 'is required: an absolute path, beginning with "/"'


def http_path(path: str, default: str, field: str, problems: Problems) -> str:
    """The path of an HTTP request, `default` when empty."""
    if not path:
        return default
    if not _HTTP_PATH(path):
        problems.add(field, f'must begin with "/" and have no spaces or control characters, is {shown(path)}')
    return path


def header_name(name: str, field: str, problems: Problems) -> None:
    """The name of an HTTP header or cookie."""
    if not _TOKEN(name):
        problems.add(field, f"must be a header's name (letters, digits and !#$%&'*+-.^_`|~), is {shown(name)}")


def header_value(value: str, field: str, problems: Problems) -> None:
    """The value of an HTTP header."""
    if not _HEADER_VALUE(value):
        problems.add(field, f"must have no line breaks or control characters, is {shown(value)}")


def host_name(name: str, field: str, problems: Problems) -> None:
    """A host name: labels of letters, digits and inner hyphens."""
    if not _is_name(name.removesuffix("."), _HOST_LABEL):
        problems.add(
            field,
            "must be a host name (labels of 1..63 letters, digits and inner hyphens, joined by dots, "
            f"{_LONGEST_HOST_NAME} characters at most), is {shown(name)}",
        )


def domain_name(name: str, field: str, problems: Problems) -> None:
    """A domain of the DNS: a host name that may have underscores, or "." for the root."""
    if name != "." and not _is_name(name.removesuffix("."), _DOMAIN_LABEL):
        problems.add(
            field,
            "must be a domain (labels of 1..63 letters, digits, underscores and inner hyphens, joined by dots, "
            f"{_LONGEST_HOST_NAME} characters at most), is {shown(name)}",
        )


def _is_name(name: str, label: Callable[[str], re.Match[str] | None]) -> bool:
    return len(name) <= _LONGEST_HOST_NAME and all(map(label, name.split(".")))


def ip(address: str, field: str, problems: Problems) -> None:
    """An IPv4 or IPv6 address."""
    if not is_ip(address):
        problems.add(field, f"must be an IPv4 or IPv6 address, is {shown(address)}")


def is_ip(address: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ip_address(address)
    except ValueError:
        return False
    return True


def variable_name(name: str, field: str, problems: Problems) -> None:
    """The name of an environment variable; NUL is refused for all strings alike, elsewhere."""
    if not name:
        problems.add(field, "must have a name")
    elif "=" in name:
        problems.add(field, f'must have a name without "=", is {shown(name)}')


def command(words: Sequence[str], field: str, problems: Problems) -> None:
    """A command line; empty for none."""
    if words and not words[0]:
        problems.add(f"{field}[0]", "must name a program, is empty")
