"""A Delta table at one version: its columns, its rows, and what changed since another version."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import duckdb

from retl.engine.sql_text import Query, columns
from retl.engine.workspace import NAME, Workspace
from retl.errors import RetlError, SourceError
from retl.sources.api import Description, Feed, Since, Snapshot, unsupported
from retl.sources.delta import log
from retl.sources.delta.refusal import HINT
from retl.values.sql import quoted

if TYPE_CHECKING:
    from deltalake import DeltaTable

    from retl.sources.delta import Delta
    from retl.sources.streams import Stream

# The features of tables that were read and were right. The reader claims more.
_READ = {"deletionVectors", "columnMapping", "timestampNtz", "v2Checkpoint", "variantType"}
_MAPPING = "delta.columnMapping.mode"
_ROWS, _CHANGES, _FEED = "delta rows", "delta changes", "delta feed"  # relations of the workspace
_KIND, _VERSION = "_change_type", "_commit_version"  # columns of the feed


def version_of(table: DeltaTable) -> str:
    return f"{table.version()} of {table.metadata().id}"


class Version(Snapshot):
    """A table at one version, which never changes."""

    def __init__(self, source: Delta, table: DeltaTable, workspace: Workspace) -> None:
        self._source, self._table, self._workspace = source, table, workspace
        self._configuration = table.metadata().configuration
        self._refuse_unknown()
        self._streams: dict[str, Stream] = {}
        self._register(_ROWS, table.scan)  # only its types are read
        described = columns(workspace, self._all(_ROWS))
        self.description = Description(described, version_of(table))

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        self._refuse_variant(columns)
        self._register(_ROWS, lambda: self._table.scan(columns=list(columns)))
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
        for name in (_ROWS, _CHANGES):
            if name in self._streams:
                self._streams.pop(name).close()
            self._workspace.con.unregister(name)
        self._workspace.run(f"DROP TABLE IF EXISTS {NAME}.main.{quoted(_FEED)}")

    @property
    def _origin(self) -> str:
        return f"Delta table {self._source.label}"

    def _register(self, name: str, read: Callable[[], object]) -> None:
        """Make what the reader reads a relation. From a bucket a thread reads it ahead: DuckDB hears a
        request to stop only between two batches."""
        if name in self._streams:
            self._streams.pop(name).close()
        reader = self._source.call(self._workspace.stop, read)
        if self._source.remote:
            from retl.sources.streams import Stream, batches_of

            stream = Stream(*batches_of(reader), self._workspace.stop, self._source.refused)
            self._streams[name] = stream
            self._workspace.register(name, stream.reader)
        else:
            self._workspace.register(name, reader)

    def _all(self, name: str) -> Query:
        return Query(f"SELECT * FROM {quoted(name)}", {}, self._origin, partial(self._refused, name))

    def _refused(self, name: str, problem: Exception) -> SourceError:
        """What the error of a query of this relation means."""
        stream = self._streams.get(name)
        if stream is not None and isinstance(stream.problem, SourceError):
            return stream.problem
        return self._source.refused(problem)

    def _count(self, column: str) -> int:
        """The number of rows. The log's own numbers count rows that a deletion vector hides."""
        self._register(_CHANGES, lambda: self._table.scan(columns=[column]))
        try:
            total: int = self._workspace.one(f"SELECT count(*) FROM {quoted(_CHANGES)}")[0]
        except duckdb.Error as problem:
            raise self._refused(_CHANGES, problem) from problem
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
        return self._source.read_commit(version, self._workspace.stop)

    def _copied(self, names: Sequence[str], after: str) -> str | None:
        """Copy the changes after a version into the workspace, all of them before any is used: that a change
        file is gone shows only when it is read. A sentence if they cannot be read."""
        first, last = int(after.partition(" of ")[0]) + 1, self._table.version()
        listed = [*map(quoted, names), _KIND, _VERSION]

        def changes() -> object:
            return self._table.load_cdf(first, last, columns=listed, allow_out_of_range=True)

        made = f"CREATE OR REPLACE TABLE {NAME}.main.{quoted(_FEED)} AS SELECT * FROM {quoted(_CHANGES)}"
        try:
            self._register(_CHANGES, changes)
            self._workspace.run(made)
        except RetlError:
            raise
        except Exception as problem:
            refused = self._refused(_CHANGES, problem)
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
