"""Compares what Redis holds with what a write would leave there. Pure: replies in, verdicts out.

A verdict is the fields that differ, or None if Redis holds nothing of the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import msgspec

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


Differing = tuple[str, ...] | None


def object_differs(held: bytes | None, document: str, names: Sequence[str], compared: Set[str]) -> Differing:
    """For `value: json`. Objects are equal if they have the same members, in any order, and the same text in
    each member that is compared. What is no such object differs in all fields (`names`)."""
    if held is None:
        return None
    if held == _bytes(document):
        return ()
    try:
        theirs, ours = _MEMBERS.decode(held), _MEMBERS.decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return tuple(names)
    differing = [
        name for name in compared & ours.keys() & theirs.keys() if bytes(theirs[name]) != bytes(ours[name])
    ]
    return tuple(sorted({*differing, *(theirs.keys() ^ ours.keys())}))


def field_differs(name: str, held: bytes | None, text: str | bytes | None, *, compared: bool) -> Differing:
    """For `value: {field: …}`. An empty field has no key."""
    if text is None:
        return () if held is None else (name,)
    if held is None:
        return None
    return (name,) if compared and held != _bytes(text) else ()


def entries_differ(
    held: Mapping[str, bytes | None], texts: Mapping[str, str | bytes | None], compared: Set[str]
) -> Differing:
    """For `value: hash`. A field without a text (`nulls: keep`) may hold anything."""
    if all(entry is None for entry in held.values()):
        return None
    return tuple(
        name
        for name, text in texts.items()
        if name in compared and held[name] != (None if text is None else _bytes(text))
    )


def stays(milliseconds: int, ttl: int | None) -> bool:
    """Whether a value with this PTTL (-1: none) stays until a run renews it, after half of the TTL."""
    return milliseconds < 0 or (ttl is not None and milliseconds >= ttl * 500)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
