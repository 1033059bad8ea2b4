"""Containers, and the order in which they start."""

from __future__ import annotations

from services.central.legacy.parts.checks import http_check
from services.central.legacy.parts.files import file_list
from services.central.legacy.parts.image import resolve_image
from services.central.legacy.parts.processes import one_process
from services.central.legacy.parts.stopping import restart_rule, stop_rule
from services.central.legacy.values import (
    MAX_INT,
    MAX_MB,
    MB,
    Json,
    Wrong,
    get_choice,
    get_command,
    get_count,
    get_dict,
    get_dicts,
    get_guest_path,
    get_int,
    get_str,
    in_range,
    need_port,
    note,
    quoted,
)

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
