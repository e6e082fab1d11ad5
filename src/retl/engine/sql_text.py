"""SQL that users write: `source.sql`, `checks`, `--where`. Each is one SELECT and nothing else.

It checks the text before it runs, runs it in the workspace, and turns DuckDB's errors into errors without row
values. It never lets a text write or change a setting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
from msgspec import Struct

from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch, SourceError
from retl.project.validation import did_you_mean
from retl.values.sql import literal, quoted


class Query(Struct, frozen=True):
    """One SELECT and the named parameters it uses."""

    sql: str
    parameters: Mapping[str, Any]
    origin: str  # for messages: the table's name, or where the SQL is written
    meaning: Callable[[Exception], SourceError] | None = None  # of an error of a stream that it reads
    count: int | None = None  # how many rows it gives, if the source has said so


def select(sql: str, variables: Mapping[str, Any], origin: str) -> Query:
    """Check a text from a definition: exactly one SELECT, and a value for each parameter."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as problem:
        hint = "retl renders no Jinja: `source: {dbt: MODEL}` reads a model of dbt" if "{{" in sql else None
        raise DefinitionError("SQL_SYNTAX", first_line(problem), hint=hint, where=origin) from problem
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DefinitionError("SQL_NOT_ONE_SELECT", "this must be exactly one SELECT", where=origin)
    wanted = set(statements[0].named_parameters)
    if missing := sorted(wanted - variables.keys()):
        raise DefinitionError(
            "VAR_MISSING",
            f"{origin} uses ${missing[0]}, but there is no such variable",
            hint=f"give it under `vars:` in retl.yml or with --var {missing[0]}=…",
            where=origin,
        )
    return Query(_unterminated(statements[0].query), {k: variables[k] for k in wanted}, origin)


def _unterminated(sql: str) -> str:
    """The text of one statement without the semicolon that ends it, and what follows: only comments can."""
    text = sql.encode()  # the tokenizer counts bytes
    for start, kind in duckdb.tokenize(sql):
        if kind == duckdb.token_type.operator and text[start : start + 1] == b";":
            return text[:start].decode()
    return sql


def columns(workspace: Workspace, wanted: Query) -> dict[str, str]:
    """The columns of a query and their DuckDB types; no row is read. Mismatch SOURCE_DRIFT if the query
    does not bind."""
    try:
        relation = workspace.con.sql(
            f"SELECT * FROM ({wanted.sql}\n) LIMIT 0", params=dict(wanted.parameters)
        )
        return dict(zip(relation.columns, map(str, relation.types), strict=True))
    except duckdb.Error as problem:
        raise drift(wanted, problem, _elsewhere(workspace, problem)) from problem


def returns_rows(workspace: Workspace, wanted: Query) -> bool:
    """Whether a query returns any row. Mismatch SOURCE_DRIFT if it does not bind."""
    try:
        return bool(workspace.run(f"SELECT * FROM ({wanted.sql}\n) LIMIT 1", wanted.parameters))
    except duckdb.Error as problem:
        raise drift(wanted, problem) from problem


def bind(workspace: Workspace, columns: Mapping[str, str], asked: Sequence[Query]) -> None:
    """Check that these queries over `source` bind if the mart has these columns; none of them runs.
    Mismatch SOURCE_DRIFT for the first that does not."""
    listed = ", ".join(f"CAST(NULL AS {kind}) AS {quoted(name)}" for name, kind in columns.items())
    workspace.run(f"CREATE TEMP VIEW source AS SELECT {listed}")
    for query in asked:
        try:
            workspace.con.sql(f"SELECT * FROM ({query.sql}\n) LIMIT 0", params=dict(query.parameters))
        except duckdb.Error as problem:
            raise drift(query, problem) from problem


