"""Which rows of run files are about a person, and the same files without them.

In a delta the row stays, as one without key, hash and id: positions of other rows must not move, and the
history still shows that something was sent. From all other files the row goes. It replaces no file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from retl.engine.answers import ANSWERS, IMAGES
from retl.engine.baseline import BASELINE, DELTA, MOVED, SNAPSHOT, opened
from retl.engine.change_set import CHANGES, ChangeSet, Phase
from retl.engine.diff import CANDIDATES
from retl.engine.judge import reject_nothing
from retl.engine.mapping import FieldMap
from retl.engine.workspace import RUN_FILE, Workspace
from retl.errors import InvariantBroken
from retl.values.keys import key_value_sql
from retl.values.sql import literal

ASKED = "erasing"  # key: those to erase
_FOLDED = "erasing_folded"  # key: the same, as the target compares them
_POSITIONS = "erasing_positions"  # row: of one run
_NAME = re.compile(r"(?P<run>[^.]+)\.(?P<kind>delta|snapshot|moved|answers|images)(-\d+)?\.parquet")
_FORMATS = {"delta": DELTA, "snapshot": SNAPSHOT, "moved": SNAPSHOT, "answers": ANSWERS, "images": IMAGES}


class RunFile(Struct, frozen=True):
    """A run file in reach, with its run and kind."""

    name: str
    path: Path
    run_id: str
    kind: str

    @classmethod
    def of(cls, name: str, path: Path) -> RunFile:
        """InvariantBroken for a file of a kind that this module does not know."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvariantBroken("RUN_FILE_UNKNOWN", f"nothing is known of the rows in the run file {name}")
        return cls(name, path, found["run"], found["kind"])

    def rows(self, workspace: Workspace) -> str:
        return opened(workspace, self.path, _FORMATS[self.kind])


class Person(Struct):
    """The keys to erase, and the positions of their rows by run."""

    workspace: Workspace
    field_map: FieldMap
    keys: set[str] = field(default_factory=set)
    positions: dict[str, set[int]] = field(default_factory=dict)

    def ask(self, keys: Iterable[str]) -> None:
        """Erase these keys too."""
        self.keys |= set(keys)
        self.workspace.load(ASKED, {"key": "VARCHAR"}, ((key,) for key in sorted(self.keys)))
        folded = self.field_map.folded("key")
        self.workspace.run(
            f"CREATE OR REPLACE TABLE {_FOLDED} AS SELECT DISTINCT {folded} AS key FROM {ASKED}"
        )

    def folded(self) -> list[str]:
        """The keys as the target compares them."""
        return [key for (key,) in self.workspace.run(f"SELECT key FROM {_FOLDED} ORDER BY key")]

    def has(self, key: str = "key") -> str:
        """SQL of whether a key is one of them, as the target compares keys."""
        exact = f"{key} IN (SELECT key FROM {ASKED})"
        if not self.field_map.folds:
            return f"coalesce({exact}, FALSE)"
        return f"coalesce({exact} OR {self.field_map.folded(key)} IN (SELECT key FROM {_FOLDED}), FALSE)"

    def find_in(self, files: Iterable[RunFile]) -> None:
        """Look for the person's rows in deltas and images: the keys as they are spelled there, and their
        positions."""
        for one in files:
            if one.kind in ("delta", "images"):
                wanted = f"SELECT row, key FROM {one.rows(self.workspace)} WHERE {self.has()}"
                wanted += f" AND op <> '{MOVED}'" if one.kind == "delta" else ""
                found = self.workspace.run(wanted)
                if found:
                    self.positions.setdefault(one.run_id, set()).update(row for row, _ in found)
                    self.keys |= {key for _, key in found}
            elif one.kind in ("snapshot", "moved"):
                listed = f"SELECT key FROM {one.rows(self.workspace)} WHERE {self.has()}"
                self.keys |= {key for (key,) in self.workspace.run(listed)}
        self.ask(())

    def holds(self, one: RunFile) -> bool:
        """Whether a run file has a row of the person."""
        return bool(
            self.workspace.run(f"SELECT 1 FROM {one.rows(self.workspace)} WHERE {self._hit(one)} LIMIT 1")
        )

    def without(self, one: RunFile) -> RunFile | None:
        """The same file without the person, in the workspace's folder; None if nothing of it changes."""
        if not self.holds(one):
            return None
        hit = self._hit(one)
        rows = f"SELECT * FROM {one.rows(self.workspace)} WHERE NOT ({hit})"
        order = " ORDER BY row" if one.kind != "snapshot" and one.kind != "moved" else ""
        if one.kind == "delta":
            empty = ", ".join(
                f"CASE WHEN {hit} THEN NULL ELSE {name} END AS {name}"
                for name in ("key", "hash", "owned", "ref", "seen", "dropped", "unsent")
            )
            rows = (
                f"SELECT * REPLACE ({empty}) FROM {one.rows(self.workspace)}"
                f" WHERE NOT (op = '{MOVED}' AND {hit})"
            )
        path = self.workspace.directory / f"erased-{one.name}"
        path.touch(mode=0o600)
        self.workspace.run(
            f"COPY ({rows}{order}) TO {literal(str(path))}"
            f" ({RUN_FILE}, KV_METADATA {{retl: '{_FORMATS[one.kind]}'}})"
        )
        return replace(one, path=path)

    def _hit(self, one: RunFile) -> str:
        """SQL of whether a row of the file is about the person. Answers have positions only."""
        rows = ", ".join(map(str, sorted(self.positions.get(one.run_id, ())))) or "NULL"
        at = f"coalesce(row IN ({rows}), FALSE)"
        if one.kind == "answers":
            return at
        return f"({self.has()} OR {at})" if one.kind == "images" else self.has()


