"""The one interface of all sources.

A source describes its rows and hands them out as a relation, from one snapshot where it has one. It keeps
nothing between runs, never writes, and knows neither the contract nor the target. It is let go before
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

from retl.engine.freeze import Relation
from retl.engine.workspace import Workspace
from retl.sources.dbt import Build

OptionsT = TypeVar("OptionsT", bound=BaseModel)


@dataclass(frozen=True)
class Invocation:
    """What a source needs of the project and of this invocation."""

    folder: Path  # paths in options are relative to it
    variables: Mapping[str, Any]  # for `$name` in SQL
    waiting: Callable[[str], object] = lambda _who: None  # called once with who holds the source


@dataclass(frozen=True)
class Description:
    """`columns`: name → DuckDB type. `version` tells one state of the source from another: opaque text that
    is recorded with the run. `health` is what dbt said of the mart, if the mart is a dbt model."""

    columns: Mapping[str, str]
    version: str
    health: Build | None = None


class Snapshot(ABC):
    """One state of the source, held until the context ends."""

    description: Description

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Relation:
        """These columns of every row. It can be read once."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the source: others may write to it. Called in the thread that opened or read it."""

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
    changes: ClassVar[frozenset[str]] = frozenset({"all", "hash", "watermark"})  # how changes can be found
    evidence: ClassVar[str]  # what it was tried against

    def __init__(self, connection: BaseModel, options: OptionsT, invocation: Invocation) -> None:
        self.connection: Any = connection
        self.options = options
        self.invocation = invocation

    @property
    def label(self) -> str:
        """What a list of syncs shows: the table, model or file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def identity(self) -> dict[str, str]:
        """Which source this is, as it is defined, for the history. It holds no secret and no value."""
        return {"type": self.label}

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders that the workspace may read after the source was opened."""
        return ()

    @property
    def timezone(self) -> str:
        """The time zone of naive timestamps."""
        return "UTC"

    @property
    def max_age(self) -> float | None:
        """Seconds after which the health of the mart is too old; None: any age will do."""
        return None

    @abstractmethod
    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        """The source as it is now; without `wait` a source that somebody writes to is Later at once.
        Later, SourceError, DefinitionError, Mismatch SOURCE_DRIFT."""
