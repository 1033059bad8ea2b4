from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from skerry.converter.v1.converter_pb2 import PART_OWNER_REGION, ConversionResult
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MachineSpec

from services.config_converter.conversion import (
    FIELDS_NAMED,
    FIELDS_OF_NO_PART,
    PART_NAMES,
    VIOLATION_BYTES,
    Context,
    convert,
    owner_of,
)
from services.config_converter.part import NO_FACTS, Part, Problems
from services.config_converter.parts import PARTS
from services.config_converter.parts.image import PART as IMAGE
from services.runtime.errors import InvalidConfig, PartUnserved, Violation
from tests.unit.config_converter.configs import FIELDS, configuration, reversed_maps
from tests.unit.config_converter.judging import config_of

MINIMAL = {"image": "nginx"}

OWNERS = {
    "image": ["image"],
    "guest": ["guest", "size", "spot"],
    "env": ["env"],
    "init": ["init"],
    "services": ["services", "disable_machine_autostart"],
    "checks": ["checks"],
    "mounts": ["mounts"],
    "files": ["files"],
    "processes": ["processes"],
    "containers": ["containers", "volumes"],
    "restart": ["restart", "auto_destroy"],
    "stop": ["stop_config"],
    "dns": ["dns"],
    "metrics": ["metrics"],
    "statics": ["statics"],
    "metadata": ["metadata"],
    "schedule": ["schedule"],
    "standbys": ["standbys"],
    "rootfs": ["rootfs", "guest.persist_rootfs", "cache_drive"],
}

random_configurations = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def outcome(config: MachineConfig) -> bytes | tuple[Violation, ...]:
    """The bytes of the result, or what is wrong."""
    try:
        return convert(config).SerializeToString(deterministic=True)
    except InvalidConfig as error:
        return error.violations


def refused(fields: dict[str, Any], context: Context = Context()) -> InvalidConfig:  # noqa: B008
    with pytest.raises(InvalidConfig) as refusal:
        convert(config_of(fields), context)
    return refusal.value


def paths_of(descriptor: Descriptor, prefix: str = "") -> list[str]:
    """Every field of a message and of the messages in it."""
    paths = []
    for field in descriptor.fields:
        path = prefix + field.name
        if path in FIELDS_OF_NO_PART:
            continue
        paths.append(path)
        nested = field.message_type
        if nested and nested.GetOptions().map_entry:
            nested = nested.fields_by_name["value"].message_type
        if nested and nested.full_name.startswith("skerry."):
            paths += paths_of(nested, f"{path}.")
    return paths


def test_every_field_of_the_configuration_has_exactly_one_owner() -> None:
    paths = paths_of(MachineConfig.DESCRIPTOR)
    claims = [owned for part in PARTS for owned in part.owns]
    assert len(claims) == len(set(claims))
    assert set(claims) <= set(paths)
    assert {read for part in PARTS for read in part.reads} <= set(paths)
    for path in paths:
        owner = owner_of(path)
        longest = max((owned for owned in claims if path == owned or path.startswith(f"{owned}.")), key=len)
        assert longest in owner.owns


def test_the_table_of_parts_has_the_owners_that_were_agreed_on() -> None:
    assert {part.name: list(part.owns) for part in PARTS} == OWNERS
    assert {part.name: list(part.reads) for part in PARTS if part.reads} == {
        "restart": ["schedule"],
        "standbys": ["services"],
    }
    assert owner_of("guest.persist_rootfs").name == "rootfs"
    assert owner_of("guest.cpus").name == "guest"
    with pytest.raises(KeyError):
        owner_of("unknown_members")


def test_parts_are_named_after_the_fields_of_the_spec() -> None:
    assert tuple(part.name for part in PARTS) == PART_NAMES


def test_a_minimal_configuration_has_every_part_once_and_says_who_made_it() -> None:
    result = convert(config_of(MINIMAL))
    assert [field.name for field, _ in result.spec.ListFields()] == list(PART_NAMES)
    assert [(part.part, part.owner, part.version) for part in result.parts] == [
        (name, PART_OWNER_REGION, 1) for name in PART_NAMES
    ]


def test_a_result_says_the_version_of_each_converter() -> None:
    parts = tuple(
        replace(part, converters={1: part.convert, 2: part.convert}) if part.name == "env" else part for part in PARTS
    )
    versions = {part.part: part.version for part in convert(config_of(MINIMAL), parts=parts).parts}
    assert versions["env"] == 2
    assert versions["image"] == 1


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        (PARTS[1:], "image has no converter"),
        ((*PARTS, IMAGE), "image has 2 converters"),
        ((*PARTS, replace(IMAGE, name="quantum")), "quantum is no part"),
        ((), "env has no converter"),
    ],
)
def test_a_part_that_is_missing_doubled_or_unknown_is_refused(parts: tuple[Part, ...], why: str) -> None:
    with pytest.raises(PartUnserved, match=why):
        convert(config_of(MINIMAL), parts=parts)


