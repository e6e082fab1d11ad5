"""Quotes names and texts for SQL."""

from __future__ import annotations

import re

_PART = r'(?:"(?:[^"]|"")+"|[^".][^.]*)'


def quoted(identifier: str) -> str:
    """An identifier for SQL text. ValueError if it contains NUL."""
    return '"' + _plain(identifier).replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal for SQL text. ValueError if it contains NUL."""
    return "'" + _plain(text).replace("'", "''") + "'"


def split(relation: str) -> list[str]:
    """The parts of a name like `schema.table`; a part that contains a dot is in double quotes. ValueError."""
    if not re.fullmatch(rf"{_PART}(?:\.{_PART})*", relation):
        raise ValueError('a name is "table" or "schema.table"; put a part with a dot in double quotes')
    parts = re.findall(rf"(?:^|\.)({_PART})", relation)
    return [part[1:-1].replace('""', '"') if part[0] == '"' else part for part in parts]


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("SQL text cannot contain a NUL character")
    return text
