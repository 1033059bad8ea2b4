from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import (
    CPU_KIND_PERFORMANCE,
    CPU_KIND_SHARED,
    EnvSpec,
    FileSpec,
    FilesSpec,
    GuestSpec,
    InitSpec,
    StopSpec,
)

from services.config_converter.comparing import InputHashes, Outcome, compare, first_difference
from services.config_converter.conversion import owner_of
from services.config_converter.part import NO_FACTS, Facts, Limits
from services.config_converter.parts import PARTS
from tests.unit.config_converter.configs import FIELDS, configuration
from tests.unit.config_converter.judging import config_of

HASHES = InputHashes(PARTS)


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        (GuestSpec(gpus=1), GuestSpec(gpus=2), ("gpus", "1", "2")),
        (
            GuestSpec(cpu_kind=CPU_KIND_SHARED, gpus=1),
            GuestSpec(cpu_kind=CPU_KIND_PERFORMANCE, gpus=2),
            ("cpu_kind", '"CPU_KIND_SHARED"', '"CPU_KIND_PERFORMANCE"'),
        ),
        (InitSpec(cmd=["a", "b"]), InitSpec(cmd=["a", "c"]), ("cmd[1]", '"b"', '"c"')),
        (InitSpec(cmd=["a"]), InitSpec(cmd=["a", "c"]), ("cmd[1]", "", '"c"')),
        (EnvSpec(variables={"A": "1"}), EnvSpec(variables={"A": "2"}), ("variables.A", '"1"', '"2"')),
        (EnvSpec(variables={"A": "1", "B": ""}), EnvSpec(variables={"A": "1"}), ("variables.B", '""', "")),
        (
            FilesSpec(files=[FileSpec(content=b"a")]),
            FilesSpec(files=[FileSpec(content=b"b")]),
            ("files[0].content", '"YQ=="', '"Yg=="'),
        ),
        (
            StopSpec(timeout=Duration(seconds=1)),
            StopSpec(timeout=Duration(seconds=2)),
            ("timeout.seconds", "1", "2"),
        ),
        (StopSpec(), StopSpec(timeout=Duration(seconds=2)), ("timeout", "", '"2s"')),
        (GuestSpec(gpus=1), GuestSpec(gpus=1), None),
        (
            GuestSpec(spot_max_price_fraction=float("nan")),
            GuestSpec(spot_max_price_fraction=float("nan")),
            None,
        ),
    ],
)
def test_a_difference_names_the_first_field_and_both_values(here: Any, there: Any, found: Any) -> None:
    assert first_difference(here, there) == found
    difference = compare("x", Outcome(1, here), Outcome(2, there))
    assert (difference is None) is (found is None)
    if difference is not None:
        assert (difference.field, difference.local_value, difference.central_value) == found
        assert (difference.local_version, difference.central_version) == (1, 2)


def test_a_difference_holds_both_outputs() -> None:
    found = compare("guest", Outcome(1, GuestSpec(gpus=1)), Outcome(2, GuestSpec(gpus=2)))
    assert found is not None
    assert (found.local_output, found.central_output) == ('{"gpus": "1"}', '{"gpus": "2"}')


def test_a_refusal_differs_from_an_acceptance_and_not_from_another_refusal() -> None:
    spec = Outcome(1, GuestSpec(gpus=1))
    refused = Outcome(1, refusal="guest.gpus must be 0")
    found = compare("guest", refused, spec)
    assert found is not None
    assert (found.local_refusal, found.local_output, found.central_output) == (
        "guest.gpus must be 0",
        "",
        '{"gpus": "1"}',
    )
    found = compare("guest", spec, refused)
    assert found is not None
    assert (found.central_refusal, found.central_output) == ("guest.gpus must be 0", "")
    assert compare("guest", refused, Outcome(2, refusal="gpus: no")) is None


def hashes(config: MachineConfig, facts: Facts = NO_FACTS) -> dict[str, bytes]:
    return {part.name: HASHES.of(part.name, config, facts) for part in PARTS}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    first, second = hashes(config_of(before)), hashes(config_of(after))
    return {name for name in first if first[name] != second[name]}


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        ({"image": "a"}, {"image": "b"}, {"image"}),
        ({"guest": {"cpus": 1}}, {"guest": {"cpus": 2}}, {"guest"}),
        ({"guest": {"persist_rootfs": "always"}}, {"guest": {"persist_rootfs": "never"}}, {"rootfs"}),
        ({"schedule": "daily"}, {"schedule": "hourly"}, {"schedule", "restart"}),
        ({"services": [{"internal_port": 1}]}, {"services": [{"internal_port": 2}]}, {"services", "standbys"}),
        ({"env": {"A": "1", "B": "2"}}, {"env": {"B": "2", "A": "1"}}, set()),
        ({"unknown_members": {"a": "1"}}, {"unknown_members": {"a": "2"}}, set()),
    ],
)
def test_the_hash_of_an_input_changes_with_what_the_part_owns_or_reads(
    before: dict[str, Any], after: dict[str, Any], parts: set[str]
) -> None:
    assert changed(before, after) == parts


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(FIELDS)
def test_every_field_that_is_set_is_in_the_hash_of_its_owner(fields: dict[str, Any]) -> None:
    config = configuration(fields)
    before = hashes(config)
    for field, _ in list(config.ListFields()):
        if field.name in ("unknown_members", "guest"):
            continue
        without = MachineConfig.FromString(config.SerializeToString())
        without.ClearField(field.name)  # type: ignore[arg-type]
        owner = owner_of(field.name)
        after = hashes(without)
        assert after[owner.name] != before[owner.name]
        readers = {part.name for part in PARTS if field.name in part.reads}
        assert {name for name in before if before[name] != after[name]} <= {owner.name, *readers}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(FIELDS)
def test_equal_inputs_have_equal_hashes_and_no_two_parts_the_same(fields: dict[str, Any]) -> None:
    first, second = hashes(configuration(fields)), hashes(configuration(fields))
    assert first == second
    assert len(set(first.values())) == len(PARTS)


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        (Facts(image_aliases={"app": "registry.example/app:7"}), {"image", "containers"}),
        (Facts(image_aliases={"other": "registry.example/app:7"}), set()),
        (Facts(image_digests={"docker.io/library/app:latest": "sha256:1"}), {"image", "containers"}),
        (Facts(limits=Limits(cpus=4)), {"guest"}),
        (Facts(volume_locations={"vol_1": "w1"}), {"mounts"}),
    ],
)
def test_the_hash_of_an_input_changes_with_the_facts_that_the_part_uses(facts: Facts, parts: set[str]) -> None:
    config = config_of(
        {
            "image": "app",
            "containers": [{"name": "a", "image": "app"}],
            "mounts": [{"volume": "vol_1", "path": "/data"}],
        }
    )
    before, after = hashes(config), hashes(config, facts)
    assert {name for name in before if before[name] != after[name]} == parts
