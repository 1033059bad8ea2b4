"""Secrets of apps at rest in a region: AES-GCM under a key of the region's settings, bound to the app and the name."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_DIGITS = 16


class CannotOpen(Exception):
    """A secret does not open with the keys that are here. The message names its app and itself, and nothing of it."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A secret that only the key `key_id` opens: nonce, ciphertext and tag."""

    key_id: str
    content: bytes = field(repr=False)


class Keyring:
    """The keys of a region: the first one seals, every one of them opens what it sealed.

    To rotate, put a new key first; when nothing is sealed under the old one any more, take that away.
    """

    __slots__ = ("_ciphers", "_random_bytes", "present")

    def __init__(self, keys: Sequence[bytes], random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """`keys` are of KEY_BYTES each, one at least; `random_bytes` makes nonces. Raises ValueError."""
        if not keys:
            raise ValueError("a region needs a key for secrets")
        if any(len(key) != KEY_BYTES for key in keys):
            raise ValueError(f"a key for secrets has {KEY_BYTES} bytes")
        self._ciphers = {id_of(key): AESGCM(key) for key in keys}
        self._random_bytes = random_bytes
        self.present = id_of(keys[0])
        """Id of the key that seals."""

    def seal(self, app_id: str, name: str, value: str) -> Sealed:
        """The value, sealed: it opens for the same app and name only."""
        nonce = self._random_bytes(_NONCE_BYTES)
        content = self._ciphers[self.present].encrypt(nonce, value.encode(), _owner(app_id, name))
        return Sealed(self.present, nonce + content)

    def open(self, app_id: str, name: str, sealed: Sealed) -> str:
        """The value. Raises CannotOpen for one of another key, app or name, and for one that was tampered with."""
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise CannotOpen(
                f"the secret {name} of the app {app_id} is sealed under the key {sealed.key_id[:_ID_DIGITS]}, which is "
                "not here: add it to secrets_keys"
            )
        nonce, content = sealed.content[:_NONCE_BYTES], sealed.content[_NONCE_BYTES:]
        try:
            return cipher.decrypt(nonce, content, _owner(app_id, name)).decode()
        except (InvalidTag, ValueError):
            raise CannotOpen(f"the secret {name} of the app {app_id} does not open: it is damaged") from None


def id_of(key: bytes) -> str:
    """What a key is called beside what it sealed: 16 hex digits, which tell nothing of it."""
    return sha256(b"id of a key for secrets\0" + key).hexdigest()[:_ID_DIGITS]


def _owner(app_id: str, name: str) -> bytes:
    return f"{app_id}\0{name}".encode()
