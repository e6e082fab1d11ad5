"""Reads rows of the table by their keys, for people and for samples of keys.

A value that Python cannot have, such as the date `infinity` or a document of 5,000 levels, comes as the text
that PostgreSQL writes of it: it must not make its row look as if it were gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader
from psycopg.types import datetime, json

from retl.destinations.postgres.statements import Statements
from retl.net.postgres import Session

Row = tuple[Any, ...]
_LOADERS: Mapping[str, type[Loader]] = {
    "date": datetime.DateLoader,
    "time": datetime.TimeLoader,
    "timetz": datetime.TimetzLoader,
    "timestamp": datetime.TimestampLoader,
    "timestamptz": datetime.TimestamptzLoader,
    "interval": datetime.IntervalLoader,
    "json": json.JsonLoader,
    "jsonb": json.JsonbLoader,
}


def _or_text(loader: type[Loader]) -> type[Loader]:
    """The loader, which gives the text of what it cannot load."""

    class OrText(loader):  # type: ignore[valid-type, misc]
        def load(self, data: Buffer) -> Any:
            try:
                return super().load(data)
            except (psycopg.DataError, ValueError, OverflowError, RecursionError):
                return bytes(data).decode()

    return OrText


_TOLERANT = {name: _or_text(loader) for name, loader in _LOADERS.items()}


def read(
    session: Session, sql: Statements, keys: Sequence[Row], casts: Mapping[str, str], names: Sequence[str]
) -> Sequence[Row]:
    """Per key whether the table has it, and its fields. It has no key that its type cannot be."""
    try:
        with session.transaction(), session.cursor() as cursor:
            for name, loader in _TOLERANT.items():
                cursor.adapters.register_loader(name, loader)
            return cursor.execute(sql.read(keys, casts, names)).fetchall()
    except psycopg.DataError:
        if len(keys) == 1:
            return [(False, *[None] * len(names))]
    middle = len(keys) // 2
    first = read(session, sql, keys[:middle], casts, names)
    return [*first, *read(session, sql, keys[middle:], casts, names)]
