"""Shares of the keys: the rows of a run, cut by the hash of their keys, and the tables that come back.

A share is a DuckDB file, because Parquet changes values of some types (HUGEINT, TIME_NS, INTERVAL). Keys that
the target takes for one are in one share. Nothing here is kept after the run, so the hash may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from retl.destinations.batch import Mode
from retl.engine import baseline, freeze
from retl.engine.baseline import ENTRIES
from retl.engine.change_set import CHANGES, ChangeSet, Phase
from retl.engine.diff import CANDIDATES
from retl.engine.freeze import FROZEN
from retl.engine.judge import REJECTS, STANDING
from retl.engine.mapping import FieldMap
from retl.engine.succession import SUCCEEDED
from retl.engine.workspace import Workspace
from retl.values.sql import literal

CHOSEN = '"retl chosen"'  # a column of a share's rows: whether the run selects them
_HEADS = "heads"  # the first rows of a share in the order of sending, where a run sends only some
_TABLES = {  # that come back from a share → their columns; CHANGES beside them
    CANDIDATES: "key, op, ending",
    REJECTS: "*",
    STANDING: "*",
    SUCCEEDED: "*",
}
_LATE, _DELETES = 1, 2  # phases of a change set: rows refused before, and deletes


class Placed(Struct, frozen=True):
    """Where the rows of a share are in the change set of the run: by phase (0: the others, _LATE, _DELETES)
    the first position, and how many of the share's rows are sent."""

    first: Mapping[int, int]
    rows: Mapping[int, int]


def cut(
    workspace: Workspace, field_map: FieldMap, number: int, folder: Path, condition: str | None
) -> list[Path]:
    """Cut the frozen rows and the baseline into files; then drop the frozen rows. `condition`: SQL of the
    rows that the run selects."""
    paths = [folder / f"{share}.share.duckdb" for share in range(number)]
    cut_rows(workspace, field_map, paths, condition)
    cut_entries(workspace, field_map, paths)
    return paths


def cut_rows(
    workspace: Workspace, field_map: FieldMap, paths: Sequence[Path], condition: str | None, first: int = 0
) -> None:
    """The rows only, into a file for each share. `first`: the number of the first row."""
    chosen = f"coalesce({condition}, FALSE)" if condition is not None else "TRUE"
    rows = f'SELECT * REPLACE ("retl row" + {first} AS "retl row"), {chosen} AS {CHOSEN} FROM {FROZEN}'
    _cut(workspace, "mart", rows, field_map.folded(field_map.key), paths)
    freeze.release(workspace)


def cut_entries(workspace: Workspace, field_map: FieldMap, paths: Sequence[Path]) -> None:
    """The baseline only."""
    _cut(workspace, "entries", f"SELECT * FROM {ENTRIES}", field_map.folded("key"), paths)


def _cut(workspace: Workspace, table: str, rows: str, key: str, paths: Sequence[Path]) -> None:
    for share, path in enumerate(paths):
        workspace.run(f"ATTACH {literal(str(path))} AS share")
        mine = f"hash({key}) % {len(paths)} = {share}"
        workspace.run(f"CREATE TABLE share.main.{table} AS {rows} WHERE {mine}")
        workspace.run("DETACH share")


def has_unkeyed(workspace: Workspace, field_map: FieldMap, condition: str | None) -> bool:
    """Whether a frozen row that the run selects has no usable key."""
    chosen = f"coalesce({condition}, FALSE) AND " if condition is not None else ""
    unkeyed = f"SELECT 1 FROM {FROZEN} WHERE {chosen}{field_map.key_fault} IS NOT NULL LIMIT 1"
    return bool(workspace.run(unkeyed))


def take(workspace: Workspace, path: Path, parts: Sequence[Path] = ()) -> int:
    """Make the rows of a share the frozen rows, and its entries the baseline; returns the number of these.
    `parts`: the files that have the rows, if they are not with the entries."""
    workspace.run(f"ATTACH {literal(str(path))} AS share (READ_ONLY)")
    for number, part in enumerate(parts):
        workspace.run(f"ATTACH {literal(str(part))} AS part_{number} (READ_ONLY)")
    names = [f"part_{number}" for number in range(len(parts))] or ["share"]
    rows = " UNION ALL ".join(f"FROM {name}.main.mart" for name in names)
    workspace.run(f"CREATE VIEW {FROZEN} AS {rows}")
    return baseline.show(workspace, "SELECT * FROM share.main.entries")


def put_heads(workspace: Workspace, field_map: FieldMap, path: Path) -> None:
    """Write what decides about the order of sending."""
    workspace.run(f"ATTACH {literal(str(path))} AS heads")
    workspace.run(f"CREATE TABLE heads.main.{_HEADS} AS SELECT phase, {_keys(field_map)} FROM {CHANGES}")
    workspace.run("DETACH heads")


