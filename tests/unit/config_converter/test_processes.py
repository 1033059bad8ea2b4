from __future__ import annotations

from typing import Any

import pytest
from skerry.types.v1.spec_pb2 import MACHINE_FIELD_ID, MachineField

from services.config_converter.parts.processes import MACHINE_FIELDS, PART
from tests.unit.config_converter.judging import accept, refuse


def process_of(**fields: Any) -> Any:
    return accept(PART, {"processes": [fields]}).processes[0]


def test_a_process_is_kept_word_by_word() -> None:
    words = {"exec": ["/a", ""], "entrypoint": ["/b"], "cmd": ["", "c"]}
    process = process_of(**words, user="nobody", env={"A": ""}, ignore_app_secrets=True)
    assert {name: list(getattr(process, name)) for name in words} == words
    assert (process.user, dict(process.env), process.ignore_app_secrets) == ("nobody", {"A": ""}, True)


def test_a_secret_has_the_variables_name_unless_another_is_said() -> None:
    process = process_of(secrets=[{"env_var": "DB_URL", "name": "DATABASE_URL"}, {"env_var": "KEY"}])
    assert dict(process.secrets) == {"DB_URL": "DATABASE_URL", "KEY": "KEY"}


@pytest.mark.parametrize("name", ["id", "version", "app_name", "private_ip", "region", "image"])
def test_a_variable_may_hold_a_fact_about_the_machine(name: str) -> None:
    process = process_of(env_from=[{"env_var": "V", "field_ref": name}])
    assert MachineField.Name(process.env_from["V"]) == f"MACHINE_FIELD_{name.upper()}"


def test_the_table_of_facts_is_complete() -> None:
    assert sorted(MACHINE_FIELDS.values()) == [n for n in MachineField.values() if n]
    assert MACHINE_FIELDS["id"] == MACHINE_FIELD_ID


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"exec": [""]}, "exec[0]"),
        ({"entrypoint": [""]}, "entrypoint[0]"),
        ({"env": {"A=B": "1"}}, 'env["A=B"]'),
        ({"secrets": [{"name": "S"}]}, "secrets[0].env_var"),
        ({"secrets": [{"env_var": "A"}, {"env_var": "A"}]}, "secrets[1].env_var"),
        ({"env_from": [{"field_ref": "id"}]}, "env_from[0].env_var"),
        ({"env_from": [{"env_var": "A=", "field_ref": "id"}]}, "env_from[0].env_var"),
        ({"env_from": [{"env_var": "A"}]}, "env_from[0].field_ref"),
        ({"env_from": [{"env_var": "A", "field_ref": "host"}]}, "env_from[0].field_ref"),
    ],
)
def test_what_a_process_may_not_say_is_refused_by_its_path(fields: dict[str, Any], field: str) -> None:
    assert list(refuse(PART, {"processes": [{}, fields]})) == [f"processes[1].{field}"]
