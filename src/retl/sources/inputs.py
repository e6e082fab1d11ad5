"""Inputs: several sources under their own names, and one SELECT over them.

Each input is read whole, at one state of it, into a DuckDB file in the run's folder; then it is released.
They are read one after the other, so each has its own state: together they are not one. The SELECT sees
nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from retl.engine.freeze import require_all
from retl.engine.sql_text import Query, columns, drift, select
from retl.engine.workspace import NAME, Workspace
from retl.errors import DefinitionError, SourceError
from retl.model import Definition
from retl.observe.signals import Stop
from retl.project.contracts import Documented
from retl.sources import personal
from retl.sources.api import Description, Invocation, Since, Snapshot, Source
from retl.sources.relations import Name
from retl.values.sql import literal, quoted

if TYPE_CHECKING:
    from retl.net.postgres import PostgresConnection

_FILE = "retl_inputs"


class Select(Definition):
    sql: str


class Inputs(Source[Select]):
    """Sources by their names in the SELECT."""

    Options = Select

    def __init__(self, options: Select, inputs: Mapping[str, Source[Any]], invocation: Invocation) -> None:
        super().__init__(options, options, invocation)
        self.inputs = inputs
        self.one_state = all(source.one_state for source in inputs.values())
        self.remote = any(source.remote for source in inputs.values())
        self.tells = all(source.tells for source in inputs.values())
        zones = {source.timezone for source in inputs.values()}
        if len(zones) > 1:
            raise DefinitionError(
                "TIMEZONES_DIFFER",
                f"the inputs have naive timestamps of several time zones: {', '.join(sorted(zones))}",
                hint="give their sources the same `timezone`",
            )

    @property
    def label(self) -> str:
        return " + ".join(self.inputs)

    @property
    def identity(self) -> dict[str, str]:
        return {
            "type": "inputs",
            **{name: " ".join(source.identity.values()) for name, source in self.inputs.items()},
        }

    @property
    def timezone(self) -> str:
        return next(source.timezone for source in self.inputs.values())

    @property
    def max_age(self) -> float | None:
        return min((age for source in self.inputs.values() if (age := source.max_age)), default=None)

    def documented(self) -> Mapping[str, Documented]:
        every = {name.lower(): source.documented() for name, source in self.inputs.items()}
        known: dict[Name, frozenset[str]] = {
            (name,): frozenset(column for column, one in columns.items() if one.sensitive)
            for name, columns in every.items()
        }
        return personal.inherited(personal.carried(self.options.sql, known))

    @property
    def announces(self) -> tuple[PostgresConnection, ...]:
        return tuple(database for source in self.inputs.values() for database in source.announces)

    def version(self, stop: Stop) -> str:
        return _joined({name: source.version(stop) for name, source in self.inputs.items()})

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        query = select(self.options.sql, self.invocation.variables, "source.sql")
        path = workspace.directory / f"{_FILE}.duckdb"
        path.unlink(missing_ok=True)
        found = {name: _take(workspace, path, name, one, wait) for name, one in self.inputs.items()}
        workspace.run(f"ATTACH {literal(str(path))} AS {_FILE} (READ_ONLY)")
        workspace.run(f"USE {_FILE}")
        return Taken(query, workspace, found)


class Taken(Snapshot):
    """The inputs as they were read."""

    def __init__(self, query: Query, workspace: Workspace, inputs: Mapping[str, Description]) -> None:
        self._workspace = workspace
        self._query = query
        self.description = Description(
            columns(workspace, query),
            _joined({name: one.version for name, one in inputs.items()}),
            tuple(reported for one in inputs.values() for reported in one.health),
            tuple(dict.fromkeys(model for one in inputs.values() for model in one.models)),
        )

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._query

    def close(self) -> None:
        self._workspace.run(f"USE {NAME}")
        self._workspace.run(f"DETACH {_FILE}")


def _joined(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {version}" for name, version in versions.items())


def _take(workspace: Workspace, path: Path, name: str, source: Source[Any], wait: bool) -> Description:
    """Read one input into a table of the file. It has a DuckDB of its own, which can read nothing else."""
    with Workspace(workspace.directory, workspace.stop) as own:
        own.run(f"ATTACH {literal(str(path))} AS {_FILE}")
        with source.open(own, wait=wait) as snapshot:
            own.harden(source.readable)
            misfit = snapshot.description.misfit
            query = snapshot.rows(list(snapshot.description.columns))
            names = [*snapshot.description.columns, *([misfit] if misfit else [])]
            try:
                own.run(
                    f"CREATE TABLE {_FILE}.main.{quoted(name)} AS SELECT {', '.join(map(quoted, names))}"
                    f" FROM ({query.sql}\n)",
                    query.parameters,
                )
            except duckdb.Error as problem:
                raise drift(query, problem) from problem
            require_all(query, own.one(f"SELECT count(*) FROM {_FILE}.main.{quoted(name)}")[0])
            if misfit is not None:
                _require_fits(own, name, misfit)
        path.chmod(0o600)
        return snapshot.description


def _require_fits(own: Workspace, name: str, misfit: str) -> None:
    """SourceError if an input has a value that its type cannot hold: the SELECT would take it for NULL."""
    table, column = f"{_FILE}.main.{quoted(name)}", quoted(misfit)
    found = own.run(
        f"SELECT {column}, count(*) FROM {table} WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 1"
    )
    if found:
        raise SourceError(
            "MART_UNREADABLE",
            f"{found[0][1]} rows of the input {name} have a value of {found[0][0]} that its type cannot hold",
            hint=f"give {found[0][0]} another type, such as string or json, and cast it in `sql`",
        )
    own.run(f"ALTER TABLE {table} DROP COLUMN {column}")
