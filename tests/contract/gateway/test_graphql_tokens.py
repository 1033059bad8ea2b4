"""GraphQL with every kind of token: what is not reached is not there, and what may not be done is forbidden."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.gateway.test_authorization import (
    FOREIGN,
    OURS,
    REACHED,
    SIBLING,
    THEIRS,
    Kind,
    World,
    world,  # noqa: F401
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_APP = ("Could not find App", "NOT_FOUND")


async def ask(world: World, kind: Kind, query: str, **variables: Any) -> Any:  # noqa: F811
    """The data, or the message and the code of the first error."""
    body = {"query": query, "variables": variables}
    answer = await world.region.call("POST", "/graphql", body, token=kind.token or None)
    assert answer.status == 200
    if errors := answer.json.get("errors"):
        return errors[0]["message"], errors[0]["extensions"]["code"]
    return answer.json["data"]


async def test_an_app_is_read_by_who_reaches_it_by_its_name_its_id_and_its_machines(world: World) -> None:  # noqa: F811
    app = "query($name: String!) { app(name: $name) { id name secrets { name } releases { nodes { id } } } }"
    by_id = "query($id: ID!) { app(id: $id) { name } }"
    machine = "query($id: String!) { machine(machineId: $id) { name } }"
    everything = world.kinds["development"]
    ids = {
        where: (await ask(world, everything, app, name=world.apps[where]))["app"]["id"]
        for where in (REACHED, SIBLING, FOREIGN)
    }
    machines = {where: (await world.region.machine(world.apps[where]))["id"] for where in ids}
    for which, kind in world.kinds.items():
        for where, name in world.apps.items():
            got = [await ask(world, kind, app, name=name)]
            if where in ids:
                got.append(await ask(world, kind, by_id, id=ids[where]))
                got.append(await ask(world, kind, machine, id=machines[where]))
            if kind.refused:
                assert {code for _, code in got} == {"UNAUTHORIZED"}, which
            elif where in kind.apps:
                assert all(isinstance(each, dict) for each in got), (which, where, got)
            else:
                assert {code for _, code in got} == {"NOT_FOUND"}, (which, where, got)
                assert got[0] == NO_APP


async def test_organizations_are_those_that_the_token_reaches(world: World) -> None:  # noqa: F811
    for which, kind in world.kinds.items():
        got = await ask(world, kind, "{ organizations { nodes { slug } } }")
        if kind.refused:
            assert got[1] == "UNAUTHORIZED", which
            continue
        slugs = {node["slug"] for node in got["organizations"]["nodes"]}
        for slug in (OURS, THEIRS):
            sees = which == "development" or (slug == THEIRS) == which.startswith("other")
            assert (slug in slugs) == sees, (which, slugs)
            one = await ask(world, kind, "query($slug: String!) { organization(slug: $slug) { id } }", slug=slug)
            assert isinstance(one, dict) == sees, (which, one)


async def test_what_changes_something_needs_the_right_to(world: World) -> None:  # noqa: F811
    secrets = "mutation($input: SetSecretsInput!) { setSecrets(input: $input) { version } }"
    delete = "mutation($id: ID!) { deleteApp(appId: $id) { organization { id } } }"
    create = "mutation($input: CreateAppInput!) { createApp(input: $input) { app { id } } }"
    for number, (which, kind) in enumerate(world.kinds.items()):
        for where, name in world.apps.items():
            got = await ask(world, kind, secrets, input={"appId": name, "secrets": [{"key": "A", "value": "b"}]})
            if kind.refused:
                assert got[1] == "UNAUTHORIZED", which
            elif where not in kind.apps:
                assert got == NO_APP, (which, where)
                assert await ask(world, kind, delete, id=name) == NO_APP
            else:
                # There is no centre to set them at.
                assert got[1] == ("UNAVAILABLE" if "SetSecret" in kind.methods else "FORBIDDEN"), (which, got)
                if "DeleteApp" not in kind.methods:
                    assert (await ask(world, kind, delete, id=name))[1] == "FORBIDDEN"
        given = {"organizationId": OURS, "name": f"made-by-graphql-{number}"}
        got = await ask(world, kind, create, input=given)
        if not kind.refused:
            assert isinstance(got, dict) == ({SIBLING} <= kind.apps and "CreateApp" in kind.methods), (which, got)
