"""Tokens: which ones are let through."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest

from gateway.auth import Principal, current_principal, static_tokens
from services.runtime.errors import Unauthenticated
from services.runtime.registry import ServerCall

CREATE = "/skerry.machines.v1.Machines/CreateMachine"


async def admitted(authorization: str | None, method: str = CREATE) -> Principal | None:
    metadata = {} if authorization is None else {"authorization": authorization}
    context: Any = None
    await static_tokens(["secret-one", "secret-two"])(ServerCall(method, metadata, context))
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
        static_tokens([""])
