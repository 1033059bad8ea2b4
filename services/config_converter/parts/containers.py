"""The part containers: containers that run side by side in the machine, and the volumes that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from google.protobuf.duration_pb2 import Duration
from skerry.types.v1.config_pb2 import (
    ContainerConfig,
    ContainerHealthcheck,
    HTTPHealthcheck,
    MachineConfig,
    VolumeConfig,
)
from skerry.types.v1.spec_pb2 import (
    CHECK_KIND_INFORMATIONAL,
    CHECK_KIND_READINESS,
    CHECK_TYPE_HTTP,
    CHECK_TYPE_TCP,
    CONTAINER_CONDITION_EXITED_SUCCESSFULLY,
    CONTAINER_CONDITION_HEALTHY,
    CONTAINER_CONDITION_STARTED,
    RESTART_POLICY_ON_FAILURE,
    CheckKind,
    CheckSpec,
    ContainerCheckSpec,
    ContainerSpec,
    ContainersSpec,
    ContainerVolumeSpec,
)

from services.config_converter.part import Facts, Part, Problems
from services.config_converter.parts.checks import DEFAULT_PATH, TLS, fill_headers, http_method, server_name
from services.config_converter.parts.files import fill_files
from services.config_converter.parts.image import fill_image, image_facts
from services.config_converter.parts.processes import fill_process
from services.config_converter.parts.restart import fill_restart
from services.config_converter.parts.stop import fill_stop
from services.config_converter.rules import (
    LARGEST_COUNT,
    LARGEST_MB,
    LARGEST_SECONDS,
    MIB,
    bounded,
    command,
    guest_path,
    http_path,
    one_of,
    port,
    shown,
)

CONDITIONS = {
    "started": CONTAINER_CONDITION_STARTED,
    "healthy": CONTAINER_CONDITION_HEALTHY,
    "exited_successfully": CONTAINER_CONDITION_EXITED_SUCCESSFULLY,
}
CHECK_KINDS = {"readiness": "readiness", "liveness": "liveness"}
UNHEALTHY = {"stop": True}
STORAGE_TYPES = {"disk": False, "memory": True}
CHECKS = ("http", "tcp", "exec")

DEFAULT_CHECK_KIND = "readiness"
DEFAULT_INTERVAL = 15
DEFAULT_TIMEOUT = 10
DEFAULT_GRACE_PERIOD = 5
DEFAULT_SUCCESS_THRESHOLD = 1
DEFAULT_FAILURE_THRESHOLD = 3

_SHOWN_IN_CIRCLE = 8
_NONE = ContainersSpec()


def convert(config: MachineConfig, facts: Facts, problems: Problems) -> ContainersSpec:
    """Containers and volumes keep the user's order."""
    if not config.containers and not config.volumes:
        return _NONE
    spec = ContainersSpec()
    volumes: dict[str, int] = {}
    for i, volume in enumerate(config.volumes):
        _check_name(volume.name, volumes, i, f"volumes[{i}].name", problems)
        _fill_volume(spec.volumes.add(), volume, facts, problems.below(f"volumes[{i}]"))
    names: dict[str, int] = {}
    for i, container in enumerate(config.containers):
        _check_name(container.name, names, i, f"containers[{i}].name", problems)
    for i, container in enumerate(config.containers):
        _fill_container(spec.containers.add(), container, volumes, names, facts, problems.below(f"containers[{i}]"))
    _check_circles(config.containers, names, problems)
    return spec


def _check_name(name: str, taken: dict[str, int], i: int, field: str, problems: Problems) -> None:
    if not name:
        problems.add(field, "is required")
    elif taken.setdefault(name, i) != i:
        problems.add(field, f"must be unique, is {shown(name)} again")


def _fill_volume(spec: ContainerVolumeSpec, volume: VolumeConfig, facts: Facts, problems: Problems) -> None:
    spec.name = volume.name
    has_temp_dir = volume.HasField("temp_dir")
    if has_temp_dir == bool(volume.image):
        problems.add("", f"must have exactly one of temp_dir and image, has {'both' if has_temp_dir else 'none'}")
    elif has_temp_dir:
        temp_dir = volume.temp_dir
        spec.temp_dir.in_memory = one_of(temp_dir.storage_type, STORAGE_TYPES, False, "temp_dir.storage_type", problems)
        size = bounded(temp_dir.size_mb, 0, LARGEST_MB, "temp_dir.size_mb", problems)
        spec.temp_dir.size_bytes = size * MIB
    else:
        fill_image(spec.image, volume.image, facts, "image", problems)


def _fill_container(
    spec: ContainerSpec,
    container: ContainerConfig,
    volumes: Mapping[str, int],
    names: Mapping[str, int],
    facts: Facts,
    problems: Problems,
) -> None:
    spec.name = container.name
    fill_image(spec.image, container.image, facts, "image", problems)
    fill_process(spec.process, container, problems)
    fill_files(spec.files, container.files, problems)
    fill_restart(spec.restart, container.restart, RESTART_POLICY_ON_FAILURE, problems.below("restart"))
    fill_stop(spec.stop, container.stop, problems.below("stop"))
    for i, dependency in enumerate(container.depends_on):
        at = f"depends_on[{i}]"
        if dependency.name not in names:
            problems.add(f"{at}.name", f"must be the name of another container, is {shown(dependency.name)}")
        condition = one_of(dependency.condition, CONDITIONS, CONTAINER_CONDITION_STARTED, f"{at}.condition", problems)
        spec.depends_on.add(name=dependency.name, condition=condition)
    for i, check in enumerate(container.healthchecks):
        _fill_check(spec.checks.add(), check, problems.below(f"healthchecks[{i}]"))
    for i, mount in enumerate(container.mounts):
        at = f"mounts[{i}]"
        if mount.name not in volumes:
            problems.add(f"{at}.name", f"must be the name of one of the machine's volumes, is {shown(mount.name)}")
        elif mount.name in spec.mounts:
            problems.add(f"{at}.name", f"must be mounted once in a container, is {shown(mount.name)} again")
        spec.mounts[mount.name] = guest_path(mount.path, f"{at}.path", problems)


