"""Files: Parquet, CSV or JSON lines on this machine, in S3, in Google Cloud Storage or in Azure.

All files of the pattern are one mart. `root` is a folder of the project, an absolute path,
`s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder` or
`abfss://container@account.dfs.core.windows.net/folder`; the last four need the extra `s3`. In `path`, `*`
and `?` match within a name and `**` any number of folders; names that begin with `_` or `.` are left out
unless the pattern spells it. A pattern never leads out of `root`. No file at all is an error, not an empty
mart.

**One state.** Files of a bucket are copied into the run's folder, each only at the ETag that was listed; if
one changed or vanished meanwhile, the bucket is listed again, three times in all (`SOURCE_MOVES`). Files of
this machine are read where they are, and nothing is delivered if one changed or vanished by the end. A file
that came meanwhile is for the next run. The list of the files with their sizes and ETags or times is the
version.

**Columns** are matched by name; a column that a file lacks is NULL there. A column that no file has is
`SOURCE_DRIFT` unless `optional` lists it. If two files have types of which none holds all values of the
other, such as an integer and a text, that is `SOURCE_DRIFT` too. Folders such as `dt=2026-11-28` add a
column: with the contract's type, else a date or an integer if all values surely are, else text; they count
where a file has a column of the same name.

**CSV and JSON lines** have texts, and the contract says what they are: an `integer`, `decimal`, `date` or
`timestamp` is read only where the text says exactly that value (ISO dates and times, a decimal point). A row
with another text is a reject, `UNREPRESENTABLE`. JSON numbers keep all their digits; a number under `string`
is its text. Without a contract a CSV column is text unless `columns` gives a type of DuckDB, such as `{id:
BIGINT}`; JSON lines need one of both. There a text that is no such value is an error of the run. An unquoted
`null` text is NULL, a quoted one is a text. A row with too few or too many columns, a line that is not
complete JSON, and a compressed file (`.gz`, `.zst`) that was cut off are errors. An empty file has no rows.

Without keys under `storage`, those of the environment are used, or of the machine's role: for S3
`AWS_ACCESS_KEY_ID` and its companions, a web identity, a container's or an instance's role; profiles of
`~/.aws` are not read. Only S3 was run; Google Cloud Storage and Azure go through the same client and were
not.

Files of a lakehouse in Microsoft Fabric are read from OneLake: `root` is
`abfss://WORKSPACE@onelake.dfs.fabric.microsoft.com/ITEM.Lakehouse/Files`, or both as GUIDs without
`.Lakehouse`, which a name with other characters than letters, digits, `_`, `.` and `-` needs. `storage` has
`tenant_id`, `client_id` and `client_secret` of an application in Entra that may read the workspace; OneLake
has no account keys. The addresses are as in
https://learn.microsoft.com/fabric/onelake/onelake-access-api (2026-11-29). Unproved: only which servers are
asked was tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import duckdb
from msgspec.structs import replace
from pydantic import Field, field_validator, model_validator

from retl.engine.sql_text import Query, drift
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.model import Definition
from retl.net.bucket import Address, Root
from retl.observe.signals import Stop
from retl.sources.api import Description, Since, Snapshot, Source, needs
from retl.sources.files import delimited, ndjson, parquet, zstd
from retl.sources.files.glob import Glob
from retl.sources.files.place import Disk, Place, Remote, State
from retl.sources.files.relation import STRING, Partitions, Relation, typed
from retl.values.sql import literal
from retl.values.types import Type, of_duckdb

_LISTINGS = 3
Character = Annotated[str, Field(min_length=1, max_length=1)]


class Folder(Root):
    """Where the files are."""

    type: Literal["files"] = "files"
    timezone: str = Field("UTC", description="Of timestamps without an offset.")


class Pattern(Definition):
    """Files of the folder and their format."""

    path: str = Field(description="A pattern below `root`, such as `segments/dt=*/*.parquet`.")
    format: Literal["parquet", "csv", "ndjson"] = Field(
        "parquet", description="`parquet`, `csv` or `ndjson` (JSON lines)."
    )
    columns: dict[str, str] = Field(
        default={},
        description="csv and ndjson: types that no contract gives, such as `{id: BIGINT}`; without a `header`"
        " the names of all columns, in their order.",
    )
    optional: tuple[str, ...] = Field((), description="Columns that all files may lack; they are NULL then.")
    delimiter: Character = Field(",", description="csv: one character.")
    quote: Character = Field('"', description="csv: one character; twice within quotes it is itself.")
    null: str = Field("", description="csv: the text that is NULL if it has no quotes.")
    header: bool = Field(True, description="csv: whether the first line has the names of the columns.")
    encoding: Literal["utf-8", "utf-16", "latin-1"] = Field(
        "utf-8", description="csv: `utf-8`, `utf-16` or `latin-1`."
    )

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        Glob(path)
        return path

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, kind in columns.items():
            if _type(kind) is None:
                raise ValueError(f"{name}: {kind} is no type of DuckDB that a target can hold")
        return columns

    @model_validator(mode="after")
    def _used(self) -> Pattern:
        own = {"delimiter", "quote", "null", "header", "encoding"} & self.model_fields_set
        if own and self.format != "csv":
            raise ValueError(f"`{min(own)}` is for csv")
        if self.columns and self.format == "parquet":
            raise ValueError("`columns` is for csv and ndjson: Parquet has its own types")
        if not self.header and not self.columns:
            raise ValueError("without a header, `columns` must name all columns")
        return self


class Files(Source[Pattern]):
    """The files of a pattern."""

    Connection = Folder
    Options = Pattern
    tells = True
    evidence = "files of this machine, and an S3 server (SeaweedFS); Google and Azure were not run"

    @property
    def label(self) -> str:
        return self.options.path

    @property
    def remote(self) -> bool:  # type: ignore[override]
        return bool(Address.of(self.connection.root))

    @property
    def identity(self) -> dict[str, str]:
        return {"type": "files", "root": self.connection.root, "path": self.options.path}

    @property
    def readable(self) -> tuple[Path, ...]:
        return () if Address.of(self.connection.root) else (self._folder,)

    @property
    def _folder(self) -> Path:
        """The folder on this machine, absolute."""
        return (self.invocation.folder / Path(self.connection.root)).resolve()

    def place(self) -> Place:
        """The folder or bucket. SourceError CLIENT_MISSING, MART_UNREADABLE."""
        address = Address.of(self.connection.root)
        if address is None:
            return Disk(self._folder)
        with needs("s3"):
            return Remote(address, self.connection.storage, self.invocation.folder)

    def version(self, stop: Stop) -> str:
        place = self.place()
        try:
            return version_of(place.list(Glob(self.options.path)))
        finally:
            place.release()

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        place = self.place()
        try:
            return self._open(place, workspace)
        except duckdb.Error as problem:
            place.release()
            raise drift(Query("", {}, f"files {self.options.path}"), problem) from problem
        except BaseException:
            place.release()
            raise

    def _open(self, place: Place, workspace: Workspace) -> Snapshot:
        glob = Glob(self.options.path)
        for _ in range(_LISTINGS):
            files = self._listed(place, glob)
            paths = place.take(files, workspace)
            if paths is not None and _all_there(files, place.list(glob)):
                return Listing(self, workspace, place, files, paths)
        raise _moved(self)

    def _listed(self, place: Place, glob: Glob) -> dict[str, State]:
        """The files, at least one."""
        found = place.list(glob)
        if not found:
            raise SourceError(
                "MART_MISSING",
                f"no file in {self.connection.root} matches {self.options.path}",
                hint="write the files first, or correct `root` and `path`",
            )
        return found

    def relation(self, workspace: Workspace, paths: Mapping[str, Path]) -> Relation:
        """The files with their texts as texts."""
        options, types = self.options, self.types
        for key, path in paths.items():
            if key.endswith(".zst") and not zstd.is_complete(path):
                raise SourceError("MART_UNREADABLE", f"{key} is no complete .zst file", hint="write it again")
        partitions = Partitions(paths, types)
        if options.format == "parquet":
            return parquet.relation(workspace, paths, partitions)
        if options.format == "ndjson":
            return ndjson.relation(workspace, paths, partitions, types, options.optional)
        names = None if options.header else list(options.columns)
        how = delimited.Dialect(options.delimiter, options.quote, options.null, options.encoding, names)
        return delimited.relation(workspace, paths, partitions, types, how)

    @property
    def types(self) -> dict[str, Type]:
        """What the texts of columns are: the contract's types, else those of `columns`."""
        written = {name: _type(kind) or STRING for name, kind in self.options.columns.items()}
        return written | dict(self.invocation.types())


