"""How the columns of one table take the values of one sync.

Most columns hold every value of their contract type, or raise an error: COPY reads those. The others are
*judged*: they come as text, PostgreSQL makes the column's value of it, and the row of a value that does not
read back equal is refused alone. Keys may be equal in the table although their texts differ. Pure: SQL and
facts, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct, field

from retl.destinations.batch import Field, Shape
from retl.destinations.postgres.types import VECTORS, WRITTEN_AS_TEXT, comparison, lossless

if TYPE_CHECKING:
    from retl.destinations.postgres.catalog import Column, Table


_HEXADECIMAL = ("uuid", "bytea", "macaddr", "macaddr8", "inet", "cidr")


class Judged(Struct, frozen=True):
    """One judged column: its type without a length, by two names, of which `cast` is good on any search path,
    and the type in which values are compared. Digits above nine may be in upper case, but not in a key, where
    that would make two keys of one."""

    base: str
    cast: str
    compared: str
    key: bool = False

    def made(self, sent: str) -> str:
        """SQL for the column's value of the text `sent`. JSON becomes an array or a composite value as
        PostgreSQL reads it there; that it is also `jsonb` is tested here, because this finds the bad rows."""
        if self.compared == "jsonb":
            record = f"json_to_record(json_build_object('v', {sent}::json)) AS v(v {self.cast})"
            return f"CASE WHEN {sent}::jsonb IS NOT NULL THEN (SELECT v.v FROM {record}) END"
        if self.base in VECTORS:
            return f"{sent}::float8[]::{self.cast}"
        return f"{sent}::{self.cast}"

    def shown(self, held: str) -> str:
        """SQL for what the column holds, in the compared type. `format` calls the type's own output; a cast
        to text may be another function."""
        if self.compared == "jsonb":
            return f"pg_catalog.to_jsonb({held})"
        if self.base in VECTORS and self.compared == "float8[]":
            held = f"{held}::real[]"
        array = "[]" if self.base.endswith("[]") else ""
        element = self.base.removesuffix("[]")
        if element == "bpchar":  # its own output has the padding
            text = f"{held}::text{array}"
        elif element == "money" and self.compared.removesuffix("[]") != "text":
            text = f"{held}::numeric{array}"
        else:
            text = f"pg_catalog.format('%s', {held})"
        return f"CASE WHEN {held} IS NOT NULL THEN ({text})::{self.compared} END"

    def differs(self, sent: str, held: str) -> str:
        """SQL predicate: the value made of the text `sent` is not what was sent."""
        old, new = f"{sent}::{self.compared}", self.shown(held)
        if self.base == "interval":
            old, new = _plain_interval(old), _plain_interval(new)
        elif self.base in _HEXADECIMAL and not self.key:
            old = f"lower({old})"
        if self.compared.startswith("float8"):  # 0 and -0 are equal, but not the same
            differs = "ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record"
            found = differs.format(new, old)
            if self.base in VECTORS:
                held = f"{held}::real[]"
            elif self.base.removesuffix("[]") != "real":
                return found
            # its text has fewer digits than the same number in float8, as a source may have widened it
            return f"({found} AND {differs.format(f'{held}::{self.compared}', old)})"
        return f"{new} IS DISTINCT FROM {old}"


def _plain_interval(text: str) -> str:
    """DuckDB and PostgreSQL write units and signs in different ways."""
    units = f"pg_catalog.replace({text}, 'month', 'mon')"
    return f"pg_catalog.regexp_replace({units}, '(year|mon|day)s|[+]', '\\1', 'g')"


class Fit(Struct, frozen=True):
    """How the table takes what is sent. The defaults are those of a table that keeps every value."""

    judged: Mapping[str, Judged] = field(default_factory=dict)  # by column
    lowered: frozenset[str] = frozenset()  # keys that only an index on lower(column) makes unique
    folding: frozenset[str] = frozenset()  # keys of which different texts may be equal
    written: frozenset[str] = frozenset()  # columns of which COPY writes what a cast to text gives


def judged(column: Column, of: Field, *, key: bool = False) -> Judged | None:
    """How to judge the values of this column; None if COPY may read them, or nothing can be compared."""
    if lossless(of.type, column.type, max_length=of.max_length, enum=column.enum):
        return None
    compared = comparison(of.type, column.base, composite=column.composite)
    return Judged(column.base, column.cast, compared, key) if compared else None


def fit(table: Table, shape: Shape) -> Fit:
    """How this table takes the sync's values."""
    fields = [f for f in (*shape.key, *shape.fields) if f.name in table.columns]
    found = {f.name: judged(table.columns[f.name], f, key=f in shape.key) for f in fields}
    lowered = lowered_keys(table, shape) or frozenset()
    keys = [table.columns[f.name] for f in shape.key if f.name in table.columns]
    return Fit(
        {name: one for name, one in found.items() if one},
        lowered,
        lowered | {column.name for column in keys if column.folds},
        frozenset(f.name for f in fields if table.columns[f.name].base in WRITTEN_AS_TEXT),
    )


def lowered_keys(table: Table, shape: Shape) -> frozenset[str] | None:
    """The key columns that the table's unique index has as lower(column); empty if an index has all of them
    as they are, None if no index has exactly these columns."""
    names = frozenset(f.name for f in shape.key)
    found = [lowered for columns, lowered in table.keys if columns == names]
    return min(found, key=len) if found else None
