"""What the region's catalog says about tokens, kept where they are verified."""

from __future__ import annotations

from skerry.store.v1.catalog_pb2 import RevocationRecord, TokenKeyRecord

from services.runtime.telemetry import log
from services.runtime.tokens import KEY_BYTES, Verifier


class TokenCatalog:
    """Brings keys and revocations from the log into a verifier.

    What is known stays known while the state comes anew: nobody is refused, or let in, for that moment.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._seen: set[int] | None = None

    def apply_key(self, record: TokenKeyRecord) -> None:
        """A key is there, or is retired."""
        if not record.id.isdecimal() or (not record.deleted and len(record.public_key) != KEY_BYTES):
            log.error("token_key_not_understood", id=record.id)
            return
        key_id = int(record.id)
        if record.deleted:
            self._verifier.keys.pop(key_id, None)
            return
        self._verifier.keys[key_id] = record.public_key
        if self._seen is not None:
            self._seen.add(key_id)

    def apply_revocation(self, record: RevocationRecord) -> None:
        """A token is revoked, for ever."""
        self._verifier.revoked.add(record.id)

    def reset(self) -> None:
        """The state comes anew, until `complete`."""
        self._seen = set()

    def complete(self) -> None:
        """The state is there: keys that are not in it were retired meanwhile."""
        if self._seen is not None:
            for key_id in self._verifier.keys.keys() - self._seen:
                del self._verifier.keys[key_id]
            self._seen = None
