"""The one interface of all sources.

A source describes its rows and hands them out as a relation, from one snapshot where it has one. It keeps
nothing between runs, never writes, and knows neither the contract nor the target. It is closed before
delivery starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from msgspec import Struct
from pydantic import BaseModel

from retl.contract.model import types_of
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.model import Limits
from retl.observe.signals import Stop
from retl.project.contracts import Contract, Documented
from retl.sources.dbt_results import Reported
from retl.values.types import Type

if TYPE_CHECKING:
    from retl.net.postgres import PostgresConnection
    from retl.pace.limiter import Pace

OptionsT = TypeVar("OptionsT", bound=BaseModel)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import a source's client inside this: SourceError CLIENT_MISSING names the extra that has it."""
    try:
        yield
    except ImportError as problem:
        raise SourceError(
            "CLIENT_MISSING",
            f"this source needs a package that is not installed ({problem.name})",
            hint=f"pip install 'retl-cli[{extra}]'",
        ) from problem


def unsupported(table: str, feature: str, hint: str) -> SourceError:
    """The error for a table that its reader cannot read exactly."""
    message = f"{table} has {feature}, which cannot be read exactly"
    return SourceError("SOURCE_UNSUPPORTED", message, hint=hint)


def own_pace(limits: Limits) -> Pace:
    """A pace that is not shared with anybody."""
    from retl.pace.limiter import Pace

    return Pace(limits)


class Invocation(Struct, frozen=True):
    """What a source needs from the project and from this invocation."""

    folder: Path  # paths in options are relative to it
    variables: Mapping[str, Any]  # for `$name` in SQL
    waiting: Callable[[str], object] = lambda _pid: None  # called once with the process that locks the source
    contract: Contract | None = None  # of the sync: a source of texts reads them as its types
    watermark: str | None = None  # the column of `changes: {watermark: …}`
    pace: Callable[[Limits], Pace] = own_pace  # of a source with limits; all its syncs share it

    def types(self) -> Mapping[str, Type]:
        """The types of the contract, by column; none without a contract."""
        return types_of(self.contract, self.folder)


class Description(Struct, frozen=True):
    """`columns`: name → DuckDB type. `version` tells one state of the source from another: opaque text that
    is recorded with the run. `models`: the ids of the dbt models that the source reads; `health`: what dbt
    reports about them. `misfit`: a further column of `rows`, if there is one. It names the first of the asked
    columns whose value its type cannot hold exactly; that value is NULL, and the row becomes a reject."""

    columns: Mapping[str, str]
    version: str
    health: tuple[Reported, ...] = ()
    models: tuple[str, ...] = ()
    misfit: str | None = None


class Since(Struct, frozen=True):
    """A watermark: rows whose `column` (of this DuckDB type) is below `least` (as DuckDB writes it) are not
    needed. Rows where it is NULL are."""

    column: str
    column_type: str
    least: str


class Among(Struct, frozen=True):
    """The integers that a key's column may have: rows with another one are not needed."""

    column: str
    values: tuple[int, ...]

    def where(self, column: str) -> str:
        """The end of a SELECT; `column` as the database quotes it. Every SQL writes integers alike."""
        if not self.values:
            return " WHERE 1 = 0"
        return f" WHERE {column} IN ({', '.join(map(str, self.values))})"


class Feed(Struct, frozen=True):
    """What changed since a version. `rows`: the columns of every row that may have changed, as it is now;
    `left`: the key columns of every key that may be gone, with those of `rows` among them or not; `total`:
    the number of rows of the source now. Keys of `left` that are not in `rows` are gone. Both queries can be
    read several times, until the snapshot is closed, and without `USE` of another catalog."""

    rows: Query
    left: Query
    total: int


class Snapshot(ABC):
    """One state of the source; it does not change until the context ends."""

    description: Description

    @abstractmethod
    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        """These columns of every row. It can be read once. A source that can compare for itself may leave out
        what is not needed `since` a mark; the engine compares again."""

    def rows_among(self, columns: Sequence[str], among: Among) -> Query | None:
        """The same of the rows that are needed, in place of `rows`; None if this source cannot ask for them,
        and then nothing was read."""
        return None

    def parts(self, number: int) -> Sequence[Query] | None:
        """The rows in so many parts (some may be empty) that other processes can read, while this snapshot is
        open, where they see the folders of `readable`; None if only this one can."""
        return None

    def feed(self, columns: Sequence[str], key: Sequence[str], after: str) -> Feed | str:
        """What changed after the version `after`, as `Description.version` said it; a sentence if that
        cannot be told exactly, so the source must be read whole."""
        return "this source has no change feed"

    @abstractmethod
    def close(self) -> None:
        """Release the source: others may write to it. Called in the thread that opened or read it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


class Source(ABC, Generic[OptionsT]):
    """Where the rows of a sync come from.

    `Connection` models the keys of an entry under `sources:` in retl.yml, `Options` those under `source:` in
    a sync. Both refuse unknown keys.
    """

    Connection: ClassVar[type[BaseModel]]
    Options: ClassVar[type[BaseModel]]
    changes: ClassVar[frozenset[str]] = frozenset({"all", "hash", "watermark"})  # cdf: it has `feed`
    one_state: bool = True  # a snapshot is one state of the source; else deletes need `complete`
    tells: bool = False  # `version` says whether it changed
    remote: bool = True  # `open` asks a server or a bucket
    narrows: ClassVar[bool] = False  # `rows` leaves out what is not needed since a mark
    evidence: ClassVar[str]  # what it was tested with

    def __init__(self, connection: BaseModel, options: OptionsT, invocation: Invocation) -> None:
        self.connection: Any = connection
        self.options = options
        self.invocation = invocation

    @property
    def label(self) -> str:
        """The table, model or file, for a list of syncs."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def identity(self) -> dict[str, str]:
        """The source as it is defined, for the history. It contains no secret and no value."""
        return {"type": self.label}

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders that the workspace may read after the source is opened."""
        return ()

    @property
    def timezone(self) -> str:
        """The time zone of naive timestamps."""
        return str(getattr(self.connection, "timezone", "UTC"))

    @property
    def max_age(self) -> float | None:
        """Seconds after which the health of the mart is too old; None: no limit."""
        return None

    def documented(self) -> Mapping[str, Documented]:
        """What dbt's project says of the columns, by name in lower case, if the source is a dbt model.
        SourceError if its files cannot be read, DefinitionError DBT_MODEL."""
        return {}

    @property
    def announces(self) -> tuple[PostgresConnection, ...]:
        """The databases that can NOTIFY of a change."""
        return ()

    def version(self, stop: Stop) -> str:
        """Another text after each change, found without reading rows; where it can be, the one that
        `Description.version` would be. Only for a source that `tells`. It waits for no writer. Raises like
        `open`."""
        raise NotImplementedError

    def check(self, stop: Stop) -> None:
        """Can the source be reached? Only for a source that `open` does not reach. Raises like `open`."""

    @abstractmethod
    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        """The source as it is now. Without `wait` a source that is being written to is Later at once.
        Later, SourceError, DefinitionError, Mismatch SOURCE_DRIFT."""
