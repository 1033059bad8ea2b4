"""Secrets over REST and gRPC: a real region with a worker that runs machines, and a real centre."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from skerry.machines.v1 import secrets_pb2 as api
from skerry.machines.v1.secrets_pb2_grpc import SecretsStub
from skerry.store.v1 import store_pb2 as store
from skerry.types.v1.resources_pb2 import Resources

from gateway.auth import Principal, Right, current_principal, insist_on
from services.runtime import telemetry
from services.runtime.channels import connect
from services.runtime.errors import (
    DependencyDown,
    Forbidden,
    InvalidConfig,
    NotFound,
    SecretsNotHereYet,
    SkerryError,
)
from services.runtime.sealing import Keyring
from services.worker.settings import WorkerSettings
from tests.integration.central.centres import Centre, running, settings_for
from tests.integration.central_sync.cells import quick, url_of
from tests.support import eventually
from tests.support_gateway import PLENTY, TOKEN, Answer, TestRegion, new_database
from tests.support_gateway import region as new_region

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEARER = (("authorization", f"Bearer {TOKEN}"),)
VALUE = "hunter2-is-hidden"
WAITER = ["sh", "-c", "env >env; sleep 1000"]


@dataclass
class Surroundings:
    """A region and a centre that it asks, and how to take that one away."""

    region: TestRegion
    centre: Centre
    secrets: Any
    data: Path
    link: Link

    async def call(self, verb: str, app: str, path: str = "", json: Any = None) -> Answer:
        return await self.region.call(verb, f"/v1/apps/{app}/secrets{path}", json)

    async def app(self) -> str:
        return await self.region.app()

    async def machine(self, app: str, config: dict[str, Any] | None = None, **more: Any) -> Answer:
        body = {"config": {"image": "x", "init": {"exec": WAITER}, **(config or {})}, "region": "syd", **more}
        return await self.region.call("POST", f"/v1/apps/{app}/machines", body)

    async def environment(self, app: str, machine_id: str) -> dict[str, str]:
        """The environment of a machine that has started, as it wrote it down itself."""
        await self.region.call("GET", f"/v1/apps/{app}/machines/{machine_id}/wait?state=started&timeout=10")
        file = self.data / "machines" / machine_id / "root" / "env"
        await eventually(lambda: file.exists() and "FLY_APP_NAME" in file.read_text())
        return dict(line.partition("=")[::2] for line in file.read_text().splitlines())


class Link:
    """A way to the centre that can be cut: bytes go through, or nobody answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, to_there}

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, to_there), pump(there, writer))
        self._writers -= {writer, to_there}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def around(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Surroundings]:
    folder = tmp_path_factory.mktemp("secrets")
    data = folder / "worker"
    workers = [WorkerSettings(id="real", capacity=PLENTY, data=data)]
    async with (
        new_database(postgres) as dsn,
        running(settings_for(folder, dsn, faults=True)) as centre,
    ):
        link = Link(int(url_of(centre).split(":")[2].partition("/")[0]))
        await link.mend()
        settings = quick([f"http://127.0.0.1:{link.port}/graphql"])
        async with (
            new_region(
                postgres, workers=workers, capacity=Resources(), centre=settings, keyring=Keyring([b"k" * 32])
            ) as region,
            connect([region.grpc_address], caller="syd-1/cli", callee="gateway", secret=None) as channel,
        ):
            try:
                yield Surroundings(region, centre, SecretsStub(channel), data, link)
            finally:
                link.cut()


def names(answer: Answer) -> list[str]:
    return [secret["name"] for secret in answer.json["secrets"]]


