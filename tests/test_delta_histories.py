"""Random histories of Delta tables: what the feed says changed between any two versions is what changed, as a
plain dictionary of the rows knows it, or the feed says why it cannot tell."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.observe.signals import Stop
from retl.sources.api import Invocation
from retl.sources.delta import Delta, Lake, Table

Row = tuple[Any, ...]  # part, name, amount, and the column that comes later
STEPS, HISTORIES = (25, 40) if os.environ.get("RETL_TEST_ALL") else (12, 2)
PARTS = ("a", "b", None)
MANY = 3000  # ids
CONFIGURATION = {
    "delta.enableChangeDataFeed": "true",
    "delta.logRetentionDuration": "interval 0 days",
    "delta.deletedFileRetentionDuration": "interval 0 days",
}


class History:
    """A table, and what it holds at every version."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.rows: dict[int, Row] = {}
        self.columns = 4
        self.versions: list[dict[int, Row]] = []
        self.operations: list[str] = []  # one per version
        self.lost = False  # files of versions before are gone
        self._insert(range(100), mode="append")
        self._note("create")

    @property
    def table(self) -> DeltaTable:
        return DeltaTable(str(self.folder))

    def step(self) -> None:
        operations: list[Callable[[], object]] = [
            *(self._append, self._merge, self._delete, self._update, self._change_key, self._replace_part),
            *(self._append, self._merge, self._delete, self._update, self._delete_and_insert),
            *(self._overwrite, self._compact, self._sort, self._widen, self._retype),
        ]
        if len(self.versions) > STEPS // 2:  # what makes a whole read necessary comes late
            operations += [self._restore, self._vacuum, self._set_property, self._checkpoint]
        chosen = self.random.choice(operations)
        chosen()
        self._note(chosen.__name__)

    def _note(self, operation: str) -> None:
        """Take down what the table holds in each version that is new."""
        while len(self.versions) <= self.table.version():
            self.versions.append(dict(self.rows))
            self.operations.append(operation)

    def _new(self, ids: Iterator[int] | Any) -> dict[int, Row]:
        chosen = self.random
        return {
            one: (
                chosen.choice(PARTS),
                f"n{chosen.random()}",
                Decimal(chosen.randrange(10**6)) / 100,
                chosen.choice([None, chosen.randrange(9)]),
            )[: self.columns - 1]
            for one in sorted(ids)
        }

    def _arrow(self, rows: dict[int, Row]) -> pa.Table:
        kinds = [pa.string(), pa.string(), pa.decimal128(12, 2), pa.int32()][: self.columns - 1]
        names = ["id", "part", "name", "amount", "later"][: self.columns]
        values = [list(column) for column in zip(*rows.values(), strict=True)] if rows else [[]] * len(kinds)
        arrays = [pa.array(column, kind) for column, kind in zip(values, kinds, strict=True)]
        return pa.table([pa.array(list(rows), pa.int64()), *arrays], names=names)

    def _insert(self, ids: Any, **how: Any) -> None:
        new = self._new(set(ids) - self.rows.keys())
        options: dict[str, Any] = {"configuration": CONFIGURATION} if not self.versions else {}
        write_deltalake(str(self.folder), self._arrow(new), partition_by=["part"], **options, **how)
        self.rows |= new

    def _sample(self, number: int) -> set[int]:
        return set(self.random.sample(range(MANY), number))

    def _some(self, number: int) -> set[int]:
        return set(self.random.sample(sorted(self.rows), min(number, len(self.rows))))

    def _span(self) -> tuple[str, set[int]]:
        low = self.random.randrange(MANY)
        return f"id between {low} and {low + 100}", {one for one in self.rows if low <= one <= low + 100}

    def _append(self) -> None:
        self._insert(self._sample(40), mode="append")

    def _merge(self) -> None:
        """Update, insert, and delete what the source of the merge does not have."""
        new = self._new(self._some(20) | self._sample(10))
        where, gone = self._span()
        merge = self.table.merge(
            self._arrow(new), "t.id = s.id", source_alias="s", target_alias="t"
        ).when_matched_update_all()
        delete = merge.when_not_matched_insert_all().when_not_matched_by_source_delete(f"t.{where}")
        delete.execute()
        self.rows = {one: row for one, row in self.rows.items() if one not in gone - new.keys()} | new

    def _delete(self) -> None:
        where, gone = self._span()
        self.table.delete(where)
        self.rows = {one: row for one, row in self.rows.items() if one not in gone}

    def _update(self) -> None:
        where, changed = self._span()
        name = f"u{self.random.random()}"
        self.table.update(updates={"name": f"'{name}'"}, predicate=where)
        self.rows |= {one: (self.rows[one][0], name, *self.rows[one][2:]) for one in changed}

    def _change_key(self) -> None:
        for one in self._some(1):
            other = self.random.choice([new for new in range(MANY) if new not in self.rows])
            self.table.update(updates={"id": str(other)}, predicate=f"id = {one}")
            self.rows[other] = self.rows.pop(one)

    def _replace_part(self) -> None:
        """Overwrite where the part is one of them."""
        new = {one: ("a", *row[1:]) for one, row in self._new(self._sample(20)).items()}
        new = {one: row for one, row in new.items() if self.rows.get(one, row)[0] == "a"}
        write_deltalake(str(self.folder), self._arrow(new), mode="overwrite", predicate="part = 'a'")
        self.rows = {one: row for one, row in self.rows.items() if row[0] != "a"} | new

    def _delete_and_insert(self) -> None:
        chosen = self._some(5)
        rows = {one: self.rows[one] for one in chosen}
        self.table.delete(f"id in ({', '.join(map(str, [*chosen, -1]))})")
        self.rows = {one: row for one, row in self.rows.items() if one not in chosen}
        self._note("delete")
        write_deltalake(str(self.folder), self._arrow(rows), mode="append")
        self.rows |= rows

    def _overwrite(self) -> None:
        new = self._new(self._sample(80))
        write_deltalake(str(self.folder), self._arrow(new), mode="overwrite")
        self.rows = new

    def _retype(self) -> None:
        """Overwrite with another schema and back: both versions have other files only."""
        texts = pa.table([pa.array(["x", "1"]), pa.array(["a", "a"])], names=["id", "part"])
        options: dict[str, Any] = {"mode": "overwrite", "schema_mode": "overwrite", "partition_by": ["part"]}
        write_deltalake(str(self.folder), texts, **options)
        self._note("retype")
        self.versions[-1] = {-1: ()}  # nothing to compare with
        write_deltalake(str(self.folder), self._arrow(self.rows), **options)

    def _widen(self) -> None:
        """Append with a column more, which older rows have as NULL."""
        if self.columns == 4:
            self.columns = 5
            self.rows = {one: (*row, None) for one, row in self.rows.items()}
            self._insert(self._sample(20), mode="append", schema_mode="merge")

    def _compact(self) -> None:
        self.table.optimize.compact()

    def _sort(self) -> None:
        self.table.optimize.z_order(["id"])

    def _restore(self) -> None:
        number = self.random.randrange(len(self.versions) - 1) if len(self.versions) > 1 else 0
        before = self.versions[number]
        if number and not self.lost and self.operations[number] != "retype":
            self.table.restore(number)
            self.rows = dict(before)
            self.columns = len(next(iter(before.values()))) + 1 if before else self.columns

    def _vacuum(self) -> None:
        self.lost = True
        self.table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)

    def _checkpoint(self) -> None:
        self.lost = True
        self.table.create_checkpoint()
        self.table.cleanup_metadata()

    def _set_property(self) -> None:
        self.table.alter.set_table_properties({"delta.appendOnly": "false"})


