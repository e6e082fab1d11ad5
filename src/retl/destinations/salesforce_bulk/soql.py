"""Queries for record ids in Salesforce's query language, each short enough for a URL. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from retl.destinations.http import escape
from retl.net.lookup import text

_AT_ONCE, _LONGEST = 100, 8_000  # names and characters of a query


def lookups(thing: str, field: str, names: Sequence[str], *, numbers: bool) -> Iterator[str]:
    """Percent-encoded queries for the ids of all records in which the field has one of these names."""
    head = quote(f"SELECT Id, {field} FROM {thing} WHERE {field} IN (")
    asked: list[str] = []
    for name in names:
        literal = quote(name if numbers else f"'{escape.soql(name)}'", safe="")
        if asked and (len(asked) == _AT_ONCE or sum(map(len, asked)) + len(literal) > _LONGEST):
            yield f"{head}{','.join(asked)})"
            asked = []
        asked.append(literal)
    if asked:
        yield f"{head}{','.join(asked)})"


def ids(
    field: str, names: Sequence[str], records: Iterable[Mapping[str, Any]]
) -> list[str | tuple[()] | None]:
    """The record id of each name: None if there is no record, () if it is ambiguous, because the field
    ignores case or is not unique."""
    found: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        name = _stored(record[field])
        found.setdefault(name.casefold(), []).append((name, record["Id"]))
    made: list[str | tuple[()] | None] = []
    for name in names:
        near = found.get(name.casefold(), [])
        same = [id for stored, id in near if stored == name]
        made.append(same[0] if len(same) == 1 else () if near else None)
    return made


def _stored(value: Any) -> str:
    """A stored key as text; numbers come back with a fraction."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else text(value)
