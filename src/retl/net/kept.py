"""Refresh tokens that a server replaced by new ones, kept where the next process finds them.

They are encrypted with the token that the connection has in its definition, so who reads the ledger alone
learns nothing. Nothing is kept for a server that leaves its tokens as they are.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha256
from os import urandom
from typing import Protocol

_NONCE = 12  # bytes


class Shelf(Protocol):
    """Where texts are kept by name; the ledger is one."""

    @property
    def read_only(self) -> bool: ...

    def kept(self, name: str) -> str | None: ...

    def keep(self, name: str, text: str) -> None: ...


class Successor:
    """The place of what replaced `given`, the refresh token of a definition, for one client of one server.
    With another token in the definition it is another place."""

    def __init__(self, shelf: Shelf, client: str, given: str) -> None:
        self._shelf = shelf
        self._key = sha256(f"retl refresh token\0{client}\0{given}".encode()).digest()
        self._name = f"token {sha256(self._key).hexdigest()[:32]}"

    @property
    def read_only(self) -> bool:
        return self._shelf.read_only

    def read(self) -> str | None:
        """The newest token; None if there never was another than the given one."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # the import takes 0.2 s

        text = self._shelf.kept(self._name)
        if text is None:
            return None
        whole = b64decode(text)
        return AESGCM(self._key).decrypt(whole[:_NONCE], whole[_NONCE:], None).decode()

    def write(self, token: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = urandom(_NONCE)
        sealed = nonce + AESGCM(self._key).encrypt(nonce, token.encode(), None)
        self._shelf.keep(self._name, b64encode(sealed).decode())