NOT_FED = {"_restore", "_set_property", "retype", "_retype"}


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_the_feed_between_any_two_versions_is_the_difference(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path / "t", seed)
    while len(history.versions) < STEPS:
        history.step()
    (tmp_path / "work").mkdir()
    compared = 0
    with Workspace(tmp_path / "work", Stop()) as workspace:
        table_id = history.table.metadata().id
        for new in range(1, len(history.versions)):
            for old in range(new + 1):
                compared += _compare(history, workspace, table_id, old, new)
    assert compared


def _compare(history: History, workspace: Workspace, table_id: str, old: int, new: int) -> bool:
    """Whether the feed could be compared; it must be what the dictionaries say."""
    before, after = history.versions[old], history.versions[new]
    if "retype" in (history.operations[old], history.operations[new]):
        return False
    source = Delta(
        Lake(root=str(history.folder.parent)),
        Table(path=history.folder.name, at=new),
        Invocation(Path("/"), {}),
    )
    try:
        with source.open(workspace) as snapshot:
            names = list(snapshot.description.columns)
            found = snapshot.feed(names, ["id"], f"{old} of {table_id}")
            if isinstance(found, str):
                assert history.lost or NOT_FED & {*history.operations[old + 1 : new + 1]}, found
                return False
            rows = {row[names.index("id")]: row for row in workspace.run(found.rows.sql)}
            left = {one for (one,) in workspace.run(found.left.sql)}
    except SourceError:
        if not history.lost:
            raise
        return False
    order = [names.index(one) for one in ("id", "part", "name", "amount", "later") if one in names]
    changed = {one: tuple(row[at] for at in order)[1:] for one, row in rows.items()}
    width = len(names) - 1
    kept = {one: (*row, *[None] * width)[:width] for one, row in before.items() if one not in left}
    assert kept | changed == after, (old, new, history.operations[old : new + 1])
    assert found.total == len(after)
    assert left >= changed.keys()
    return True