def named(
    workspace: Workspace, field_map: FieldMap, files: Sequence[RunFile], part: int, value: str
) -> list[str]:
    """The keys in run files that have this value in one of their columns."""
    types = [one.type for one in field_map.shape.key]
    found: set[str] = set()
    for one in files:
        if one.kind != "answers":
            text = f"CAST({key_value_sql(types, part, 'key')} AS VARCHAR)"
            wanted = (
                f"SELECT DISTINCT key FROM {one.rows(workspace)} WHERE key IS NOT NULL AND {text} = $value"
            )
            found |= {key for (key,) in workspace.run(wanted, {"value": value})}
    return sorted(found)


def unnamed(workspace: Workspace) -> int:
    """How many of the keys the target has from us under an id that is not known."""
    wanted = f"SELECT count(*) FROM {BASELINE} JOIN {ASKED} USING (key) WHERE ref IS NULL"
    number: int = workspace.one(wanted)[0]
    return number


def assemble(workspace: Workspace, field_map: FieldMap, *, by_ref: bool) -> ChangeSet:
    """Create CHANGES: a delete of each key in ASKED, also of rows that others made; with `by_ref` only of
    those with a known id. No row of the mart is a candidate, and none is judged."""
    workspace.run(f"CREATE TABLE {CANDIDATES} (row BIGINT, key VARCHAR, op VARCHAR, ending VARCHAR)")
    reject_nothing(workspace)
    shape = field_map.shape
    types = [one.type for one in shape.key]
    columns = [f"{key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types))]
    columns += [f"NULL AS f{i}" for i in range(len(shape.fields))]
    columns += [f"NULL AS n{i}" for i in range(len(shape.newest))]
    workspace.run(
        f"CREATE TABLE {CHANGES} AS SELECT row_number() OVER (ORDER BY key) - 1 AS pos, 'delete' AS op,"
        f" b.hash, b.owned, b.ref, b.seen, b.dropped, key, {', '.join(columns)}"
        f" FROM {ASKED} LEFT JOIN (SELECT key, hash, owned, ref, seen, dropped FROM {BASELINE}) b USING (key)"
        + (" WHERE ref IS NOT NULL" if by_ref else "")
    )
    number: int = workspace.one(f"SELECT count(*) FROM {CHANGES}")[0]
    phases = (Phase("delete", 0, number - 1),) if number else ()
    return ChangeSet(workspace, field_map, phases, {"delete": number})


def usable(workspace: Workspace, field_map: FieldMap, keys: Collection[str]) -> list[str]:
    """Those of these texts that are keys of the sync's types."""
    types = [one.type for one in field_map.shape.key]
    workspace.load("erasing_texts", {"key": "VARCHAR"}, ((key,) for key in keys))
    typed = [key_value_sql(types, i, "key").replace("CAST(", "TRY_CAST(", 1) for i in range(len(types))]
    if len(types) > 1:
        typed = [f"CASE WHEN json_valid(key) THEN {one} END" for one in typed]
    there = " AND ".join(f"{one} IS NOT NULL" for one in typed)
    return [key for (key,) in workspace.run(f"SELECT key FROM erasing_texts WHERE {there} ORDER BY key")]
