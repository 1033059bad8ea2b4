"""Tokens: made and signed by the centre, revoked there or in a region, verified with what the feed tells."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.central.database import connect
from services.runtime.errors import Unauthenticated
from services.runtime.tokens import Grant, attenuate, inspect, verify
from tests.integration.central.centres import Centre, GraphQLFailed, running, settings_for

CREATE = (
    "mutation($input: CreateTokenInput!)"
    " { createToken(input: $input) { token id expiresAt key { id publicKey createdAt } } }"
)
REVOKE = "mutation($input: RevokeTokenInput!) { revokeToken(input: $input) { id } }"
ROTATE = "mutation { rotateTokenKey { key { id publicKey } } }"
RETIRE = "mutation($input: RetireTokenKeyInput!) { retireTokenKey(input: $input) { id } }"
MIRROR = "mutation($input: MirrorEventsInput!) { mirrorEvents(input: $input) { revision } }"
SNAPSHOT = "mutation($input: MirrorSnapshotInput!) { mirrorSnapshot(input: $input) { revision } }"


async def create(centre: Centre, **more: Any) -> dict[str, Any]:
    answer = await centre.ask(CREATE, input={"organizationId": "personal", **more})
    token: dict[str, Any] = answer["createToken"]
    return token


async def records(centre: Centre, kind: str) -> dict[str, dict[str, Any]]:
    """What a region knows that has read the whole feed: records of a kind by key."""
    _, snapshot = await centre.snapshot()
    return {record["key"]: record["payload"] for record in snapshot if record["kind"] == kind}


async def verified(centre: Centre, token: str) -> Grant:
    """The token as a region sees it."""
    keys = await records(centre, "token_key")
    public = {int(key): bytes.fromhex(payload["public_key"]) for key, payload in keys.items()}
    return verify(token, public, time.time(), await records(centre, "revocation"))


async def test_a_token_is_verified_with_the_key_that_the_feed_tells(centre: Centre) -> None:
    app = await centre.create_app("web")
    end = time.time() + 3600.5
    made = await create(centre, appId=app["id"], scope="deploy", expiresAt=end)
    grant = await verified(centre, made["token"])
    assert (grant.id, grant.organization, grant.scopes) == (made["id"], "personal", frozenset({"deploy"}))
    assert grant.apps == frozenset({"web"})
    assert grant.expires_at == made["expiresAt"] == int(end)
    assert made["key"]["publicKey"] == (await records(centre, "token_key"))["1"]["public_key"]
    whole = await verified(centre, (await create(centre))["token"])
    assert (whole.apps, whole.scopes, whole.expires_at) == (None, frozenset({"all"}), None)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"organizationId": "nobody"}, "NOT_FOUND"),
        ({"appId": "nothing"}, "NOT_FOUND"),
        ({"appId": "theirs"}, "NOT_FOUND"),
        ({"scope": "root"}, "INVALID"),
        ({"expiresAt": 1e300}, "INVALID"),
    ],
)
async def test_a_token_is_only_made_for_what_there_is(centre: Centre, wanted: dict[str, Any], code: str) -> None:
    await centre.ask(
        "mutation($input: CreateOrganizationInput!) { createOrganization(input: $input) { organization { id } } }",
        input={"name": "them", "slug": "them"},
    )
    await centre.create_app("theirs", organizationId="them")
    with pytest.raises(GraphQLFailed) as refused:
        await create(centre, **wanted)
    assert refused.value.code == code


async def test_after_a_rotation_old_tokens_hold_until_their_key_is_retired(centre: Centre) -> None:
    old = (await create(centre))["token"]
    rotated = (await centre.ask(ROTATE))["rotateTokenKey"]["key"]
    new = (await create(centre))["token"]
    assert (inspect(old).key_id, inspect(new).key_id, rotated["id"]) == (1, 2, 2)
    await verified(centre, old)
    await verified(centre, new)
    with pytest.raises(GraphQLFailed, match="rotate"):
        await centre.ask(RETIRE, input={"id": 2})
    await centre.ask(RETIRE, input={"id": 1})
    with pytest.raises(GraphQLFailed):
        await centre.ask(RETIRE, input={"id": 1})
    with pytest.raises(Unauthenticated):
        await verified(centre, old)
    await verified(centre, new)
    keys = (await centre.ask("{ tokenKeys { id publicKey } }"))["tokenKeys"]
    assert [key["id"] for key in keys] == [2]


async def test_a_revoked_token_is_in_the_feed_once_with_all_that_were_made_from_it(centre: Centre) -> None:
    made = await create(centre)
    narrowed = attenuate(made["token"], scope="read-only")
    for _ in range(2):
        await centre.ask(REVOKE, input={"id": made["id"]})
    changes = (await centre.changes())["changes"]
    assert [change["key"] for change in changes if change["kind"] == "revocation"] == [made["id"]]
    for token in (made["token"], narrowed.token):
        with pytest.raises(Unauthenticated, match="revoked"):
            await verified(centre, token)
    with pytest.raises(GraphQLFailed) as refused:
        await centre.ask(REVOKE, input={"id": "no id"})
    assert refused.value.code == "INVALID"


async def test_what_a_region_revoked_is_revoked_everywhere_by_event_and_by_snapshot(centre: Centre) -> None:
    first, second = await create(centre), await create(centre)

    def payload(token: dict[str, Any]) -> dict[str, Any]:
        return {"id": token["id"], "cell": "0a1", "revoked_at": 1_800_000_000.25}

    events = [{"revision": 1, "kind": "revocation", "key": first["id"], "payload": payload(first)}]
    for _ in range(2):
        await centre.ask(MIRROR, input={"cell": "0a1", "events": events})
    found = [{"kind": "revocation", "key": each["id"], "payload": payload(each)} for each in (first, second)]
    await centre.ask(SNAPSHOT, input={"cell": "0a1", "revision": 9, "records": found, "first": True, "last": True})
    changes = (await centre.changes())["changes"]
    told = [change["payload"] for change in changes if change["kind"] == "revocation"]
    assert told == [payload(first), payload(second)]


async def test_private_keys_and_tokens_are_nowhere_in_the_clear(
    tmp_path: Path, fresh_database: Callable[[], Awaitable[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    dsn = await fresh_database()
    async with running(settings_for(tmp_path, dsn)) as centre:
        made = await create(centre)
        connection = await connect(dsn, timeout=10)
        try:
            sealed = await connection.fetchval("SELECT sealed FROM token_keys")
            everything = str(await connection.fetch("SELECT * FROM catalog_log")) + str(
                await connection.fetch("SELECT * FROM token_keys")
            )
        finally:
            await connection.close()
    assert len(sealed) > 64
    assert made["token"] not in everything
    output = capfd.readouterr()
    assert made["token"] not in output.out + output.err
    async with running(settings_for(tmp_path, dsn)) as centre:
        await verified(centre, made["token"])
        assert inspect((await create(centre))["token"]).key_id == 1, "the key is still there"
