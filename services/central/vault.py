"""App secrets at rest: sealed with AES-GCM, bound to the app and the name that they belong to."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.central.errors import Refusal

_NONCE_BYTES = 12
_DIGEST_DIGITS = 16


class Vault:
    """Seals and opens secrets with one key of 32 bytes. `random_bytes` makes the nonces."""

    def __init__(self, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._cipher = AESGCM(key)
        self._digest_key = hashlib.sha256(b"digest of app secrets" + key).digest()
        self._random_bytes = random_bytes

    def seal(self, app_id: str, name: str, value: str) -> bytes:
        """The value, sealed; it opens only for the same app and name."""
        nonce = self._random_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value.encode(), _owner(app_id, name))

    def open(self, app_id: str, name: str, sealed: bytes) -> str:
        """The value. Raises Refusal when it was sealed with another key or for another owner."""
        nonce, content = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, content, _owner(app_id, name)).decode()
        except InvalidTag:
            raise Refusal(
                f"the secret {name} of the app {app_id} does not open: is secret_key the right one?"
            ) from None

    def digest(self, app_id: str, name: str, value: str) -> str:
        """Tells whether a value changed, and nothing of the value to those who do not have the key."""
        text = _owner(app_id, name) + b"\0" + value.encode()
        return hmac.new(self._digest_key, text, hashlib.sha256).hexdigest()[:_DIGEST_DIGITS]


def _owner(app_id: str, name: str) -> bytes:
    return f"{app_id}\0{name}".encode()
