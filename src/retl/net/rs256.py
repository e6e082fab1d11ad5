"""Signed claims (JWT, RS256) with an RSA key in PEM: what servers ask of a service account.

Signing with RSASSA-PKCS1-v1_5 is deterministic and one modular power, so it is written here rather than
bringing a cryptography library along. It signs a request for a token and nothing else: it makes no keys,
verifies nobody, and knows no encrypted PEM.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")  # what a SHA-256 digest is announced by
_PEM = re.compile(r"-----BEGIN (RSA )?PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END (RSA )?PRIVATE KEY-----")
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30


@dataclass(frozen=True)
class Key:
    modulus: int
    public: int
    private: int = field(repr=False)

    @classmethod
    def parse(cls, pem: str) -> Key:
        """An RSA private key as PKCS #8 or PKCS #1. ValueError, without it, if it is something else."""
        found = _PEM.search(pem.replace("\\n", "\n"))  # as it stands in JSON key files and variables
        try:
            if found is None:
                raise ValueError
            parts = _parts(b64decode(found[2]))
            if parts[1][0] == _SEQUENCE:  # PKCS #8 has the other form inside
                parts = _parts(parts[2][1])
            modulus, public, private = (int.from_bytes(value) for _, value in parts[1:4])
        except (ValueError, IndexError):
            raise ValueError("a private_key is an unencrypted RSA key in PEM") from None
        if modulus.bit_length() < 2048 or {tag for tag, _ in parts[:4]} != {_INTEGER}:
            raise ValueError("a private_key is an RSA key of at least 2048 bits")
        return cls(modulus, public, private)

    def sign(self, message: bytes) -> bytes:
        """The signature; a wrong one, which would give the key away, never leaves."""
        size = (self.modulus.bit_length() + 7) // 8
        digest = _SHA256 + sha256(message).digest()
        padded = int.from_bytes(b"\0\1" + b"\xff" * (size - len(digest) - 3) + b"\0" + digest)
        signature = pow(padded, self.private, self.modulus)
        if pow(signature, self.public, self.modulus) != padded:
            raise ValueError("the parts of private_key do not belong together")
        return signature.to_bytes(size)

    def token(self, claims: Mapping[str, Any]) -> str:
        """The claims as a compact JWT."""
        text = f"{_segment({'alg': 'RS256', 'typ': 'JWT'})}.{_segment(claims)}"
        return f"{text}.{_encoded(self.sign(text.encode()))}"


def _segment(part: Mapping[str, Any]) -> str:
    return _encoded(json.dumps(part, separators=(",", ":")).encode())


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _parts(der: bytes) -> list[tuple[int, bytes]]:
    """The members of a DER sequence, or of one in an octet string, as (tag, content)."""
    (tag, content), *_ = _values(der)
    if tag not in (_SEQUENCE, _OCTETS):
        raise ValueError
    return _values(content)


def _values(der: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        if at + length > len(der):
            raise ValueError
        found.append((tag, der[at : at + length]))
        at += length
    return found