async def test_a_secret_is_set_listed_read_and_removed_over_rest(around: Surroundings) -> None:
    app = await around.app()
    empty = await around.call("GET", app)
    assert (empty.status, empty.json) == (200, {"secrets": [], "version": 0})
    created = await around.call("POST", app, "/KEY", {"value": VALUE})
    assert created.status == 201
    assert created.json.keys() == {"name", "digest", "created_at", "updated_at", "version"}
    assert (created.json["name"], created.json["version"]) == ("KEY", 1)
    listed = await around.call("GET", app)
    (secret,) = listed.json["secrets"]
    assert secret == {name: created.json[name] for name in ("name", "digest", "created_at", "updated_at")}
    assert (await around.call("GET", app, "/KEY")).json == secret
    shown = await around.call("GET", app, "?show_secrets=true")
    assert shown.json["secrets"] == [{**secret, "value": VALUE}]
    assert (await around.call("GET", app, "/KEY?show_secrets=true")).json["value"] == VALUE
    gone = await around.call("DELETE", app, "/KEY")
    assert (gone.status, gone.json) == (200, {"version": 2})
    assert (await around.call("GET", app)).json == {"secrets": [], "version": 2}


async def test_the_same_over_grpc(around: Surroundings) -> None:
    app, secrets = await around.app(), around.secrets
    created = await secrets.SetSecret(
        api.SetSecretRequest(app_name=app, name="KEY", value=VALUE), metadata=BEARER, timeout=20
    )
    assert (created.name, created.version, created.HasField("value")) == ("KEY", 1, False)
    changes = {"KEY": api.SecretChange(), "A": api.SecretChange(value=""), "B": api.SecretChange(value="two")}
    updated = await secrets.UpdateSecrets(
        api.UpdateSecretsRequest(app_name=app, values=changes), metadata=BEARER, timeout=20
    )
    assert ([secret.name for secret in updated.secrets], updated.version) == (["A", "B"], 2)
    listed = await secrets.ListSecrets(api.ListSecretsRequest(app_name=app, show_secrets=True), metadata=BEARER)
    assert [(secret.name, secret.value) for secret in listed.secrets] == [("A", ""), ("B", "two")]
    got = await secrets.GetSecret(api.GetSecretRequest(app_name=app, name="B"), metadata=BEARER)
    assert (got.secret.digest, got.secret.HasField("value")) == (updated.secrets[1].digest, False)
    gone = await secrets.DeleteSecret(api.DeleteSecretRequest(app_name=app, name="A"), metadata=BEARER, timeout=20)
    assert gone.version == 3
    with pytest.raises(NotFound):
        await secrets.GetSecret(api.GetSecretRequest(app_name=app, name="A"), metadata=BEARER)
    with pytest.raises(NotFound):
        await secrets.DeleteSecret(api.DeleteSecretRequest(app_name=app, name="A"), metadata=BEARER, timeout=20)
    with pytest.raises(InvalidConfig, match="value is missing"):
        await secrets.SetSecret(api.SetSecretRequest(app_name=app, name="A"), metadata=BEARER)
    with pytest.raises(SecretsNotHereYet):
        await secrets.ListSecrets(api.ListSecretsRequest(app_name=app, min_version=4), metadata=BEARER)


async def test_many_are_set_and_removed_at_once_as_one_version(around: Surroundings) -> None:
    app = await around.app()
    first = await around.call("POST", app, "", {"values": {"B": "2", "A": "1", "C": "", "GONE": None}})
    assert first.status == 200
    assert first.json.keys() == {"secrets", "version"}
    assert (names(first), first.json["version"]) == (["A", "B", "C"], 1)
    assert all(secret.keys() == {"name", "digest", "created_at", "updated_at"} for secret in first.json["secrets"])
    second = await around.call("POST", app, "", {"values": {"A": "one", "B": None}})
    assert (names(second), second.json["version"]) == (["A", "C"], 2)
    before, after = first.json["secrets"], second.json["secrets"]
    assert after[0]["digest"] != before[0]["digest"]
    assert after[0]["created_at"] == before[0]["created_at"] < after[0]["updated_at"]
    assert after[1] == before[2]
    nothing = await around.call("POST", app, "", {"values": {"B": None}})
    assert (nothing.status, nothing.json) == (200, second.json)


