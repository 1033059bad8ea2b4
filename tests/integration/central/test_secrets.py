"""App secrets: sealed at rest, never shown, versioned, opened only for the feed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.central.database import connect
from tests.integration.central.centres import Centre, GraphQLFailed, running, settings_for

SET = """
mutation($input: SetSecretsInput!) {
  setSecrets(input: $input) { version release { id version status user { email } } }
}
"""
UNSET = "mutation($input: UnsetSecretsInput!) { unsetSecrets(input: $input) { version release { id version } } }"
VALUE = "a value that nobody may find"


async def set_secrets(centre: Centre, values: dict[str, str], **more: Any) -> int:
    secrets = [{"key": key, "value": value} for key, value in values.items()]
    answer = await centre.ask(SET, input={"appId": "web", "secrets": secrets, **more})
    assert answer["setSecrets"]["release"]["version"] == answer["setSecrets"]["version"]
    version: int = answer["setSecrets"]["version"]
    return version


async def newest(centre: Centre) -> dict[str, Any]:
    """The newest record of the app's secrets in the feed."""
    changes = (await centre.changes())["changes"]
    payload: dict[str, Any] = [change for change in changes if change["kind"] == "secrets"][-1]["payload"]
    return payload


async def test_secrets_reach_the_feed_with_their_values_and_a_version_that_counts_up(centre: Centre) -> None:
    app = await centre.create_app("web")
    assert await set_secrets(centre, {"B": "2", "A": ""}) == 1
    assert await set_secrets(centre, {"A": "1"}) == 2
    payload = await newest(centre)
    assert (payload["app_id"], payload["app_name"], payload["version"]) == (app["id"], "web", 2)
    assert [(s["name"], s["value"], s["version"]) for s in payload["secrets"]] == [("A", "1", 2), ("B", "2", 1)]


async def test_removing_secrets_makes_a_version_and_removing_what_is_not_there_makes_none(centre: Centre) -> None:
    await centre.create_app("web")
    await set_secrets(centre, {"A": "1", "B": "2", "C": "3"})
    for keys, version in ((["A", "X"], 2), (["A"], 2)):
        answer = await centre.ask(UNSET, input={"appId": "web", "keys": keys})
        assert answer["unsetSecrets"]["version"] == version
    assert await set_secrets(centre, {"D": "4"}, replaceAll=True) == 3
    assert [secret["name"] for secret in (await newest(centre))["secrets"]] == ["D"]


async def test_no_query_shows_a_value(centre: Centre) -> None:
    await centre.create_app("web")
    await set_secrets(centre, {"A": VALUE, "B": VALUE})
    answer = await centre.post('{ app(name: "web") { secretsVersion secrets { id name digest version createdAt } } }')
    assert VALUE not in answer.text
    first, second = answer.json()["data"]["app"]["secrets"]
    assert first["digest"] != second["digest"]
    schema = await centre.ask('{ __type(name: "Secret") { fields { name } } }')
    assert "value" not in {field["name"] for field in schema["__type"]["fields"]}


async def test_a_digest_tells_whether_a_value_changed(centre: Centre) -> None:
    await centre.create_app("web")
    digests = []
    for value in ("one", "two", "one"):
        await set_secrets(centre, {"A": value})
        answer = await centre.ask('{ app(name: "web") { secrets { digest } } }')
        digests.append(answer["app"]["secrets"][0]["digest"])
    assert digests[0] == digests[2] != digests[1]


