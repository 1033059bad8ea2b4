"""Services: ports, handlers and what the proxy is told."""

from __future__ import annotations

from services.central.legacy.parts.checks import one_check
from services.central.legacy.values import (
    MAX_INT,
    Json,
    Wrong,
    check_header_name,
    check_header_value,
    either,
    entry,
    get_bool,
    get_choice,
    get_count,
    get_dict,
    get_dicts,
    get_int,
    get_port,
    get_str,
    get_strs,
    in_range,
    is_set,
    need_port,
    note,
    quoted,
)

AUTOSTOPS = {False: "OFF", True: "STOP", "off": "OFF", "stop": "STOP", "suspend": "SUSPEND", None: "OFF", "": "OFF"}
HANDLERS = ("http", "tls", "pg_tls", "proxy_proto", "edge_http")
HTTP_FIELDS = ("compress", "h2_backend", "idle_timeout", "headers_read_timeout", "replay_cache")
RESPONSE_FIELDS = ("headers", "pristine")


def services_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    asked = get_dicts(config, "services", "services", wrong)
    disabled = get_bool(config, "disable_machine_autostart", "disable_machine_autostart", wrong)
    return {
        "services": [one_service(service, f"services[{i}]", wrong) for i, service in enumerate(asked)],
        "machine_autostart": not disabled,
    }


def one_service(asked: Json, field: str, wrong: Wrong) -> Json:
    protocol = get_choice(asked, "protocol", ("tcp", "udp"), "tcp", f"{field}.protocol", wrong)
    internal_port = need_port(asked, "internal_port", f"{field}.internal_port", wrong)
    autostop = asked.get("autostop")
    if isinstance(autostop, bool | str | None) and autostop in AUTOSTOPS:
        autostop = AUTOSTOPS[autostop]
    else:
        note(wrong, f"{field}.autostop", f"must be off, stop or suspend, is {quoted(autostop)}")
    limits = get_dict(asked, "concurrency", f"{field}.concurrency", wrong)
    hard = get_count(limits, "hard_limit", f"{field}.concurrency.hard_limit", wrong)
    soft = get_count(limits, "soft_limit", f"{field}.concurrency.soft_limit", wrong)
    if hard and soft > hard:
        note(wrong, f"{field}.concurrency.soft_limit", f"must not be above hard_limit ({hard}), is {soft}")
    counted = get_choice(limits, "type", ("connections", "requests"), "connections", f"{field}.concurrency.type", wrong)
    ports = get_dicts(asked, "ports", f"{field}.ports", wrong)
    checks = []
    for i, check in enumerate(get_dicts(asked, "checks", f"{field}.checks", wrong)):
        at = f"{field}.checks[{i}]"
        spec = one_check(check, at, wrong)
        spec["kind"] = "CHECK_KIND_READINESS"
        spec["port"] = get_port(check, "port", f"{at}.port", wrong) or internal_port
        checks.append(spec)
    return {
        "protocol": "TRANSPORT_PROTOCOL_" + protocol.upper(),
        "internal_port": internal_port,
        "autostop": f"AUTOSTOP_{autostop}",
        "autostart": get_bool(asked, "autostart", f"{field}.autostart", wrong, default=True),
        "min_machines_running": get_count(asked, "min_machines_running", f"{field}.min_machines_running", wrong),
        "ports": [one_port(port, protocol, f"{field}.ports[{i}]", wrong) for i, port in enumerate(ports)],
        "checks": checks,
        "concurrency_type": counted,
        "soft_limit": soft,
        "hard_limit": hard,
        "force_instance_key": get_str(asked, "force_instance_key", f"{field}.force_instance_key", wrong),
        "force_instance_description": get_str(
            asked, "force_instance_description", f"{field}.force_instance_description", wrong
        ),
    }