async def test_old_versions_can_be_read_without_the_values_that_were_replaced(around: Surroundings) -> None:
    app = await around.app()
    await around.call("POST", app, "", {"values": {"A": "1", "B": "2"}})
    await around.call("POST", app, "", {"values": {"A": "one"}})
    await around.call("DELETE", app, "/B")
    old = await around.call("GET", app, "?version=1&show_secrets=true")
    assert (old.status, names(old), old.json["version"]) == (200, ["A", "B"], 1)
    assert all("value" not in secret for secret in old.json["secrets"])
    second = await around.call("GET", app, "?version=2&show_secrets=true")
    assert [secret.get("value") for secret in second.json["secrets"]] == ["one", None]
    assert (await around.call("GET", app, "/B?version=2")).status == 200
    assert (await around.call("GET", app, "/B")).status == 404
    assert names(await around.call("GET", app, "?min_version=3")) == ["A"]
    for query in ("version=4", "min_version=4", f"version={(1 << 64) - 1}"):
        late = await around.call("GET", app, f"?{query}")
        assert (late.status, late.json["status"]) == (422, "secrets_version")
        assert "version 3" in late.json["error"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("", {"values": {}}, "values"),
        ("", {}, "values"),
        ("", {"values": {"not a name": VALUE}}, "values.not a name"),
        ("", {"values": {"1A": VALUE}}, "values.1A"),
        ("", {"values": {"A": 17}}, "values.A"),
        ("", {"values": {"A": [VALUE]}}, "values.A"),
        ("", {"values": [VALUE]}, "values"),
        ("", {"values": {"A": VALUE * 4096}}, "values.A"),
        ("", {"values": {f"A{number}": VALUE for number in range(501)}}, "values"),
        ("/A", {}, "value"),
        ("/A", {"value": None}, "value"),
        ("/A", {"value": {"a": VALUE}}, "value"),
        ("/A", {"value": 1234567890}, "value"),
        ("/A", {"value": VALUE * 4096}, "value"),
        ("/not%20a%20name", {"value": VALUE}, "name"),
    ],
)
async def test_what_cannot_be_set_is_refused_by_its_field_without_showing_a_value(
    around: Surroundings, path: str, body: Any, field: str
) -> None:
    app = await around.app()
    answer = await around.call("POST", app, path, body)
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert [wrong["field"] for wrong in answer.json["fields"]] == [field]
    assert VALUE not in str(answer.json)
    assert "1234567890" not in str(answer.json)
    assert (await around.call("GET", app)).json["version"] == 0


async def test_all_secrets_of_an_app_together_have_a_bound_too(around: Surroundings) -> None:
    app = await around.app()
    big = {f"A{number}": "x" * 60_000 for number in range(5)}
    answer = await around.call("POST", app, "", {"values": big})
    assert (answer.status, answer.json["status"]) == (400, "invalid_config")
    assert "262144 bytes together" in answer.json["error"]
    assert (await around.call("GET", app)).json["version"] == 0


@pytest.mark.parametrize(("verb", "path"), [("GET", ""), ("GET", "/A"), ("POST", "/A"), ("POST", ""), ("DELETE", "/A")])
async def test_there_are_no_secrets_of_an_app_that_is_not_there_and_none_without_a_token(
    around: Surroundings, verb: str, path: str
) -> None:
    body = {"value": VALUE, "values": {"A": VALUE}} if verb == "POST" else None
    answer = await around.call(verb, "no-such-app", path, body)
    assert (answer.status, answer.json["status"]) == (404, "not_found")
    app = await around.app()
    for token in (None, "wrong"):
        refused = await around.region.call(verb, f"/v1/apps/{app}/secrets{path}", body, token=token)
        assert (refused.status, refused.json["status"]) == (401, "unauthorized")
    if verb != "POST":
        wanted = 404 if path else 200
        assert (await around.call(verb, app, path)).status == wanted


async def test_a_value_is_not_read_from_an_address(around: Surroundings) -> None:
    app = await around.app()
    assert (await around.call("POST", app, f"/A?value={VALUE}", {})).status == 400


