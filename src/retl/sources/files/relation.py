"""Files as one relation: their columns by name, folders such as `dt=2026-11-28`, and texts as values.

It makes SQL and reads no rows.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from retl.errors import SourceError
from retl.values import text
from retl.values.sql import literal, quoted
from retl.values.storage import storage_type
from retl.values.types import Type

MISFIT = "retl misfit"
STRING = Type("string")
_ONE = r"[\1]"  # a pattern that matches this character only
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


class Relation(Struct, frozen=True):
    """`sql` gives `columns` (name → DuckDB type); those in `texts` are texts of this type."""

    sql: str
    columns: Mapping[str, str]
    texts: Mapping[str, Type]


class Partitions:
    """The folders `name=value` of files, and the types of their values."""

    def __init__(self, files: Mapping[str, Path], types: Mapping[str, Type]) -> None:
        values: dict[str, set[str]] = defaultdict(set)
        shapes: dict[tuple[str, ...], str] = {}
        for key in files:
            pairs = [part.partition("=") for part in key.split("/")[:-1] if "=" in part]
            shapes.setdefault(tuple(name for name, _, _ in pairs), key)
            for name, _, value in pairs:
                values[name].add(value)
        if values and any("=" in str(path).removesuffix(key) for key, path in files.items()):
            raise SourceError(
                "MART_UNREADABLE",
                "a folder name=value above `root` would become a column",
                hint="begin `root` above that folder, and name it in `path`",
            )
        if len(shapes) > 1:
            one, other = sorted(shapes.values())[:2]
            raise SourceError("MART_UNREADABLE", f"{one} and {other} are in folders with different names")
        self.types = {
            name: types.get(name) or _guessed(found - {_HIVE_NULL}) for name, found in values.items()
        }

    @property
    def options(self) -> str:
        """For DuckDB's readers: the folders as texts."""
        if not self.types:
            return "hive_partitioning = false"
        texts = ", ".join(f"{quoted(name)}: VARCHAR" for name in self.types)
        return f"hive_partitioning = true, hive_types_autocast = false, hive_types = {{{texts}}}"


def _guessed(values: set[str]) -> Type:
    """A type that all values have without a doubt: 007 is no integer."""
    for name, pattern in (("integer", r"0|-?[1-9]\d{0,17}"), ("date", r"\d{4}-\d\d-\d\d")):
        if values and all(re.fullmatch(pattern, value, re.ASCII) for value in values):
            return Type("integer") if name == "integer" else Type("date")
    return STRING


def typed(
    raw: Relation, timezone: str, *, optional: Mapping[str, Type], strict: bool
) -> tuple[str, dict[str, str], str | None]:
    """The relation with its texts as values, its columns, and the name of its column of misfits. With
    `strict` there is none: a text that is no value of its type is an error of the query."""
    columns, found, kept, cases = list[str](), dict[str, str](), list[str](), list[str]()
    for number, (name, kind) in enumerate(raw.columns.items()):
        column, type = quoted(name), raw.texts.get(name)
        found[name] = kind if type is None else storage_type(type)
        if type is None or type == STRING:
            columns.append(column)
            continue
        value, good = text.value(type, column, timezone), text.readable(type, column, timezone)
        wrong = literal(f"retl: the column {name} has a text that is no {type}")
        value = f"CASE WHEN {good} THEN {value}{f' ELSE error({wrong})' if strict else ''} END"
        columns.append(f"{value} AS {column}")
        kept.append(f'{column} IS NOT NULL AS "retl {number}"')
        cases.append(f'WHEN "retl {number}" AND {column} IS NULL THEN {literal(name)}')
    for name, type in optional.items():
        if name not in found:
            found[name] = storage_type(type)
            columns.append(f"CAST(NULL AS {found[name]}) AS {quoted(name)}")
    if strict or not cases:
        return f"SELECT {', '.join(columns)} FROM ({raw.sql})", found, None
    names, case = ", ".join(map(quoted, found)), f"CASE {' '.join(cases)} END"
    values = f"SELECT {', '.join([*columns, *kept])} FROM ({raw.sql})"  # each text is judged once
    return f"SELECT {names}, {case} AS {quoted(MISFIT)} FROM ({values})", found, MISFIT


def listed(paths: Iterable[Path | str]) -> str:
    """A list of files for DuckDB, which takes `*`, `?` and `[` in a name for a pattern."""
    return f"[{', '.join(literal(re.sub('([*?[])', _ONE, str(path))) for path in paths)}]"
