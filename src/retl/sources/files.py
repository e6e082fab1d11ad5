"""Files: Parquet files in a folder of this machine, named by a pattern.

All files of the pattern are one mart. Columns are matched by name; a column that a file lacks is NULL there.
Folders such as `dt=2026-11-28` add a column: a date or an integer if all values are, else text. The list of
the files with their sizes and times is the version of the source. If a file changes or vanishes while it is
read, nothing is delivered (`SOURCE_MOVES`). A pattern never leads out of `root`. No file at all is an
error, not an empty mart.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from retl.engine.sql_text import Query, columns
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.model import Definition
from retl.sources.api import Description, Since, Snapshot, Source
from retl.values.sql import literal


class Folder(Definition):
    """A folder of the project, or an absolute path. `timezone` applies to timestamps without one."""

    type: Literal["files"] = "files"
    root: str
    timezone: str = "UTC"


class Pattern(Definition):
    """Files of the folder, such as `segments/dt=*/*.parquet`. `**` is any number of folders."""

    path: str
    format: Literal["parquet"] = "parquet"

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
            raise ValueError("a path is relative to `root` and does not lead out of it")
        return path


class Files(Source[Pattern]):
    """The files of a pattern."""

    Connection = Folder
    Options = Pattern
    evidence = "files of this machine"

    @property
    def label(self) -> str:
        return self.options.path

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "files", "root": self.connection.root, "path": self.options.path}

    @property
    def root(self) -> Path:
        """The folder, absolute."""
        return self.invocation.folder / Path(self.connection.root)

    @property
    def readable(self) -> tuple[Path, ...]:
        return (self.root,)

    @property
    def timezone(self) -> str:
        zone: str = self.connection.timezone
        return zone

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        return Listing(self, workspace)

    def list(self) -> dict[Path, tuple[int, int]]:
        """The files, sorted, with size and time of the last change (ns). SourceError if there is none."""
        root = self.root.resolve()
        found = {
            path: (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(root.glob(self.options.path))
            if path.is_file() and path.resolve().is_relative_to(root)
        }
        if not found:
            raise SourceError(
                "MART_MISSING",
                f"no file in {self.connection.root} matches {self.options.path}",
                hint="write the files first, or correct `root` and `path`",
            )
        return found


class Listing(Snapshot):
    """The files at the time of opening. They are compared again when the source is closed."""

    def __init__(self, source: Files, workspace: Workspace) -> None:
        self._source = source
        self._files = source.list()
        root = source.root.resolve()
        texts = "\n".join(f"{path.relative_to(root)} {state}" for path, state in self._files.items())
        files = f"[{', '.join(literal(str(path)) for path in self._files)}]"
        partitioned = any("=" in part for path in self._files for part in path.relative_to(root).parts[:-1])
        reader = f"read_parquet({files}, union_by_name = true, hive_partitioning = {partitioned})"
        self._query = Query(f"SELECT * FROM {reader}", {}, f"files {source.options.path}")
        version = f"{len(self._files)} files {sha256(texts.encode()).hexdigest()[:16]}"
        self.description = Description(columns(workspace, self._query), version)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._query

    def close(self) -> None:
        if self._source.list() != self._files:
            raise SourceError(
                "SOURCE_MOVES",
                f"files of {self._source.options.path} changed while they were read; nothing was delivered",
                hint="run again when the files are complete, or write them to another folder and move them",
            )