async def test_the_right_to_see_values_is_one_of_its_own() -> None:
    token = current_principal.set(Principal("reader", rights=frozenset({Right.READ, Right.SET_SECRETS})))
    try:
        with pytest.raises(Forbidden, match="show-secrets"):
            insist_on(Right.SHOW_SECRETS)
    finally:
        current_principal.reset(token)


# Machines


async def test_a_machine_has_the_secrets_of_its_app_when_it_starts_and_the_newest_when_it_starts_again(
    around: Surroundings,
) -> None:
    app = await around.app()
    await around.call("POST", app, "", {"values": {"A": VALUE, "B": "app", "FILE": "aGVsbG8="}})
    files = [{"guest_path": "/etc/hello", "secret_name": "FILE"}]
    created = await around.machine(app, {"env": {"B": "config", "C": "config"}, "files": files})
    assert created.status == 200, created
    machine_id = created.json["id"]
    env = await around.environment(app, machine_id)
    assert (env["A"], env["B"], env["C"]) == (VALUE, "app", "config")
    root = around.data / "machines" / machine_id / "root"
    assert (root / "etc" / "hello").read_bytes() == b"hello"
    await around.call("POST", app, "", {"values": {"A": "newer", "B": None}})
    (root / "env").unlink()
    path = f"/v1/apps/{app}/machines/{machine_id}"
    assert (await around.region.call("POST", f"{path}/restart")).status == 200
    env = await around.environment(app, machine_id)
    assert (env["A"], env["B"]) == ("newer", "config")
    # What it needs by name is gone: it says so instead of starting without.
    await around.call("DELETE", app, "/FILE")
    await around.region.call("POST", f"{path}/restart")

    async def failed() -> bool:
        machine = (await around.region.call("GET", path)).json
        return bool(machine["state"] in ("failed", "launch_failed"))

    await eventually(failed)
    record = await around.region.store.GetMachine(store.GetMachineRequest(machine_id=machine_id))
    assert "config.files[0].secret_name names the secret FILE" in record.machine.reason


async def test_a_machine_can_skip_secrets_and_name_the_few_that_it_wants(around: Surroundings) -> None:
    app = await around.app()
    await around.call("POST", app, "", {"values": {"A": "secret-a", "B": "secret-b"}})
    processes = [{"exec": WAITER, "secrets": [{"env_var": "URL", "name": "A"}]}]
    config = {"image": "x", "init": {}, "processes": processes}
    skipping = await around.machine(app, config, skip_secrets=True)
    env = await around.environment(app, skipping.json["id"])
    assert env["URL"] == "secret-a"
    assert not {"A", "B"} & env.keys()
    processes[0]["ignore_app_secrets"] = True
    ignoring = await around.machine(app, config)
    env = await around.environment(app, ignoring.json["id"])
    assert env["URL"] == "secret-a"
    assert not {"A", "B"} & env.keys()
    # It is the request that skips them, of each version anew.
    path = f"/v1/apps/{app}/machines/{skipping.json['id']}"
    (around.data / "machines" / skipping.json["id"] / "root" / "env").unlink()
    del processes[0]["ignore_app_secrets"]
    updated = await around.region.call("POST", path, {"config": config})
    assert updated.status == 200
    env = await around.environment(app, skipping.json["id"])
    assert (env["URL"], env["A"], env["B"]) == ("secret-a", "secret-a", "secret-b")


async def test_a_secret_that_a_configuration_names_must_be_there(around: Surroundings) -> None:
    app = await around.app()
    config = {
        "files": [{"guest_path": "/b", "secret_name": "FILE"}],
        "processes": [{"exec": ["x"], "secrets": [{"env_var": "A", "name": "NAMED"}]}],
    }
    refused = await around.machine(app, config, skip_launch=True)
    assert (refused.status, refused.json["status"]) == (422, "missing_reference")
    fields = {wrong["field"] for wrong in refused.json["fields"]}
    assert fields == {"config.files[0].secret_name", "config.processes[0].secrets"}
    # Set at the centre itself: the region's catalog need not have it yet.
    await set_at_centre(around.centre, app, FILE="x", NAMED="y")
    accepted = await around.machine(app, config, skip_launch=True)
    assert accepted.status == 200, accepted
    update = {"config": {"image": "x", "files": [{"guest_path": "/b", "secret_name": "OTHER"}]}}
    refused = await around.region.call("POST", f"/v1/apps/{app}/machines/{accepted.json['id']}", update)
    assert (refused.status, refused.json["status"]) == (422, "missing_reference")


