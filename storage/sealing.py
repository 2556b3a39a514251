"""Secrets encrypted at rest: AES-256-GCM by a key of the configuration, bound to the row that they belong to.

A sealed text is `sealed:1:KEY:DATA`: the key's id in hexadecimal, then nonce and ciphertext in base64. What
was moved to another row, or changed, does not open. Keys are derived from what people configure by
HKDF-SHA-256 (RFC 5869); a text of at least `MIN_KEY_CHARS` characters, best `openssl rand -base64 32`.
"""

import base64
import binascii
import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sensorium.actors.errors import Unavailable

MIN_KEY_CHARS: Final = 16
MAX_OLD_KEYS: Final = 16
PREFIX: Final = "sealed:1:"

_INFO: Final = b"sensorium encryption at rest 1"
_NONCE_BYTES: Final = 12


class SealBroken(Unavailable):
    """A secret that is stored sealed does not open: its key is missing, or it is not where it was written."""


class Keys(msgspec.Struct, frozen=True):
    """The key to seal with, if there is one, and those from before it. Must pickle; never shown."""

    present: str | None = None
    old: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Keys(…)"

    def sealer(self) -> "Sealer":
        """What seals and opens with them."""
        return Sealer(self.present, self.old)


class Sealer:
    """Seals with the first of its keys, opens with any. Without keys, nothing is sealed."""

    def __init__(self, key: str | None = None, old_keys: Sequence[str] = ()) -> None:
        self._keys: dict[str, AESGCM] = {}
        self._present: str | None = None
        for text in (*([] if key is None else [key]), *old_keys):
            derived = HKDF(SHA256(), 32, None, _INFO).derive(text.encode())
            key_id = sha256(b"id" + derived).hexdigest()[:8]
            self._keys.setdefault(key_id, AESGCM(derived))
            if text == key:
                self._present = key_id

    def __repr__(self) -> str:
        return f"Sealer({len(self._keys)} keys)"

    @property
    def seals(self) -> bool:
        """Whether there is a key to seal with."""
        return self._present is not None

    def seal(self, text: str, place: str) -> str:
        """The text as it is stored at this place, a name of its row and column; as it is without a key."""
        if self._present is None:
            return text
        nonce = os.urandom(_NONCE_BYTES)
        data = nonce + self._keys[self._present].encrypt(nonce, text.encode(), place.encode())
        return f"{PREFIX}{self._present}:{base64.b64encode(data).decode()}"

    def open(self, stored: str, place: str) -> str:
        """The text that was sealed; what never was comes back as it is.

        Raises:
            SealBroken: none of the keys opens it at this place.
        """
        if not stored.startswith(PREFIX):
            return stored
        key_id, _, encoded = stored.removeprefix(PREFIX).partition(":")
        key = self._keys.get(key_id)
        if key is None:
            raise SealBroken(
                f"a stored secret is sealed with the key {key_id}, which is not configured: set"
                " ENCRYPTION_KEY, or list it in security.old_encryption_keys"
            )
        try:
            data = base64.b64decode(encoded, validate=True)
            return key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], place.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise SealBroken(f"a stored secret was changed or moved: {place} does not open") from None

    def is_current(self, stored: str) -> bool:
        """Whether it is stored as it would be now; if not, it should be sealed again."""
        return self._present is None or stored.startswith(f"{PREFIX}{self._present}:")