def one_port(asked: Json, protocol: str, field: str, wrong: Wrong) -> Json:
    start, end = port_range(asked, field, wrong)
    handlers = get_strs(asked, "handlers", f"{field}.handlers", wrong)
    for i, handler in enumerate(handlers):
        if handler not in HANDLERS:
            note(wrong, f"{field}.handlers[{i}]", f"must be one of {either(HANDLERS)}, is {quoted(handler)}")
        elif protocol == "udp" and handler != "proxy_proto":
            note(wrong, f"{field}.handlers[{i}]", f"is not for udp: {handler}")
    tls = get_dict(asked, "tls_options", f"{field}.tls_options", wrong)
    alpn = get_strs(tls, "alpn", f"{field}.tls_options.alpn", wrong)
    for i, name in enumerate(alpn):
        if not 1 <= len(name.encode(errors="surrogatepass")) <= 255:
            note(wrong, f"{field}.tls_options.alpn[{i}]", f"must have 1 to 255 bytes, is {quoted(name)}")
    versions = get_strs(tls, "versions", f"{field}.tls_options.versions", wrong)
    for i, version in enumerate(versions):
        if version not in ("TLSv1.2", "TLSv1.3"):
            note(wrong, f"{field}.tls_options.versions[{i}]", f"must be TLSv1.2 or TLSv1.3, is {quoted(version)}")
    proxy = get_dict(asked, "proxy_proto_options", f"{field}.proxy_proto_options", wrong)
    spec = {
        "start_port": start,
        "end_port": end,
        "handlers": handlers,
        "force_https": get_bool(asked, "force_https", f"{field}.force_https", wrong),
        "tls_alpn": alpn,
        "tls_versions": versions,
        "tls_default_self_signed": get_bool(
            tls, "default_self_signed", f"{field}.tls_options.default_self_signed", wrong
        ),
        "proxy_proto_version": get_choice(
            proxy,
            "version",
            ("v1", "v2"),
            "v1" if "proxy_proto" in handlers else "",
            f"{field}.proxy_proto_options.version",
            wrong,
        ),
    }
    options = get_dict(asked, "http_options", f"{field}.http_options", wrong)
    response = get_dict(options, "response", f"{field}.http_options.response", wrong)
    if any(is_set(options, key) for key in HTTP_FIELDS) or any(is_set(response, key) for key in RESPONSE_FIELDS):
        spec["http"] = http_options(options, f"{field}.http_options", wrong)
    return spec


def port_range(asked: Json, field: str, wrong: Wrong) -> tuple[int, int]:
    if asked.get("port") is not None:
        if asked.get("start_port") is not None or asked.get("end_port") is not None:
            note(wrong, f"{field}.port", "cannot be given together with start_port and end_port")
        one = get_port(asked, "port", f"{field}.port", wrong) or 1
        return one, one
    start = get_port(asked, "start_port", f"{field}.start_port", wrong)
    end = get_port(asked, "end_port", f"{field}.end_port", wrong)
    if start is None and end is None:
        note(wrong, f"{field}.port", "is required, or start_port and end_port")
        return 1, 1
    for key, value in (("start_port", start), ("end_port", end)):
        if value is None:
            note(wrong, f"{field}.{key}", "is required for a range")
    if start is not None and end is not None and end < start:
        note(wrong, f"{field}.end_port", f"must not be below start_port ({start}), is {end}")
    return start or 1, end or 1


def http_options(options: Json, field: str, wrong: Wrong) -> Json:
    response = get_dict(options, "response", f"{field}.response", wrong)
    spec: Json = {
        "compress": get_bool(options, "compress", f"{field}.compress", wrong),
        "response_headers": response_headers(response, f"{field}.response.headers", wrong),
        "pristine": get_bool(response, "pristine", f"{field}.response.pristine", wrong),
        "h2_backend": get_bool(options, "h2_backend", f"{field}.h2_backend", wrong),
        "replay_cache": [],
    }
    for key in ("idle_timeout", "headers_read_timeout"):
        timeout = get_count(options, key, f"{field}.{key}", wrong, 2**32 - 1)
        if timeout:
            spec[key] = f"{timeout}s"
    for i, cache in enumerate(get_dicts(options, "replay_cache", f"{field}.replay_cache", wrong)):
        at = f"{field}.replay_cache[{i}]"
        prefix = get_str(cache, "path_prefix", f"{at}.path_prefix", wrong)
        kind = get_choice(cache, "type", ("cookie", "header"), "", f"{at}.type", wrong)
        ttl = get_int(cache, "ttl_seconds", f"{at}.ttl_seconds", wrong) or 0
        name = get_str(cache, "name", f"{at}.name", wrong)
        check_header_name(name, f"{at}.name", wrong)
        for key, value in (("path_prefix", prefix), ("type", kind)):
            if not value:
                note(wrong, f"{at}.{key}", "is required")
        spec["replay_cache"].append(
            {
                "path_prefix": prefix,
                "ttl": f"{in_range(ttl, 1, MAX_INT, f'{at}.ttl_seconds', wrong)}s",
                "type": kind,
                "name": name,
                "allow_bypass": get_bool(cache, "allow_bypass", f"{at}.allow_bypass", wrong),
            }
        )
    return spec


def response_headers(response: Json, field: str, wrong: Wrong) -> Json:
    headers: Json = {}
    for name, value in get_dict(response, "headers", field, wrong).items():
        at = entry(field, name)
        check_header_name(name, at, wrong)
        values = [value] if isinstance(value, str) else value
        if value is False:
            headers[name] = False
        elif isinstance(values, list) and all(isinstance(one, str) for one in values):
            for one in values:
                check_header_value(one, at, wrong)
            headers[name] = values
        elif value is not None:
            note(wrong, at, "must be a string, a list of strings, or false")
    return headers
