"""The one interface of all sources.

A source describes its rows and hands them out as a relation, from one snapshot where it has one. It keeps
nothing between runs, never writes, and knows neither the contract nor the target. It is closed before
delivery starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.sources.dbt import Build

OptionsT = TypeVar("OptionsT", bound=BaseModel)


@dataclass(frozen=True)
class Invocation:
    """What a source needs from the project and from this invocation."""

    folder: Path  # paths in options are relative to it
    variables: Mapping[str, Any]  # for `$name` in SQL
    waiting: Callable[[str], object] = lambda _pid: None  # called once with the process that locks the source


@dataclass(frozen=True)
class Description:
    """`columns`: name → DuckDB type. `version` tells one state of the source from another: opaque text that
    is recorded with the run. `health` is what dbt reports about the mart, if the mart is a dbt model."""

    columns: Mapping[str, str]
    version: str
    health: Build | None = None


class Snapshot(ABC):
    """One state of the source; it does not change until the context ends."""

    description: Description

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Query:
        """These columns of every row. It can be read once."""

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
    changes: ClassVar[frozenset[str]] = frozenset({"all", "hash", "watermark"})  # ways to find changes
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
        return "UTC"

    @property
    def max_age(self) -> float | None:
        """Seconds after which the health of the mart is too old; None: no limit."""
        return None

    @abstractmethod
    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        """The source as it is now. Without `wait` a source that is being written to is Later at once.
        Later, SourceError, DefinitionError, Mismatch SOURCE_DRIFT."""
