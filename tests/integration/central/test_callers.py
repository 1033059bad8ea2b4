"""Clients ask the centre with tokens of the public API, and come as far as those reach."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from services.runtime.tokens import attenuate
from tests.integration.central.centres import Centre, running, settings_for

OK = "OK"
NOT_FOUND = "NOT_FOUND"
FORBIDDEN = "FORBIDDEN"
UNAUTHORIZED = "UNAUTHORIZED"
BAD_REQUEST = "BAD_REQUEST"

SHOWN = '{ app(name: "NAME") { name organization { slug } secrets { name } machines { nodes { id } } } }'
SET = 'mutation { setSecrets(input: {appId: "NAME", secrets: [{key: "A", value: "1"}]}) { release { version } } }'
RELEASE = 'mutation { createRelease(input: {appId: "NAME"}) { release { id } } }'
CREATED = 'mutation { createApp(input: {organizationId: "personal", name: "NAME-2"}) { app { name } } }'
DELETED = 'mutation { deleteApp(appId: "NAME") { organization { id } } }'
OF_REGIONS = (
    '{ changes(after: "", limit: 1) { position } }',
    "{ catalogSnapshot { position } }",
    '{ secretsRecord(appId: "shop") { record } }',
    "{ apps { nodes { name } } }",
    "{ tokenKeys { id } }",
    'mutation { createToken(input: {organizationId: "acme"}) { token } }',
    'mutation { createOrganization(input: {name: "more"}) { organization { id } } }',
    'mutation { mirrorEvents(input: {cell: "001", events: []}) { revision } }',
    '{ convertParts(parts: ["env"], config: {}, facts: {}) { part } }',
)


async def code(centre: Centre, token: str, query: str, name: str = "shop") -> str:
    """What became of an operation that is sent with `token`."""
    answer = (await centre.post(query.replace("NAME", name), {"authorization": f"Bearer {token}"})).json()
    return str(answer["errors"][0]["extensions"]["code"]) if answer.get("errors") else OK


async def token(centre: Centre, organization: str = "personal", **more: Any) -> dict[str, Any]:
    answer = await centre.ask(
        "mutation($input: CreateTokenInput!) { createToken(input: $input) { token id } }",
        input={"organizationId": organization, **more},
    )
    made: dict[str, Any] = answer["createToken"]
    return made


async def two_organizations(centre: Centre) -> None:
    await centre.ask('mutation { createOrganization(input: {slug: "acme", name: "Acme"}) { organization { id } } }')
    await centre.create_app("shop")
    await centre.create_app("other")


async def test_tokens_do_at_the_centre_what_their_scope_says_on_the_apps_that_they_reach(centre: Centre) -> None:
    await two_organizations(centre)
    whole, foreign = (await token(centre))["token"], (await token(centre, "acme"))["token"]
    of_app = {scope: (await token(centre, appId="shop", scope=scope))["token"] for scope in ("read-only", "deploy")}
    asked = (SHOWN, SET, RELEASE, CREATED)
    taken = "TAKEN_BY_REGIONS"
    assert [await code(centre, of_app["read-only"], each) for each in asked] == [OK, FORBIDDEN, FORBIDDEN, FORBIDDEN]
    assert [await code(centre, of_app["deploy"], each) for each in asked] == [OK, OK, taken, FORBIDDEN]
    assert [await code(centre, whole, each) for each in asked] == [OK, OK, taken, OK]
    for each in (SHOWN, SET, RELEASE, DELETED):
        assert await code(centre, foreign, each) == NOT_FOUND, "as for an app that does not exist"
        assert await code(centre, of_app["deploy"], each, "other") == NOT_FOUND
    assert await code(centre, foreign, CREATED) == NOT_FOUND
    assert await code(centre, whole, DELETED) == OK


async def test_another_organization_is_in_no_list_and_behind_no_path(centre: Centre) -> None:
    await two_organizations(centre)
    foreign = {"authorization": f"FlyV1 {(await token(centre, 'acme'))['token']}"}
    answer = await centre.ask("{ organizations { nodes { slug } } viewer { ... on User { email } } }", foreign)
    assert answer["organizations"]["nodes"] == [{"slug": "acme"}]
    assert answer["viewer"]["email"].startswith("token-")
    statuses = [
        (await centre.http.get(path, headers=foreign)).status_code
        for path in (
            "/api/v1/organizations/acme",
            "/api/v1/organizations/personal",
            "/api/v1/apps/shop/releases",
            "/api/v1/apps/nothing/releases",
        )
    ]
    assert statuses == [200, 404, 404, 404]


async def test_whoever_sends_a_release_to_the_centre_is_told_which_region_takes_it(centre: Centre) -> None:
    await two_organizations(centre)
    wanted = {"app_name": "shop", "definition": {}, "image": "nginx", "strategy": "ROLLING"}

    async def answer(**more: Any) -> tuple[int, str]:
        authorization = f"Bearer {(await token(centre, **more))['token']}"
        sent = await centre.http.post("/api/v1/releases", json=wanted, headers={"authorization": authorization})
        return sent.status_code, sent.json()["error"]

    status, why = await answer(scope="deploy")
    assert (status, "home region syd" in why) == (409, True)
    assert (await answer(scope="read-only"))[0] == 403
    assert (await answer(organization="acme"))[0] == 404
    progress = await centre.http.patch("/api/v1/releases/nothing", json={"status": "running"})
    assert progress.status_code == 404


async def test_what_is_for_regions_and_operators_no_token_of_an_organization_can_ask_for(centre: Centre) -> None:
    await two_organizations(centre)
    whole = (await token(centre))["token"]
    assert [await code(centre, whole, each) for each in OF_REGIONS] == [BAD_REQUEST] * len(OF_REGIONS)


async def test_a_token_that_is_forged_ended_narrowed_or_revoked_is_no_more_than_that_at_the_centre(
    centre: Centre,
) -> None:
    await two_organizations(centre)
    made = await token(centre)
    whole: str = made["token"]
    ended = attenuate(whole, expires_at=time.time() - 5).token
    for bad in ("nothing", whole[:-10], ended):
        assert await code(centre, bad, SHOWN) == UNAUTHORIZED
    narrowed = attenuate(whole, scope="read-only").token
    assert await code(centre, narrowed, SHOWN) == OK
    assert await code(centre, narrowed, SET) == FORBIDDEN
    await centre.ask(f'mutation {{ revokeToken(input: {{id: "{made["id"]}"}}) {{ id }} }}')
    assert await code(centre, narrowed, SHOWN) == UNAUTHORIZED


async def test_the_development_token_may_do_everything_at_the_centre_too(
    fresh_database: Callable[[], Awaitable[str]], tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, await fresh_database(), development_token="for-development")
    async with running(settings) as centre:
        await two_organizations(centre)
        for each in (SHOWN, SET, CREATED, *OF_REGIONS[:2], DELETED):
            assert await code(centre, "for-development", each) == OK
