"""What is asked of the centre, against the schema of the reference centre."""

from __future__ import annotations

import graphql
import pytest

from services.central.graphql.schema import schema
from services.central_sync.calls import Failure, Refusal
from services.central_sync.central_client import DOCUMENTS, _data

SCHEMA = graphql.build_schema(schema.as_str())


@pytest.mark.parametrize("operation", sorted(DOCUMENTS))
def test_the_centre_knows_what_is_asked(operation: str) -> None:
    document = graphql.parse(DOCUMENTS[operation])
    assert graphql.validate(SCHEMA, document) == []
    (definition,) = document.definitions
    assert isinstance(definition, graphql.OperationDefinitionNode)
    assert definition.name is not None
    assert definition.name.value == operation, "the file is named after its operation"


def test_an_error_is_a_refusal_with_its_code_and_what_comes_with_it() -> None:
    with pytest.raises(Refusal) as caught:
        _data(b'{"data": null, "errors": [{"message": "no", "extensions": {"code": "NAME_TAKEN", "name": "x"}}]}')
    assert (caught.value.code, caught.value.message, caught.value.extensions) == ("NAME_TAKEN", "no", {"name": "x"})


@pytest.mark.parametrize(
    ("answer", "repeat"),
    [
        (b"<html>", False),
        (b"[]", False),
        (b"{}", False),
        (b'{"data": []}', False),
        (b'{"errors": "no"}', False),
        (b'{"errors": [{"message": "x", "extensions": {"code": "INTERNAL"}}]}', True),
        (b'{"errors": [{"message": "x", "extensions": {"code": "UNAVAILABLE"}}]}', True),
        (b'{"errors": [{"message": "x", "extensions": {"code": "TIMEOUT"}}]}', False),
        (b'{"errors": [{"message": "x"}]}', True),
    ],
)
def test_what_is_no_answer_is_a_failure(answer: bytes, repeat: bool) -> None:
    with pytest.raises(Failure) as caught:
        _data(answer)
    assert caught.value.repeat == repeat
