from __future__ import annotations

from typing import Any

import pytest
from skerry.types.v1.spec_pb2 import (
    CHECK_KIND_INFORMATIONAL,
    CHECK_KIND_READINESS,
    CHECK_TYPE_HTTP,
    CHECK_TYPE_TCP,
    CONTAINER_CONDITION_EXITED_SUCCESSFULLY,
    CONTAINER_CONDITION_HEALTHY,
    CONTAINER_CONDITION_STARTED,
    RESTART_POLICY_ALWAYS,
    RESTART_POLICY_ON_FAILURE,
)

from services.config_converter.part import Facts
from services.config_converter.parts.containers import PART
from tests.unit.config_converter.judging import accept, refuse


def container(name: str = "app", *depends_on: str, **fields: Any) -> dict[str, Any]:
    dependencies = [{"name": other} for other in depends_on]
    return {"name": name, "image": "acme/api", "depends_on": dependencies, **fields}


def accepted(**fields: Any) -> Any:
    return accept(PART, {"containers": [container(**fields)]}).containers[0]


def check_of(**fields: Any) -> Any:
    return accepted(healthchecks=[fields]).checks[0]


def check_problems(**fields: Any) -> list[str]:
    return list(refuse(PART, {"containers": [container(healthchecks=[fields])]}))


def test_a_container_has_defaults_for_all_but_name_and_image() -> None:
    spec = accepted()
    assert (spec.name, spec.image.repository, spec.image.tag) == ("app", "acme/api", "latest")
    assert (spec.restart.policy, spec.restart.max_retries) == (RESTART_POLICY_ON_FAILURE, 10)
    assert (spec.stop.signal, spec.stop.timeout.seconds) == ("SIGINT", 5)


def test_a_container_is_built_by_the_rules_of_the_other_parts() -> None:
    spec = accepted(
        cmd=["serve"],
        user="nobody",
        env={"A": "1"},
        secrets=[{"env_var": "S"}],
        env_from=[{"env_var": "ID", "field_ref": "id"}],
        files=[{"guest_path": "/f", "raw_value": "YQ=="}],
        restart={"policy": "always"},
        stop={"signal": "SIGTERM", "timeout": "1m"},
    )
    assert (list(spec.process.cmd), spec.process.user, dict(spec.process.env)) == (["serve"], "nobody", {"A": "1"})
    assert dict(spec.process.secrets) == {"S": "S"}
    assert spec.files[0].content == b"a"
    assert spec.restart.policy == RESTART_POLICY_ALWAYS
    assert (spec.stop.signal, spec.stop.timeout.seconds) == ("SIGTERM", 60)


def test_the_rules_of_the_other_parts_name_the_containers_fields() -> None:
    bad = container(
        image="Bad",
        exec=[""],
        env={"": "1"},
        secrets=[{}],
        files=[{"guest_path": "x", "secret_name": "S"}],
        restart={"policy": "sometimes"},
        stop={"signal": "SIGWINCH", "timeout": "soon"},
    )
    assert list(refuse(PART, {"containers": [container("first"), bad]})) == [
        "containers[1].image",
        "containers[1].exec[0]",
        'containers[1].env[""]',
        "containers[1].secrets[0].env_var",
        "containers[1].files[0].guest_path",
        "containers[1].restart.policy",
        "containers[1].stop.signal",
        "containers[1].stop.timeout",
    ]


def test_images_of_containers_and_volumes_may_be_aliases() -> None:
    facts = Facts(image_aliases={"base": "registry.example/base:3"})
    config = {"containers": [container(image="base")], "volumes": [{"name": "v", "image": "base"}]}
    spec = accept(PART, config, facts)
    assert spec.containers[0].image.repository == "base"
    assert spec.volumes[0].image.registry == "registry.example"


def test_names_are_required_and_unique() -> None:
    problems = refuse(PART, {"containers": [container("a"), container("a"), container("")]})
    assert list(problems) == ["containers[1].name", "containers[2].name"]
    volumes = [{"name": name, "image": "a"} for name in ("v", "v", "")]
    assert list(refuse(PART, {"volumes": volumes})) == ["volumes[1].name", "volumes[2].name"]


