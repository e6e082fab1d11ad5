"""Signed claims (JWT, RS256) with an RSA key in PEM, for service accounts.

`cryptography` reads the key and signs. This module makes no keys, verifies no signatures, and does not accept
an encrypted PEM.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
JWT_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
CLAIM = 180  # seconds that a claim for a token is valid


class Key:
    """An RSA private key that signs."""

    def __init__(self, key: RSAPrivateKey) -> None:
        self._key = key

    @classmethod
    def parse(cls, pem: str) -> Key:
        """A key in PKCS #8 or PKCS #1. ValueError, without the text, for anything else."""
        from cryptography.exceptions import UnsupportedAlgorithm  # the import takes 0.2 s, and few need it
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        unescaped = pem.replace("\\n", "\n")  # JSON key files and variables have it escaped
        try:
            key = load_pem_private_key(unescaped.encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
            raise ValueError("a private_key is an unencrypted RSA key in PEM") from None
        if not isinstance(key, RSAPrivateKey) or key.key_size < 2048:
            raise ValueError("a private_key is an RSA key of at least 2048 bits")
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._key.sign(message, PKCS1v15(), SHA256())

    def token(self, claims: Mapping[str, Any], head: Mapping[str, str] | None = None) -> str:
        """The claims as a compact JWT; `head` are more members of its header."""
        text = f"{_segment({'alg': 'RS256', 'typ': 'JWT', **(head or {})})}.{_segment(claims)}"
        return f"{text}.{_encoded(self.sign(text.encode()))}"


def _segment(part: Mapping[str, Any]) -> str:
    return _encoded(json.dumps(part, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
