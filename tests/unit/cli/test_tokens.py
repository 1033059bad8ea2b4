"""`skerry tokens`: what needs nobody."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.runtime.tokens import mint, public_key_of, verify

runner = CliRunner()
PRIVATE = secrets.token_bytes(32)
KEYS = {1: public_key_of(PRIVATE)}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(*arguments: str, stdin: str | None = None) -> dict[str, Any]:
    result = runner.invoke(app, ["tokens", *arguments, "--json"], input=stdin)
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_token_is_narrowed_without_a_mesh() -> None:
    token = mint(PRIVATE, 1, organization="acme").token
    made = run("attenuate", token, "--app", "shop", "--scope", "read-only", "--expires", "2m")
    assert set(made) == {"token", "id", "expires_at"}
    grant = verify(made["token"], KEYS, time.time(), ())
    assert (grant.id, grant.apps, grant.scopes) == (made["id"], frozenset({"shop"}), frozenset({"all", "read-only"}))
    assert grant.expires_at is not None
    assert 60 < grant.expires_at - time.time() <= 120
    assert made["expires_at"].endswith("Z")
    assert run("attenuate", "-", "--app", "shop", stdin=f"{token}\n")["expires_at"] is None


def test_a_token_says_what_it_is() -> None:
    token = mint(PRIVATE, 1, organization="acme", app="shop", scope="exec")
    shown = run("inspect", token.token)
    assert shown == {
        "id": token.id,
        "organization": "acme",
        "apps": ["shop"],
        "scopes": ["exec"],
        "expires_at": None,
        "blocks": [token.id],
        "key_id": 1,
    }
    for_people = runner.invoke(app, ["tokens", "inspect", token.token])
    assert "acme" in for_people.stdout
    assert token.token not in for_people.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["attenuate", "nonsense", "--app", "shop"], "token is none of this API"),
        (["attenuate", "TOKEN"], "nothing to narrow"),
        (["attenuate", "TOKEN", "--scope", "root"], "scope must be one of"),
        (["attenuate", "TOKEN", "--expires", "tomorrow"], "--expires must be"),
        (["attenuate", "TOKEN", "--expires", "0s"], "--expires must be"),
        (["inspect", "nonsense"], "token is none of this API"),
        (["create", "--org", "acme"], "mesh"),
        (["revoke", "ab" * 32], "mesh"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(arguments: list[str], why: str) -> None:
    token = mint(PRIVATE, 1, organization="acme").token
    result = runner.invoke(app, ["tokens", *(token if word == "TOKEN" else word for word in arguments)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert why in result.stderr
    assert token not in result.output
