"""Checks of the machine."""

from __future__ import annotations

from services.central.legacy.values import (
    Json,
    Wrong,
    entry,
    get_bool,
    get_choice,
    get_dict,
    get_duration,
    get_headers,
    get_http_path,
    get_str,
    is_address,
    is_host_name,
    need_port,
    note,
    quoted,
    seconds,
)
from services.runtime.durations import SECOND

METHODS = {
    way: method
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    for way in (method, method.lower(), method.capitalize())
}


def checks_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    checks = {}
    for name, asked in get_dict(config, "checks", "checks", wrong).items():
        field = entry("checks", name)
        if asked is None:
            continue
        if not isinstance(asked, dict):
            note(wrong, field, f"must be an object, is {quoted(asked)}")
            continue
        if not name:
            note(wrong, field, "must have a name")
        check = one_check(asked, field, wrong)
        kind = get_choice(asked, "kind", ("informational", "readiness"), "informational", f"{field}.kind", wrong)
        check["kind"] = "CHECK_KIND_" + kind.upper()
        check["port"] = need_port(asked, "port", f"{field}.port", wrong)
        # The scheduler of checks counted in whole seconds, so nothing was faster.
        interval = get_duration(asked, "interval", 15 * SECOND, f"{field}.interval", wrong, positive=True)
        check["interval"] = seconds(max(interval, SECOND))
        checks[name] = check
    return {"checks": checks}


def one_check(asked: Json, field: str, wrong: Wrong) -> Json:
    kind = get_choice(asked, "type", ("tcp", "http"), "", f"{field}.type", wrong)
    if not kind:
        note(wrong, f"{field}.type", "is required: tcp or http")
    check = {
        "type": "CHECK_TYPE_" + (kind or "tcp").upper(),
        "interval": seconds(get_duration(asked, "interval", 15 * SECOND, f"{field}.interval", wrong, positive=True)),
        "timeout": seconds(get_duration(asked, "timeout", 10 * SECOND, f"{field}.timeout", wrong, positive=True)),
        "grace_period": seconds(get_duration(asked, "grace_period", 5 * SECOND, f"{field}.grace_period", wrong)),
    }
    http = http_check(asked, "protocol", field, wrong)
    return {**check, **http} if kind == "http" else check


def http_check(asked: Json, scheme: str, field: str, wrong: Wrong) -> Json:
    server = get_str(asked, "tls_server_name", f"{field}.tls_server_name", wrong)
    if server and not is_address(server) and not is_host_name(server):
        note(wrong, f"{field}.tls_server_name", f"must be the name of a host, is {quoted(server)}")
    return {
        "method": get_choice(asked, "method", METHODS, "GET", f"{field}.method", wrong),
        "path": get_http_path(asked, "path", "/", f"{field}.path", wrong),
        "tls": get_choice(asked, scheme, {"http": False, "https": True}, False, f"{field}.{scheme}", wrong),
        "tls_skip_verify": get_bool(asked, "tls_skip_verify", f"{field}.tls_skip_verify", wrong),
        "tls_server_name": server,
        "headers": get_headers(asked, "headers", f"{field}.headers", wrong),
    }
