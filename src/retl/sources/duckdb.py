"""A mart in a DuckDB file: attached read-only, read in one transaction, let go before delivery.

It never creates a file, never takes a missing one for an empty mart, and lets a sync's SQL be one
SELECT and nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from retl.engine.workspace import NAME, Workspace
from retl.errors import DefinitionError, Later, Mismatch, SourceError
from retl.project.definitions import Source, Warehouse
from retl.project.validation import did_you_mean
from retl.sources import dbt
from retl.values.sql import literal, quoted

_HELD = re.compile(r"lock.*PID (\d+)|PID (\d+).*lock", re.IGNORECASE | re.DOTALL)
_LOOK_AGAIN = 0.5  # seconds between two looks at a mart that a writer holds


@dataclass(frozen=True)
class Query:
    """One SELECT and the named parameters it uses."""

    sql: str
    parameters: Mapping[str, Any]
    origin: str  # for messages: the table's name, or where the SQL stands


def query(source: Source, variables: Mapping[str, Any], folder: Path, warehouse: Warehouse) -> Query:
    """The SELECT of a sync's source. DefinitionError when it is not exactly one SELECT, or uses a
    parameter that no variable fills."""
    if source.dbt is not None:
        name = dbt.relation(warehouse, folder, source.dbt)
        return Query(f"SELECT * FROM {name}", {}, f"dbt model {source.dbt}")
    if source.table is not None:
        name = ".".join(quoted(part) for part in source.table.split("."))
        return Query(f"SELECT * FROM {name}", {}, f"table {source.table}")
    sql, origin = source.sql or "", "source.sql"
    if source.file is not None:
        origin = source.file
        try:
            sql = (folder / source.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise DefinitionError(
                "SQL_FILE", f"cannot read {source.file}: {type(problem).__name__}", where=source.file
            ) from problem
    return select(sql, variables, origin)


def select(sql: str, variables: Mapping[str, Any], origin: str) -> Query:
    """Judge a text from a definition: exactly one SELECT whose parameters all have values."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as problem:
        raise DefinitionError("SQL_SYNTAX", _first_line(problem), where=origin) from problem
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DefinitionError("SQL_NOT_ONE_SELECT", "this must be exactly one SELECT", where=origin)
    wanted = set(statements[0].named_parameters)
    if missing := sorted(wanted - variables.keys()):
        raise DefinitionError(
            "VAR_MISSING",
            f"{origin} uses ${missing[0]}, which no variable fills",
            hint=f"give it under `vars:` in retl.yml or with --var {missing[0]}=…",
            where=origin,
        )
    return Query(statements[0].query.rstrip().rstrip(";"), {k: variables[k] for k in wanted}, origin)


def attach(
    workspace: Workspace,
    warehouse: Warehouse,
    folder: Path,
    waiting: Callable[[str], object] = lambda _pid: None,
) -> str:
    """Attach the mart read-only and return its identity (path, size and time of its last change).

    While a writer holds it, waits up to `lock_wait`, telling `waiting` the writer's process id once;
    then raises Later MART_LOCKED. SourceError where the file is missing or no DuckDB file.
    """
    path = folder / warehouse.path
    if not path.is_file():
        raise SourceError(
            "MART_MISSING",
            f"there is no DuckDB file at {warehouse.path}",
            hint="build the mart first, or point DUCKDB_PATH or `warehouse.path` at it",
        )
    alias = path.stem
    if alias.lower() in (NAME, "memory", "system", "temp"):
        raise SourceError(
            "MART_NAME",
            f"a warehouse file cannot be named {path.name}: DuckDB needs that name",
            hint="rename the file",
        )
    deadline = time.monotonic() + warehouse.lock_wait
    told = False
    while True:
        try:
            workspace.run(f"ATTACH {literal(str(path))} AS {quoted(alias)} (READ_ONLY)")
            break
        except duckdb.IOException as problem:
            held = _HELD.search(str(problem))
            if held is None:
                raise SourceError("MART_UNREADABLE", _first_line(problem)) from problem
            pid = held.group(1) or held.group(2)
            if time.monotonic() >= deadline:
                raise Later(
                    "MART_LOCKED",
                    f"process {pid} is writing to {warehouse.path}",
                    hint="wait for it, or raise warehouse.lock_wait",
                ) from problem
            if not told:
                waiting(pid)
                told = True
            workspace.stop.wait(_LOOK_AGAIN)
        except duckdb.Error as problem:
            raise SourceError("MART_UNREADABLE", _first_line(problem)) from problem
    workspace.run(f"USE {quoted(alias)}")
    stat = path.stat()
    return f"{warehouse.path}:{stat.st_size}:{stat.st_mtime_ns}"


