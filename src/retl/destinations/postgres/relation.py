"""The name of a table, exactly as it is in the catalog: nothing is folded to lower case, nothing is cut."""

from __future__ import annotations

import re

from msgspec import Struct

from retl.values.sql import quoted

LONGEST_NAME = 63  # bytes; PostgreSQL cuts the rest off silently

_PART = r'(?:"(?:[^"]|"")+"|[^".]+)'


class Relation(Struct, frozen=True):
    """A table by schema and name, both exactly as they are in the catalog."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Relation:
        """'schema.table' or 'table' (of schema public); a part that contains a dot is in double quotes.
        Names are never folded to lower case. ValueError for anything else."""
        if not (found := re.fullmatch(rf"(?:({_PART})\.)?({_PART})", text)):
            raise ValueError('a table is "table" or "schema.table"; put a part with a dot in double quotes')
        schema, name = (
            part[1:-1].replace('""', '"') if part[0] == '"' else part
            for part in (found[1] or "public", found[2])
        )
        for part in (schema, name):
            check_name(part)
        return cls(schema, name)

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def __str__(self) -> str:
        """The name in messages and markers; different relations have different texts."""
        return ".".join(
            part if re.fullmatch(r"\w+", part) else quoted(part) for part in (self.schema, self.name)
        )


class Widened(Relation, frozen=True):
    """A table with columns that it does not have yet."""

    rows: str

    @property
    def sql(self) -> str:
        return self.rows


def check_name(name: str) -> None:
    """ValueError if PostgreSQL would not take the identifier as it is."""
    if "\0" in name or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ValueError(f"a PostgreSQL name has 1 to {LONGEST_NAME} bytes: {name[:80]!r}")
