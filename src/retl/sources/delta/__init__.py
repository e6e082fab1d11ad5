"""Delta Lake: a table at one version of its log, with its change feed.

A run reads the newest version, or the one that `at` names: a number, or a time with its zone. Deletion
vectors and column mapping by name are applied. `table: crm.customers` is the folder crm/customers below
`root`; `path` names any other folder there. This also reads the Delta tables of Databricks: from their
storage, and without a cluster.

`root` is a folder of the project, an absolute path, `s3://bucket/folder`, `gs://bucket/folder`,
`az://container/folder` or `abfss://container@account.dfs.core.windows.net/folder`. Without keys under
`storage`, those of the environment are used, or of the machine's role. Only S3 was run; Google Cloud Storage
and Azure go through the same client and were not.

A request to stop does not wait for a bucket that is silent: a run ends within a second. Only while the reader
opens the change feed it holds all threads of the process: if the bucket becomes silent just then, a run ends
after the 60 seconds of its deadline. The commits of the feed are read before that, in a way that can be
stopped.

A lakehouse of Microsoft Fabric is read from OneLake: `root` is
`abfss://WORKSPACE@onelake.dfs.fabric.microsoft.com/ITEM.Lakehouse/Tables`, or both as GUIDs without
`.Lakehouse`, which a name with other characters than letters, digits, `_`, `.` and `-` needs. `storage` has
`tenant_id`, `client_id` and `client_secret` of an application in Entra that may read the workspace; OneLake
has no account keys. The addresses are as in
https://learn.microsoft.com/fabric/onelake/onelake-access-api (2026-11-29). Unproved: only which servers are
asked was tested.

With `changes: cdf` a run reads only what the table's change feed has since the version of the last run. The
table needs `delta.enableChangeDataFeed`. It is read whole, and the plan says why, if the feed was off; if its
files or the log are gone; if the table was restored, replaced or got other properties; if its columns are
mapped; if a file with a deletion vector was overwritten; or if values of a partition have characters that a
path has to encode.

Values are exact. Delta has no unsigned integers, no times of day and nothing finer than microseconds; writers
turn UUIDs and JSON into text. A feature that the reader does not know (type widening among them), columns
that are mapped by id, and columns of type variant are refused by name (`SOURCE_UNSUPPORTED`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from math import inf
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias, TypeVar

from pydantic import BeforeValidator, field_validator, model_validator

from retl.engine.workspace import Workspace
from retl.errors import RetlError, SourceError
from retl.model import Definition
from retl.net.bucket import Address, Bucket, Root
from retl.net.delta import options
from retl.net.waiting import within
from retl.observe.signals import Stop
from retl.sources.api import Snapshot, Source, needs
from retl.sources.delta import log
from retl.sources.delta.refusal import no_version, refusal
from retl.sources.delta.version import Version, version_of
from retl.values.sql import split

if TYPE_CHECKING:
    from deltalake import DeltaTable

T = TypeVar("T")


class Lake(Root):
    """A folder of tables. `timezone` applies to timestamps without one."""

    type: Literal["delta"] = "delta"
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if "%" in self.root and "${" not in self.root:  # an unset variable is reported later
            raise ValueError("a `root` with % cannot be read: the reader decodes it")
        return self


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
    tells = True
    evidence = "random histories by delta-rs; tables made by hand for features that it cannot write"

    @property
    def label(self) -> str:
        return str(self.options.table or self.options.path)

    @property
    def remote(self) -> bool:  # type: ignore[override]
        return bool(Address.of(self.connection.root))

    @property
    def identity(self) -> dict[str, str]:
        named = self.options.model_dump(exclude_none=True)
        return {"type": "delta", "root": self.connection.root} | {part: str(it) for part, it in named.items()}

    @property
    def uri(self) -> str:
        """Where the table is. SourceError if a link leads out of the root."""
        within = self.options.path or "/".join(split(self.options.table or ""))
        if Address.of(self.connection.root):
            return f"{self.connection.root.rstrip('/')}/{within}"
        root = self.invocation.folder / self.connection.root
        path = root / within
        if not path.resolve().is_relative_to(root.resolve()):
            raise SourceError(
                "MART_MISSING",
                f"{self.label} is a link that leads out of {self.connection.root}",
                hint="move the table into `root`, or make its own folder the root of another source",
            )
        return str(path)

    @property
    def storage(self) -> dict[str, str]:
        """The reader's options."""
        address = Address.of(self.connection.root)
        return options(address, self.connection.storage, self.invocation.folder) if address else {}

    def version(self, stop: Stop) -> str:
        with needs("lake"):
            import deltalake  # noqa: F401
        try:
            return self.call(stop, lambda: version_of(self._newest()))
        except RetlError:
            raise
        except Exception as problem:
            raise self.refused(problem) from problem

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        with needs("lake"):
            from deltalake import DeltaTable
        at = self.options.at
        try:
            number = at if isinstance(at, int) else None
            table = self.call(workspace.stop, lambda: DeltaTable(self.uri, number, self.storage))
            if isinstance(at, datetime):
                self._go_back(table, at, workspace.stop)
            return Version(self, table, workspace)
        except RetlError:
            raise
        except Exception as problem:
            refused = self.refused(problem)
            if isinstance(at, int) and refused.code == "MART_MISSING" and self._is_there(workspace.stop):
                raise no_version(f"Delta table {self.label}") from problem
            raise refused from problem

    def call(self, stop: Stop, read: Callable[[], T]) -> T:
        """What the reader returns. It waits for a bucket as long as its own deadlines are, and hears no
        request to stop."""
        return within(stop, inf, read) if self.remote else read()

    def _newest(self) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(self.uri, None, self.storage, without_files=True)

    def _is_there(self, stop: Stop) -> bool:
        """Whether there is a table, of whatever version."""
        from deltalake.exceptions import TableNotFoundError

        try:
            self.call(stop, self._newest)
        except TableNotFoundError:
            return False
        return True

    def refused(self, problem: Exception) -> SourceError:
        """What an error of the reader means."""
        return refusal(problem, f"Delta table {self.label}")

    @cached_property
    def _bucket(self) -> tuple[Bucket, str] | None:
        """The bucket and the key of the table. The reader's own way to a file holds all threads of the
        process while it waits."""
        address = Address.of(self.connection.root) and Address.of(self.uri)
        if address is None:
            return None
        with needs("lake"):
            return Bucket(address, self.connection.storage, self.invocation.folder), address.prefix

    def read_commit(self, version: int, stop: Stop) -> bytes | None:
        """A commit of the log; None if the log does not have it. SourceError if it cannot be read."""
        name, place = f"_delta_log/{version:020}.json", self._bucket
        try:
            if place is None:
                return (Path(self.uri) / name).read_bytes()
            bucket, key = place
            return self.call(stop, lambda: bucket.read(f"{key}/{name}"))
        except FileNotFoundError:
            return None
        except OSError as problem:
            raise self.refused(problem) from problem

    def _go_back(self, table: DeltaTable, at: datetime, stop: Stop) -> None:
        """Load the version that was the newest at a time. The reader goes by the times of the log's files,
        which a copy does not keep, and takes the first version for any earlier time: the log must agree."""
        self.call(stop, lambda: table.load_as_version(at))
        found, later = (self.read_commit(table.version() + step, stop) for step in (0, 1))
        made, replaced = (log.Commit(text).time if text else None for text in (found, later))
        moment = at.timestamp() * 1000
        if made is None or made > moment or (later is not None and (replaced is None or replaced <= moment)):
            raise SourceError(
                "MART_MISSING",
                f"the log of {self.label} does not say which version was the newest at {at.isoformat()}",
                hint="the log may begin later, or the table may be a copy: give a version in `at`",
            )
