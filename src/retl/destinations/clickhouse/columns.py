"""The columns of a ClickHouse table: their types, which hold a contract's values exactly, and the SQL that
finds the values that one would not. Pure.

ClickHouse keeps another value in silence where one does not fit: an integer wraps around, a time is shown as
another, an array that is NULL becomes an empty one. So every value is judged before it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from retl.destinations.batch import Field
from retl.net.clickhouse import quoted
from retl.values.types import Type

_DDL = {
    "string": "String",
    "uuid": "UUID",
    "integer": "Int64",
    "float": "Float64",
    "boolean": "Bool",
    "date": "Date32",
    "timestamp": "DateTime64(6, 'UTC')",
    "timestamptz": "DateTime64(6, 'UTC')",
    "json": "String",
}
_WRAPPED = re.compile(r"(?:Nullable|LowCardinality)\((.*)\)")
_ARRAY = re.compile(r"Array\((.*)\)")
_INTEGER = re.compile(r"(U?)Int(8|16|32|64)")
_TIME = re.compile(r"DateTime64\(([6-9])(?:, '([^']*)')?\)")
_DATES = {"Date": ("1970-01-01", "2149-06-06"), "Date32": ("1900-01-01", "2299-12-31")}
_TIMES = ("1900-01-01 00:00:00", "2299-12-31 23:59:59.999999")
_NANOSECONDS = ("1900-01-01 00:00:00", "2262-04-11 23:47:16.854775")  # of 64 bits


class Column(NamedTuple):
    """A column as `system.columns` has it. `filled`: how it gets a value that is not sent ("" if it has no
    default)."""

    name: str
    type: str
    filled: str = ""
    partitions: bool = False  # the partition of a row depends on it

    @property
    def computed(self) -> bool:
        """It keeps no value that is sent."""
        return self.filled in ("MATERIALIZED", "ALIAS", "EPHEMERAL")


def ddl(type_: Type, *, key: bool) -> str:
    """The type of a column that `create` makes. A column of the key cannot be empty, nor can an array."""
    if type_.name == "list":
        return f"Array({ddl(type_.item, key=False)})"
    decimal = type_.name == "decimal"
    made = f"Decimal({type_.max_digits}, {type_.decimal_places})" if decimal else _DDL[type_.name]
    return made if key else f"Nullable({made})"


def structure(fields: Sequence[Field]) -> str:
    """The columns v0, v1 … of a Parquet file of rows, as `input` reads them."""
    return ", ".join(f"v{n} {ddl(one.type, key=False)}" for n, one in enumerate(fields))


def declared(field: Field, *, key: bool) -> str:
    return f"{quoted(field.name)} {ddl(field.type, key=key)}"


def unfit(type_: Type, column: str, at: str, *, null: bool = True) -> str | None:
    """SQL for DuckDB, never NULL, of a value at `at` that a column of this type would keep as another; empty
    if it keeps all. None if the column is not for such values. `null`: there may be a NULL."""
    nullable, inner = "Nullable(" in column.partition("Array(")[0], peeled(column)
    tests = _tests(type_, inner, at)
    if tests is None:
        return None
    if null and not nullable:
        tests = [f"{at} IS NULL", *tests]
    return " OR ".join(f"coalesce({one}, false)" for one in tests)


def peeled(column: str) -> str:
    """A type without Nullable and LowCardinality around it."""
    while found := _WRAPPED.fullmatch(column):
        column = found[1]
    return column


def _tests(type_: Type, column: str, at: str) -> list[str] | None:
    name = type_.name
    if name == "list":
        return _of_elements(type_.item, column, at)
    if name == "integer" and (found := _INTEGER.fullmatch(column)):
        return _integers(bool(found[1]), int(found[2]), at)
    if name == "date" and column in _DATES:
        return [_outside(at, "DATE", *_DATES[column])]
    if name in ("timestamp", "timestamptz") and (found := _TIME.fullmatch(column)):
        if name == "timestamp" and found[2] != "UTC":
            return None  # readers would see it in another zone
        bounds = _NANOSECONDS if found[1] == "9" else _TIMES
        zone, kind = ("+00", "TIMESTAMPTZ") if name == "timestamptz" else ("", "TIMESTAMP")
        return [_outside(at, kind, *(f"{one}{zone}" for one in bounds))]
    same = peeled(ddl(type_, key=True))
    return [] if column == same or (name, column) == ("uuid", "String") else None


def _of_elements(item: Type, column: str, at: str) -> list[str] | None:
    found = _ARRAY.fullmatch(column)
    inner = None if found is None else unfit(item, found[1], "e")
    if inner is None:
        return None
    return [f"len(list_filter({at}, lambda e: {inner})) > 0"] if inner else []


def _integers(unsigned: bool, bits: int, at: str) -> list[str]:
    if unsigned:
        return [f"{at} < 0", *([f"{at} >= {2**bits}"] if bits < 64 else [])]
    return [f"{at} NOT BETWEEN {-(2 ** (bits - 1))} AND {2 ** (bits - 1) - 1}"] if bits < 64 else []


def _outside(at: str, kind: str, first: str, last: str) -> str:
    return f"{at} NOT BETWEEN {kind} '{first}' AND {kind} '{last}'"