def _fill_check(spec: ContainerCheckSpec, check: ContainerHealthcheck, problems: Problems) -> None:
    spec.name = check.name
    spec.kind = one_of(check.kind, CHECK_KINDS, DEFAULT_CHECK_KIND, "kind", problems)
    spec.stop_unhealthy = one_of(check.unhealthy, UNHEALTHY, False, "unhealthy", problems)
    for name, low, default in (
        ("interval", 1, DEFAULT_INTERVAL),
        ("grace_period", 0, DEFAULT_GRACE_PERIOD),
        ("timeout", 1, DEFAULT_TIMEOUT),
    ):
        seconds = default
        if check.HasField(name):  # type: ignore[arg-type]
            seconds = bounded(getattr(check, name), low, LARGEST_SECONDS, name, problems)
        target: Duration = getattr(spec, name)
        target.seconds = seconds
    spec.success_threshold = DEFAULT_SUCCESS_THRESHOLD
    if check.HasField("success_threshold"):
        spec.success_threshold = bounded(check.success_threshold, 1, LARGEST_COUNT, "success_threshold", problems)
    spec.failure_threshold = DEFAULT_FAILURE_THRESHOLD
    if check.HasField("failure_threshold"):
        spec.failure_threshold = bounded(check.failure_threshold, 1, LARGEST_COUNT, "failure_threshold", problems)
    kinds = [name for name in CHECKS if check.HasField(name)]  # type: ignore[arg-type]
    if len(kinds) != 1:
        problems.add("", f"must have exactly one of http, tcp and exec, has {' and '.join(kinds) or 'none'}")
    elif check.HasField("http"):
        _fill_http_check(spec.network, check.http, spec.kind, problems.below("http"))
    elif check.HasField("tcp"):
        spec.network.type = CHECK_TYPE_TCP
        spec.network.kind = _network_kind(spec.kind)
        spec.network.port = port(check.tcp.port, "tcp.port", problems)
    else:
        if not check.exec.command:
            problems.add("exec.command", "is required: a program and its arguments")
        command(check.exec.command, "exec.command", problems)
        spec.command.command.extend(check.exec.command)


def _fill_http_check(spec: CheckSpec, check: HTTPHealthcheck, kind: str, problems: Problems) -> None:
    spec.type = CHECK_TYPE_HTTP
    spec.kind = _network_kind(kind)
    spec.port = port(check.port, "port", problems)
    spec.method = http_method(check.method, "method", problems)
    spec.path = http_path(check.path, DEFAULT_PATH, "path", problems)
    spec.tls = one_of(check.scheme, TLS, False, "scheme", problems)
    spec.tls_skip_verify = check.tls_skip_verify
    if check.tls_server_name:
        spec.tls_server_name = server_name(check.tls_server_name, "tls_server_name", problems)
    fill_headers(spec.headers, check.headers, problems)


def _network_kind(kind: str) -> CheckKind.ValueType:
    return CHECK_KIND_READINESS if kind == "readiness" else CHECK_KIND_INFORMATIONAL


def _check_circles(containers: Sequence[ContainerConfig], names: Mapping[str, int], problems: Problems) -> None:
    edges = [[names[d.name] for d in container.depends_on if d.name in names] for container in containers]
    for circle in islice(_circles(edges), Problems.MOST):
        chain = [shown(containers[i].name) for i in (*circle[:_SHOWN_IN_CIRCLE], circle[0])]
        if len(circle) > _SHOWN_IN_CIRCLE:
            chain.insert(-1, "…")
        problems.add(f"containers[{circle[0]}].depends_on", f"must not be a circle, is {' -> '.join(chain)}")


def _circles(edges: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Circles of a directed graph, each from its lowest node; none only if the graph has none."""
    done: set[int] = set()
    for root in range(len(edges)):
        if root in done:
            continue
        path, on_path = [root], {root: 0}
        left = [iter(edges[root])]
        while left:
            following = next(left[-1], None)
            if following is None:
                left.pop()
                node = path.pop()
                del on_path[node]
                done.add(node)
            elif following in on_path:
                circle = path[on_path[following] :]
                lowest = circle.index(min(circle))
                yield circle[lowest:] + circle[:lowest]
            elif following not in done:
                on_path[following] = len(path)
                path.append(following)
                left.append(iter(edges[following]))


def _facts_used(config: MachineConfig, facts: Facts) -> Iterator[tuple[str, str]]:
    for volume in config.volumes:
        yield from image_facts(volume.image, facts)
    for container in config.containers:
        yield from image_facts(container.image, facts)


PART = Part("containers", owns=("containers", "volumes"), converters={1: convert}, facts_used=_facts_used)
