"""Tokens: which ones are let through."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
from skerry.machines.v1 import machines_pb2 as api

from gateway.auth import RIGHTS, SCOPES, Principal, Right, Tokens, access, current_principal, insist_on
from gateway.public_services import path_of, public_methods
from services.runtime.errors import Forbidden, NotFound, Unauthenticated
from services.runtime.registry import ServerCall

MACHINES = "/skerry.machines.v1.Machines/{}"
CREATE = MACHINES.format("CreateMachine")


async def admitted(authorization: str | None, method: str = CREATE) -> Principal | None:
    metadata = {} if authorization is None else {"authorization": authorization}
    context: Any = None
    await access(Tokens(["secret-one", "secret-two"]))(ServerCall(method, metadata, context))
    return current_principal.get()


@pytest.mark.parametrize(
    "authorization",
    ["Bearer secret-one", "bearer secret-two", "FlyV1 secret-one", "flyv1   secret-two ", "BEARER secret-one"],
)
async def test_a_known_token_is_let_through_under_both_schemes(authorization: str) -> None:
    assert await admitted(authorization) == Principal("developer")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Basic secret-one",
        "secret-one",
        "Bearer secret-one x",
        "Bearer sécret",
    ],
)
async def test_anything_else_is_refused_without_repeating_it(authorization: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await admitted(authorization)
    assert "secret" not in refused.value.message
    assert "nonsense" not in refused.value.message


@pytest.mark.parametrize(
    "method", ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
async def test_health_and_reflection_need_no_token(method: str) -> None:
    fresh = contextvars.Context()
    assert fresh.run(current_principal.get) is None
    assert await admitted(None, method) is None


def test_an_empty_token_cannot_be_allowed() -> None:
    with pytest.raises(ValueError, match="empty"):
        Tokens([""])


def test_every_method_of_the_public_api_has_a_right_and_nothing_else_has_one() -> None:
    assert set(RIGHTS) == {path_of(method) for method in public_methods()}


def test_every_right_is_in_a_scope_and_no_scope_has_more_than_all() -> None:
    assert frozenset().union(*SCOPES.values()) == SCOPES["all"] == frozenset(Right)
    assert all(Right.READ in rights for rights in SCOPES.values())


async def test_a_method_without_a_line_in_the_table_is_refused() -> None:
    with pytest.raises(Forbidden):
        await admitted("Bearer secret-one", "/skerry.machines.v1.Machines/Unheard")


class OneToken(Tokens):
    """Tokens, of which one is somebody's who may only read one app."""

    def authenticate(self, token: str) -> Principal:
        return Principal("reader", organization="mine", apps=frozenset({"shop"}), rights=SCOPES["read-only"])


async def judged(method: str, request: object) -> None:
    async def insist_on_reach(name: str) -> None:
        if name != "shop":
            raise NotFound("no such app")

    context: Any = None
    metadata = {"authorization": "Bearer any"}
    await access(OneToken([]), insist_on_reach)(ServerCall(method, metadata, context, request=request))


async def test_what_a_token_may_not_do_is_forbidden_where_it_reaches_the_app_and_hidden_where_it_does_not() -> None:
    await judged(MACHINES.format("GetMachine"), api.GetMachineRequest(app_name="other"))
    with pytest.raises(Forbidden):
        await judged(CREATE, api.CreateMachineRequest(app_name="shop"))
    with pytest.raises(NotFound):
        await judged(CREATE, api.CreateMachineRequest(app_name="other"))
    with pytest.raises(Forbidden):
        await judged(MACHINES.format("CreateApp"), api.CreateAppRequest(app_name="new"))


async def test_what_a_field_asks_for_is_forbidden_without_the_right() -> None:
    await judged(MACHINES.format("GetMachine"), api.GetMachineRequest(app_name="shop"))
    insist_on(Right.READ)
    with pytest.raises(Forbidden) as refused:
        insist_on(Right.SHOW_SECRETS)
    assert refused.value.metadata == {"right": "show-secrets"}


@pytest.mark.parametrize(
    ("principal", "app", "organization", "reached"),
    [
        (Principal("anybody"), "shop", "mine", True),
        (Principal("p", organization="mine"), "shop", "mine", True),
        (Principal("p", organization="mine"), "shop", "theirs", False),
        (Principal("p", organization="mine", apps=frozenset({"shop"})), "shop", "mine", True),
        (Principal("p", organization="mine", apps=frozenset({"shop"})), "shop", "theirs", False),
        (Principal("p", organization="mine", apps=frozenset({"shop"})), "blog", "mine", False),
        (Principal("p", organization="mine", apps=frozenset()), "shop", "mine", False),
    ],
)
def test_an_app_is_reached_by_its_organization_and_its_name(
    principal: Principal, app: str, organization: str, reached: bool
) -> None:
    assert principal.reaches(app, organization) is reached
