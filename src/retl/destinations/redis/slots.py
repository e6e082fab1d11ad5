"""The slots of a Redis Cluster: which one a key is in, and texts that put a key into a part of them. Pure."""

from __future__ import annotations

from binascii import crc_hqx
from itertools import count

SLOTS = 16384


def slot(key: str | bytes) -> int:
    """The slot of a key."""
    text = key.encode() if isinstance(key, str) else key
    return crc_hqx(tag_of(text) if b"{" in text else text, 0) % SLOTS


def tag_of(key: bytes) -> bytes:
    """The hash tag of a key: the text in its first braces, or the whole key."""
    tag, closed, _ = key.partition(b"{")[2].partition(b"}")
    return tag if tag and closed else key


def tags(parts: int) -> list[str]:
    """Per part of the slots, all of one size and in their order, the first number that is in it."""
    found: dict[int, str] = {}
    for number in count():
        found.setdefault(slot(str(number)) * parts // SLOTS, str(number))
        if len(found) == parts:
            return [found[part] for part in range(parts)]
    raise AssertionError