def test_an_image_is_required() -> None:
    assert "is required" in refuse(PART, {"containers": [{"name": "a"}]})["containers[0].image"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("", CONTAINER_CONDITION_STARTED),
        ("started", CONTAINER_CONDITION_STARTED),
        ("healthy", CONTAINER_CONDITION_HEALTHY),
        ("exited_successfully", CONTAINER_CONDITION_EXITED_SUCCESSFULLY),
    ],
)
def test_a_dependency_waits_for_a_condition(condition: str, expected: int) -> None:
    app = {**container(), "depends_on": [{"name": "db", "condition": condition}]}
    dependency = accept(PART, {"containers": [app, container("db")]}).containers[0].depends_on[0]
    assert (dependency.name, dependency.condition) == ("db", expected)


def test_a_dependency_on_what_does_not_exist_is_refused() -> None:
    assert list(refuse(PART, {"containers": [container("a", "b")]})) == ["containers[0].depends_on[0].name"]


def test_an_unknown_condition_is_refused() -> None:
    app = {**container(), "depends_on": [{"name": "db", "condition": "ready"}]}
    problems = refuse(PART, {"containers": [app, container("db")]})
    assert list(problems) == ["containers[0].depends_on[0].condition"]


@pytest.mark.parametrize(
    ("edges", "circles"),
    [
        ({"a": "a"}, {0: '"a" -> "a"'}),
        ({"a": "b", "b": "a"}, {0: '"a" -> "b" -> "a"'}),
        ({"a": "b", "b": "c", "c": "b"}, {1: '"b" -> "c" -> "b"'}),
        ({"a": "b", "b": "a", "c": "d", "d": "c"}, {0: '"a" -> "b" -> "a"', 2: '"c" -> "d" -> "c"'}),
    ],
)
def test_a_circle_of_dependencies_is_refused_with_its_chain(edges: dict[str, str], circles: dict[int, str]) -> None:
    problems = refuse(PART, {"containers": [container(name, *others) for name, others in edges.items()]})
    assert list(problems) == [f"containers[{i}].depends_on" for i in circles]
    for i, chain in circles.items():
        assert problems[f"containers[{i}].depends_on"].endswith(chain)


def test_dependencies_without_a_circle_may_meet_again() -> None:
    diamond = [container("a", "b", "c"), container("b", "d"), container("c", "d"), container("d")]
    assert len(accept(PART, {"containers": diamond}).containers) == 4


def test_a_chain_of_thousands_of_containers_is_followed_to_its_circle() -> None:
    chain = [container(f"c{i}", f"c{i + 1}") for i in range(3000)]
    problems = refuse(PART, {"containers": [*chain, container("c3000", "c0")]})
    assert list(problems) == ["containers[0].depends_on"]
    assert len(problems["containers[0].depends_on"]) < 200


def test_a_healthcheck_has_defaults() -> None:
    check = check_of(name="t", tcp={"port": 4318})
    assert (check.name, check.kind, check.stop_unhealthy) == ("t", "readiness", False)
    assert (check.interval.seconds, check.timeout.seconds, check.grace_period.seconds) == (15, 10, 5)
    assert (check.success_threshold, check.failure_threshold) == (1, 3)
    assert (check.network.type, check.network.kind, check.network.port) == (CHECK_TYPE_TCP, CHECK_KIND_READINESS, 4318)


def test_a_healthcheck_over_http_is_kept() -> None:
    check = check_of(
        interval=10,
        timeout=2,
        grace_period=0,
        success_threshold=2,
        failure_threshold=5,
        kind="liveness",
        unhealthy="stop",
        http={"port": 8080, "path": "/ready", "scheme": "https", "headers": [{"name": "A", "values": ["b"]}]},
    )
    assert (check.interval.seconds, check.timeout.seconds, check.grace_period.seconds) == (10, 2, 0)
    assert (check.success_threshold, check.failure_threshold, check.stop_unhealthy) == (2, 5, True)
    http = check.network
    assert (http.type, http.kind) == (CHECK_TYPE_HTTP, CHECK_KIND_INFORMATIONAL)
    assert (http.port, http.method, http.path, http.tls, http.headers[0].name) == (8080, "GET", "/ready", True, "A")


