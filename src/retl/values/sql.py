"""Quotes names and texts for SQL."""

from __future__ import annotations


def quoted(identifier: str) -> str:
    """An identifier for SQL text. ValueError if it contains NUL."""
    return '"' + _plain(identifier).replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal for SQL text. ValueError if it contains NUL."""
    return "'" + _plain(text).replace("'", "''") + "'"


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("SQL text cannot contain a NUL character")
    return text
