"""Key templates: the Redis keys of rows, and the values in such keys.

Values are percent-encoded, so two rows never share a key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from string import Formatter
from typing import Any
from urllib.parse import quote, unquote

from retl.destinations.batch import KeyText, Piece
from retl.errors import DefinitionError

_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")


class Template:
    """The Redis keys of one sync, whose key has the fields `names`. With `members` a Redis key holds many
    rows, and the one field of the key that is no placeholder is the member."""

    def __init__(self, text: str, names: Sequence[str], *, members: bool = False) -> None:
        """DefinitionError if two rows could be kept in the same place, or a row under a key of retl."""
        self.positions = _positions(text, names, members=members)  # instead of names: `reco:{0}`
        self._width = len(names)
        named = {name for _, name, _, _ in Formatter().parse(text)}
        self._member = next(n for n, name in enumerate(names) if name not in named) if members else None

    def key(self, row: Sequence[Any]) -> str:
        """The Redis key of a row, which begins with the values of its key."""
        return self.positions.format(*map(encoded, row[: self._width]))

    def member(self, row: Sequence[Any]) -> str:
        """The text of the member as it is, because nothing is beside it."""
        assert self._member is not None
        return text_of(row[self._member])

    def values(self, parts: Sequence[str], member: str) -> tuple[str, ...]:
        """The key of a row, from the values in its Redis key (see `KeyPattern`) and its member."""
        assert self._member is not None
        return (*parts[: self._member], member, *parts[self._member :])

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The key as a part of a line that SQL makes."""
        found: list[Piece] = []
        for literal, index, _, _ in Formatter().parse(self.positions):
            found += [literal, *([KeyText(int(index), "url")] if index is not None else [])]
        return tuple(found)


def _positions(template: str, keys: Sequence[str], *, members: bool) -> str:
    literals, names = [""], list[str]()
    reason = None
    try:
        for text, name, spec, conversion in Formatter().parse(template):
            literals[-1] += text
            if name is not None:
                names.append(f"{name}!{conversion or ''}:{spec}" if spec or conversion else name)
                literals.append("")
    except ValueError as error:
        reason = f"{error} (`{{{{` is a literal brace)"
    missing = set(keys) - set(names)
    if reason is None and members and (len(missing) != 1 or len(names) + 1 != len(keys) or template == ""):
        reason = (
            f"it must have all columns of the key ({', '.join(keys)}) but one, each once: that one is the"
            " member"
        )
    elif reason is None and not keys and (names or not template):
        reason = "a stream is one Redis key for all rows, so it is a text without placeholders"
    elif reason is None and not members and sorted(names) != sorted(keys):
        reason = f"its placeholders must be exactly the key: {', '.join(keys)}, each once"
    elif any(re.fullmatch("[A-Za-z0-9%._~-]*", between) for between in literals[1:-1]):
        reason = "between two placeholders there must be a character that no value contains, such as `:`"
    elif template.startswith("retl:") or ("retl:".startswith(literals[0]) and ":" in "".join(literals)):
        reason = "it must begin with a text; keys that begin with `retl:` are reserved for retl"
    if reason:
        raise DefinitionError("KEY_TEMPLATE", f"key template {template!r}: {reason}")
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in literals]
    return (
        "".join(f"{text}{{{keys.index(name)}}}" for text, name in zip(escaped, names, strict=False))
        + escaped[-1]
    )


def encoded(value: Any) -> str:
    """A key value inside a Redis key; different values stay different."""
    text = text_of(value)
    return text if _PLAIN.fullmatch(text) else quote(text, safe="")


def text_of(value: Any) -> str:
    """A key value as it is."""
    return value if isinstance(value, str) else value.isoformat() if isinstance(value, date) else str(value)


class KeyPattern:
    """The keys that a template with positions (`reco:{0}`) makes."""

    def __init__(self, template: str) -> None:
        parts = [(text, index) for text, index, _, _ in Formatter().parse(template)]
        self._positions = [int(index) for _, index in parts if index is not None]
        self._pattern = re.compile(
            "".join(re.escape(text) + ("([A-Za-z0-9._~%-]*)" * (index is not None)) for text, index in parts)
        )
        # for SCAN MATCH
        self.glob = "".join(_literal(text) + "*" * (index is not None) for text, index in parts)

    def values(self, key: bytes) -> tuple[str, ...] | None:
        """The values that a key seems to have, in the order of the sync's key; None if it is none of the
        template's. Only a key that the template makes of these values again is one of them."""
        try:
            if (found := self._pattern.fullmatch(key.decode())) is None:
                return None
            parts = [unquote(part, errors="strict") for part in found.groups()]
        except UnicodeDecodeError:
            return None
        return tuple(part for _, part in sorted(zip(self._positions, parts, strict=True)))


def _literal(text: str) -> str:
    """The text without special meaning in a glob."""
    return re.sub(r"[\\*?\[\]^-]", r"\\\g<0>", text)