async def test_values_lie_sealed_in_the_database_and_do_not_open_with_another_key(
    fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    dsn = await fresh_database()
    async with running(settings_for(tmp_path, dsn)) as centre:
        await centre.create_app("web")
        await set_secrets(centre, {"A": VALUE})
    connection = await connect(dsn, timeout=10)
    try:
        for table in ("secrets", "catalog_log"):
            rows = await connection.fetch(f"SELECT * FROM {table}")
            assert rows
            assert VALUE not in str([tuple(row) for row in rows])
            assert VALUE.encode() not in b"".join(v for row in rows for v in row.values() if isinstance(v, bytes))
    finally:
        await connection.close()
    async with running(settings_for(tmp_path, dsn, secret_key="ee" * 32)) as centre:
        with pytest.raises(GraphQLFailed, match="secret_key"):
            await centre.changes()


@pytest.mark.parametrize(
    ("app", "values", "code"),
    [
        ("web", {}, "INVALID"),
        ("web", {"A=B": "x"}, "INVALID"),
        ("web", {"A": "x" * 70_000}, "INVALID"),
        ("no", {"A": ""}, "NOT_FOUND"),
    ],
)
async def test_secrets_that_cannot_be_set_are_refused(
    centre: Centre, app: str, values: dict[str, str], code: str
) -> None:
    await centre.create_app("web")
    with pytest.raises(GraphQLFailed) as refused:
        await centre.ask(SET, input={"appId": app, "secrets": [{"key": k, "value": v} for k, v in values.items()]})
    assert refused.value.code == code


async def test_secrets_go_with_their_app(centre: Centre) -> None:
    await centre.create_app("web")
    await set_secrets(centre, {"A": VALUE})
    await centre.ask('mutation { deleteApp(appId: "web") { organization { id } } }')
    gone = [(c["kind"], c["deleted"]) for c in (await centre.changes())["changes"][-2:]]
    assert gone == [("secrets", True), ("app", True)]
    await centre.create_app("web")
    assert (await centre.ask('{ app(name: "web") { secrets { name } secretsVersion } }'))["app"] == {
        "secrets": [],
        "secretsVersion": 0,
    }


UPDATE = "mutation($input: UpdateSecretsInput!) { updateSecrets(input: $input) { record } }"


async def test_a_region_sets_and_removes_secrets_as_one_version_and_gets_them_all_with_their_values(
    centre: Centre,
) -> None:
    app = (await centre.create_app("web"))["id"]
    first = await centre.ask(UPDATE, input={"appId": app, "secrets": [{"key": "A", "value": "1"}], "unset": ["B"]})
    assert first["updateSecrets"]["record"]["version"] == 1
    second = await centre.ask(UPDATE, input={"appId": app, "secrets": [{"key": "C", "value": VALUE}], "unset": ["A"]})
    record = second["updateSecrets"]["record"]
    assert record == await newest(centre)
    assert (record["app_id"], record["version"]) == (app, 2)
    assert [(secret["name"], secret["value"]) for secret in record["secrets"]] == [("C", VALUE)]
    same = await centre.ask(UPDATE, input={"appId": app, "secrets": [], "unset": ["A"]})
    assert same["updateSecrets"]["record"] == record
    asked = await centre.ask("query($app: ID!) { secretsRecord(appId: $app) { record } }", app=app)
    assert asked["secretsRecord"]["record"] == record
    with pytest.raises(GraphQLFailed, match="must name one"):
        await centre.ask(UPDATE, input={"appId": app, "secrets": [], "unset": []})
    with pytest.raises(GraphQLFailed) as unknown:
        await centre.ask("query($app: ID!) { secretsRecord(appId: $app) { record } }", app="none")
    assert unknown.value.code == "NOT_FOUND"


async def test_the_secrets_of_an_app_have_a_bound_together(centre: Centre) -> None:
    await centre.create_app("web")
    await set_secrets(centre, {f"A{number}": "x" * 60_000 for number in range(4)})
    with pytest.raises(GraphQLFailed, match="262144 bytes together"):
        await set_secrets(centre, {"B": "x" * 60_000})
    assert [secret["name"] for secret in (await newest(centre))["secrets"]] == ["A0", "A1", "A2", "A3"]


async def test_large_secrets_make_short_batches_and_pages_and_nothing_is_left_out(centre: Centre) -> None:
    wanted = [f"app-{number:02d}" for number in range(30)]
    for name in wanted:
        await centre.create_app(name)
        await set_secrets(centre, {f"A{number}": "x" * 60_000 for number in range(4)}, appId=name)
    seen: list[str] = []
    position, batches = "", 0
    while len(seen) < len(wanted):
        batch = await centre.changes(position)
        assert batch["changes"]
        seen += [change["payload"]["app_name"] for change in batch["changes"] if change["kind"] == "secrets"]
        position, batches = batch["position"], batches + 1
    assert (seen, batches > 1) == (wanted, True)
    _, records = await centre.snapshot()
    assert sorted(r["payload"]["app_name"] for r in records if r["kind"] == "secrets") == wanted
    assert sum(record["kind"] == "app" for record in records) == len(wanted)