def first_of(
    workspace: Workspace, field_map: FieldMap, paths: Sequence[Path], limit: int
) -> list[dict[int, int]]:
    """Per share, and phase of it, how many of the run's first `limit` rows it has."""
    for share, path in enumerate(paths):
        workspace.run(f"ATTACH {literal(str(path))} AS heads_{share} (READ_ONLY)")
    every = " UNION ALL ".join(
        f"SELECT {share} AS share, * FROM heads_{share}.main.{_HEADS}" for share in range(len(paths))
    )
    first = f"SELECT share, phase FROM ({every}) ORDER BY phase, {_keys(field_map)} LIMIT {limit}"
    found = workspace.run(f"SELECT share, phase, count(*) FROM ({first}) GROUP BY ALL")
    for share in range(len(paths)):
        workspace.run(f"DETACH heads_{share}")
    counted: list[dict[int, int]] = [{} for _ in paths]
    for share, phase, rows in found:
        counted[share][phase] = rows
    return counted


def by_phase(workspace: Workspace) -> dict[int, int]:
    """The rows of CHANGES by phase."""
    return dict(workspace.run(f"SELECT phase, count(*) FROM {CHANGES} GROUP BY phase"))


def place(found: Sequence[Mapping[int, int]]) -> list[Placed]:
    """The positions of the rows of shares, from their numbers by phase: phase by phase, share by share."""
    firsts: list[dict[int, int]] = [{} for _ in found]
    position = 0
    for phase in (0, _LATE, _DELETES):
        for share, rows in enumerate(found):
            firsts[share][phase] = position
            position += rows.get(phase, 0)
    return [Placed(first, dict(rows)) for first, rows in zip(firsts, found, strict=True)]


def united(placed: Sequence[Placed], mode: Mode) -> tuple[Phase, ...]:
    """The phases of the run's change set, under a write mode."""
    found = []
    for phase in (0, _LATE, _DELETES):
        first, rows = placed[0].first[phase], sum(one.rows.get(phase, 0) for one in placed)
        if rows:
            found.append(Phase("delete" if phase == _DELETES else mode, first, first + rows - 1))
    return tuple(found)


def put(workspace: Workspace, path: Path, placed: Placed) -> dict[str, int]:
    """Write the tables of a share, at the positions of the run; returns the rows of its change set by op."""
    before, cases, kept = 0, "", []
    for phase in (0, _LATE, _DELETES):
        cases += f" WHEN {phase} THEN {placed.first[phase] - before}"
        rows = placed.rows.get(phase, 0)
        kept.append(f"(phase = {phase} AND pos < {before + rows})")
        before += rows
    workspace.run(f"ATTACH {literal(str(path))} AS own")
    workspace.run(
        f"CREATE TABLE own.main.{CHANGES} AS SELECT * REPLACE (pos + CASE phase{cases} END AS pos)"
        f" FROM {CHANGES} WHERE {' OR '.join(kept)} ORDER BY pos"
    )
    for table, columns in _TABLES.items():
        workspace.run(f"CREATE TABLE own.main.{table} AS SELECT {columns} FROM {table}")
    counts = dict(workspace.run(f"SELECT op, count(*) FROM own.main.{CHANGES} GROUP BY op"))
    workspace.run("DETACH own")
    return counts


def reopen(workspace: Workspace, path: Path) -> None:
    """Make the change set that `put` wrote the one of this workspace, for delivery."""
    workspace.run(f"ATTACH {literal(str(path))} AS own (READ_ONLY)")
    workspace.run(f"CREATE VIEW {CHANGES} AS FROM own.main.{CHANGES}")


def unite(workspace: Workspace, field_map: FieldMap, paths: Sequence[Path]) -> ChangeSet:
    """Make the tables of all shares the tables of this workspace, as views."""
    for share, path in enumerate(paths):
        workspace.run(f"ATTACH {literal(str(path))} AS shard_{share} (READ_ONLY)")
    for table in (CHANGES, *_TABLES):
        every = " UNION ALL ".join(f"FROM shard_{share}.main.{table}" for share in range(len(paths)))
        workspace.run(f"CREATE VIEW {table} AS {every}")
    counts = dict(workspace.run(f"SELECT op, count(*) FROM {CHANGES} GROUP BY op"))
    succeeds = bool(workspace.run(f"SELECT 1 FROM {SUCCEEDED} LIMIT 1"))
    return ChangeSet(workspace, field_map, (), counts, succeeds=succeeds)


def _keys(field_map: FieldMap) -> str:
    return ", ".join(f"k{index}" for index in range(len(field_map.shape.key)))
