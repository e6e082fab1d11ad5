"""What a sync reads from a database: a table, or one SELECT in the database's own SQL.

The text of a SELECT is checked before the database sees it, and a variable in it becomes a quoted value,
never SQL. This is not the only lock: a source also opens a session that cannot write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from msgspec import Struct

from retl.errors import DefinitionError
from retl.project.marts import Selected
from retl.sources.api import Invocation, Source
from retl.values.sql import split

_SELECTS = ("SELECT", "WITH", "VALUES", "TABLE")
_LINES, _BLOCK = r"--[^\n]*", r"/\*.*?\*/"
_DOUBLED = "|".join(rf"{quote}(?:[^{quote}]|{quote}{quote})*{quote}" for quote in "'\"`")
_ESCAPED = "|".join(rf"{quote}(?:[^{quote}\\]|\\.|{quote}{quote})*{quote}" for quote in "'\"")


def _syntax(comments: str, quoted: str) -> re.Pattern[str]:
    name = r"(?<![\w$])\$(?P<name>[A-Za-z_]\w*)"
    return re.compile(rf"(?P<comment>{comments})|(?:{quoted})|{name}|(?P<end>;)", re.DOTALL)


# How each database writes comments and quotes; a quoted part has no variable.
POSTGRES = _syntax(
    f"{_LINES}|{_BLOCK}",
    r"(?<![\w$])[eE]'(?:[^'\\]|\\.|'')*'|(?<![\w$])\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$|" + _DOUBLED,
)
_IDENTIFIER = r'"(?:[^"]|"")*"'
REDSHIFT = _syntax(
    f"{_LINES}|{_BLOCK}",
    r"(?<![\w$])\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$|'(?:[^'\\]|\\.|'')*'|" + _IDENTIFIER,
)
MYSQL = _syntax(rf"--(?=\s|$)[^\n]*|\#[^\n]*|{_BLOCK}", rf"{_ESCAPED}|`[^`]*`")
TRINO = _syntax(f"{_LINES}|{_BLOCK}", _DOUBLED)
MSSQL = _syntax(f"{_LINES}|{_BLOCK}", rf"{_DOUBLED}|\[[^\]]*\]")
SNOWFLAKE = _syntax(rf"{_LINES}|//[^\n]*|{_BLOCK}", rf"\$\$.*?\$\$|{_ESCAPED}")
DATABRICKS = _syntax(f"{_LINES}|{_BLOCK}", rf"{_ESCAPED}|`[^`]*`")
_TRIPLE = "|".join(rf"{quote * 3}(?:[^\\]|\\.)*?{quote * 3}" for quote in "'\"")
BIGQUERY = _syntax(rf"{_LINES}|\#[^\n]*|{_BLOCK}", rf"{_TRIPLE}|{_ESCAPED}|`[^`]*`")
SQLITE = _syntax(f"{_LINES}|{_BLOCK}", rf"{_DOUBLED}|\[[^\]]*\]")


class Selecting(Source[Selected]):
    """A source that is asked in SQL."""

    Options = Selected

    @property
    def label(self) -> str:
        return self.options.label


class Statement(Struct, frozen=True):
    """One SELECT. `parts` are its text and, at every second place, the name of a variable."""

    parts: tuple[str, ...]
    values: Mapping[str, Any]

    def text(self, literal: Callable[[Any], str]) -> str:
        """The SQL, with each variable as `literal` writes its value."""
        return "".join(literal(self.values[p]) if at % 2 else p for at, p in enumerate(self.parts))


def constant(
    value: Any,
    text: Callable[[str], str],
    booleans: tuple[str, str] = ("FALSE", "TRUE"),
    day: str = "DATE {}",
) -> str:
    """A variable as SQL: NULL, a boolean, a number, a `day`, or else what `text` makes of it as a text."""
    if value is None:
        return "NULL"
    if isinstance(value, date):
        return day.format(text(str(value)))
    if isinstance(value, bool):
        return booleans[value]
    return f"({value!r})" if isinstance(value, int | float) else text(str(value))


def relation(
    chosen: Selected,
    invocation: Invocation,
    syntax: re.Pattern[str],
    literal: Callable[[Any], str],
    quoted: Callable[[str], str],
) -> str:
    """What to put after FROM. DefinitionError if the text is not one SELECT or lacks a variable."""
    if chosen.table is not None:
        return ".".join(map(quoted, split(chosen.table)))
    text = chosen.text(invocation.folder)
    return f"({statement(text, syntax, invocation.variables, chosen.origin).text(literal)}\n) AS retl"


def statement(sql: str, syntax: re.Pattern[str], variables: Mapping[str, Any], origin: str) -> Statement:
    """Check a text: one SELECT, and a value for each `$name`. DefinitionError."""
    parts, begun, code = [""], 0, ""
    for found in syntax.finditer(sql):
        parts[-1] += (between := sql[begun : found.start()])
        code += between
        begun = found.end()
        if found["end"]:
            rest = syntax.sub(lambda one: "" if one["comment"] else one[0], sql[begun:])
            if rest.strip(" \t\r\n;"):
                raise _not_one(origin)
            begun = len(sql)
            break
        if found["name"]:
            parts += [found["name"], ""]
        else:
            parts[-1] += found[0]
        code += " " if found["comment"] else found[0]
    parts[-1] += sql[begun:]
    word = re.match(r"[\s(]*([A-Za-z]*)", code + sql[begun:])
    if word is None or word[1].upper() not in _SELECTS or "\0" in sql:
        raise _not_one(origin)
    if missing := sorted(set(parts[1::2]) - variables.keys()):
        raise DefinitionError(
            "VAR_MISSING",
            f"{origin} uses ${missing[0]}, but there is no such variable",
            hint=f"give it under `vars:` in retl.yml or with --var {missing[0]}=…",
            where=origin,
        )
    return Statement(tuple(parts), {name: variables[name] for name in parts[1::2]})


def _not_one(origin: str) -> DefinitionError:
    return DefinitionError("SQL_NOT_ONE_SELECT", "this must be exactly one SELECT", where=origin)
