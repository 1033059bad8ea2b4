"""The converters of all parts.

Each takes the whole configuration in its public JSON form, the facts, and a dict to note what is wrong in (field below
the configuration -> why), and returns the part's message of the spec in its JSON form. What it returned means nothing
once it noted something.

Facts (JSON, all optional):
    image_aliases    {reference as the user writes it: reference}
    image_digests    {registry/repository:tag: digest}
    limits           {cpus, memory_mb, gpus}, null for no bound
    volume_location  {volume id or name: {"region": code} or null when no machine has it}
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from services.central.legacy.values import (
    GB,
    MAX_GB,
    MAX_INT,
    MAX_MB,
    MB,
    Json,
    Wrong,
    check_header_name,
    check_header_value,
    check_variable,
    either,
    entry,
    get_bool,
    get_choice,
    get_command,
    get_count,
    get_dict,
    get_dicts,
    get_duration,
    get_guest_path,
    get_headers,
    get_http_path,
    get_int,
    get_list,
    get_port,
    get_str,
    get_str_map,
    get_strs,
    in_range,
    is_address,
    is_host_name,
    is_set,
    need_port,
    note,
    quoted,
    seconds,
)

SECOND = 1_000_000_000

# --- image ---------------------------------------------------------------------------------------------------------

DOCKER_HUB = ("docker.io", "index.docker.io")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?"
_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_RE = re.compile(_HOST + r"\Z")
_REPOSITORY_RE = re.compile(rf"{_NAME}(?:/{_NAME})*\Z")
_TAG_RE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST_RE = re.compile(r"sha256:[0-9a-f]{64}\Z")


def image_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    spec = image_v2(config, facts, wrong)
    # The table of registries was keyed by lower-case hosts, and the spec got the key.
    spec["registry"] = spec["registry"].lower()
    return spec


def image_v2(config: Json, facts: Json, wrong: Wrong) -> Json:
    return resolve_image(get_str(config, "image", "image", wrong), facts, "image", wrong)


def resolve_image(reference: str, facts: Json, field: str, wrong: Wrong) -> Json:
    nothing = {"registry": "", "repository": "", "tag": "", "digest": ""}
    if reference == "":
        note(wrong, field, "is required: the reference of an image")
        return nothing
    reference = (facts.get("image_aliases") or {}).get(reference, reference)
    name, at, digest = reference.partition("@")
    if len(reference) > 512 or (at and not _DIGEST_RE.match(digest)):
        note(wrong, field, f"must be the reference of an image, with a digest sha256:…, is {quoted(reference)}")
        return nothing
    registry, repository, tag = split_name(name)
    hub = registry in DOCKER_HUB
    if hub:
        registry = "docker.io"
    if not _HOST_RE.match(registry) or not _REPOSITORY_RE.match(repository) or not (tag is None or _TAG_RE.match(tag)):
        note(wrong, field, f"must be the reference of an image (registry/repository:tag), is {quoted(reference)}")
        return nothing
    if hub and "/" not in repository:
        repository = "library/" + repository
    if len(registry) + len(repository) > 254:
        note(wrong, field, f"must have 255 characters at most before its tag, is {quoted(reference)}")
        return nothing
    if tag is None and not digest:
        tag = "latest"
    if not digest:
        digest = (facts.get("image_digests") or {}).get(f"{registry}/{repository}:{tag or ''}", "")
    return {"registry": registry, "repository": repository, "tag": tag or "", "digest": digest}


def split_name(name: str) -> tuple[str, str, str | None]:
    registry = "docker.io"
    first, slash, rest = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        registry, name = first, rest
    repository, colon, tag = name.partition(":")
    return registry, repository, tag if colon else None


# --- guest ---------------------------------------------------------------------------------------------------------

CPU_KINDS = {
    # kind: allowed CPUs, least and most memory a CPU in MB
    "shared": ((1, 2, 4, 6, 8), 256, 2048),
    "performance": ((1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192),
}
GPU_KINDS = {
    "a10": "a10",
    "l40s": "l40s",
    "a100-40gb": "a100-40gb",
    "a100-pcie-40gb": "a100-40gb",
    "a100-80gb": "a100-80gb",
    "a100-sxm4-80gb": "a100-80gb",
}
GUEST_FIELDS = (
    "cpu_kind",
    "cpus",
    "memory_mb",
    "max_memory_mb",
    "gpus",
    "gpu_kind",
    "host_dedication_id",
    "kernel_args",
)
GPU_CPUS = 8
GPU_MEMORY = 32768


def guest_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    size = get_str(config, "size", "size", wrong)
    asked = get_dict(config, "guest", "guest", wrong)
    if size:
        if any(is_set(asked, key) for key in GUEST_FIELDS):
            note(wrong, "size", f"cannot be given together with guest, is {quoted(size)}")
        spec = preset(size, wrong)
    else:
        spec = written_out(asked, wrong)
    fraction = get_dict(config, "spot", "spot", wrong).get("max_price_fraction")
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            note(wrong, "spot.max_price_fraction", f"must be between 0 and 1, is {quoted(fraction)}")
        else:
            spec["spot_max_price_fraction"] = fraction
    check_limits(spec, facts.get("limits") or {}, size, wrong)
    return spec


def sized(kind: str, cpus: int, memory: int) -> Json:
    return {
        "cpu_kind": "CPU_KIND_" + kind.upper(),
        "cpu_millicores": cpus * 1000,
        "memory_bytes": memory * MB,
        "max_memory_bytes": memory * MB,
    }


def preset(size: str, wrong: Wrong) -> Json:
    if size in ("a10", "l40s", "a100-40gb", "a100-80gb"):
        return {**sized("performance", GPU_CPUS, GPU_MEMORY), "gpu_kind": size, "gpus": 1}
    match = re.match(r"(shared-cpu|performance)-([0-9]+)x\Z", size)
    if match:
        kind = match.group(1).removesuffix("-cpu")
        cpus, least, _ = CPU_KINDS[kind]
        if match.group(2) in map(str, cpus):
            return sized(kind, int(match.group(2)), int(match.group(2)) * least)
    note(wrong, "size", f"must be a preset such as shared-cpu-1x, is {quoted(size)}")
    return sized("shared", 1, 256)


def written_out(asked: Json, wrong: Wrong) -> Json:
    gpu = get_choice(asked, "gpu_kind", GPU_KINDS, "", "guest.gpu_kind", wrong)
    has_gpu = is_set(asked, "gpu_kind")
    kind = get_choice(
        asked, "cpu_kind", tuple(CPU_KINDS), "performance" if has_gpu else "shared", "guest.cpu_kind", wrong
    )
    if has_gpu and kind != "performance":
        note(wrong, "guest.cpu_kind", f"must be performance for GPUs, is {kind}")
    cpus = get_int(asked, "cpus", "guest.cpus", wrong)
    if cpus is None:
        cpus = GPU_CPUS if has_gpu else 1
    allowed, least, most = CPU_KINDS[kind]
    if cpus not in allowed:
        note(wrong, "guest.cpus", f"must be one of {either(map(str, allowed))} for {kind}, is {cpus}")
        return sized("shared", 1, 256)

    def memory_of(key: str) -> int | None:
        memory = get_int(asked, key, f"guest.{key}", wrong)
        if memory is None or (least * cpus <= memory <= most * cpus and memory % 256 == 0):
            return memory
        low, high = least * cpus, most * cpus
        note(wrong, f"guest.{key}", f"must be between {low} and {high} and a multiple of 256, is {memory}")
        return low

    memory = memory_of("memory_mb")
    if memory is None:
        memory = GPU_MEMORY if has_gpu and cpus == GPU_CPUS else least * cpus
    spec = sized(kind, cpus, memory)
    growth = memory_of("max_memory_mb")
    if growth is not None:
        if growth < memory:
            note(wrong, "guest.max_memory_mb", f"must not be below memory_mb ({memory}), is {growth}")
        spec["max_memory_bytes"] = growth * MB
    gpus = get_int(asked, "gpus", "guest.gpus", wrong)
    if has_gpu:
        spec["gpu_kind"] = gpu
        spec["gpus"] = 1 if gpus is None else in_range(gpus, 1, 8, "guest.gpus", wrong)
    elif gpus:
        note(wrong, "guest.gpus", f"must be 0 without gpu_kind, is {gpus}")
    spec["host_dedication_id"] = get_str(asked, "host_dedication_id", "guest.host_dedication_id", wrong)
    spec["kernel_args"] = get_strs(asked, "kernel_args", "guest.kernel_args", wrong)
    return spec


def check_limits(spec: Json, limits: Json, size: str, wrong: Wrong) -> None:
    has = {
        "cpus": spec["cpu_millicores"] // 1000,
        "memory_mb": spec["max_memory_bytes"] // MB,
        "gpus": spec.get("gpus", 0),
    }
    for name, value in has.items():
        most = limits.get(name)
        if most is not None and value > most:
            note(
                wrong,
                "size" if size else f"guest.{name}",
                f"must keep to the organization's {most} {name}, has {value}",
            )


# --- env, init, processes --------------------------------------------------------------------------------------------

MACHINE_FIELDS = {
    name: "MACHINE_FIELD_" + name.upper() for name in ("id", "version", "app_name", "private_ip", "region", "image")
}


def env_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    spec = env_v2(config, facts, wrong)
    # Values went through a form on the web once, which stripped them.
    return {"variables": {name: value.rstrip() for name, value in spec["variables"].items()}}


def env_v2(config: Json, _facts: Json, wrong: Wrong) -> Json:
    return {"variables": environment(config, "env", wrong)}


def environment(holder: Json, field: str, wrong: Wrong) -> dict[str, str]:
    variables = get_str_map(holder, "env", field, wrong)
    for name in variables:
        check_variable(name, entry(field, name), wrong)
    return variables


def init_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    init = get_dict(config, "init", "init", wrong)
    return {
        "exec": get_command(init, "exec", "init.exec", wrong),
        "entrypoint": get_command(init, "entrypoint", "init.entrypoint", wrong),
        "cmd": get_strs(init, "cmd", "init.cmd", wrong),
        "tty": get_bool(init, "tty", "init.tty", wrong),
        "swap_bytes": get_count(init, "swap_size_mb", "init.swap_size_mb", wrong, MAX_MB) * MB,
        "kernel_args": get_strs(init, "kernel_args", "init.kernel_args", wrong),
    }


def processes_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    converted = []
    for i, asked in enumerate(get_dicts(config, "processes", "processes", wrong)):
        field = f"processes[{i}]"
        process = one_process(asked, field, wrong)
        process["ignore_app_secrets"] = get_bool(asked, "ignore_app_secrets", f"{field}.ignore_app_secrets", wrong)
        converted.append(process)
    return {"processes": converted}


def one_process(asked: Json, field: str, wrong: Wrong) -> Json:
    secrets: dict[str, str] = {}
    for i, secret in enumerate(get_dicts(asked, "secrets", f"{field}.secrets", wrong)):
        at = f"{field}.secrets[{i}]"
        variable = own_variable(secret, secrets, at, wrong)
        secrets[variable] = get_str(secret, "name", f"{at}.name", wrong) or variable
    env_from: dict[str, str] = {}
    for i, source in enumerate(get_dicts(asked, "env_from", f"{field}.env_from", wrong)):
        at = f"{field}.env_from[{i}]"
        variable = own_variable(source, env_from, at, wrong)
        env_from[variable] = get_choice(source, "field_ref", MACHINE_FIELDS, "", f"{at}.field_ref", wrong)
        if not env_from[variable]:
            note(wrong, f"{at}.field_ref", f"is required: one of {either(MACHINE_FIELDS)}")
    return {
        "exec": get_command(asked, "exec", f"{field}.exec", wrong),
        "entrypoint": get_command(asked, "entrypoint", f"{field}.entrypoint", wrong),
        "cmd": get_strs(asked, "cmd", f"{field}.cmd", wrong),
        "user": get_str(asked, "user", f"{field}.user", wrong),
        "env": environment(asked, f"{field}.env", wrong),
        "secrets": secrets,
        "env_from": env_from,
    }


def own_variable(holder: Json, taken: dict[str, str], field: str, wrong: Wrong) -> str:
    variable = get_str(holder, "env_var", f"{field}.env_var", wrong)
    check_variable(variable, f"{field}.env_var", wrong)
    if variable in taken:
        note(wrong, f"{field}.env_var", f"must be there once, is {quoted(variable)} again")
    return variable


# --- services ------------------------------------------------------------------------------------------------------

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


# --- checks --------------------------------------------------------------------------------------------------------

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


# --- mounts --------------------------------------------------------------------------------------------------------


def mounts_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    asked = get_dicts(config, "mounts", "mounts", wrong)
    if len(asked) > 1:
        note(wrong, "mounts", f"must not be more than one, are {len(asked)}")
    return {"mounts": [one_mount(mount, facts, f"mounts[{i}]", wrong) for i, mount in enumerate(asked)]}


def one_mount(asked: Json, facts: Json, field: str, wrong: Wrong) -> Json:
    volume = get_str(asked, "volume", f"{field}.volume", wrong)
    name = get_str(asked, "name", f"{field}.name", wrong)
    by_id = volume.startswith("vol_")
    if not volume and not name:
        note(wrong, f"{field}.volume", "is required: the id of a volume, or its name in name")
    elif not by_id and volume and name and volume != name:
        note(wrong, f"{field}.volume", f"must be an id (vol_…) when name is given, is {quoted(volume)}")
    location = (facts.get("volume_location") or {}).get(volume or name)
    region = location.get("region") if isinstance(location, dict) else None
    if region and facts.get("region") and region != facts["region"]:
        note(wrong, f"{field}.volume", f"must be in the machine's region {facts['region']}, is in {region}")
    percent = get_count(asked, "extend_threshold_percent", f"{field}.extend_threshold_percent", wrong, 100)
    extend_by = get_count(asked, "add_size_gb", f"{field}.add_size_gb", wrong, MAX_GB)
    most = get_count(asked, "size_gb_limit", f"{field}.size_gb_limit", wrong, MAX_GB)
    size = get_count(asked, "size_gb", f"{field}.size_gb", wrong, MAX_GB)
    if 0 < most < size:
        note(wrong, f"{field}.size_gb_limit", f"must not be below size_gb ({size}), is {most}")
    if percent and not extend_by:
        extend_by = 1
    return {
        "volume_id": volume if by_id else "",
        "volume_name": name if by_id else name or volume,
        "path": get_guest_path(asked, "path", f"{field}.path", wrong),
        "extend_threshold_percent": percent,
        "extend_by_bytes": extend_by * GB,
        "extend_limit_bytes": most * GB,
        "size_bytes": size * GB,
        "encrypted": get_bool(asked, "encrypted", f"{field}.encrypted", wrong),
    }


# --- files ---------------------------------------------------------------------------------------------------------

FILE_SOURCES = ("raw_value", "secret_name", "image_config")
MAX_CONTENT = MB


def files_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    files = file_list(config, "files", wrong)
    for file in files:
        # The archive that carried files to the hosts knew no special bits.
        file["mode"] &= 0o777
    return {"files": files}


def file_list(holder: Json, field: str, wrong: Wrong) -> list[Json]:
    files, total = [], 0
    for i, asked in enumerate(get_dicts(holder, "files", field, wrong)):
        at = f"{field}[{i}]"
        file: Json = {"path": get_guest_path(asked, "guest_path", f"{at}.guest_path", wrong)}
        sources = {key: get_str(asked, key, f"{at}.{key}", wrong) for key in FILE_SOURCES}
        given = [key for key in FILE_SOURCES if sources[key]]
        if len(given) != 1:
            note(wrong, at, f"must have one source ({either(FILE_SOURCES)}), has {len(given)}")
        elif given[0] == "raw_value":
            content = decoded(sources["raw_value"], f"{at}.raw_value", wrong)
            total += len(content)
            if total > MAX_CONTENT:
                note(wrong, f"{at}.raw_value", f"must not bring all files above {MAX_CONTENT} bytes")
            file["content"] = base64.b64encode(content).decode()
        else:
            file[given[0]] = sources[given[0]]
        mode = get_int(asked, "mode", f"{at}.mode", wrong)
        file["mode"] = 0o644 if mode is None else in_range(mode, 0, 0o7777, f"{at}.mode", wrong)
        files.append(file)
    return files


def decoded(text: str, field: str, wrong: Wrong) -> bytes:
    try:
        return binascii.a2b_base64(text.encode(), strict_mode=True)
    except ValueError:
        note(wrong, field, f"must be base64, is {quoted(text)}")
        return b""


# --- containers ----------------------------------------------------------------------------------------------------

CONDITIONS = ("started", "healthy", "exited_successfully")


def containers_v1(config: Json, facts: Json, wrong: Wrong) -> Json:
    volumes, containers = [], []
    volume_names: list[str] = []
    for i, asked in enumerate(get_dicts(config, "volumes", "volumes", wrong)):
        own_name(asked, volume_names, f"volumes[{i}].name", wrong)
        volumes.append(one_volume(asked, facts, f"volumes[{i}]", wrong))
    all_asked = get_dicts(config, "containers", "containers", wrong)
    names: list[str] = []
    for i, asked in enumerate(all_asked):
        own_name(asked, names, f"containers[{i}].name", wrong)
    for i, asked in enumerate(all_asked):
        containers.append(one_container(asked, names, volume_names, facts, f"containers[{i}]", wrong))
    check_circles(containers, wrong)
    return {"containers": containers, "volumes": volumes}


def own_name(asked: Json, taken: list[str], field: str, wrong: Wrong) -> None:
    name = get_str(asked, "name", field, wrong)
    if not name:
        note(wrong, field, "is required")
    elif name in taken:
        note(wrong, field, f"must be there once, is {quoted(name)} again")
    else:
        taken.append(name)


def one_volume(asked: Json, facts: Json, field: str, wrong: Wrong) -> Json:
    spec: Json = {"name": asked.get("name") or ""}
    has_directory = asked.get("temp_dir") is not None
    directory = get_dict(asked, "temp_dir", f"{field}.temp_dir", wrong)
    image = get_str(asked, "image", f"{field}.image", wrong)
    if has_directory == (image != ""):
        note(wrong, field, "must have one of temp_dir and image")
    elif has_directory:
        at = f"{field}.temp_dir"
        spec["temp_dir"] = {
            "in_memory": get_choice(
                directory, "storage_type", {"disk": False, "memory": True}, False, f"{at}.storage_type", wrong
            ),
            "size_bytes": get_count(directory, "size_mb", f"{at}.size_mb", wrong, MAX_MB) * MB,
        }
    else:
        spec["image"] = resolve_image(image, facts, f"{field}.image", wrong)
    return spec


def one_container(
    asked: Json, names: list[str], volume_names: list[str], facts: Json, field: str, wrong: Wrong
) -> Json:
    depends_on = []
    for i, dependency in enumerate(get_dicts(asked, "depends_on", f"{field}.depends_on", wrong)):
        at = f"{field}.depends_on[{i}]"
        other = get_str(dependency, "name", f"{at}.name", wrong)
        if other not in names:
            note(wrong, f"{at}.name", f"must be the name of a container, is {quoted(other)}")
        condition = get_choice(dependency, "condition", CONDITIONS, "started", f"{at}.condition", wrong)
        depends_on.append({"name": other, "condition": "CONTAINER_CONDITION_" + condition.upper()})
    mounts: dict[str, str] = {}
    for i, mount in enumerate(get_dicts(asked, "mounts", f"{field}.mounts", wrong)):
        at = f"{field}.mounts[{i}]"
        volume = get_str(mount, "name", f"{at}.name", wrong)
        if volume not in volume_names:
            note(wrong, f"{at}.name", f"must be the name of a volume, is {quoted(volume)}")
        elif volume in mounts:
            note(wrong, f"{at}.name", f"must be there once, is {quoted(volume)} again")
        mounts[volume] = get_guest_path(mount, "path", f"{at}.path", wrong)
    checks = get_dicts(asked, "healthchecks", f"{field}.healthchecks", wrong)
    restart = get_dict(asked, "restart", f"{field}.restart", wrong)
    stop = get_dict(asked, "stop", f"{field}.stop", wrong)
    return {
        "name": asked.get("name") or "",
        "image": resolve_image(get_str(asked, "image", f"{field}.image", wrong), facts, f"{field}.image", wrong),
        "process": one_process(asked, field, wrong),
        "files": file_list(asked, f"{field}.files", wrong),
        "restart": restart_rule(restart, "on-failure", f"{field}.restart", wrong),
        "stop": stop_rule(stop, f"{field}.stop", wrong),
        "depends_on": depends_on,
        "checks": [container_check(check, f"{field}.healthchecks[{i}]", wrong) for i, check in enumerate(checks)],
        "mounts": mounts,
    }


def container_check(asked: Json, field: str, wrong: Wrong) -> Json:
    kind = get_choice(asked, "kind", ("readiness", "liveness"), "readiness", f"{field}.kind", wrong)
    check: Json = {
        "name": get_str(asked, "name", f"{field}.name", wrong),
        "kind": kind,
        "stop_unhealthy": get_choice(asked, "unhealthy", {"stop": True}, False, f"{field}.unhealthy", wrong),
    }
    for key, least, default in (
        ("interval", 1, 15),
        ("grace_period", 0, 5),
        ("timeout", 1, 10),
        ("success_threshold", 1, 1),
        ("failure_threshold", 1, 3),
    ):
        given = get_int(asked, key, f"{field}.{key}", wrong)
        value = default if given is None else in_range(given, least, MAX_INT, f"{field}.{key}", wrong)
        check[key] = value if key.endswith("threshold") else f"{value}s"
    ways = [way for way in ("http", "tcp", "exec") if asked.get(way) is not None]
    if len(ways) != 1:
        note(wrong, field, f"must have one of http, tcp and exec, has {len(ways)}")
        return check
    way, at = ways[0], f"{field}.{ways[0]}"
    how = get_dict(asked, way, at, wrong)
    if way == "exec":
        command = get_command(how, "command", f"{at}.command", wrong)
        if not command:
            note(wrong, f"{at}.command", "is required")
        check["command"] = {"command": command}
        return check
    network = {
        "type": "CHECK_TYPE_" + way.upper(),
        "kind": "CHECK_KIND_READINESS" if kind == "readiness" else "CHECK_KIND_INFORMATIONAL",
        "port": need_port(how, "port", f"{at}.port", wrong),
    }
    if way == "http":
        network |= http_check(how, "scheme", at, wrong)
    check["network"] = network
    return check


def check_circles(containers: list[Json], wrong: Wrong) -> None:
    first = {container["name"]: i for i, container in reversed(list(enumerate(containers))) if container["name"]}
    follows = [[first[d["name"]] for d in c["depends_on"] if d["name"] in first] for c in containers]
    done: set[int] = set()
    for start in range(len(containers)):
        trail: list[int] = []
        stack = [(start, iter(follows[start]))] if start not in done else []
        if stack:
            trail.append(start)
        while stack:
            node, left = stack[-1]
            following = next(left, None)
            if following is None:
                stack.pop()
                trail.pop()
                done.add(node)
            elif following in trail:
                circle = trail[trail.index(following) :]
                lowest = min(circle)
                turned = circle[circle.index(lowest) :] + circle[: circle.index(lowest)]
                chain = " -> ".join(quoted(containers[i]["name"]) for i in (*turned[:8], lowest))
                note(wrong, f"containers[{lowest}].depends_on", f"must not be a circle, is {chain}")
            elif following not in done:
                trail.append(following)
                stack.append((following, iter(follows[following])))


# --- restart, stop -------------------------------------------------------------------------------------------------

POLICIES = ("no", "on-failure", "always")
SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM")


def restart_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    auto_destroy = get_bool(config, "auto_destroy", "auto_destroy", wrong)
    once = auto_destroy or is_set(config, "schedule")
    asked = get_dict(config, "restart", "restart", wrong)
    return {**restart_rule(asked, "no" if once else "on-failure", "restart", wrong), "auto_destroy": auto_destroy}


def restart_rule(asked: Json, default: str, field: str, wrong: Wrong) -> Json:
    policy = get_choice(asked, "policy", POLICIES, default, f"{field}.policy", wrong)
    retries = get_int(asked, "max_retries", f"{field}.max_retries", wrong)
    retries = 10 if retries is None else in_range(retries, 0, MAX_INT, f"{field}.max_retries", wrong)
    return {
        "policy": "RESTART_POLICY_" + policy.upper().replace("-", "_"),
        "max_retries": retries if policy == "on-failure" else 0,
    }


def stop_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    return stop_rule(get_dict(config, "stop_config", "stop_config", wrong), "stop_config", wrong)


def stop_rule(asked: Json, field: str, wrong: Wrong) -> Json:
    return {
        "signal": get_choice(asked, "signal", SIGNALS, "SIGINT", f"{field}.signal", wrong),
        "timeout": seconds(get_duration(asked, "timeout", 5 * SECOND, f"{field}.timeout", wrong)),
    }


# --- dns -----------------------------------------------------------------------------------------------------------


def dns_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    asked = get_dict(config, "dns", "dns", wrong)
    servers = get_strs(asked, "nameservers", "dns.nameservers", wrong)
    for i, address in enumerate(servers):
        if not is_address(address):
            note(wrong, f"dns.nameservers[{i}]", f"must be an IP address, is {quoted(address)}")
    searches = get_strs(asked, "searches", "dns.searches", wrong)
    for i, domain in enumerate(searches):
        check_domain(domain, f"dns.searches[{i}]", wrong)
    options = []
    for i, option in enumerate(get_dicts(asked, "options", "dns.options", wrong)):
        name = get_str(option, "name", f"dns.options[{i}].name", wrong)
        value = get_str(option, "value", f"dns.options[{i}].value", wrong)
        if not name or any(c.isspace() for c in name + value):
            note(wrong, f"dns.options[{i}].name", f"must be an option without white space, is {quoted(name)}")
        options.append({"name": name, "value": value})
    rules: dict[str, str] = {}
    for i, rule in enumerate(get_dicts(asked, "dns_forward_rules", "dns.dns_forward_rules", wrong)):
        at = f"dns.dns_forward_rules[{i}]"
        domain = get_str(rule, "basename", f"{at}.basename", wrong)
        check_domain(domain, f"{at}.basename", wrong)
        if domain in rules:
            note(wrong, f"{at}.basename", f"must be there once, is {quoted(domain)} again")
        rules[domain] = get_str(rule, "addr", f"{at}.addr", wrong)
        if not is_server(rules[domain]):
            note(wrong, f"{at}.addr", f"must be an IP address, with or without a port, is {quoted(rules[domain])}")
    names = {key: get_str(asked, key, f"dns.{key}", wrong) for key in ("hostname", "hostname_fqdn")}
    for key, name in names.items():
        if name and not is_host_name(name):
            note(wrong, f"dns.{key}", f"must be the name of a host, is {quoted(name)}")
    return {
        "register": not get_bool(asked, "skip_registration", "dns.skip_registration", wrong),
        "nameservers": servers,
        "searches": searches,
        "options": options,
        "forward_rules": rules,
        **names,
    }


def check_domain(domain: str, field: str, wrong: Wrong) -> None:
    if domain != "." and not is_host_name(domain, underscores=True):
        note(wrong, field, f"must be a domain, is {quoted(domain)}")


def is_server(text: str) -> bool:
    if is_address(text):
        return True
    match = re.match(r"(?:\[([^\[\]]+)\]|([^:\[\]]+)):([0-9]{1,5})\Z", text)
    if not match:
        return False
    return is_address(match.group(1) or match.group(2)) and 1 <= int(match.group(3)) <= 65535


# --- metrics, statics, metadata, schedule, standbys, rootfs --------------------------------------------------------


def metrics_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    asked = get_dict(config, "metrics", "metrics", wrong)
    if not any(is_set(asked, key) for key in ("port", "path", "https")):
        return {}
    return {
        "port": need_port(asked, "port", "metrics.port", wrong),
        "path": get_http_path(asked, "path", "/metrics", "metrics.path", wrong),
        "https": get_bool(asked, "https", "metrics.https", wrong),
    }


def statics_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    statics = []
    for i, asked in enumerate(get_dicts(config, "statics", "statics", wrong)):
        field = f"statics[{i}]"
        bucket = get_str(asked, "tigris_bucket", f"{field}.tigris_bucket", wrong)
        if bucket and not is_set(asked, "guest_path"):
            asked = {**asked, "guest_path": "/"}
        if not is_set(asked, "url_prefix"):
            note(wrong, f"{field}.url_prefix", "is required")
        statics.append(
            {
                "guest_path": get_guest_path(asked, "guest_path", f"{field}.guest_path", wrong, root=bucket != ""),
                "url_prefix": get_http_path(asked, "url_prefix", "", f"{field}.url_prefix", wrong),
                "tigris_bucket": bucket,
                "index_document": get_str(asked, "index_document", f"{field}.index_document", wrong),
            }
        )
    return {"statics": statics}


def metadata_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    entries = get_str_map(config, "metadata", "metadata", wrong)
    if "" in entries:
        note(wrong, entry("metadata", ""), "must have a key")
    # Empty has always meant "not set" in the old store.
    return {"entries": {key: value for key, value in entries.items() if value}}


def schedule_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    # Cron's own names were compared without regard to case.
    asked = {"schedule": get_str(config, "schedule", "schedule", wrong).lower()}
    interval = get_choice(asked, "schedule", ("hourly", "daily", "weekly", "monthly"), "", "schedule", wrong)
    return {"interval": "SCHEDULE_INTERVAL_" + (interval.upper() or "UNSPECIFIED")}


def standbys_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    machines = get_strs(config, "standbys", "standbys", wrong)
    if machines and get_list(config, "services", "services", wrong):
        note(wrong, "standbys", "cannot be given for a machine with services")
    for i, machine in enumerate(machines):
        if not re.match(r"[0-9a-f]{14}\Z", machine):
            note(wrong, f"standbys[{i}]", f"must be the id of a machine, is {quoted(machine)}")
    return {"machine_ids": machines}


PERSISTS: dict[Any, str] = {
    None: "",
    "": "",
    0: "",
    1: "never",
    2: "restart",
    3: "always",
    "never": "never",
    "restart": "restart",
    "always": "always",
}


def rootfs_v1(config: Json, _facts: Json, wrong: Wrong) -> Json:
    own = get_dict(config, "rootfs", "rootfs", wrong)
    persist = persistence(own, "persist", "rootfs.persist", wrong)
    guest = get_dict(config, "guest", "guest", wrong)
    of_guest = persistence(guest, "persist_rootfs", "guest.persist_rootfs", wrong)
    if persist and of_guest and persist != of_guest:
        note(wrong, "rootfs.persist", f"must be what guest.persist_rootfs is ({of_guest}), is {persist}")
    size = get_int(own, "size_gb", "rootfs.size_gb", wrong)
    cache = get_dict(config, "cache_drive", "cache_drive", wrong)
    return {
        "persist": "PERSIST_ROOTFS_" + (persist or of_guest or "never").upper(),
        "size_bytes": (8 if size is None else in_range(size, 1, MAX_GB, "rootfs.size_gb", wrong)) * GB,
        "cache_bytes": get_count(cache, "size_mb", "cache_drive.size_mb", wrong, MAX_MB) * MB,
    }


def persistence(holder: Json, key: str, field: str, wrong: Wrong) -> str:
    value = holder.get(key)
    if isinstance(value, int | str | None) and not isinstance(value, bool) and value in PERSISTS:
        return PERSISTS[value]
    note(wrong, field, f"must be never, restart or always, is {quoted(value)}")
    return quoted(value)


# --- all -----------------------------------------------------------------------------------------------------------

Converter = Callable[[Json, Json, Wrong], Json]

CONVERTERS: dict[str, dict[int, Converter]] = {
    "image": {1: image_v1, 2: image_v2},
    "guest": {1: guest_v1},
    "env": {1: env_v1, 2: env_v2},
    "init": {1: init_v1},
    "services": {1: services_v1},
    "checks": {1: checks_v1},
    "mounts": {1: mounts_v1},
    "files": {1: files_v1},
    "processes": {1: processes_v1},
    "containers": {1: containers_v1},
    "restart": {1: restart_v1},
    "stop": {1: stop_v1},
    "dns": {1: dns_v1},
    "metrics": {1: metrics_v1},
    "statics": {1: statics_v1},
    "metadata": {1: metadata_v1},
    "schedule": {1: schedule_v1},
    "standbys": {1: standbys_v1},
    "rootfs": {1: rootfs_v1},
}
"""Part to version to its converter."""

PARTS = tuple(CONVERTERS)


def convert_part(part: str, version: int, config: Json, facts: Json) -> tuple[Json, Wrong]:
    """The part's spec, and what is wrong with the configuration. Raises KeyError for a part or version there is not."""
    wrong: Wrong = {}
    spec = CONVERTERS[part][version](config, facts, wrong)
    return spec, wrong
