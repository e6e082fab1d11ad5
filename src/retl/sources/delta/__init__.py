"""Delta Lake: a table at one version of its log, with its change feed.

A run reads the newest version, or the one that `at` names: a number, or a time with its zone. Deletion
vectors and column mapping by name are applied. `table: crm.customers` is the folder crm/customers below
`root`; `path` names any other folder there. This also reads the Delta tables of Databricks, from their
storage and without a cluster.

With `changes: cdf` a run reads only what the change feed of the table has since the version of the last run,
and the number of rows. The table needs `delta.enableChangeDataFeed`. The table is read whole, and the plan
says why, if the feed was off; if its files or the log are gone; if the table was restored, made anew or got
other properties; if its columns are mapped; if a file with a deletion vector was overwritten; or if values of
a partition have characters that a path has to encode.

Values are exact. Delta has no unsigned integers, no times of day and nothing finer than microseconds; writers
turn UUIDs and JSON into text. A feature that the reader does not know (type widening among them), columns
that are mapped by id, and columns of type variant are refused by name (`SOURCE_UNSUPPORTED`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import duckdb
from pydantic import BeforeValidator, field_validator, model_validator

from retl.engine.sql_text import Query, columns
from retl.engine.workspace import NAME, Workspace
from retl.errors import RetlError, SourceError
from retl.model import Definition
from retl.sources.api import Description, Feed, Since, Snapshot, Source, needs, unsupported
from retl.sources.delta import log
from retl.sources.delta.refusal import HINT, refusal
from retl.values.sql import quoted, split

if TYPE_CHECKING:
    from deltalake import DeltaTable

# The features of tables that were read and were right. The reader claims more.
_READ = {
    "deletionVectors",
    "columnMapping",
    "timestampNtz",
    "v2Checkpoint",
    "variantType",
    "variantType-preview",
}
_MAPPING = "delta.columnMapping.mode"
_ROWS, _CHANGES, _FEED = "delta rows", "delta changes", "delta feed"  # relations of the workspace
_KIND, _VERSION = "_change_type", "_commit_version"  # columns of the feed


class Lake(Definition):
    """A folder of tables, in the project or by its absolute path. `timezone` applies to timestamps without
    one."""

    type: Literal["delta"] = "delta"
    root: str
    timezone: str = "UTC"


def _version(value: object) -> object:
    """A version, or a time with its zone. ValueError."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise ValueError("`at` is a version such as 12, or a time with its zone: 2026-11-28T06:00:00Z")
    return moment


def _is_name(part: str) -> bool:
    """Whether it is one folder's name. The reader decodes percent signs, which could hide another."""
    return part not in ("", ".", "..") and not set(part) & {"/", "\\", "\0", "%"}


_At: TypeAlias = int | str | None


class Table(Definition):
    """A table of the folder."""

    table: str | None = None
    path: str | None = None
    at: Annotated[int | datetime | None, BeforeValidator(_version, json_schema_input_type=_At)] = None

    @field_validator("table")
    @classmethod
    def _named(cls, table: str | None) -> str | None:
        if table is not None and not all(map(_is_name, split(table))):
            raise ValueError("`table` is a folder's name below `root`; for any other folder use `path`")
        return table

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        parts = PurePosixPath(path or ".").parts
        if path is not None and not (parts and all(map(_is_name, parts))):
            raise ValueError("`path` is relative to `root`, does not lead out of it and has no % in it")
        return path

    @model_validator(mode="after")
    def _one(self) -> Table:
        if (self.table is None) == (self.path is None):
            raise ValueError("a Delta source has exactly one of table and path")
        return self


class Delta(Source[Table]):
    """A Delta table."""

    Connection = Lake
    Options = Table
    changes = frozenset({"all", "hash", "watermark", "cdf"})
    evidence = "random histories by delta-rs; tables made by hand for features that it cannot write"

    @property
    def label(self) -> str:
        return str(self.options.table or self.options.path)

    @property
    def identity(self) -> dict[str, str]:
        named = self.options.model_dump(exclude_none=True)
        return {"type": "delta", "root": self.connection.root} | {part: str(it) for part, it in named.items()}

    @property
    def timezone(self) -> str:
        zone: str = self.connection.timezone
        return zone

    @property
    def uri(self) -> str:
        """Where the table is. SourceError if a link leads out of the root."""
        root = self.invocation.folder / self.connection.root
        path = root / (self.options.path or "/".join(split(self.options.table or "")))
        if not path.resolve().is_relative_to(root.resolve()):
            raise SourceError(
                "MART_MISSING",
                f"{self.label} is a link that leads out of {self.connection.root}",
                hint="move the table into `root`, or make its own folder the root of another source",
            )
        return str(path)

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        with needs("lake"):
            from deltalake import DeltaTable
        at = self.options.at
        try:
            table = DeltaTable(self.uri, version=at if isinstance(at, int) else None)
            if isinstance(at, datetime):
                self._go_back(table, at)
            return Version(self, table, workspace)
        except RetlError:
            raise
        except Exception as problem:
            raise self.refused(problem) from problem

    def refused(self, problem: Exception) -> SourceError:
        """What an error of the reader means."""
        return refusal(problem, f"Delta table {self.label}")

    def read_commit(self, version: int) -> bytes | None:
        """A commit of the log; None if the log does not have it."""
        from deltalake.fs import DeltaStorageHandler

        try:
            file = DeltaStorageHandler(self.uri).open_input_file(f"_delta_log/{version:020}.json")
        except FileNotFoundError:
            return None
        return bytes(file.read())

    def _go_back(self, table: DeltaTable, at: datetime) -> None:
        """Load the version that was the newest at a time. The reader goes by the times of the log's files,
        which a copy does not keep, and takes the first version for any earlier time: the log must agree."""
        table.load_as_version(at)
        found, later = (self.read_commit(table.version() + step) for step in (0, 1))
        made, replaced = (log.Commit(text).time if text else None for text in (found, later))
        moment = at.timestamp() * 1000
        if made is None or made > moment or (later is not None and (replaced is None or replaced <= moment)):
            raise SourceError(
                "MART_MISSING",
                f"the log of {self.label} does not say which version was the newest at {at.isoformat()}",
                hint="the log may begin later, or the table may be a copy: give a version in `at`",
            )


