"""What a process of a shard is begun with, and its first step where other processes read the mart.

The rows of a part of the mart are frozen and cut by the hash of their keys, as the run does it with the whole
mart. So a row is in the same share wherever it was read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from retl.engine import freeze, shards
from retl.engine.mapping import FieldMap, Run
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.run.depot import Depot

_MOST_ROWS = 1 << 40  # of a part: its rows have numbers of their own


class Step(Struct, frozen=True):
    """A shard's files and its run. `share` has its part of the baseline, and its rows if the run has read the
    mart; `tables` and `heads` are files that it writes; `folder` is its own. `depot`: of a shard elsewhere,
    which does one step: the files are there, by their names."""

    number: int
    share: Path
    tables: Path
    heads: Path
    folder: Path
    threads: int
    sync: Sync
    run: Run
    log: Mapping[str, Any] | None
    secrets: frozenset[str]
    depot: Depot | None


class Part(Step, frozen=True):
    """A part of the mart to read: its rows by this query, with their types; one part for each shard."""

    query: Query
    types: Mapping[str, str]
    field_map: FieldMap
    shards: int
    readable: Sequence[Path]
    sends: ClassVar[bool] = False


class Cut(Struct, frozen=True):
    """A part that was read. `files`: in the depot, by shard."""

    rows: int
    unkeyed: bool  # whether a row has no usable key
    files: Sequence[str]


StepT = TypeVar("StepT", bound=Step)


def here(step: StepT, folder: Path) -> StepT:
    """The step with files of this machine, in this folder."""
    names = ("share", "tables", "heads", "folder")
    moved = replace(step, **{name: folder / getattr(step, name).name for name in names})
    moved.folder.mkdir()
    return moved


def read(part: Part, stop: Stop) -> Cut:
    """Read a part and cut it into the depot. SourceError, Mismatch SOURCE_DRIFT, Failure DISK_FULL."""
    with Workspace(part.folder, stop, threads=part.threads) as workspace:
        workspace.harden([part.folder.parent, *part.readable])
        return _cut(part, workspace)


def _cut(part: Part, workspace: Workspace) -> Cut:
    assert part.depot is not None
    rows = freeze.freeze(workspace, part.query, part.types)
    unkeyed = shards.has_unkeyed(workspace, part.field_map, None)
    folder, stem = part.folder.parent, part.tables.name.removesuffix(".tables.duckdb")
    paths = [folder / f"{stem}.part-{share}.duckdb" for share in range(part.shards)]
    shards.cut_rows(workspace, part.field_map, paths, None, first=part.number * _MOST_ROWS)
    for path in paths:
        part.depot.move(path)
    return Cut(rows, unkeyed, [path.name for path in paths])
