"""Requests as clients send them: through the gateway's JSON codec into the conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from skerry.types.v1.config_pb2 import MachineConfig
from skerry.types.v1.spec_pb2 import MACHINE_FIELD_ID, PERSIST_ROOTFS_RESTART, MachineSpec

from gateway.rest.codec import decode, encode
from services.config_converter.conversion import convert
from services.runtime.errors import InvalidConfig

SAMPLES = Path(__file__).parents[2] / "samples"
VALID = sorted(path.name for path in SAMPLES.glob("valid/*.json"))
INVALID = sorted(path.name for path in SAMPLES.glob("invalid/*.json"))

# What is no JSON of a configuration never reaches the conversion: the codec refuses it.
REFUSED_BY_THE_CODEC = {"env-not-string.json", "image-not-string.json"}


def read(path: str) -> Any:
    return json.loads((SAMPLES / path).read_text())


def configuration(request: dict[str, Any]) -> MachineConfig:
    return decode(MachineConfig, json.dumps(request["config"]).encode())[0]


def spec_of(name: str) -> MachineSpec:
    return convert(configuration(read(f"valid/{name}.json"))).spec


def test_there_are_samples() -> None:
    assert len(VALID) >= 11
    assert len(INVALID) >= 18


@pytest.mark.parametrize("name", VALID)
def test_a_valid_request_is_accepted_and_stays_valid_when_it_is_read_back(name: str) -> None:
    config = configuration(read(f"valid/{name}"))
    result = convert(config)
    again = decode(MachineConfig, encode(config))[0]
    assert convert(again).SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", [name for name in INVALID if name not in REFUSED_BY_THE_CODEC])
def test_an_invalid_request_is_refused_by_exactly_its_field(name: str) -> None:
    sample = read(f"invalid/{name}")
    with pytest.raises(InvalidConfig) as refusal:
        convert(configuration(sample["request"]))
    assert [violation.field for violation in refusal.value.violations] == [sample["expect"]["field"]]
    assert refusal.value.http == sample["expect"]["status"]
    assert sample["expect"]["field"] in refusal.value.message


def test_durations_in_nanoseconds_arrive_as_durations() -> None:
    spec = spec_of("nanoseconds")
    check = spec.checks.checks["web"]
    assert (check.interval.seconds, check.timeout.seconds) == (15, 2)
    assert (check.grace_period.seconds, check.grace_period.nanos) == (1, 500_000_000)
    assert (spec.stop.signal, spec.stop.timeout.seconds) == ("SIGQUIT", 30)


def test_a_number_for_what_survives_of_the_root_file_system_is_understood() -> None:
    assert spec_of("database-with-volume").rootfs.persist == PERSIST_ROOTFS_RESTART


def test_a_digest_without_a_tag_stays_alone() -> None:
    spec = spec_of("files-and-secrets")
    assert (spec.image.repository, spec.image.tag) == ("acme/worker", "")
    assert spec.image.digest.startswith("sha256:e15c")
    assert spec.files.files[0].content == b"hello world\n"
    assert dict(spec.processes.processes[0].env_from) == {"MACHINE": MACHINE_FIELD_ID}
    assert dict(spec.processes.processes[0].secrets) == {"DB_URL": "DATABASE_URL"}
