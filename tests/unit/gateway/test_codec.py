"""The JSON codec: what it takes, what it refuses and where, and how it compares with google.protobuf.json_format."""

from __future__ import annotations

import json
import timeit
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from skerry.machines.v1.machines_pb2 import App, CreateMachineRequest, ListMachinesResponse, Machine, StopMachineRequest
from skerry.types.v1 import annotations_pb2 as options
from skerry.types.v1.config_pb2 import HTTPResponseOptions, MachineConfig, MachineService
from skerry.types.v1.machine_pb2 import (
    HOST_STATUS_OK,
    HOST_STATUS_UNREACHABLE,
    MACHINE_STATE_LAUNCH_FAILED,
    MachineEvent,
    MachineExitEvent,
)

from gateway.rest.codec import DEEPEST, decode, encode
from gateway.rest.forms import is_map, json_name, message_of, rule_of
from services.runtime.errors import InvalidConfig
from tests.samples import valid_samples

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
FREE_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type in BOUNDS:
        return st.integers(*BOUNDS[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats(allow_nan=False, allow_infinity=False)
    if rule_of(field) == options.JSON_RULE_AUTOSTOP:
        return st.just("suspend")  # The only one whose JSON is the string itself.
    return TEXT


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        return scalars(field)
    if message_of(field).full_name == Value.DESCRIPTOR.full_name:
        return FREE_VALUES
    return documents(message_of(field), depth - 1)


def documents(descriptor: Descriptor, depth: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that are set in every member: nothing in them is empty, so nothing in them means "not set"."""
    members: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        if rule_of(field) == options.JSON_RULE_UNKNOWN_MEMBERS or (depth == 0 and field.message_type is not None):
            continue
        if is_map(field):
            value = message_of(field).fields_by_name["value"]
            of_value = values(value, depth).filter(lambda item: item is not None)
            members[json_name(field)] = st.dictionaries(TEXT, of_value, min_size=1, max_size=2)
        elif field.is_repeated:
            members[json_name(field)] = st.lists(values(field, depth), min_size=1, max_size=2)
        else:
            members[json_name(field)] = values(field, depth).filter(lambda item: item not in ("", [], {}))
    return st.fixed_dictionaries({}, optional=members)


@settings(max_examples=150, deadline=None)
@given(documents(MachineConfig.DESCRIPTOR))
def test_documents_read_as_json_format_reads_them(document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    message, unknown = decode(MachineConfig, body)
    assert message == json_format.Parse(body, MachineConfig())
    assert unknown == []


@settings(max_examples=150, deadline=None)
@given(documents(MachineConfig.DESCRIPTOR))
def test_what_is_written_reads_back_the_same_here_and_in_json_format(document: dict[str, Any]) -> None:
    message = json_format.ParseDict(document, MachineConfig())
    written = encode(message)
    assert decode(MachineConfig, written) == (message, [])
    # json_format has no "always there": what stands there empty is not set.
    shown = {name: member for name, member in json.loads(written).items() if member != {}}
    assert json_format.ParseDict(shown, MachineConfig()) == message


def test_a_config_says_each_oddity_of_the_api_in_its_own_form() -> None:
    message, unknown = decode(
        MachineConfig,
        b"""{"image": "i", "guest": {"persist_rootfs": 2}, "stop_config": {"timeout": 90000000000},
        "services": [{"autostop": true}, {"autostop": false}, {"autostop": "suspend"}]}""",
    )
    assert unknown == []
    assert message.guest.persist_rootfs == "restart"
    assert message.stop_config.timeout == "1m30s"
    assert [service.autostop for service in message.services] == ["stop", "off", "suspend"]
    written = json.loads(encode(message))
    assert [service["autostop"] for service in written["services"]] == [True, False, "suspend"]
    assert written["init"] == {}
    assert written["services"][0]["force_instance_key"] is None


@pytest.mark.parametrize(
    ("sent", "name"), [(0, ""), (1, "never"), (2, "restart"), (3, "always"), ("none", ""), ("restart", "restart")]
)
def test_persist_rootfs_may_be_a_number_or_a_name(sent: int | str, name: str) -> None:
    message, _ = decode(MachineConfig, json.dumps({"rootfs": {"persist": sent}}).encode())
    assert message.rootfs.persist == name


@pytest.mark.parametrize("nothing", ["null", '""', "[]", "{}"])
def test_null_and_empty_values_mean_not_set_for_every_member(nothing: str) -> None:
    members = ", ".join(f'"{json_name(field)}": {nothing}' for field in MachineConfig.DESCRIPTOR.fields[:-1])
    message, unknown = decode(MachineConfig, ("{" + members + "}").encode())
    assert (message, unknown) == (MachineConfig(), [])


def test_an_object_of_which_nothing_is_set_is_not_set_either() -> None:
    body = b'{"restart": {"policy": ""}, "guest": {"cpus": null}, "init": {"cmd": []}, "services": [{"ports": null}]}'
    message, _ = decode(MachineConfig, body)
    assert json.loads(encode(message)) == {"init": {}, "services": [{"force_instance_key": None}]}


def test_false_and_zero_are_values() -> None:
    message, _ = decode(MachineConfig, b'{"auto_destroy": false, "restart": {"max_retries": 0}}')
    assert message.HasField("auto_destroy")
    assert message.restart.HasField("max_retries")
    assert json.loads(encode(message)) == {"init": {}, "auto_destroy": False, "restart": {"max_retries": 0}}


def test_of_a_map_of_strings_only_null_leaves_an_entry_out() -> None:
    message, _ = decode(MachineConfig, b'{"env": {"EMPTY": "", "GONE": null, "A": "1"}, "init": {"cmd": ["sh", ""]}}')
    assert dict(message.env) == {"EMPTY": "", "A": "1"}
    assert list(message.init.cmd) == ["sh", ""]


def test_unknown_members_of_a_config_are_kept_and_deeper_ones_only_named() -> None:
    body = b'{"config": {"image": "i", "quantum": {"qubits": 3}, "services": [{"teleport": true}]}, "later": 1}'
    message, unknown = decode(CreateMachineRequest, body)
    assert unknown == ["config.quantum", "config.services[0].teleport", "later"]
    assert json.loads(encode(message))["config"] == {
        "init": {},
        "image": "i",
        "services": [{"force_instance_key": None}],
        "quantum": {"qubits": 3},
    }


def test_the_field_that_keeps_unknown_members_is_itself_no_member() -> None:
    message, unknown = decode(MachineConfig, b'{"unknown_members": {"image": "5"}}')
    assert unknown == ["unknown_members"]
    assert dict(message.unknown_members) == {"unknown_members": '{"image":"5"}'}


def test_every_mistake_is_named_with_its_path() -> None:
    body = b"""{"name": 3, "skip_launch": "yes", "config": {"image": 5, "env": {"A": {"b": 1}, "B": 2}, "files": {},
    "services": [{"internal_port": 80.0, "ports": [{"handlers": ["tls", 1, null]}]}, 7],
    "checks": {"c": {"port": true}}, "mounts": "vol",
    "stop_config": {"timeout": 1.5}, "restart": {"max_retries": 9223372036854775808}}}"""
    with pytest.raises(InvalidConfig) as refused:
        decode(CreateMachineRequest, body)
    assert {violation.field: violation.why for violation in refused.value.violations} == {
        "name": "must be a string, is the number 3",
        "skip_launch": 'must be true or false, is the string "yes"',
        "config.image": "must be a string, is the number 5",
        "config.env.A": "must be a string, is an object",
        "config.env.B": "must be a string, is the number 2",
        "config.services[0].internal_port": "must be a whole number of 64 bits, is the number 80.0",
        "config.services[0].ports[0].handlers[1]": "must be a string, is the number 1",
        "config.services[0].ports[0].handlers[2]": "must be a string, is null",
        "config.services[1]": "must be an object, is the number 7",
        "config.checks.c.port": "must be a whole number of 64 bits, is true",
        "config.mounts": 'must be a list, is the string "vol"',
        "config.stop_config.timeout": 'must be a duration such as "15s" or whole nanoseconds, is the number 1.5',
        "config.restart.max_retries": "must be a whole number of 64 bits, is the number 9223372036854775808",
    }
    assert all(violation.field in refused.value.message for violation in refused.value.violations)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{not json", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"[1,2]", "must be a JSON object, is a list"),
        (b"7", "must be a JSON object, is the number 7"),
        (b'{"name": "\xff\xfe"}', "not JSON"),
        (b'{"name": "\\ud800"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"name":' + b"[" * 300 + b"]" * 300 + b"}", "nested deeper"),
        (b'{"skip_launch": NaN}', "not JSON"),
        (b'{"config":{"guest":{"memory_mb":' + b"9" * 400 + b"}}}", "not JSON"),
        (b'{"name": "a", "name": "b"}', '"name" twice'),
        (b'{"name": "a", "x": "\\u003a\\u003A", "\\u006eame": "b"}', '"name" twice'),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
)
def test_what_is_no_json_or_unclear_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(InvalidConfig, match="body") as refused:
        decode(CreateMachineRequest, body)
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"name": "a\\u0000b"}', "name"),
        (b'{"config": {"env": {"A": "x\\u0000y"}}}', "config.env.A"),
        (b'{"config": {"env": {"A\\u0000": "x"}}}', "config.env"),
        (b'{"config": {"quantum": ["\\u0000"]}}', "config.quantum[0]"),
    ],
)
def test_the_character_nul_is_refused_wherever_it_stands(body: bytes, field: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        decode(CreateMachineRequest, body)
    assert [violation.field for violation in refused.value.violations] == [field]
    assert field in refused.value.message


def test_an_escaped_backslash_before_u0000_is_no_nul() -> None:
    message, _ = decode(CreateMachineRequest, b'{"name": "\\\\u0000"}')
    assert message.name == "\\u0000"


def test_a_body_as_deep_as_allowed_is_read() -> None:
    deep = b"[" * (DEEPEST - 2) + b"]" * (DEEPEST - 2)
    _, unknown = decode(CreateMachineRequest, b'{"config": {"deep": ' + deep + b"}}")
    assert unknown == ["config.deep"]


@pytest.mark.parametrize("body", [b"", b" \n", b"null", b"{}"])
def test_nothing_and_null_are_an_empty_message(body: bytes) -> None:
    assert decode(StopMachineRequest, body) == (StopMachineRequest(), [])


def test_mistakes_and_unknown_members_are_named_up_to_a_bound() -> None:
    services = [{"teleport": index, "protocol": index} for index in range(1, 1000)]
    with pytest.raises(InvalidConfig) as refused:
        decode(CreateMachineRequest, json.dumps({"config": {"services": services}}).encode())
    assert len(refused.value.violations) == 100
    _, unknown = decode(MachineConfig, json.dumps({f"x{index}": 1 for index in range(1000)}).encode())
    assert len(unknown) == 100


def test_free_values_keep_their_kind() -> None:
    headers = {"a": False, "b": "x", "c": ["1", 2, None, 2.5], "d": {"e": True}, "g": 1 << 40}
    body = json.dumps({"headers": {**headers, "f": None}}).encode()
    message, unknown = decode(HTTPResponseOptions, body)
    assert unknown == []
    assert json.loads(encode(message)) == {"headers": headers}


def test_a_free_value_that_is_too_deep_is_refused() -> None:
    body = b'{"headers": {"a": ' + b"[" * 40 + b"]" * 40 + b"}}"
    with pytest.raises(InvalidConfig, match=r"headers\.a must not be nested deeper than 30"):
        decode(HTTPResponseOptions, body)


def test_a_machine_is_written_as_clients_expect_it() -> None:
    event = MachineEvent(id="e", type="exit", timestamp=Timestamp(seconds=1_700_000_000, nanos=123_999_999))
    event.request.monitor_event.exit_event.exit_code = 0
    machine = Machine(
        id="00112233445566", state=MACHINE_STATE_LAUNCH_FAILED, host_status=HOST_STATUS_UNREACHABLE, events=[event]
    )
    machine.created_at.FromJsonString("2026-11-24T05:06:07.008999Z")
    assert json.loads(encode(machine)) == {
        "id": "00112233445566",
        "state": "launch_failed",
        "image_ref": {},
        "cordoned": False,
        "created_at": "2026-11-24T05:06:07.008Z",
        "host_status": "unreachable",
        "events": [
            {
                "id": "e",
                "type": "exit",
                "timestamp": 1_700_000_000_123,
                "request": {"MonitorEvent": {"exit_event": {"exit_code": 0, "exited_at": "0001-01-01T00:00:00Z"}}},
            }
        ],
    }


def test_what_is_always_there_is_there_also_when_empty() -> None:
    assert json.loads(encode(App())) == {
        "id": "",
        "name": "",
        "internal_numeric_id": 0,
        "network": "",
        "status": "",
        "machine_count": 0,
        "volume_count": 0,
        "organization": {"name": "", "slug": "", "internal_numeric_id": 0},
        "cname_target": "",
        "app_role": "",
    }
    assert json.loads(encode(ListMachinesResponse())) == {"machines": []}
    assert json.loads(encode(MachineService())) == {"force_instance_key": None}


def test_moments_and_enums_read_as_they_are_written() -> None:
    machine = Machine(id="a", state=MACHINE_STATE_LAUNCH_FAILED, host_status=HOST_STATUS_OK)
    machine.created_at.FromMilliseconds(1_764_000_000_123)
    machine.events.add(id="e").timestamp.FromMilliseconds(1_764_000_000_456)
    assert decode(Machine, encode(machine)) == (machine, [])
    early, _ = decode(MachineExitEvent, b'{"exited_at": "0001-01-01T00:00:00Z"}')
    assert json.loads(encode(early)) == {"exited_at": "0001-01-01T00:00:00.000Z"}


@pytest.mark.parametrize(
    ("cls", "body"),
    [
        (Machine, b'{"state": "gone"}'),
        (Machine, b'{"created_at": "yesterday"}'),
        (Machine, b'{"created_at": 5}'),
        (MachineEvent, b'{"timestamp": 99999999999999999}'),
        (MachineEvent, b'{"timestamp": "now"}'),
        (MachineConfig, b'{"rootfs": {"persist": 4}}'),
        (MachineConfig, b'{"services": [{"autostop": 1}]}'),
        (MachineConfig, b'{"spot": {"max_price_fraction": "1"}}'),
        (MachineConfig, b'{"rootfs": {"size_gb": -1}}'),
    ],
)
def test_values_of_another_kind_are_refused(cls: type[Any], body: bytes) -> None:
    with pytest.raises(InvalidConfig) as refused:
        decode(cls, body)
    assert len(refused.value.violations) == 1


def test_the_codec_is_at_least_twice_as_fast_as_json_format() -> None:
    body = valid_samples()["web-http"]
    request, _ = decode(CreateMachineRequest, body)
    machine = Machine(id="00112233445566", name="web", config=request.config)

    def best(function: Any) -> float:
        return min(timeit.repeat(function, number=20, repeat=15))

    reading = best(lambda: json_format.Parse(body, CreateMachineRequest())) / best(
        lambda: decode(CreateMachineRequest, body)
    )
    writing = best(lambda: json_format.MessageToJson(machine, preserving_proto_field_name=True)) / best(
        lambda: encode(machine)
    )
    assert reading > 2
    assert writing > 2
