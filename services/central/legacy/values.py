"""Reading values out of a configuration's plain dicts, and the rules that several parts share.

`wrong` is a dict of field to reason; the first reason for a field stays. A reader that finds something wrong notes it
and returns a default, so that one answer names everything that is wrong.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.runtime.durations import SECOND, parse_go_duration

Json = dict[str, Any]
Wrong = dict[str, str]

MB = 1024 * 1024
GB = 1024 * MB
MAX_INT = 2**31 - 1
MAX_MB = 2**26
MAX_GB = 2**16
MAX_FIELDS = 100

_EMPTY: tuple[Any, ...] = (None, "", [], {})
_KEY = re.compile(r"^[\w/-]+(\.[\w/-]+)*\Z", re.ASCII)
_HTTP_TOKEN = re.compile(r"^[\w!#$%&'*+.^`|~-]+\Z", re.ASCII)


def note(wrong: Wrong, field: str, why: str) -> None:
    """Note what is wrong with a field."""
    if len(wrong) < MAX_FIELDS:
        wrong.setdefault(field, why)


def entry(path: str, key: str) -> str:
    """The path of a map's entry."""
    return f"{path}.{key}" if len(key) <= 60 and _KEY.match(key) else f"{path}[{quoted(key)}]"


def quoted(value: Any) -> str:
    """A value for a message: short, on one line."""
    text = value if isinstance(value, str) else str(value)
    text = text if len(text) <= 60 else text[:60] + "…"
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text


def either(choices: Iterable[str]) -> str:
    """Choices for a message."""
    return ", ".join(choices)


def is_set(holder: Mapping[str, Any], key: str) -> bool:
    """Whether the user set it: null, "", [] and {} are not set."""
    return holder.get(key) not in _EMPTY