def columns(workspace: Workspace, wanted: Query) -> dict[str, str]:
    """The mart's columns and their DuckDB types, nothing read. Mismatch SOURCE_DRIFT where the
    query no longer binds."""
    try:
        relation = workspace.con.sql(
            f"SELECT * FROM ({wanted.sql}\n) LIMIT 0", params=dict(wanted.parameters)
        )
        return dict(zip(relation.columns, map(str, relation.types), strict=True))
    except duckdb.Error as problem:
        raise _drift(wanted, problem) from problem


def read(workspace: Workspace, wanted: Query, columns: Mapping[str, str], table: str) -> int:
    """Freeze these columns (name → DuckDB type) of the mart into a workspace table with a first column
    "retl row", which counts from 0; returns the number of rows. A collation of the mart's stays behind:
    under NOCASE two keys would be one. Mismatch SOURCE_DRIFT where a column is gone."""
    listed = ", ".join(
        f'{quoted(name)} COLLATE "C" AS {quoted(name)}'
        if kind.startswith("VARCHAR") and "[" not in kind
        else quoted(name)
        for name, kind in columns.items()
    )
    try:
        workspace.run(
            f"CREATE TABLE {NAME}.main.{table} AS"
            f' SELECT row_number() OVER () - 1 AS "retl row", {listed} FROM ({wanted.sql}\n)',
            wanted.parameters,
        )
    except duckdb.Error as problem:
        raise _drift(wanted, problem) from problem
    count: int = workspace.one(f"SELECT count(*) FROM {NAME}.main.{table}")[0]
    return count


def answers(workspace: Workspace, wanted: Query) -> list[tuple[Any, ...]]:
    """At most one row of a user's query over the workspace. Mismatch SOURCE_DRIFT where it does not bind."""
    try:
        return workspace.run(f"SELECT * FROM ({wanted.sql}\n) LIMIT 1", wanted.parameters)
    except duckdb.Error as problem:
        raise _drift(wanted, problem) from problem


def bind(workspace: Workspace, columns: Mapping[str, str], asked: Sequence[Query]) -> None:
    """Would these queries over `source` bind, if the mart has these columns? Runs none of them. Mismatch
    SOURCE_DRIFT for the first that would not."""
    listed = ", ".join(f"CAST(NULL AS {kind}) AS {quoted(name)}" for name, kind in columns.items())
    workspace.run(f"CREATE TEMP VIEW source AS SELECT {listed}")
    for query in asked:
        try:
            workspace.con.sql(f"SELECT * FROM ({query.sql}\n) LIMIT 0", params=dict(query.parameters))
        except duckdb.Error as problem:
            raise _drift(query, problem) from problem


def choose(workspace: Workspace, predicate: str, variables: Mapping[str, Any]) -> None:
    """Make the table `chosen`: the rows of the frozen mart for which the user's predicate holds.
    DefinitionError where it is none; it can read the mart and nothing else, and write nothing."""
    wanted = select(f'SELECT "retl row" FROM mart WHERE ({predicate}\n)', variables, "--where")
    try:
        workspace.run(f"CREATE TABLE chosen AS {wanted.sql}", wanted.parameters)
    except duckdb.Error as problem:
        raise DefinitionError(
            "WHERE_INVALID", f"--where does not fit the mart: {_first_line(problem)}"
        ) from problem


def detach(workspace: Workspace, warehouse: Warehouse) -> None:
    """Let go of the mart: from here on others may write to it."""
    workspace.run(f"USE {NAME}")
    workspace.run(f"DETACH {quoted(Path(warehouse.path).stem)}")


def _drift(wanted: Query, problem: duckdb.Error) -> Mismatch | SourceError:
    if isinstance(problem, duckdb.BinderException | duckdb.CatalogException):
        return Mismatch(
            "SOURCE_DRIFT",
            f"{wanted.origin} does not fit the warehouse: {_first_line(problem)}",
            hint=_meant(problem) or "mend the SQL or the mart; nothing was written",
        )
    return SourceError("MART_UNREADABLE", f"{wanted.origin}: {_first_line(problem)}")


def _meant(problem: duckdb.Error) -> str | None:
    """What the missing table or column was probably meant to be."""
    text = str(problem)
    missing = re.search(r"with name (\S+) does not exist|column \"(.+?)\" not found", text)
    known = re.search(r"^(?:Did you mean|Candidate bindings:) (.+)$", text, re.MULTILINE)
    if missing is None or known is None:
        return None
    return did_you_mean(missing[1] or missing[2], re.findall(r"\"(?:\w+\.)*(\w+)\"", known[1]))


def _first_line(problem: duckdb.Error) -> str:
    """DuckDB's own sentence where it speaks of SQL or files; elsewhere it may quote a row's values."""
    if isinstance(
        problem,
        duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException | duckdb.IOException,
    ):
        return str(problem).split("\n")[0]
    return f"DuckDB refused with {type(problem).__name__}"
