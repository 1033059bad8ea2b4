"""Keys of tokens and revocations: from the centre's feed into records, and up to it."""

from __future__ import annotations

from typing import Any

import pytest
from skerry.store.v1.catalog_pb2 import RevocationRecord, TokenKeyRecord
from skerry.store.v1.catalog_store_pb2 import CatalogRecord
from skerry.store.v1.store_pb2 import Change as LogChange

from services.central_sync.central_client import Change
from services.central_sync.mirroring import events_of, state_of
from services.central_sync.records import Catalog, catalog_of, differences, plain, record_of

KEY: dict[str, Any] = {"id": 7, "public_key": "0f" * 32, "created_at": 1_800_000_000.5}
REVOCATION: dict[str, Any] = {"id": "ab" * 64, "cell": "0a1", "revoked_at": 1_800_000_000.25}


def revocation(number: int, *, cell: str = "") -> RevocationRecord:
    return RevocationRecord(id=f"{number:064x}", cell=cell)


def test_a_key_comes_with_its_number_and_goes_when_it_is_retired() -> None:
    made = record_of(Change(1, "token_key", "7", KEY), {})
    assert made is not None
    assert (made.token_key.id, made.token_key.public_key) == ("7", b"\x0f" * 32)
    gone = record_of(Change(2, "token_key", "7", None), {})
    assert gone == CatalogRecord(token_key=TokenKeyRecord(id="7", deleted=True))


def test_a_revocation_comes_and_never_goes() -> None:
    made = record_of(Change(1, "revocation", REVOCATION["id"], REVOCATION), {})
    assert made is not None
    assert (made.revocation.id, made.revocation.cell) == (REVOCATION["id"], "0a1")
    assert record_of(Change(2, "revocation", REVOCATION["id"], None), {}) is None


@pytest.mark.parametrize("payload", [{}, {**KEY, "public_key": "no hex"}, {**KEY, "id": "seven"}])
def test_a_key_that_is_not_understood_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="token_key"):
        record_of(Change(1, "token_key", "7", payload), {})


def test_what_differs_of_keys_goes_and_comes_and_revocations_only_come() -> None:
    present = Catalog()
    for record in (TokenKeyRecord(id="1"), TokenKeyRecord(id="2"), revocation(1), revocation(2, cell="001")):
        present.take(record)
    wanted = catalog_of([Change(1, "token_key", "7", KEY), Change(2, "revocation", REVOCATION["id"], REVOCATION)])
    wanted.take(TokenKeyRecord(id="2"))
    wanted.take(revocation(1, cell="elsewhere"))
    changed = [plain(record) for record in differences(present, wanted)]
    assert [(type(record).__name__, getattr(record, "id", ""), record.deleted) for record in changed] == [
        ("TokenKeyRecord", "1", True),
        ("TokenKeyRecord", "7", False),
        ("RevocationRecord", REVOCATION["id"], False),
    ]


def test_only_what_a_cell_revoked_goes_up() -> None:
    ours = revocation(1, cell="001")
    ours.revoked_at.FromMicroseconds(1_800_000_000_250_000)
    changes = [LogChange(revision=1, revocation=ours), LogChange(revision=2, revocation=revocation(2))]
    first, second = events_of(changes, 0, 2)
    assert first.payload == {"id": ours.id, "cell": "001", "revoked_at": 1_800_000_000.25}
    assert (first.kind, first.key) == ("revocation", ours.id)
    assert second.payload is None
    assert [event.key for event in state_of(changes)] == [ours.id]
    back = record_of(Change(1, "revocation", ours.id, first.payload), {})
    assert back == CatalogRecord(revocation=ours), "what comes back down changes nothing"
