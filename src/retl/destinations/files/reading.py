"""What the files of a place hold, to compare it with a mart: every batch of the log, or the newest set.

Only `retl reconcile` and `retl state rebuild` need it. It works in a DuckDB of its own in a private folder,
and compares texts: a batch is written as the same kind of file and read in the same way.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retl.destinations.batch import OPERATION, Batch, FileFormat, Layout, Shape
from retl.destinations.files.log import FOLDER, said
from retl.destinations.files.place import Place
from retl.errors import Systemic
from retl.values.sql import literal, quoted

_LINE, _FILE = quoted("retl line"), quoted("retl file")  # a whole line of JSON, and the number of its file
_SETTINGS = ("memory_limit = '256MB'", "threads = 1", "TimeZone = 'UTC'")
_LINES = (
    "header = false, auto_detect = false, quote = '', escape = '', delim = '\x01',"
    " columns = {'line': 'VARCHAR'}, max_line_size = 40000000"
)
_TEXTS = "all_varchar = true, allow_quoted_nulls = false, delim = ',', quote = '\"', header = true"


class Holding:
    """The rows of a place, as texts."""

    def __init__(self, shape: Shape, layout: Layout) -> None:
        import duckdb

        self._layout = layout
        self._keys = [quoted(one.name) for one in shape.key]
        self._fields = {one.name: quoted(one.name) for one in shape.fields}
        self._known = {*(one.name for one in (*shape.key, *shape.fields)), OPERATION}
        self._folder = Path(tempfile.mkdtemp(prefix="retl-held-"))
        self._con = duckdb.connect(str(self._folder / "held.duckdb"))
        for setting in _SETTINGS:
            self._con.execute(f"SET {setting}")
        columns = ", ".join(f"{one} VARCHAR" for one in (*map(quoted, sorted(self._known)), _LINE))
        self._con.execute(f"CREATE TABLE held ({_FILE} BIGINT, {columns})")

    def load(self, place: Place, files: Sequence[Mapping[str, Any]]) -> None:
        """Read these files in their order. Of changes the last row of a key counts."""
        for number, one in enumerate(files):
            found = place.get(one["path"])
            if found is None:
                message = f"the file {one['path']} is gone, so nothing can be compared"
                raise Systemic("TARGET_INCOMPLETE", message)
            path = self._folder / "file"
            packed = one.get("encoding") == "gzip"
            path.write_bytes(gzip.decompress(found.data) if packed else found.data)
            rows = self._rows(path, one["format"])
            self._con.execute(f"INSERT INTO held BY NAME SELECT {number} AS {_FILE}, * FROM {rows}")
            path.unlink()
        if self._layout.operation is not None:
            newest = (
                f"row_number() OVER (PARTITION BY {', '.join(self._keys)} ORDER BY {_FILE} DESC, rowid DESC)"
            )
            last = f"SELECT *, {newest} AS n FROM held"
            self._con.execute(
                f"CREATE OR REPLACE TABLE held AS SELECT * EXCLUDE (n) FROM ({last})"
                f" WHERE n = 1 AND {quoted(OPERATION)} <> 'delete'"
            )

    def compare(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Per row the fields in which it differs; None if its key is not held."""
        path = batch.file(self._layout)
        try:
            rows = self._rows(path, self._layout.format)
            self._con.execute(
                f"CREATE OR REPLACE TABLE sent AS SELECT row_number() OVER () AS at, * FROM {rows}"
            )
        finally:
            path.unlink()
        fields = {} if batch.operation == "delete" else self._fields
        unequal = (
            f"CASE WHEN s.{f} IS DISTINCT FROM h.{f} THEN {literal(name)} END" for name, f in fields.items()
        )
        same = " AND ".join(f"s.{key} = h.{key}" for key in self._keys)
        found = self._con.execute(
            f"SELECT h.{_FILE} IS NOT NULL, [{', '.join(unequal)}], s.{_LINE} IS NOT DISTINCT FROM h.{_LINE}"
            f" FROM sent s LEFT JOIN held h ON {same}"
            " QUALIFY row_number() OVER (PARTITION BY s.at) = 1 ORDER BY s.at"
        )
        for there, names, line in found.fetchall():
            different = tuple(name for name in names if name is not None)
            # JSON numbers are compared as doubles, and then the lines tell the truth
            yield (different or (() if line else tuple(fields))) if there else None

    def keys(self) -> Iterator[tuple[str, ...]]:
        found = self._con.execute(f"SELECT {', '.join(self._keys)} FROM held")
        while rows := found.fetchmany(10_000):
            yield from rows

    def close(self) -> None:
        self._con.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _rows(self, path: Path, form: FileFormat) -> str:
        """SQL of a file's rows as texts, in their order."""
        name = literal(str(path))
        if form in ("ndjson", "json"):
            line = "line" if form == "ndjson" else "CASE WHEN line[1] IN ('[', ',') THEN line[2:] END"
            members = ", ".join(
                f"json_extract_string({_LINE}, {literal('$.' + json.dumps(one, ensure_ascii=False))})"
                f" AS {quoted(one)}"
                for one in sorted(self._known)
            )
            lines = f"SELECT {line} AS {_LINE} FROM read_csv({name}, {_LINES})"
            return f"(SELECT {_LINE}, {members} FROM ({lines}) WHERE {_LINE} IS NOT NULL)"
        read = f"read_parquet({name})" if form == "parquet" else f"read_csv({name}, {_TEXTS})"
        there = [
            one for one, *_ in self._con.execute(f"DESCRIBE FROM {read}").fetchall() if one in self._known
        ]
        texts = ", ".join(f"CAST({quoted(one)} AS VARCHAR) AS {quoted(one)}" for one in there)
        return f"(SELECT NULL::VARCHAR AS {_LINE}, {texts} FROM {read})"


def applied(place: Place) -> list[Mapping[str, Any]]:
    """The files of every batch, in the order of the log."""
    found: list[Mapping[str, Any]] = []
    for key in place.sizes(FOLDER):
        held = place.get(key)
        if held is not None:
            found += said(key, held.data).get("files", [])  # only an applied entry has some
    return found