def test_a_result_shares_nothing_with_the_next_one() -> None:
    first = convert(config_of(MINIMAL))
    first.spec.dns.searches.append("changed")
    first.spec.env.variables["A"] = "changed"
    second = convert(config_of(MINIMAL))
    assert list(second.spec.dns.searches) == []
    assert dict(second.spec.env.variables) == {}


def test_one_answer_names_every_field_that_is_wrong_in_the_order_of_the_parts() -> None:
    error = refused(
        {
            "schedule": "fortnightly",
            "image": "",
            "env": {"A=": "1", "=": "2"},
            "services": [{"internal_port": 80}, {"internal_port": 70000, "protocol": "icmp"}],
            "checks": {"c": {"type": "tcp", "port": 80, "interval": "fifteen"}},
            "stop_config": {"signal": "SIGWINCHED"},
            "restart": {"policy": "sometimes"},
        }
    )
    assert [violation.field for violation in error.violations] == [
        "config.image",
        'config.env["="]',
        'config.env["A="]',
        "config.services[1].protocol",
        "config.services[1].internal_port",
        "config.checks.c.interval",
        "config.restart.policy",
        "config.stop_config.signal",
        "config.schedule",
    ]
    assert error.message.startswith("config.image is required")
    assert 'config.services[1].protocol must be tcp or udp, is "icmp"' in error.message
    assert error.message.endswith(f"and {9 - FIELDS_NAMED} more fields")


def test_a_message_names_the_value_and_what_is_allowed() -> None:
    error = refused({**MINIMAL, "services": [{"internal_port": 70000}]})
    assert error.message == "config.services[0].internal_port must be 1..65535, is 70000"
    assert error.violations == (Violation("config.services[0].internal_port", "must be 1..65535, is 70000"),)


def test_fields_are_named_as_they_stand_in_the_callers_request() -> None:
    error = refused({}, Context(field_prefix="machine.config"))
    assert [violation.field for violation in error.violations] == ["machine.config.image"]


def test_thirty_wrong_fields_are_all_named() -> None:
    error = refused({**MINIMAL, "services": [{"internal_port": 1, "ports": [{"port": 0}] * 30}]})
    assert [violation.field for violation in error.violations] == [
        f"config.services[0].ports[{i}].port" for i in range(30)
    ]
    assert error.message.endswith(f"and {30 - FIELDS_NAMED} more fields")


@pytest.mark.parametrize("text", ["x", "ü" * 100, "x" * 10_000])
def test_an_answer_to_thousands_of_wrong_fields_stays_small(text: str) -> None:
    ports = [{"port": 0, "handlers": [text]}] * 2500
    error = refused({**MINIMAL, "services": [{"internal_port": 1, "ports": ports}]})
    assert len(error.violations) >= 10
    assert sum(len(v.field.encode()) + len(v.why.encode()) for v in error.violations) <= VIOLATION_BYTES
    named = error.message.count("config.services[0].ports[")
    assert error.message.endswith(f"and {5000 - named} more fields")
    assert len(error.message.encode()) < 1000


def test_a_long_value_is_cut_in_the_message() -> None:
    error = refused({**MINIMAL, "schedule": "x" * 10_000, "env": {"=" * 10_000: ""}})
    assert all(len(violation.field) + len(violation.why) < 400 for violation in error.violations)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"image": "a\0b"}, "image"),
        ({"env": {"A": "\0"}}, "env.A"),
        ({"env": {"A\0": "x"}}, 'env["A\\u0000"]'),
        ({"init": {"cmd": ["a", "b\0"]}}, "init.cmd[1]"),
        ({"metadata": {"k": "\0"}}, "metadata.k"),
        ({"guest": {"host_dedication_id": "\0"}}, "guest.host_dedication_id"),
        (
            {
                "services": [
                    {
                        "internal_port": 1,
                        "ports": [{"port": 1, "http_options": {"response": {"headers": {"A": ["x", "\0"]}}}}],
                    }
                ]
            },
            "services[0].ports[0].http_options.response.headers.A.list_value.values[1].string_value",
        ),
        ({"containers": [{"name": "a", "image": "b", "user": "\0"}]}, "containers[0].user"),
    ],
)
def test_a_nul_is_refused_wherever_it_stands(fields: dict[str, Any], path: str) -> None:
    error = refused({**MINIMAL, **fields})
    assert error.violations[0] == Violation(f"config.{path}", "must not contain the character NUL")


def test_zero_bytes_that_are_numbers_or_empty_values_are_no_nul() -> None:
    config = {
        **MINIMAL,
        "auto_destroy": False,
        "env": {"A": ""},
        "restart": {"max_retries": 0},
        "spot": {"max_price_fraction": 0.5},
    }
    assert b"\0" in config_of(config).SerializeToString()
    assert convert(config_of(config)).spec.env.variables["A"] == ""


def test_a_lone_surrogate_cannot_reach_the_conversion() -> None:
    with pytest.raises(UnicodeEncodeError):
        MachineConfig(image="a\ud800")
    surrogate = b"\x52\x04a\xed\xa0\x80"
    with pytest.raises(Exception, match="parsing"):
        MachineConfig.FromString(surrogate)


