"""The words of SQL Server, and which columns keep every value of a type. Pure.

Some columns change a value in silence: a varchar without a UTF-8 collation has `?` for what its code page
lacks, excess blanks at the end are cut, datetime rounds to 1/300 of a second. Such columns are refused, or
such values, before they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

from retl.destinations.batch import Bends, Cell, Field, Folds
from retl.destinations.sql.dialect import ROW, Column, Dialect, Relation
from retl.values.types import KEY_TYPES, Type

BINARY = "Latin1_General_100_BIN2"
_EXACT = f" COLLATE {BINARY}"
_DDL = {
    "integer": "bigint", "float": "float", "boolean": "bit", "date": "date", "uuid": "uniqueidentifier",
    "timestamp": "datetime2(6)", "timestamptz": "datetimeoffset(6)",
}  # fmt: skip
_WHOLE = ("tinyint", "smallint", "int", "bigint")
_FINE = ("(6)", "(7)")  # places of a second


class MsSqlDialect(Dialect):
    name = "SQL Server"
    schema = "dbo"
    stage = "#retl_stage"
    numbers = True
    locked = " WITH (UPDLOCK, HOLDLOCK)"
    marks: ClassVar[Mapping[str, str]] = {
        "text": "nvarchar(max)" + _EXACT,
        "key": "nvarchar(128)" + _EXACT,
        "number": "bigint",
    }
    now = "datetime2(6) NOT NULL DEFAULT SYSUTCDATETIME()"
    make_marks = "CREATE TABLE"
    one_mark = " WITH (IGNORE_DUP_KEY = ON)"  # to ask for a key that is not there would lock its neighbours
    insert_absent = "INSERT INTO"
    add = "ADD"
    begins = "BEGIN TRANSACTION"
    age = (
        "SELECT CAST(DATEDIFF_BIG(millisecond, max({column}), SYSUTCDATETIME()) / 1000.0 AS float)"
        " FROM {relation}"
    )

    def quoted(self, name: str) -> str:
        return "[" + name.replace("]", "]]") + "]"

    def check_name(self, name: str) -> None:
        units = len(name.encode("utf-16le", "surrogatepass")) // 2
        if not 0 < units <= 128 or "\0" in name or name != name.rstrip() or name.startswith("#"):
            words = f"a name in {self.name} has 1 to 128 characters, no blank at its end and no # before it"
            raise ValueError(f"{words}: {name[:80]!r}")

    def literal(self, value: Any) -> str:
        """A backslash at the end of a line would join the line with the next one. NUL ends a statement."""
        if value is None:
            return "NULL"
        if isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
            return repr(value + 0)
        pieces = re.split(r"(?<=\\)(?=\r?\n)|(\0)", str(value))
        made = [
            "NCHAR(0)" if one == "\0" else "N'" + one.replace("'", "''") + "'"
            for one in pieces
            if one is not None
        ]
        return made[0] if len(made) == 1 else " + ".join(["CAST(N'' AS nvarchar(max))", *made])

    def ddl(self, type: Type, *, key: bool) -> str:
        if type.name == "decimal":
            return f"decimal({type.max_digits},{type.decimal_places})"
        return _DDL.get(type.name, f"nvarchar(255){_EXACT}" if key else "nvarchar(max)")

    def made(self, of: Field, *, key: bool) -> Column:
        declared, _, collation = self.ddl(of.type, key=key).partition(" COLLATE ")
        return column(of.name, declared, collation)

    def holds(self, column: Column, of: Field, *, key: bool) -> bool:
        if key and of.type.name not in KEY_TYPES:
            return False
        kind, sizes = parsed(column.type)
        places = of.type.decimal_places or 0
        match of.type.name:
            case "integer":
                return kind in _WHOLE or kind == "decimal"
            case "decimal":
                return (kind == "decimal" and sizes[1] >= places) or (places == 0 and kind in _WHOLE)
            case "float":
                return kind == "float"
            case "boolean":
                return kind == "bit" or kind in _WHOLE
            case "date":
                return kind == "date"
            case "timestamp":
                return kind == "datetime2" and column.type.endswith(_FINE)
            case "timestamptz":
                return kind in ("datetime2", "datetimeoffset") and column.type.endswith(_FINE)
            case "uuid":
                roomy = kind in ("char", "nchar", "varchar", "nvarchar") and (not sizes or sizes[0] >= 36)
                return kind == "uniqueidentifier" or (roomy and (kind[-7:] == "varchar" or sizes == (36,)))
            case _:
                return kind in ("varchar", "nvarchar")

    def cell(self, of: Field, column: Column) -> Cell:
        if of.type.name in ("string", "integer", "boolean"):
            return "value"
        return "utc" if of.type.name == "timestamptz" else "text"

    def bends(self, of: Field, column: Column) -> Bends | None:
        if of.type.name == "float":
            return Bends(zero=True, subnormal=True)
        kind, sizes = parsed(column.type)
        if of.type.name not in ("string", "json", "list") or kind not in ("varchar", "nvarchar"):
            return None
        size = sizes[0] if sizes else None
        if kind == "nvarchar":
            return None if size is None else Bends(units=size)
        if column.storage.upper().endswith("_UTF8"):
            return None if size is None else Bends(bytes=size)
        return Bends(ascii=True, characters=size)

    def same(self, one: str, other: str, of: Field, column: Column) -> str:
        if parsed(column.type)[0] in ("char", "nchar", "varchar", "nvarchar"):  # a collation compares less
            one, other = f"CAST({one} AS varbinary(max))", f"CAST({other} AS varbinary(max))"
        return f"EXISTS (SELECT {one} INTERSECT SELECT {other})"

    def make_stage(self, relation: Relation, columns: Sequence[Column]) -> list[str]:
        listed = "".join(f", {self.quoted(one.name)} {one.storage} NULL" for one in columns)
        return [
            f"DROP TABLE IF EXISTS {self.stage}",
            f"CREATE TABLE {self.stage} ({ROW} int NOT NULL PRIMARY KEY{listed})",
        ]

    def update(self, relation: Relation, sets: Mapping[str, str], condition: str) -> str:
        listed = ", ".join(f"{name} = {value}" for name, value in sets.items())
        return f"UPDATE t SET {listed} FROM {self.stage} AS s JOIN {relation.sql} AS t ON {condition}"

    def delete(self, relation: Relation, keys: Sequence[str], rows: str) -> str:
        same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
        return f"DELETE t FROM {self.stage} AS s JOIN {relation.sql} AS t ON {same} WHERE {rows}"

    def storage(self, relation: Relation) -> str:
        made = "CONCAT(object_id, N' ', CONVERT(nvarchar(30), create_date, 126))"
        found = f"SELECT {made} FROM sys.tables WHERE object_id = {object_id(relation)}"
        return f"coalesce(({found}), N'')"

    def make_schema(self, named: str) -> str:
        name = self.literal(named[1:-1].replace("]]", "]"))
        return f"IF SCHEMA_ID({name}) IS NULL EXEC ({self.literal(f'CREATE SCHEMA {named}')})"

    def rename(self, relation: Relation, name: str, to: str) -> str:
        old = self.literal(f"{relation.sql}.{self.quoted(name)}")
        return f"EXEC sys.sp_rename {old}, {self.literal(to)}, 'COLUMN'"

    def unpacked(self, into: str, document: str, columns: Sequence[str]) -> str:
        """An INSERT of the rows of a JSON array of objects with the names v0, v1 … As a text each value comes
        as it was written; the column converts it, or refuses it."""
        listed = ", ".join(f"v{n}" for n in range(len(columns)))
        typed = ", ".join(f"v{n} {one} '$.v{n}'" for n, one in enumerate(columns))
        return f"{into} SELECT {listed} FROM OPENJSON({self.literal(document)}) WITH ({typed})"


def object_id(relation: Relation) -> str:
    return f"OBJECT_ID({MsSqlDialect().literal(relation.sql)})"


def column(
    name: str,
    declared: str,
    collation: str | None,
    *,
    nullable: bool = True,
    default: bool = False,
    generated: bool = False,
) -> Column:
    """A column of a type as `sized` writes it."""
    storage = f"{declared} COLLATE {collation}" if collation else declared
    texts = parsed(declared)[0] in ("char", "nchar", "varchar", "nvarchar")
    return Column(
        name,
        declared,
        storage,
        needed=not (nullable or default),
        generated=generated,
        folds=folds(collation or "") if texts else (),
        nullable=nullable,
    )


def sized(kind: str, length: int, precision: int, scale: int) -> str:
    """A type as it is declared, from the columns of sys.columns; `length` in bytes, -1 for max."""
    if kind in ("decimal", "numeric"):
        return f"decimal({precision},{scale})"
    if kind in ("datetime2", "datetimeoffset", "time"):
        return f"{kind}({scale})"
    if kind in ("char", "varchar", "nchar", "nvarchar", "binary", "varbinary"):
        return f"{kind}({'max' if length < 0 else length // 2 if kind[0] == 'n' else length})"
    return kind


def folds(collation: str) -> Folds:
    """What a collation ignores, at most. Blanks at the end are ignored by all of them."""
    parts = collation.upper().split("_")
    if {"BIN", "BIN2"} & set(parts):
        return ("trailing",)
    found: Folds = ("trailing",)
    found = ("case", *found) if "CS" not in parts else found
    return ("accents", *found) if "AS" not in parts else found


def parsed(declared: str) -> tuple[str, tuple[int, ...]]:
    """`decimal(12,2)` → decimal, (12, 2); no size of a type that ends with (max)."""
    kind, _, sizes = declared.partition("(")
    return kind, tuple(map(int, re.findall(r"\d+", sizes)))