def drift(wanted: Query, problem: duckdb.Error, hint: str | None = None) -> Mismatch | SourceError:
    """DuckDB's error about a query as our error: SOURCE_DRIFT if a name is missing, with this hint if there
    is one."""
    if isinstance(problem, duckdb.BinderException | duckdb.CatalogException):
        return Mismatch(
            "SOURCE_DRIFT",
            f"{wanted.origin} does not fit the warehouse: {first_line(problem)}",
            hint=hint or _meant(problem) or "fix the SQL or the mart; nothing was written",
        )
    if wanted.meaning is not None:
        return wanted.meaning(problem)
    if (broken := _broken(str(problem))) is not None:
        return SourceError("MART_UNREADABLE", broken, hint="correct the file, or leave it out")
    named = re.search(r'Cannot access file "(.*?)" -|that match the pattern "(.*?)"', str(problem))
    if named is None:
        texts = [f"${name}" for name, value in wanted.parameters.items() if isinstance(value, str)]
        converts = isinstance(problem, duckdb.ConversionException | duckdb.InvalidInputException)
        hint = f"perhaps a variable has a text that the SQL cannot convert: {', '.join(texts)}"
        return SourceError(
            "MART_UNREADABLE",
            f"{wanted.origin}: {first_line(problem)}",
            hint=hint if texts and converts else None,
        )
    path = named[1] or named[2]
    why = "which is not in `read_paths`" if named[1] else "and there is no such file"
    hint = "list the folder under `read_paths` of the warehouse in retl.yml"
    if not (path.startswith("/") or "://" in path):
        hint += "; DuckDB looks for a relative path in the working directory: start retl in the folder where"
        hint += " the path is right (dbt's own), or put an absolute path into the view"
    return SourceError("MART_UNREADABLE", f"{wanted.origin} reads {path}, {why}", hint=hint)


def first_line(problem: duckdb.Error) -> str:
    """DuckDB's own message if it is about SQL or files; other messages may quote row values."""
    if isinstance(
        problem,
        duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException | duckdb.IOException,
    ):
        return str(problem).split("\n")[0]
    return f"DuckDB refused with {type(problem).__name__}"


# DuckDB's errors about files may quote rows: of them only what cannot is repeated. A copy of a file in the
# run's folder is named as the file. The text of `error()` in our own SQL follows "retl: ".
_COPIED = re.compile(r".*/files-\w+/\d+/")
_OWN = re.compile(r"Input Error: retl: (.*)")
_CSV = re.compile(r"Input Error: CSV Error on Line: (\d+)\n")
_CSV_FILE = re.compile(r"\n  file = ([^\n]*)\n  delimiter = ")
_CSV_REASONS = re.compile(
    r"^(Expected Number of Columns: \d+ Found: \d+|Value with unterminated quote found"
    r"|Maximum line size of \d+ bytes exceeded|.*(?= \(byte sequence mismatch\)))",
    re.MULTILINE,
)
_JSON = re.compile(r'JSON in file "(.*?)", at byte \d+ in line (\d+): ([^\n.]*)')
_FILE = re.compile(r"(?:File '|at end of file ')([^']*)'")


def _broken(said: str) -> str | None:
    """A sentence about a file that DuckDB cannot read."""
    if own := _OWN.search(said):
        return own[1]
    if found := _JSON.search(said):
        return f"{_COPIED.sub('', found[1])}, line {found[2]} or before: {found[3]}"
    if _CSV.search(said) or "CSV Parser state machine" in said:
        line, files, why = _CSV.search(said), _CSV_FILE.findall(said), _CSV_REASONS.search(said)
        place = f"{_COPIED.sub('', files[-1])}{f', line {line[1]}' if line else ''}" if files else "a file"
        return f"{place} is no CSV as `source` describes it{f': {why[1].lower()}' if why else ''}"
    if (found := _FILE.search(said)) and ("too small" in said or "magic bytes" in said):
        return f"{_COPIED.sub('', found[1])} is no complete Parquet file"
    return None


def _elsewhere(workspace: Workspace, problem: duckdb.Error) -> str | None:
    """Where the warehouse has the tables that are missing in a schema."""
    missing = re.search(r'with name "?(?:[^"\s]+\.)?([^".\s]+)"? does not exist because schema', str(problem))
    if missing is None:
        return None
    found = workspace.run(
        "SELECT DISTINCT schema_name || '.' || table_name FROM (SELECT schema_name, table_name FROM"
        " duckdb_tables() UNION ALL SELECT schema_name, view_name FROM duckdb_views() WHERE NOT internal)"
        f" WHERE table_name = {literal(missing[1])} ORDER BY 1"
    )
    return f"the warehouse has {' and '.join(name for (name,) in found)}" if found else None


def _meant(problem: duckdb.Error) -> str | None:
    """A suggestion for the missing table or column."""
    text = str(problem)
    missing = re.search(r"with name (\S+) does not exist|column \"(.+?)\" not found", text)
    known = re.search(r"^(?:Did you mean|Candidate bindings:) (.+)$", text, re.MULTILINE)
    if missing is None or known is None:
        return None
    return did_you_mean(missing[1] or missing[2], re.findall(r"\"(?:\w+\.)*(\w+)\"", known[1]))
