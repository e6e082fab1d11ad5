"""The CSV text of a value, as PostgreSQL's COPY reads it."""

from __future__ import annotations

from retl.values.json_text import _joined
from retl.values.types import Type


def csv_sql(type: Type, expr: str) -> str:
    """SQL for a value's text in a CSV for PostgreSQL's COPY: array literals for lists, text for json."""
    if type.name == "list":
        escaped = r"replace(replace(CAST(e AS VARCHAR), '\', '\\'), '" + '"' + r"""', '\"')"""
        return _joined(expr, f"coalesce('\"' || {escaped} || '\"', 'NULL')", "{}")
    return f"CAST({expr} AS VARCHAR)" if type.name == "json" else expr


def is_text(type: Type) -> bool:
    """Whether its CSV text must be quoted, so that it differs from NULL and from end-of-data marks."""
    return type.name in ("string", "json", "list")
