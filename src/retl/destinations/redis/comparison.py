"""Compares what Redis holds with what a write would leave there. Pure: replies in, verdicts out.

A verdict is True, False, or None if Redis holds nothing of the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import msgspec

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def holds_object(held: bytes | None, document: str, compared: Set[str]) -> bool | None:
    """For `value: json`. Objects are equal if they have the same members, in any order, and the same text in
    each member that is compared."""
    if held is None:
        return None
    if held == _bytes(document):
        return True
    try:
        theirs, ours = _MEMBERS.decode(held), _MEMBERS.decode(document)
    except (msgspec.DecodeError, UnicodeError):
        return False
    same = (bytes(theirs[name]) == bytes(ours[name]) for name in compared & ours.keys() & theirs.keys())
    return theirs.keys() == ours.keys() and all(same)


def holds_field(held: bytes | None, text: str | bytes | None, *, compared: bool) -> bool | None:
    """For `value: {field: …}`. An empty field has no key."""
    if text is None:
        return held is None
    return None if held is None else not compared or held == _bytes(text)


def holds_entries(
    held: Mapping[str, bytes | None], texts: Mapping[str, str | bytes | None], compared: Set[str]
) -> bool | None:
    """For `value: hash`. A field without a text (`nulls: keep`) may hold anything."""
    if all(entry is None for entry in held.values()):
        return None
    return all(
        held[name] == (None if text is None else _bytes(text))
        for name, text in texts.items()
        if name in compared
    )


def stays(milliseconds: int, ttl: int | None) -> bool:
    """Whether a value with this PTTL (-1: none) stays until a run renews it, after half of the TTL."""
    return milliseconds < 0 or (ttl is not None and milliseconds >= ttl * 500)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
