"""Finds the Redis keys of a key template, and the values in them: the inverse of the template."""

from __future__ import annotations

import re
from string import Formatter
from urllib.parse import unquote


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
