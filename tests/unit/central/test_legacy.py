"""The legacy conversion against the regions' own: the same, but for what QUIRKS says."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skerry.types.v1.config_pb2 import MachineConfig

from services.central.legacy import CONVERTERS, PARTS, QUIRKS, convert_part
from services.central_sync.config_json import public_json
from services.config_converter.conversion import PART_NAMES
from tests.samples import invalid_samples, valid_samples
from tests.unit.central.both_ways import differing_parts, in_the_centre, in_the_region, read
from tests.unit.config_converter.configs import FIELDS, configuration

Json = dict[str, Any]


def quirks_of(part: str) -> list[Json]:
    return [quirk for quirk in QUIRKS if quirk["part"] == part]


# What quirks do to values that have their edges: a configuration without those edges is one that both convert alike.
def without_edges(config: Json) -> Json:
    plain: Json = json.loads(json.dumps(config))
    if isinstance(plain.get("image"), str):
        host, slash, rest = plain["image"].partition("/")
        plain["image"] = host.lower() + slash + rest if slash else plain["image"]
    plain["env"] = {name: value.rstrip() for name, value in (plain.get("env") or {}).items()}
    plain["metadata"] = {key: value or "-" for key, value in (plain.get("metadata") or {}).items()}
    plain["schedule"] = (plain.get("schedule") or "").lower()
    for file in plain.get("files") or ():
        if file.get("mode", 0) <= 0o7777:
            file["mode"] = file.get("mode", 0) & 0o777
    for check in (plain.get("checks") or {}).values():
        if (check.get("interval") or "").endswith(("ms", "µs", "us", "ns")) or "." in (check.get("interval") or ""):
            check["interval"] = "1s"
    if not math.isfinite((plain.get("spot") or {}).get("max_price_fraction", 0)):
        del plain["spot"]  # Which JSON cannot say.
    return plain


def test_the_centre_has_a_converter_for_every_part() -> None:
    assert set(PARTS) == set(PART_NAMES)
    assert all(1 in versions for versions in CONVERTERS.values())


@pytest.mark.parametrize("name", valid_samples())
def test_both_convert_every_valid_sample_alike(name: str) -> None:
    config = json.loads(valid_samples()[name])["config"]
    assert differing_parts(config) == {}
    for part in PARTS:
        assert in_the_centre(part, config)[1] == frozenset()


@pytest.mark.parametrize("name", invalid_samples())
def test_the_centre_refuses_every_invalid_sample_and_names_its_field(name: str) -> None:
    sample = invalid_samples()[name]
    refused: set[str] = set()
    for part in PARTS:
        refused |= in_the_centre(part, sample["request"]["config"])[1]
    assert sample["expect"]["field"].removeprefix("config.") in refused


@given(FIELDS)
@settings(max_examples=300, deadline=None)
def test_both_agree_on_any_configuration_without_the_edges_also_on_what_they_refuse(fields: Json) -> None:
    config = without_edges(public_json(configuration(fields)))
    assume("\\u0000" not in json.dumps(config))  # What holds NUL comes to no converter.
    assert differing_parts(config, message=ParseDict(config, MachineConfig())) == {}


# Ordinary configurations: what people write, all of it valid.

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
TEXT = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=12)
PORTS = st.integers(1, 65535)
DURATIONS = st.sampled_from(["1s", "15s", "1m30s", "2h", 15_000_000_000, "90s"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
ENVIRONMENTS = st.dictionaries(NAMES.map(str.upper), TEXT, max_size=4)


def objects(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(required or {}, optional=optional)


IMAGES = st.builds(
    lambda registry, name, tag, digest: f"{registry}{name}{tag}{digest}",
    st.sampled_from(["", "docker.io/", "index.docker.io/library/", "registry.example:5000/team/", "localhost/"]),
    NAMES,
    st.sampled_from(["", ":latest", ":1.27-alpine"]),
    DIGESTS.map(lambda digest: f"@{digest}") | st.just(""),
)
HTTP_CHECKS: dict[str, Any] = {
    "interval": DURATIONS,
    "timeout": DURATIONS,
    "grace_period": DURATIONS | st.just("0s"),
    "method": st.sampled_from(["GET", "get", "Head"]),
    "path": PATHS,
    "protocol": st.sampled_from(["http", "https"]),
    "tls_skip_verify": st.booleans(),
    "tls_server_name": st.just("example.com") | st.just("::1"),
    "headers": st.lists(objects(name=st.just("X-Check"), values=st.lists(TEXT, max_size=2)), max_size=2).map(
        lambda headers: [{"name": "Host", **header} for header in headers]
    ),
}
CHECKS = st.dictionaries(
    NAMES,
    objects(
        {"type": st.sampled_from(["tcp", "http"]), "port": PORTS},
        kind=st.sampled_from(["informational", "readiness"]),
        **HTTP_CHECKS,
    ),
    max_size=3,
)
PUBLIC_PORTS = objects({"port": PORTS}, handlers=st.lists(st.sampled_from(["http", "tls", "pg_tls"]), max_size=2)) | (
    st.tuples(PORTS, PORTS).map(lambda pair: {"start_port": min(pair), "end_port": max(pair)})
)
SERVICES = st.lists(
    objects(
        {"internal_port": PORTS, "protocol": st.just("tcp")},
        autostop=st.sampled_from([True, False, "off", "stop", "suspend"]),
        autostart=st.booleans(),
        min_machines_running=st.integers(0, 5),
        force_instance_key=st.none() | TEXT,
        ports=st.lists(
            st.tuples(
                PUBLIC_PORTS,
                objects(
                    force_https=st.booleans(),
                    tls_options=objects(
                        alpn=st.just(["h2", "http/1.1"]),
                        versions=st.just(["TLSv1.3"]),
                        default_self_signed=st.booleans(),
                    ),
                    http_options=objects(
                        compress=st.booleans(),
                        h2_backend=st.booleans(),
                        idle_timeout=st.integers(0, 600),
                        response=objects(
                            headers=st.dictionaries(NAMES, st.just(False) | TEXT | st.lists(TEXT, max_size=2)),
                            pristine=st.booleans(),
                        ),
                    ),
                    proxy_proto_options=objects(version=st.sampled_from(["v1", "v2"])),
                ),
            ).map(lambda pair: pair[0] | pair[1]),
            max_size=2,
        ),
        checks=st.lists(objects({"type": st.sampled_from(["tcp", "http"])}, port=PORTS, **HTTP_CHECKS), max_size=2),
        concurrency=objects(type=st.sampled_from(["requests", "connections"]), hard_limit=st.integers(100, 200)),
    ),
    max_size=2,
)
FILES = st.lists(
    objects({"guest_path": PATHS}, mode=st.integers(0, 0o777)).flatmap(
        lambda file: st.sampled_from(
            [
                {"raw_value": base64.b64encode(b"hello").decode()},
                {"secret_name": "KEY"},
                {"image_config": "config"},
            ]
        ).map(lambda source: file | source)
    ),
    max_size=3,
)
COMMANDS = st.lists(TEXT, min_size=1, max_size=3)
RESTARTS = objects(policy=st.sampled_from(["no", "always", "on-failure", ""]), max_retries=st.integers(0, 20))
STOPS = objects(timeout=DURATIONS | st.just("0s"), signal=st.sampled_from(["SIGTERM", "SIGQUIT", ""]))
PROCESSES: dict[str, Any] = {
    "exec": COMMANDS,
    "entrypoint": COMMANDS,
    "cmd": COMMANDS,
    "user": NAMES,
    "env": ENVIRONMENTS,
    "secrets": st.just([{"env_var": "A", "name": "B"}, {"env_var": "C"}]),
    "env_from": st.just([{"env_var": "ID", "field_ref": "id"}, {"env_var": "WHERE", "field_ref": "region"}]),
}
CONTAINERS = st.lists(NAMES, unique=True, min_size=1, max_size=3).flatmap(
    lambda names: st.tuples(
        *(
            objects(
                {"name": st.just(name), "image": IMAGES},
                files=FILES,
                restart=RESTARTS,
                stop=STOPS,
                depends_on=st.just([{"name": names[0], "condition": "healthy"}] if name != names[0] else []),
                mounts=st.just([{"name": "scratch", "path": "/scratch"}]),
                healthchecks=st.lists(
                    st.sampled_from(
                        [
                            {"name": "web", "interval": 10, "http": {"port": 80, "path": "/up", "scheme": "https"}},
                            {"name": "db", "timeout": 2, "kind": "liveness", "tcp": {"port": 5432}},
                            {"exec": {"command": ["true"]}, "unhealthy": "stop", "failure_threshold": 5},
                        ]
                    ),
                    max_size=2,
                ),
                **PROCESSES,
            )
            for name in names
        )
    ).map(list)
)
ORDINARY = objects(
    {
        "image": IMAGES,
        "volumes": st.just(
            [
                {"name": "scratch", "temp_dir": {"storage_type": "memory", "size_mb": 64}},
                {"name": "data", "image": "data:1"},
            ]
        ),
    },
    size=st.sampled_from(["shared-cpu-2x", "performance-16x", "a10", "a100-80gb"]),
    env=ENVIRONMENTS,
    metadata=st.dictionaries(NAMES, TEXT, max_size=3),
    init=objects(exec=COMMANDS, cmd=COMMANDS, tty=st.booleans(), swap_size_mb=st.integers(0, 4096)),
    services=SERVICES,
    disable_machine_autostart=st.booleans(),
    checks=CHECKS,
    files=FILES,
    processes=st.lists(objects(ignore_app_secrets=st.booleans(), **PROCESSES), max_size=2),
    containers=CONTAINERS,
    restart=RESTARTS,
    auto_destroy=st.booleans(),
    schedule=st.sampled_from(["hourly", "weekly", ""]),
    stop_config=STOPS,
    dns=objects(
        skip_registration=st.booleans(),
        nameservers=st.just(["fdaa::3", "1.1.1.1"]),
        searches=st.just(["example.com", "_tcp.local."]),
        options=st.just([{"name": "ndots", "value": "2"}]),
        dns_forward_rules=st.just([{"basename": ".", "addr": "[fdaa::3]:53"}, {"basename": "a.b", "addr": "9.9.9.9"}]),
        hostname=NAMES,
    ),
    metrics=objects({"port": PORTS}, path=PATHS, https=st.booleans()),
    statics=st.just([{"guest_path": "/public", "url_prefix": "/static"}, {"tigris_bucket": "b", "url_prefix": "/b"}]),
    mounts=st.just([{"volume": "vol_1", "path": "/data", "extend_threshold_percent": 80, "size_gb_limit": 50}])
    | st.just([{"name": "data", "path": "/data", "size_gb": 3, "encrypted": True}]),
    rootfs=objects(persist=st.sampled_from(["never", "restart", "always", 3]), size_gb=st.integers(1, 100)),
    cache_drive=objects(size_mb=st.integers(0, 4096)),
    spot=objects(max_price_fraction=st.floats(0, 1)),
)
GUESTS = st.sampled_from(
    [
        {"cpus": 2, "memory_mb": 1024},
        {"cpu_kind": "performance", "cpus": 4, "max_memory_mb": 32768},
        {"gpu_kind": "a100-pcie-40gb", "gpus": 2},
        {"gpu_kind": "l40s", "cpus": 16},
        {"persist_rootfs": 0},
        {},
    ]
)


@given(ORDINARY)
@settings(max_examples=250, deadline=None)
def test_both_convert_ordinary_configurations_alike_and_refuse_none(config: Json) -> None:
    # The centre gets what a region has read: without objects of which nothing is set, for one.
    message = read(config)
    assert differing_parts(public_json(message), message=message) == {}
    assert {part: in_the_region(part, message)[1] for part in PARTS} == dict.fromkeys(PARTS, frozenset())


@given(GUESTS, st.none() | st.fixed_dictionaries({"cpus": st.none() | st.integers(0, 16), "gpus": st.just(1)}))
def test_both_keep_to_the_limits_of_the_organization_alike(guest: Json, limits: Json | None) -> None:
    assert differing_parts({"image": "app", "guest": guest}, {"limits": limits or {}}) == {}


@given(NAMES, NAMES, DIGESTS)
def test_both_resolve_aliases_and_digests_alike(alias: str, name: str, digest: str) -> None:
    facts = {
        "image_aliases": {alias: f"registry.example/{name}:7"},
        "image_digests": {f"registry.example/{name}:7": digest},
    }
    config = {"image": alias, "containers": [{"name": "one", "image": alias}]}
    assert differing_parts(config, facts) == {}
    assert (in_the_centre("image", config, facts)[0] or {})["digest"] == digest


# The quirks.


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk["part"])
def test_a_quirk_is_a_difference_in_its_part_and_in_no_other(quirk: Json) -> None:
    assert list(differing_parts(quirk["config"])) == [quirk["part"]]


def test_a_second_version_of_a_part_has_no_quirk() -> None:
    seen = 0
    for part, versions in CONVERTERS.items():
        for version in sorted(versions)[1:]:
            for quirk in quirks_of(part):
                seen += 1
                config = quirk["config"]
                assert in_the_centre(part, config, version=version) == in_the_region(part, read(config))
    assert seen


def test_parts_without_a_quirk_have_one_version_only() -> None:
    assert {part for part, versions in CONVERTERS.items() if len(versions) > 1} <= {q["part"] for q in QUIRKS}


@given(NAMES, st.sampled_from(["Registry.Example", "EU.registry.example:5000", "LOCALHOST:80"]))
def test_upper_case_letters_in_a_registry_are_lowered_by_the_centre_only(name: str, registry: str) -> None:
    config = {"image": f"{registry}/{name}:1"}
    ours, theirs = differing_parts(config)["image"]
    assert ours[0] is not None
    assert theirs[0] == {**ours[0], "registry": registry.lower()}


@given(st.dictionaries(NAMES, TEXT, min_size=1), st.sampled_from([" ", "\t", " \n", "\r\n"]))
def test_white_space_at_the_end_of_a_variable_is_stripped_by_the_centre_only(env: dict[str, str], end: str) -> None:
    config = {"image": "app", "env": {name: value + end for name, value in env.items()}}
    ours, theirs = differing_parts(config)["env"]
    assert ours[0] == {"variables": config["env"]}
    assert theirs[0] == {"variables": env}


@given(st.integers(1, 999_999_999))
def test_an_interval_below_a_second_is_rounded_up_by_the_centre_only(nanoseconds: int) -> None:
    check = {"type": "tcp", "port": 80, "interval": nanoseconds}
    differing = differing_parts({"image": "app", "checks": {"fast": check}})
    ours, theirs = differing.pop("checks")
    assert ours[0] is not None
    assert theirs[0] is not None
    assert theirs[0]["checks"]["fast"] == {**ours[0]["checks"]["fast"], "interval": "1s"}
    assert differing == {}
    # Checks of a service went another way.
    assert differing_parts({"image": "app", "services": [{"internal_port": 80, "checks": [check]}]}) == {}


@given(st.integers(0o1000, 0o7777))
def test_special_permission_bits_are_taken_away_by_the_centre_only(mode: int) -> None:
    config = {"image": "app", "files": [{"guest_path": "/tool", "secret_name": "S", "mode": mode}]}
    ours, theirs = differing_parts(config)["files"]
    assert ours[0] is not None
    assert theirs[0] is not None
    assert ours[0]["files"][0]["mode"] == mode
    assert theirs[0]["files"][0].get("mode", 0) == mode & 0o777


@given(st.dictionaries(NAMES, TEXT), st.sets(NAMES, min_size=1))
def test_empty_metadata_is_dropped_by_the_centre_only(metadata: dict[str, str], empty: set[str]) -> None:
    config = {"image": "app", "metadata": metadata | dict.fromkeys(empty, "")}
    ours, theirs = differing_parts(config)["metadata"]
    kept = {key: value for key, value in metadata.items() if key not in empty}
    assert ours[0] == {"entries": config["metadata"]}
    assert theirs[0] == ({"entries": kept} if kept else {})


@given(st.sampled_from(["Hourly", "DAILY", "wEEkly", "Monthly"]))
def test_a_schedule_in_upper_case_is_refused_by_the_region_only(schedule: str) -> None:
    ours, theirs = differing_parts({"image": "app", "schedule": schedule})["schedule"]
    assert ours == (None, frozenset({"schedule"}))
    assert theirs == ({"interval": f"SCHEDULE_INTERVAL_{schedule.upper()}"}, frozenset())


# Anything at all: the centre is asked over the network, so it answers whatever it is sent.

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=6,
)
FIELD_NAMES = [field.name for field in MachineConfig.DESCRIPTOR.fields]


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), ANYTHING, max_size=4) | FIELDS.map(lambda f: {"services": [f]}))
@settings(max_examples=300, deadline=None)
def test_a_configuration_of_any_shape_is_converted_or_refused_and_breaks_nothing(config: Json) -> None:
    for part in PARTS:
        spec, wrong = convert_part(part, 1, config, {})
        assert isinstance(spec, dict)
        assert all(isinstance(why, str) and why for why in wrong.values())
        json.dumps(spec)


def test_a_volume_in_another_region_is_refused_when_its_place_is_known() -> None:
    config = {"image": "app", "mounts": [{"volume": "vol_1", "path": "/data"}]}
    elsewhere = {"region": "syd", "volume_location": {"vol_1": {"region": "iad"}}}
    here = {"region": "syd", "volume_location": {"vol_1": {"region": "syd"}}}
    assert in_the_centre("mounts", config, elsewhere)[1] == {"mounts[0].volume"}
    assert in_the_centre("mounts", config, here)[1] == frozenset()
