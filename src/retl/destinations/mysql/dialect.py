"""The words of MySQL and MariaDB, and which columns keep every value of a type. Pure.

Some columns change a value in silence even in strict mode: blanks at the end are cut, ENUM takes another
spelling, a TIMESTAMP that is NOT NULL takes now for NULL. Such values are refused before they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

from retl.destinations.batch import Bends, Cell, Field, Folds
from retl.destinations.sql.dialect import ROW, Column, Dialect, Relation
from retl.values.types import KEY_TYPES, Type

_EXACT = " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_UUID = "char(36) CHARACTER SET ascii COLLATE ascii_bin"
_DDL = {
    "integer": "bigint", "float": "double", "boolean": "boolean", "date": "date", "uuid": _UUID,
    "timestamp": "datetime(6)", "timestamptz": "datetime(6)",
}  # fmt: skip
_WHOLE = ("tinyint", "smallint", "mediumint", "int", "bigint")
_ROOM = {"tinytext": 255, "text": 65535, "mediumtext": 16777215, "longtext": 4294967295}  # bytes
_CHARSETS = ("utf8mb4", "utf8mb3", "utf8", "latin1", "ascii", "utf16", "utf32", "ucs2")  # refuse other texts


class MySQLDialect(Dialect):
    name = "MySQL"
    schema = ""
    stage = "retl_stage"
    numbers = True
    insert_absent = "INSERT IGNORE INTO"  # to ask for a key that is not there would lock its neighbours
    from_nothing = " FROM DUAL"
    marks: ClassVar[Mapping[str, str]] = {
        "text": "longtext" + _EXACT,
        "key": "varchar(128)" + _EXACT,
        "number": "bigint",
    }
    age = "SELECT TIMESTAMPDIFF(MICROSECOND, max({column}), UTC_TIMESTAMP(6)) / 1e6 FROM {relation}"

    def quoted(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def check_name(self, name: str) -> None:
        whole = 0 < len(name) <= 64 and name == name.rstrip() and "\0" not in name and max(name) <= "\uffff"
        if not whole:
            words = f"a name in {self.name} has 1 to 64 characters, no blank at its end, and no emoji"
            raise ValueError(f"{words}: {name[:80]!r}")

    def literal(self, value: Any) -> str:
        """For a session with NO_BACKSLASH_ESCAPES. A float that is no number is a text, which is refused."""
        if value is None:
            return "NULL"
        if isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
            return repr(value + 0)
        return "'" + str(value).replace("'", "''") + "'"

    def ddl(self, type: Type, *, key: bool) -> str:
        if type.name == "decimal":
            return f"decimal({type.max_digits},{type.decimal_places})"
        return _DDL.get(type.name, ("varchar(255)" if key else "longtext") + _EXACT)

    def made(self, of: Field, *, key: bool) -> Column:
        declared, _, rest = self.ddl(of.type, key=key).partition(" CHARACTER SET ")
        collation = rest.rpartition(" ")[2]
        return Column(
            of.name, declared, _stored(declared, rest.partition(" ")[0], collation), folds=folds(collation)
        )

    def holds(self, column: Column, of: Field, *, key: bool) -> bool:
        if key and of.type.name not in KEY_TYPES:
            return False
        kind, sizes = _parsed(column.type)
        places = of.type.decimal_places or 0
        match of.type.name:
            case "string":
                return _is_text(column) or kind == "enum"
            case "integer":
                return kind in _WHOLE or kind == "decimal"
            case "decimal":
                return (kind == "decimal" and sizes[1] >= places) or (places == 0 and kind in _WHOLE)
            case "float":
                return kind == "double" and not sizes
            case "boolean":
                return kind in _WHOLE or column.type == "bit(1)"
            case "date":
                return kind == "date"
            case "timestamp":
                return column.type == "datetime(6)"
            case "timestamptz":
                return column.type in ("datetime(6)", "timestamp(6)")
            case "uuid":
                roomy = kind in ("char", "varchar") and sizes[0] >= 36 and _charset(column) in _CHARSETS
                return kind == "uuid" or roomy or _is_text(column, varchar=False)
            case _:
                return _is_text(column)

    def cell(self, of: Field, column: Column) -> Cell:
        if of.type.name in ("string", "integer", "float", "boolean"):
            return "value"
        return "utc" if of.type.name == "timestamptz" else "text"

    def bends(self, of: Field, column: Column) -> Bends | None:
        kind, sizes = _parsed(column.type)
        if kind == "timestamp" and not column.nullable:
            return Bends(null=True)
        if of.type.name == "float":
            return Bends(zero=True)
        if kind == "enum":
            known = (one.replace("''", "'") for one in re.findall(r"'((?:[^']|'')*)'", column.type))
            return Bends(known=frozenset(known))
        if of.type.name != "string":
            return None
        return Bends(characters=sizes[0]) if kind == "varchar" else Bends(bytes=_ROOM[kind])

    def same(self, one: str, other: str, of: Field, column: Column) -> str:
        if column.folds or _is_text(column):  # a collation compares less than all of a text
            return f"(CAST({one} AS BINARY) <=> CAST({other} AS BINARY))"
        return f"({one} <=> {other})"

    def text(self, value: str, of: Field, column: Column) -> str | None:
        """The server's own text, where it needs it made DuckDB's: places of seconds, whole floats, exponents.
        A float has its text only if that is all of it."""
        match of.type.name:
            case "list":
                return None  # it is stored as JSON
            case "string" | "uuid" | "json":
                return f"CONVERT({value} USING utf8mb4) COLLATE utf8mb4_bin"
            case "boolean":
                return f"CASE {value} WHEN 1 THEN 'true' WHEN 0 THEN 'false' ELSE {value} + 0 END"
            case "timestamp" | "timestamptz":
                zone = "+00" if of.type.name == "timestamptz" else ""
                return f"CONCAT(TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM {value})), '{zone}')"
            case "float":
                text = f"CONCAT({value})"
                power = f"REPLACE(REPLACE({text}, 'e', 'e+'), 'e+-', 'e-')"
                whole = f"IF(LOCATE('.', {text}), {text}, CONCAT({text}, '.0'))"
                told = f"IF(LOCATE('e', {text}), {power}, {whole})"
                return f"IF({text} + 0 = {value}, {told}, CONCAT({text}, '~'))"
            case _:
                return f"CONCAT({value})"

    def make_stage(self, relation: Relation, columns: Sequence[Column]) -> list[str]:
        listed = "".join(f", {self.quoted(one.name)} {one.storage} NULL" for one in columns)
        return [
            f"DROP TEMPORARY TABLE IF EXISTS {self.stage}",
            f"CREATE TEMPORARY TABLE {self.stage} ({ROW} INT PRIMARY KEY{listed}) ENGINE = InnoDB",
        ]

    def update(self, relation: Relation, sets: Mapping[str, str], condition: str) -> str:
        listed = ", ".join(f"t.{name} = {value}" for name, value in sets.items())
        joined = f"{self.stage} AS s STRAIGHT_JOIN {relation.sql} AS t"
        return f"UPDATE {joined} SET {listed} WHERE {condition}"

    def delete(self, relation: Relation, keys: Sequence[str], rows: str) -> str:
        same = " AND ".join(f"t.{key} = s.{key}" for key in keys)
        return f"DELETE t FROM {self.stage} AS s STRAIGHT_JOIN {relation.sql} AS t WHERE {same} AND {rows}"

    def storage(self, relation: Relation) -> str:
        """The second in which it was made; an ALTER TABLE creates it again, too."""
        found = f"SELECT CAST(create_time AS CHAR) FROM information_schema.tables WHERE {named(relation)}"
        return f"coalesce(({found}), '')"


def named(relation: Relation) -> str:
    """The predicate of one table in information_schema, which ignores the case of names."""
    name = MySQLDialect().literal(relation.name)
    spelled = f"(@@lower_case_table_names > 0 OR BINARY table_name = {name})"
    return f"table_schema = DATABASE() AND table_name = {name} AND {spelled}"


def column(
    name: str, type: str, nullable: bool, default: str | None, extra: str, made: str | None,
    charset: str | None, collation: str | None,
) -> Column:  # fmt: skip
    """A column as information_schema describes it."""
    declared, needed = type.lower() if not type.lower().startswith("enum") else type, not nullable
    return Column(
        name,
        declared,
        _stored(declared, charset or "", collation or ""),
        needed=needed and default is None and "auto_increment" not in extra.lower(),
        generated=bool(made),
        folds=folds(collation or ""),
        nullable=nullable,
    )


def folds(collation: str) -> Folds:
    """What a collation ignores, at most: a table that can tell more keys apart is not known better here."""
    parts = collation.split("_")
    found: Folds = (
        ("trailing",) if collation and not {"nopad", "0900"} & set(parts) and parts != ["binary"] else ()
    )
    if parts[-1] == "ci":
        return ("accents", "case", *found) if "as" not in parts else ("case", *found)
    return ("accents", *found) if "ai" in parts else found


def _stored(declared: str, charset: str, collation: str) -> str:
    return f"{declared} CHARACTER SET {charset} COLLATE {collation}" if charset else declared


def _parsed(declared: str) -> tuple[str, tuple[int, ...]]:
    """`decimal(12,2) unsigned` → decimal, (12, 2)."""
    kind = re.match(r"\w+", declared.lower())
    sizes = re.match(r"\w+\(([\d,]+)\)", declared)
    return (kind[0] if kind else ""), tuple(map(int, sizes[1].split(","))) if sizes else ()


def _charset(column: Column) -> str:
    found = re.search(r" CHARACTER SET (\w+)", column.storage)
    return found[1] if found else ""


def _is_text(column: Column, *, varchar: bool = True) -> bool:
    kind = _parsed(column.type)[0]
    return (kind in _ROOM or (varchar and kind == "varchar")) and _charset(column) in _CHARSETS
