"""DuckDB: marts in a DuckDB file, as a table, a view, one SELECT, or a dbt model.

The file is attached read-only and read in one transaction, so a run sees one state of it. While another
process writes to it, a run waits up to `lock_wait`. The file is released before delivery starts. A missing
file is an error, never an empty mart; only a SELECT that reads no table and no file needs none. If others
overwrite the file while it is read, nothing is delivered (`SOURCE_MOVES`); a file that is moved into its
place is for the next run. Views may read files in `read_paths`; a relative path in a view is right only in
the working directory that it was made for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
from msgspec import Struct

from retl.engine.sql_text import Query, columns, first_line, select
from retl.engine.workspace import NAME, Workspace
from retl.errors import Later, SourceError
from retl.observe.signals import Stop
from retl.project.contracts import Documented
from retl.project.definitions import Warehouse
from retl.project.marts import Mart
from retl.sources import dbt, personal, relations
from retl.sources.api import Description, Since, Snapshot, Source
from retl.sources.dbt_results import reported
from retl.values.sql import literal, quoted, split

_HELD = re.compile(r"lock.*PID (\d+)|PID (\d+).*lock", re.IGNORECASE | re.DOTALL)
_LOOK_AGAIN = 0.5  # seconds between two attempts while a writer has the lock


class State(Struct, frozen=True):
    """What tells one content of a file from another; `changed` is the time of the last change in ns."""

    inode: int
    size: int
    changed: int


NO_FILE = State(0, 0, 0)


class DuckDB(Source[Mart]):
    """A mart in a DuckDB file."""

    Connection = Warehouse
    Options = Mart
    tells = True
    remote = False
    evidence = "DuckDB itself, 1.5 and 2"

    @property
    def label(self) -> str:
        return self.options.label

    @property
    def identity(self) -> dict[str, str]:
        return {"type": self.connection.type, "path": self._shown, **self.options.identity}

    @property
    def _shown(self) -> str:
        """The path as a reader knows it: relative where the file is in the project."""
        path, folder = Path(self.connection.path), self.invocation.folder
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

    @property
    def readable(self) -> tuple[Path, ...]:
        return tuple(self.invocation.folder / path for path in self.connection.read_paths)

    @property
    def max_age(self) -> float | None:
        return self.options.max_age

    def documented(self) -> Mapping[str, Documented]:
        target, options = self.invocation.folder / self.connection.dbt, self.options
        if options.dbt is not None:
            return dbt.documented(target, options.dbt)
        if not (target / dbt.MANIFEST).is_file():
            return {}
        known = personal.of_models(dbt.read_manifest(target / dbt.MANIFEST))
        if not known:
            return {}
        if options.table is not None:
            names = personal.of_table(tuple(one.lower() for one in split(options.table)), known)
        else:
            names = personal.carried(options.text(self.invocation.folder), known)
        return personal.inherited(names)

    def version(self, stop: Stop) -> str:
        return self.version_of(_state(self.invocation.folder / self.connection.path))

    def version_of(self, state: State) -> str:
        return f"{self.connection.path}:{state.size}:{state.changed}"

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        query = self._query()  # report a wrong definition before waiting
        if not (self.invocation.folder / self.connection.path).is_file() and _reads_nothing(query):
            return MartFile(self, workspace, None)
        state = self._attach(workspace, self.connection.lock_wait if wait else 0.0)
        return MartFile(self, workspace, state)

    def _query(self) -> Query:
        """The SELECT of a sync's source. DefinitionError if it is not exactly one SELECT, or uses a parameter
        without a variable."""
        options, folder = self.options, self.invocation.folder
        if options.dbt is not None:
            name = dbt.relation(self.connection, folder, options.dbt)
            return Query(f"SELECT * FROM {name}", {}, f"dbt model {options.dbt}")
        if options.table is not None:
            name = ".".join(map(quoted, split(options.table)))
            return Query(f"SELECT * FROM {name}", {}, options.origin)
        return select(options.text(folder), self.invocation.variables, options.origin)

    def _attach(self, workspace: Workspace, lock_wait: float) -> State:
        """Attach the file read-only; returns its state before that."""
        shown = self.connection.path
        path = self.invocation.folder / shown
        if not path.is_file():
            raise SourceError(
                "MART_MISSING",
                f"there is no DuckDB file at {shown}",
                hint="build the mart first, or point DUCKDB_PATH or `warehouse.path` at it",
            )
        if path.stem.lower() in (NAME, "memory", "system", "temp"):
            raise SourceError(
                "MART_NAME",
                f"a warehouse file cannot be named {path.name}: DuckDB needs that name",
                hint="rename the file",
            )
        deadline, reported = time.monotonic() + lock_wait, False
        state = _state(path)
        while (pid := _attached(workspace, path)) is not None:
            if time.monotonic() >= deadline:
                raise Later(
                    "MART_LOCKED",
                    f"process {pid} is writing to {shown}",
                    hint="wait for it, or raise warehouse.lock_wait",
                )
            if not reported:
                self.invocation.waiting(pid)
                reported = True
            workspace.stop.wait(_LOOK_AGAIN)
            state = _state(path)
        workspace.run(f"USE {quoted(path.stem)}")
        return state


class MartFile(Snapshot):
    """The attached file, or none (`state` is None) for a SELECT that reads nothing. If others overwrite it
    while it is read, nothing is delivered; a file that they move into its place is for the next run."""

    def __init__(self, source: DuckDB, workspace: Workspace, state: State | None) -> None:
        self._workspace = workspace
        self._state = state
        self._path = source.invocation.folder / source.connection.path
        self._alias = self._path.stem
        self._target = source.invocation.folder / source.connection.dbt
        self._query = source._query()
        described = columns(workspace, self._query)
        # while we hold the file dbt writes neither the mart nor results
        models = self._models(source)
        every = reported(self._target, models)
        health = tuple(
            one
            for kind, one in zip(models.values(), every, strict=True)
            if kind != "seed" or one.memory.run is not None  # loaded once, from a file of the project
        )
        ids = tuple(one.id for one in every)
        self.description = Description(described, source.version_of(state or NO_FILE), health, ids)

    def _models(self, source: DuckDB) -> dict[str, str]:
        """The dbt models that are read, however the sync names them: name → model, seed or snapshot."""
        path = self._target / dbt.MANIFEST
        if source.options.dbt is not None:
            return {source.options.dbt: "model"}
        if self._state is None or not path.is_file():
            return {}
        manifest = dbt.read_manifest(path)
        if manifest.metadata.adapter_type not in (None, "duckdb"):
            return {}
        found = relations.models(self._workspace, self._query, manifest, self._alias)
        return {dbt.name_of(manifest, one): one.resource_type for one in found}

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._query

    def close(self) -> None:
        if self._state is None:
            return
        self._workspace.run(f"USE {NAME}")
        self._workspace.run(f"DETACH {quoted(self._alias)}")
        now = _state(self._path)
        if now.inode == self._state.inode and now != self._state:
            raise SourceError(
                "SOURCE_MOVES",
                f"{self._path.name} was overwritten while it was read; nothing was delivered",
                hint="run again when it is complete; write to another file and move it into place",
            )


def _reads_nothing(query: Query) -> bool:
    """Whether a SELECT needs no table and no file: a database without both is asked."""
    with duckdb.connect(config={"enable_external_access": "false"}) as nowhere:
        nowhere.execute("SET python_enable_replacements = false")
        try:
            nowhere.sql(f"SELECT * FROM ({query.sql}\n) LIMIT 0", params=dict(query.parameters))
        except duckdb.Error:
            return False
    return True


def _state(path: Path) -> State:
    """The state of a file now; all zero if there is none."""
    try:
        found = path.stat()
    except OSError:
        return NO_FILE
    return State(found.st_ino, found.st_size, found.st_mtime_ns)


def _attached(workspace: Workspace, path: Path) -> str | None:
    """None if the file is attached now, else the process that writes to it."""
    try:
        workspace.run(f"ATTACH {literal(str(path))} AS {quoted(path.stem)} (READ_ONLY)")
    except duckdb.IOException as problem:
        held = _HELD.search(str(problem))
        if held is None:
            raise SourceError("MART_UNREADABLE", first_line(problem)) from problem
        return held.group(1) or held.group(2)
    except duckdb.Error as problem:
        raise SourceError("MART_UNREADABLE", first_line(problem)) from problem
    return None