async def test_a_machine_can_wait_for_a_version_of_its_secrets(around: Surroundings) -> None:
    app = await around.app()
    await set_at_centre(around.centre, app, A="1")
    created = await around.machine(app, min_secrets_version=1, skip_launch=True)
    assert created.status == 200, created
    for request in ({}, {"config": {"image": "x"}}):
        if request:
            path = f"/v1/apps/{app}/machines/{created.json['id']}"
            late = await around.region.call("POST", path, {**request, "min_secrets_version": 2})
        else:
            late = await around.machine(app, min_secrets_version=2, skip_launch=True)
        assert (late.status, late.json["status"]) == (422, "secrets_version")
        assert "version 1" in late.json["error"]
        assert "version 2" in late.json["error"]


# The centre


async def set_at_centre(centre: Centre, app: str, **values: str) -> None:
    await centre.ask(
        "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { version } }",
        input={"appId": app, "secrets": [{"key": name, "value": value} for name, value in values.items()]},
    )


async def test_what_is_set_at_the_centre_is_in_the_region_within_a_second(around: Surroundings) -> None:
    app = await around.app()
    for number in range(3):
        await set_at_centre(around.centre, app, A=f"value {number}")

        async def shown(value: str = f"value {number}") -> bool:
            answer = await around.call("GET", app, "/A?show_secrets=true")
            return bool(answer.status == 200 and answer.json["value"] == value)

        await eventually(shown, seconds=1)
    await around.centre.ask(
        "mutation($input: UnsetSecretsInput!) { unsetSecrets(input: $input) { version } }",
        input={"appId": app, "keys": ["A"]},
    )
    await eventually(lambda: is_version(around, app, 4), seconds=1)
    assert (await around.call("GET", app)).json["secrets"] == []


async def is_version(around: Surroundings, app: str, version: int) -> bool:
    return bool((await around.call("GET", app)).json["version"] == version)


async def test_changes_from_both_sides_leave_the_newest(around: Surroundings) -> None:
    app = await around.app()
    here = [around.call("POST", app, "", {"values": {"A": f"here {number}"}}) for number in range(8)]
    there = [set_at_centre(around.centre, app, B=f"there {number}") for number in range(8)]
    answers = [answer for answer in await asyncio.gather(*here, *there) if answer is not None]
    assert [answer.json for answer in answers if answer.status != 200] == []
    await eventually(lambda: is_version(around, app, 16))
    wanted = await around.centre.ask("query($name: String!) { app(name: $name) { secrets { digest } } }", name=app)
    listed = await around.call("GET", app)
    assert [secret["digest"] for secret in listed.json["secrets"]] == [
        secret["digest"] for secret in wanted["app"]["secrets"]
    ]