def test_members_that_nobody_knows_are_not_judged() -> None:
    config = config_of(MINIMAL)
    config.unknown_members["quantum"] = '{"qubits":"\\u0000"}'
    assert outcome(config) == outcome(config_of(MINIMAL))


@random_configurations
@given(FIELDS)
def test_a_conversion_is_deterministic_and_does_not_depend_on_the_order_of_maps(fields: dict[str, Any]) -> None:
    config = configuration(fields)
    before = config.SerializeToString(deterministic=True)
    first = outcome(config)
    assert config.SerializeToString(deterministic=True) == before
    assert outcome(configuration(reversed_maps(fields))) == first
    assert outcome(MachineConfig.FromString(before)) == first


@random_configurations
@given(FIELDS)
def test_a_part_looks_at_nothing_but_what_it_owns_and_reads(fields: dict[str, Any]) -> None:
    whole = configuration(fields)
    for part in PARTS:
        in_whole, in_own = Problems(), Problems()
        spec = part.convert(whole, NO_FACTS, in_whole)
        alone = part.convert(restricted(whole, part), NO_FACTS, in_own)
        assert in_own.found == in_whole.found
        if not in_whole.found:
            assert alone.SerializeToString(deterministic=True) == spec.SerializeToString(deterministic=True)


def restricted(config: MachineConfig, part: Part) -> MachineConfig:
    """The configuration with only what the part owns and reads."""
    kept = MachineConfig.FromString(config.SerializeToString())
    for field in MachineConfig.DESCRIPTOR.fields:
        name = field.name
        if name in (*part.owns, *part.reads):
            continue
        inner = [path.removeprefix(f"{name}.") for path in part.owns if path.startswith(f"{name}.")]
        if not inner:
            kept.ClearField(name)  # type: ignore[arg-type]
            continue
        assert field.message_type
        for nested in field.message_type.fields:
            if nested.name not in inner:
                getattr(kept, name).ClearField(nested.name)
    if part.name == "guest":
        kept.guest.ClearField("persist_rootfs")
        if not config.HasField("guest"):
            kept.ClearField("guest")
    return kept


@random_configurations
@given(FIELDS)
def test_every_refusal_names_its_fields_once_and_says_why(fields: dict[str, Any]) -> None:
    answer = outcome(configuration(fields))
    if isinstance(answer, bytes):
        spec = ConversionResult.FromString(answer).spec
        assert [field.name for field, _ in spec.ListFields()] == list(PART_NAMES)
    else:
        assert answer
        assert all(violation.field.startswith("config.") and violation.why for violation in answer)
        assert len({violation.field for violation in answer}) == len(answer)


@random_configurations
@given(FIELDS)
def test_whatever_a_part_accepts_is_within_bounds(fields: dict[str, Any]) -> None:
    config = configuration(fields)
    for part in PARTS:
        problems = Problems()
        spec = part.convert(config, NO_FACTS, problems)
        if not problems.found:
            check_bounds(spec)


def check_bounds(message: Message) -> None:
    """Durations are not negative, ports are ports, sizes are sizes."""
    if isinstance(message, Duration):
        assert message.seconds >= 0
        assert 0 <= message.nanos < 10**9
        return
    for field, value in message.ListFields():
        if field.name in ("port", "internal_port", "start_port", "end_port"):
            assert 1 <= value <= 65535
        if field.name.endswith("_bytes"):
            assert 0 <= value < 1 << 50
        if isinstance(value, Message):
            check_bounds(value)
        elif field.message_type and isinstance(value, Mapping):
            for inner in value.values():
                if isinstance(inner, Message):
                    check_bounds(inner)
        elif field.message_type:
            for inner in value:
                check_bounds(inner)


def test_the_spec_of_a_usual_web_machine_is_what_the_worker_expects() -> None:
    spec: MachineSpec = convert(
        config_of(
            {
                "image": "registry-1.docker.io/library/python:3.12-slim",
                "env": {"PORT": "8080"},
                "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
                "init": {"exec": ["python3", "-m", "http.server", "8080"]},
                "services": [{"protocol": "tcp", "internal_port": 8080, "ports": [{"port": 80, "handlers": ["http"]}]}],
                "checks": {"alive": {"type": "tcp", "port": 8080, "interval": "15s", "timeout": "2s"}},
                "restart": {"policy": "on-failure", "max_retries": 5},
                "stop_config": {"signal": "SIGTERM", "timeout": "10s"},
            }
        )
    ).spec
    assert spec.image.registry == "registry-1.docker.io"
    assert list(spec.init.exec) == ["python3", "-m", "http.server", "8080"]
    assert spec.guest.memory_bytes == 256 << 20
    assert spec.checks.checks["alive"].timeout == Duration(seconds=2)
    assert spec.restart.max_retries == 5
    assert (spec.stop.signal, spec.stop.timeout.seconds) == ("SIGTERM", 10)