class Listing(Snapshot):
    """The files as they were listed. Files of this machine are compared again when the source is closed."""

    def __init__(
        self,
        source: Files,
        workspace: Workspace,
        place: Place,
        files: Mapping[str, State],
        paths: Mapping[str, Path],
    ) -> None:
        self._source, self._place, self._files = source, place, files
        self._watched = isinstance(place, Disk)
        raw = source.relation(workspace, paths)
        types, options = source.types, source.options
        optional = {name: types.get(name, STRING) for name in options.optional}
        strict = source.invocation.contract is None
        self._typed = partial(typed, timezone=source.timezone, optional=optional, strict=strict)
        self._raw, self._paths = raw, list(paths.values())
        sql, columns, misfit = self._typed(raw)
        self._query = Query(sql, {}, f"files {options.path}")
        self.description = Description(columns, version_of(files), misfit=misfit)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._query

    def parts(self, number: int) -> Sequence[Query] | None:
        if self._source.options.format != "parquet" or not self._watched:
            return None
        queries = []
        for part in range(number):
            own = ", ".join(literal(str(path)) for path in self._paths[part::number])
            where = f"filename IN ({own})" if own else "FALSE"
            sql, _, _ = self._typed(replace(self._raw, sql=f"{self._raw.sql} WHERE {where}"))
            queries.append(replace(self._query, sql=sql))
        return queries

    def close(self) -> None:
        self._place.release()
        if self._watched and not _all_there(self._files, self._place.list(Glob(self._source.options.path))):
            raise _moved(self._source)


def version_of(files: Mapping[str, State]) -> str:
    listed = "\n".join(f"{key} {state}" for key, state in files.items())
    return f"{len(files)} files {sha256(listed.encode()).hexdigest()[:16]}"


def _all_there(files: Mapping[str, State], now: Mapping[str, State]) -> bool:
    """Whether the files are still as they were; others may have come."""
    return all(now.get(key) == state for key, state in files.items())


def _moved(source: Files) -> SourceError:
    return SourceError(
        "SOURCE_MOVES",
        f"files of {source.options.path} changed while they were read; nothing was delivered",
        hint="run again when the files are complete, or write them to another folder and move them",
    )


def _type(kind: str) -> Type | None:
    """The contract type of a type of DuckDB; None if there is none for texts."""
    try:
        return of_duckdb(kind.upper().replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"))
    except ValueError:
        return None
