"""Keyed digests of keys: HMAC-SHA256 under a secret of the ledger, in Python and as SQL. Nobody without the
ledger can test who is among them."""

from __future__ import annotations

import hmac
from hashlib import sha256

from msgspec import Struct

_BLOCK = 64  # bytes of a block of SHA-256


class Suppressed(Struct, frozen=True):
    """The digests of suppressed keys, and the secret that they were made with (hex)."""

    secret: str = ""
    digests: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.digests)

    def has(self, key: str) -> bool:
        """Whether this key, as it is spelled, is suppressed."""
        return bool(self.digests) and digest(self.secret, key) in self.digests


def digest(secret: str, key: str) -> str:
    """The keyed digest of a key's text, in hex."""
    return hmac.new(bytes.fromhex(secret), key.encode(), sha256).hexdigest()


def digest_sql(text: str) -> str:
    """SQL of `digest` with the parameters of `pads`: a message of DuckDB may have SQL, but no parameter."""
    return f"sha256($outer || unhex(sha256($inner || encode({text}))))"


def pads(secret: str) -> dict[str, bytes]:
    """The parameters of `digest_sql`."""
    block = bytes.fromhex(secret).ljust(_BLOCK, b"\0")
    return {"inner": bytes(one ^ 0x36 for one in block), "outer": bytes(one ^ 0x5C for one in block)}