async def test_without_the_centre_secrets_are_read_and_used_and_not_changed(around: Surroundings) -> None:
    app = await around.app()
    await around.call("POST", app, "", {"values": {"A": VALUE}})
    around.link.cut()
    try:
        for verb, path, body in (
            ("POST", "", {"values": {"A": "x"}}),
            ("POST", "/A", {"value": "x"}),
            ("DELETE", "/A", None),
        ):
            answer = await around.call(verb, app, path, body)
            assert (answer.status, answer.json["status"]) == (503, "dependency_down")
            assert "central" in answer.json["error"]
            assert int(answer.headers["retry-after"]) >= 1
        with pytest.raises(DependencyDown, match="central") as down:
            await around.secrets.SetSecret(
                api.SetSecretRequest(app_name=app, name="A", value="x"), metadata=BEARER, timeout=20
            )
        assert down.value.metadata["call_class"] == "secrets"
        listed = await around.call("GET", app, "?show_secrets=true")
        assert [secret["value"] for secret in listed.json["secrets"]] == [VALUE]
        assert (await around.call("GET", app, "/NONE")).status == 404
        late = await around.machine(app, min_secrets_version=2, skip_launch=True)
        assert (late.status, late.json["status"]) == (422, "secrets_version")
        missing = await around.machine(app, {"files": [{"guest_path": "/b", "secret_name": "NONE"}]})
        assert (missing.status, missing.json["status"]) == (422, "missing_reference")
        created = await around.machine(app, min_secrets_version=1)
        assert (await around.environment(app, created.json["id"]))["A"] == VALUE
    finally:
        await around.link.mend()

    async def changed() -> bool:
        return (await around.call("POST", app, "", {"values": {"A": "again"}})).status == 200

    await eventually(changed)


# Nothing shows


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.setup("set", "syd", processor=SimpleSpanProcessor(exporter), log_level="debug")
    yield exporter
    telemetry.setup("tests", "")


async def test_no_log_no_trace_no_error_and_nothing_of_ours_on_the_disk_holds_a_value(
    around: Surroundings, spans: InMemorySpanExporter, capfd: pytest.CaptureFixture[str]
) -> None:
    app, value = await around.app(), "0f1e2d3c-very-private"
    errors: list[str] = []

    async def fail(attempt: Callable[[], Any]) -> None:
        with pytest.raises(SkerryError) as failed:
            await attempt()
        errors.append(f"{failed.value!r} {failed.value.metadata} {failed.value.violations}")

    await around.call("POST", app, "", {"values": {"A": value, "FILE": value}})
    await around.call("POST", app, "/B", {"value": value})
    await set_at_centre(around.centre, app, C=value)
    files = [{"guest_path": "/key", "secret_name": "FILE"}]
    created = await around.machine(app, {"files": files}, min_secrets_version=3)
    machine_id = created.json["id"]
    assert (await around.environment(app, machine_id))["C"] == value
    for body in ({"values": {"A B": value}}, {"values": {"A": [value]}}, {"values": {"A": value * 4096}}):
        errors.append(str((await around.call("POST", app, "", body)).json))
    secrets = around.secrets
    request = api.SetSecretRequest(app_name=app, name="not a name", value=value)
    await fail(lambda: secrets.SetSecret(request, metadata=BEARER))
    await fail(lambda: secrets.SetSecret(api.SetSecretRequest(app_name="none", name="A", value=value), metadata=BEARER))
    around.link.cut()
    try:
        await fail(
            lambda: secrets.SetSecret(api.SetSecretRequest(app_name=app, name="A", value=value), metadata=BEARER)
        )
        errors.append(str((await around.call("POST", app, "", {"values": {"A": value}})).json))
    finally:
        await around.link.mend()
    assert len(errors) == 7
    told = capfd.readouterr()
    logged = told.out + told.err
    assert "central_secrets_changed" in logged
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "graphql UpdateSecrets" in traced
    for text in (logged, traced, *errors):
        assert value not in text
    root = around.data / "machines" / machine_id / "root"
    assert (root / "key").read_text() == value
    for path in around.data.rglob("*"):
        if path.is_file() and root not in path.parents:
            assert value.encode() not in path.read_bytes(), path
    kept = await log_of(around)
    assert (await around.call("GET", app)).json["secrets"][0]["digest"].encode() in kept
    assert value.encode() not in kept


async def log_of(around: Surroundings) -> bytes:
    """Everything that the region has written into its log."""
    entries: list[bytes] = []
    watch = around.region.store.Watch(store.WatchRequest(from_revision=0), timeout=20)
    async for response in watch:
        entries += [change.SerializeToString() for change in response.changes]
        if response.revision >= response.newest_revision:
            break
    watch.cancel()
    return b"".join(entries)
