"""The JSON that the centre gets is the one that the public API speaks, as far as its legacy code reads it."""

from __future__ import annotations

import json

import pytest
from skerry.types.v1.config_pb2 import MachineCheck, MachineConfig, MachineGuest

from gateway.rest.codec import decode
from services.central_sync.config_json import public_json
from tests.samples import valid_samples


def test_numbers_are_numbers_and_nothing_is_there_that_was_not_set() -> None:
    config = MachineConfig(image="nginx", guest=MachineGuest(cpus=2, memory_mb=1 << 40), auto_destroy=False)
    assert public_json(config) == {
        "image": "nginx",
        "guest": {"cpus": 2, "memory_mb": 1 << 40},
        "auto_destroy": False,
    }


def test_members_that_no_field_has_stand_where_they_were_written_and_never_hide_a_field() -> None:
    config = MachineConfig(image="nginx", unknown_members={"later": '{"a": [1, null]}', "image": '"not this"'})
    assert public_json(config) == {"image": "nginx", "later": {"a": [1, None]}}


def test_maps_lists_and_free_values_keep_their_form() -> None:
    config = MachineConfig(env={"A": ""}, checks={"web": MachineCheck(port=80, interval="15s")})
    headers = config.services.add(internal_port=8080).ports.add(handlers=["http"]).http_options.response.headers
    headers["x-one"].string_value = "1"
    headers["x-none"].bool_value = False
    assert public_json(config) == {
        "env": {"A": ""},
        "checks": {"web": {"port": 80, "interval": "15s"}},
        "services": [
            {
                "internal_port": 8080,
                "ports": [
                    {"handlers": ["http"], "http_options": {"response": {"headers": {"x-one": "1", "x-none": False}}}}
                ],
            }
        ],
    }


@pytest.mark.parametrize("name", sorted(valid_samples()))
def test_the_public_api_reads_it_as_the_same_configuration(name: str) -> None:
    document = json.loads(valid_samples()[name])
    config, _ = decode(MachineConfig, json.dumps(document.get("config", document)).encode())
    again, _ = decode(MachineConfig, json.dumps(public_json(config)).encode())
    assert again == config