class Version(Snapshot):
    """A table at one version, which never changes."""

    def __init__(self, source: Delta, table: DeltaTable, workspace: Workspace) -> None:
        self._source, self._table, self._workspace = source, table, workspace
        self._configuration = table.metadata().configuration
        self._refuse_unknown()
        workspace.register(_ROWS, table.scan())  # only its types are read
        described = columns(workspace, self._all(_ROWS))
        self.description = Description(described, f"{table.version()} of {table.metadata().id}")

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        self._refuse_variant(columns)
        self._workspace.register(_ROWS, self._table.scan(columns=list(columns)))
        return self._all(_ROWS)

    def feed(self, columns: Sequence[str], key: Sequence[str], after: str) -> Feed | str:
        self._refuse_variant(columns)
        if why := self._distrusted(after) or self._copied(list(dict.fromkeys([*columns, *key])), after):
            return why
        keys, feed = ", ".join(map(quoted, key)), f"{NAME}.main.{quoted(_FEED)}"
        newest = f"SELECT {keys}, max({_VERSION}) AS {_VERSION} FROM {feed} GROUP BY {keys}"
        same = (f"feed.{name} IS NOT DISTINCT FROM newest.{name}" for name in (*map(quoted, key), _VERSION))
        rows = (
            f"SELECT {', '.join(f'feed.{quoted(name)}' for name in columns)} FROM {feed} AS feed"
            f" JOIN ({newest}) AS newest ON {' AND '.join(same)}"
            f" WHERE feed.{_KIND} IN ('insert', 'update_postimage')"
        )
        left = f"SELECT DISTINCT {keys} FROM {feed}"
        return Feed(Query(rows, {}, self._origin), Query(left, {}, self._origin), self._count(key[0]))

    def close(self) -> None:
        self._workspace.run(f"DROP TABLE IF EXISTS {NAME}.main.{quoted(_FEED)}")
        for name in (_ROWS, _CHANGES):
            self._workspace.con.unregister(name)

    @property
    def _origin(self) -> str:
        return f"Delta table {self._source.label}"

    def _all(self, name: str) -> Query:
        return Query(f"SELECT * FROM {quoted(name)}", {}, self._origin, self._source.refused)

    def _count(self, column: str) -> int:
        """The number of rows. The log's own numbers count rows that a deletion vector hides."""
        self._workspace.register(_CHANGES, self._table.scan(columns=[column]))
        try:
            total: int = self._workspace.one(f"SELECT count(*) FROM {quoted(_CHANGES)}")[0]
        except duckdb.Error as problem:
            raise self._source.refused(problem) from problem
        return total

    def _distrusted(self, after: str) -> str | None:
        """Why the change feed after a version does not say all that changed."""
        former, _, table_id = after.partition(" of ")
        last, mine = self._table.version(), str(self._table.metadata().id)
        if not former.isdigit() or table_id != mine:
            return "another table was delivered before"
        if int(former) > last:
            return f"version {former} was delivered before, and this is version {last}"
        if not log.is_on(self._configuration):
            return f"the table has no change feed ({log.CHANGES_ON})"
        if self._configuration.get(_MAPPING, "none") != "none":
            return "the change feed of a table with mapped columns cannot be read"
        if clash := {_KIND, _VERSION} & self.description.columns.keys():
            return f"the table's column {min(clash)} has a name of the change feed"
        return log.distrusted(self._commit, mine, int(former), last)

    def _commit(self, version: int) -> bytes | None:
        self._workspace.stop.check()
        return self._source.read_commit(version)

    def _copied(self, names: Sequence[str], after: str) -> str | None:
        """Copy the changes after a version into the workspace, all of them before any is used: that a change
        file is gone shows only when it is read. A sentence if they cannot be read."""
        first, last = int(after.partition(" of ")[0]) + 1, self._table.version()
        listed = [*map(quoted, names), _KIND, _VERSION]
        made = f"CREATE OR REPLACE TABLE {NAME}.main.{quoted(_FEED)} AS SELECT * FROM {quoted(_CHANGES)}"
        try:
            stream = self._table.load_cdf(first, last, columns=listed, allow_out_of_range=True)
            self._workspace.register(_CHANGES, stream)
            self._workspace.run(made)
        except RetlError:
            raise
        except Exception as problem:
            refused = self._source.refused(problem)
            if refused.code == "UNREACHABLE":
                raise refused from problem
            return f"the change feed cannot be read: {refused.message}"
        return None

    def _refuse_unknown(self) -> None:
        """SourceError SOURCE_UNSUPPORTED for a feature that was never seen to be read right."""
        features = [*(self._table.protocol().reader_features or ())]
        if unknown := sorted({*features} - _READ):
            raise unsupported(self._origin, f"the feature {unknown[0]}", HINT)
        if self._configuration.get(_MAPPING) == "id":  # files without these names would be read as NULL
            raise unsupported(self._origin, f"columns that are mapped by id ({_MAPPING})", HINT)

    def _refuse_variant(self, columns: Sequence[str]) -> None:
        fields = json.loads(self._table.schema().to_json())["fields"]
        for field in fields:
            if field["name"] in columns and '"variant"' in json.dumps(field["type"]):
                raise unsupported(self._origin, f"the column {field['name']} of type variant", HINT)