def get_dict(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> Json:
    """An object; {} when not set."""
    value = holder.get(key)
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    note(wrong, field, f"must be an object, is {quoted(value)}")
    return {}


def get_list(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> list[Any]:
    """A list; [] when not set."""
    value = holder.get(key)
    if value is None:
        return []
    if isinstance(value, list):
        return value
    note(wrong, field, f"must be a list, is {quoted(value)}")
    return []


def get_dicts(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> list[Json]:
    """A list of objects."""
    found = []
    for i, value in enumerate(get_list(holder, key, field, wrong)):
        if value is not None and not isinstance(value, dict):
            note(wrong, f"{field}[{i}]", f"must be an object, is {quoted(value)}")
        found.append(value if isinstance(value, dict) else {})
    return found


def get_str(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> str:
    """A string; "" when not set."""
    value = holder.get(key)
    return "" if value is None else a_string(value, field, wrong)


def a_string(value: Any, field: str, wrong: Wrong) -> str:
    """A string that can be handed to programs."""
    if not isinstance(value, str):
        note(wrong, field, f"must be a string, is {quoted(value)}")
        return ""
    if "\0" in value:
        note(wrong, field, "must not contain the character NUL")
    return value


def get_strs(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> list[str]:
    """A list of strings."""
    return [a_string(value, f"{field}[{i}]", wrong) for i, value in enumerate(get_list(holder, key, field, wrong))]


def get_str_map(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> dict[str, str]:
    """A map of strings; entries that are null are left out."""
    found = {}
    for name, value in get_dict(holder, key, field, wrong).items():
        if value is not None:
            found[a_string(name, entry(field, name), wrong)] = a_string(value, entry(field, name), wrong)
    return found


def get_bool(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong, default: bool = False) -> bool:
    """A boolean."""
    value = holder.get(key)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    note(wrong, field, f"must be true or false, is {quoted(value)}")
    return default


def get_int(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> int | None:
    """An integer; None when not set."""
    value = holder.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    note(wrong, field, f"must be an integer, is {quoted(value)}")
    return None


def in_range(value: int, low: int, high: int, field: str, wrong: Wrong) -> int:
    """The value if it is low..high."""
    if not low <= value <= high:
        note(wrong, field, f"must be between {low} and {high}, is {value}")
        return low
    return value


def get_count(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong, high: int = MAX_INT) -> int:
    """An integer from 0; 0 when not set."""
    return in_range(get_int(holder, key, field, wrong) or 0, 0, high, field, wrong)


def get_port(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> int | None:
    """A port; None when not set."""
    value = get_int(holder, key, field, wrong)
    return None if value is None else in_range(value, 1, 65535, field, wrong)


def need_port(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> int:
    """A port that has to be there."""
    value = get_port(holder, key, field, wrong)
    if value is None:
        note(wrong, field, "is required: a port, 1 to 65535")
    return value or 1


def get_choice(
    holder: Mapping[str, Any],
    key: str,
    choices: Mapping[str, Any] | Sequence[str],
    default: Any,
    field: str,
    wrong: Wrong,
) -> Any:
    """What `choices` has for a string (the string itself if it is a list); `default` when not set."""
    value = get_str(holder, key, field, wrong)
    if not value:
        return default
    if value not in choices:
        note(wrong, field, f"must be one of {either(choices)}, is {quoted(value)}")
        return default
    return choices[value] if isinstance(choices, Mapping) else value


def get_duration(
    holder: Mapping[str, Any], key: str, default: int, field: str, wrong: Wrong, positive: bool = False
) -> int:
    """Nanoseconds of a Go duration, or of an integer of them; `default` when not set. `positive`: not 0."""
    value = holder.get(key)
    if value is None or value == "":
        return default
    nanoseconds = -1
    if isinstance(value, int) and not isinstance(value, bool):
        nanoseconds = value
    elif isinstance(value, str):
        try:
            nanoseconds = parse_go_duration(value)
        except ValueError:
            nanoseconds = -1
    if nanoseconds < 0 or (positive and not nanoseconds):
        note(wrong, field, f'must be a duration such as "15s"{" above 0" if positive else ""}, is {quoted(value)}')
        return default
    return nanoseconds


def seconds(nanoseconds: int) -> str:
    """A duration as proto JSON writes it: "1.500s"."""
    whole, rest = divmod(nanoseconds, SECOND)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".") + "s"


def get_guest_path(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong, root: bool = False) -> str:
    """An absolute path inside the machine; `root`: it may be "/"."""
    path = get_str(holder, key, field, wrong)
    if not path.startswith("/"):
        note(wrong, field, f"must be an absolute path, is {quoted(path)}")
    elif ".." in path.split("/"):
        note(wrong, field, f'must not go up with "..", is {quoted(path)}')
    elif not root and path.strip("/.") == "":
        note(wrong, field, f"must lie below the root, is {quoted(path)}")
    return path


def get_http_path(holder: Mapping[str, Any], key: str, default: str, field: str, wrong: Wrong) -> str:
    """The path of an HTTP request."""
    path = get_str(holder, key, field, wrong)
    if path and (not path.startswith("/") or any(ord(c) <= 32 or ord(c) == 127 for c in path)):
        note(wrong, field, f'must begin with "/" and have no white space, is {quoted(path)}')
    return path or default


def check_header_name(name: str, field: str, wrong: Wrong) -> None:
    """The name of an HTTP header."""
    if not _HTTP_TOKEN.match(name):
        note(wrong, field, f"must be the name of a header, is {quoted(name)}")


def check_header_value(value: str, field: str, wrong: Wrong) -> None:
    """The value of an HTTP header."""
    if any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in value):
        note(wrong, field, f"must have no control characters, is {quoted(value)}")


def get_headers(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> list[Json]:
    """Headers of a request."""
    headers = []
    for i, header in enumerate(get_dicts(holder, key, field, wrong)):
        at = f"{field}[{i}]"
        name = get_str(header, "name", f"{at}.name", wrong)
        check_header_name(name, f"{at}.name", wrong)
        values = get_strs(header, "values", f"{at}.values", wrong)
        for j, value in enumerate(values):
            check_header_value(value, f"{at}.values[{j}]", wrong)
        headers.append({"name": name, "values": values})
    return headers


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_host_name(name: str, underscores: bool = False) -> bool:
    """Whether it is a host's name; `underscores`: a domain's, which may have them."""
    name = name[:-1] if name.endswith(".") else name
    if len(name) > 253:
        return False
    for label in name.split("."):
        letters = label.replace("-", "")
        if underscores:
            letters = letters.replace("_", "")
        if not 1 <= len(label) <= 63 or label[0] == "-" or label[-1] == "-":
            return False
        if letters and not (letters.isascii() and letters.isalnum()):
            return False
    return True


def check_variable(name: str, field: str, wrong: Wrong) -> None:
    """The name of an environment variable."""
    if not name:
        note(wrong, field, "must have a name")
    elif "=" in name:
        note(wrong, field, f'must have no "=" in its name, is {quoted(name)}')


def get_command(holder: Mapping[str, Any], key: str, field: str, wrong: Wrong) -> list[str]:
    """A command line; its program is not empty."""
    words = get_strs(holder, key, field, wrong)
    if words and not words[0]:
        note(wrong, f"{field}[0]", "must name a program")
    return words