def test_a_healthcheck_may_be_a_command() -> None:
    assert list(check_of(exec={"command": ["/bin/true", ""]}).command.command) == ["/bin/true", ""]


@pytest.mark.parametrize(
    "kinds", [{}, {"tcp": {"port": 1}, "exec": {"command": ["x"]}}, {"tcp": {"port": 1}, "http": {"port": 1}}]
)
def test_a_healthcheck_is_exactly_one_of_three(kinds: dict[str, Any]) -> None:
    assert check_problems(name="c", **kinds) == ["containers[0].healthchecks[0]"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"interval": 0}, "interval"),
        ({"interval": 2**40}, "interval"),
        ({"timeout": -1}, "timeout"),
        ({"grace_period": -1}, "grace_period"),
        ({"success_threshold": 0}, "success_threshold"),
        ({"failure_threshold": -1}, "failure_threshold"),
        ({"kind": "vital"}, "kind"),
        ({"unhealthy": "restart"}, "unhealthy"),
        ({"tcp": {"port": 0}}, "tcp.port"),
    ],
)
def test_what_a_healthcheck_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    assert check_problems(**{"tcp": {"port": 1}, **fields}) == [f"containers[0].healthchecks[0].{field}"]


@pytest.mark.parametrize(
    ("http", "field"),
    [
        ({"port": 70000}, "port"),
        ({"port": 1, "path": "x"}, "path"),
        ({"port": 1, "scheme": "ftp"}, "scheme"),
        ({"port": 1, "method": "FETCH"}, "method"),
        ({"port": 1, "headers": [{"name": ""}]}, "headers[0].name"),
        ({"port": 1, "tls_server_name": "a b"}, "tls_server_name"),
    ],
)
def test_what_a_healthcheck_over_http_may_not_say_is_refused_by_its_path(http: dict[str, Any], field: str) -> None:
    assert check_problems(http=http) == [f"containers[0].healthchecks[0].http.{field}"]


@pytest.mark.parametrize(("command", "field"), [([], "command"), ([""], "command[0]")])
def test_a_command_of_a_healthcheck_names_a_program(command: list[str], field: str) -> None:
    assert check_problems(exec={"command": command}) == [f"containers[0].healthchecks[0].exec.{field}"]


def test_volumes_are_directories_or_images() -> None:
    volumes = [
        {"name": "a", "temp_dir": {"storage_type": "memory", "size_mb": 64}},
        {"name": "b", "temp_dir": {}},
        {"name": "c", "image": "acme/data:1"},
    ]
    a, b, c = accept(PART, {"volumes": volumes}).volumes
    assert (a.name, a.temp_dir.in_memory, a.temp_dir.size_bytes) == ("a", True, 64 << 20)
    assert (b.WhichOneof("source"), b.temp_dir.in_memory, b.temp_dir.size_bytes) == ("temp_dir", False, 0)
    assert (c.image.repository, c.image.tag) == ("acme/data", "1")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "volumes[0]"),
        ({"temp_dir": {}, "image": "a"}, "volumes[0]"),
        ({"image": "A"}, "volumes[0].image"),
        ({"temp_dir": {"storage_type": "tape"}}, "volumes[0].temp_dir.storage_type"),
        ({"temp_dir": {"size_mb": 2**64 - 1}}, "volumes[0].temp_dir.size_mb"),
    ],
)
def test_what_a_volume_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    assert list(refuse(PART, {"volumes": [{"name": "v", **fields}]})) == [field]


def test_a_container_mounts_declared_volumes_once_each() -> None:
    volumes = [{"name": "v", "temp_dir": {}}]
    mounted = container(mounts=[{"name": "v", "path": "/v"}])
    assert dict(accept(PART, {"containers": [mounted], "volumes": volumes}).containers[0].mounts) == {"v": "/v"}

    bad = container(mounts=[{"name": "v", "path": "v"}, {"name": "v", "path": "/w"}, {"name": "x", "path": "/x"}])
    assert list(refuse(PART, {"containers": [bad], "volumes": volumes})) == [
        "containers[0].mounts[0].path",
        "containers[0].mounts[1].name",
        "containers[0].mounts[2].name",
    ]
