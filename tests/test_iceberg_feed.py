"""Iceberg's feed against a full comparison: random histories, every pair of versions, a model in Python.

The model never reads the table. Operations are those of the engines that write lakes, also the ones that PyIceberg
itself has not: position deletes, and branches that become the table.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyiceberg.expressions import And, GreaterThanOrEqual, In, LessThan
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import DecimalType, StringType

from tests.lake import Changes, Shop, delete_positions

Rows = dict[int, dict[str, Any]]
IDS = st.sets(st.integers(0, 59), min_size=1, max_size=15)
STEPS = 1000 if os.environ.get("RETL_TEST_ALL") else 20  # of all histories together
LENGTH = 10  # of one history
NAMES = ["id", "name", "amount"]


@dataclass
class State:
    """What a version of the table must be. `epoch` counts the changes that a feed may decline to cross."""

    version: str
    snapshot: int | None
    rows: Rows
    dead: dict[str, set[int]]  # positions that were deleted in data files
    epoch: int


@dataclass
class History:
    """A table and its model, changed together."""

    shop: Shop
    columns: list[str] = field(default_factory=lambda: list(NAMES))
    rows: Rows = field(default_factory=dict)
    dead: dict[str, set[int]] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = self.shop.table()
        self.note()

    def remember(self, version: str = "") -> State:
        """The present state, to which the table may return."""
        self.table.refresh()
        snapshot = self.table.current_snapshot()
        number = None if snapshot is None else snapshot.snapshot_id
        dead = {path: set(positions) for path, positions in self.dead.items()}
        model = {id_: dict(row) for id_, row in self.rows.items()}
        self.states.append(State(version, number, model, dead, self.epoch))
        return self.states[-1]

    def note(self) -> None:
        """Remember the present state, and compare it with every former one."""
        former_states = list(self.states)
        with self.shop.opened() as (workspace, pinned):
            now = self.remember(pinned.description.version)
            listed = list(pinned.description.columns)
            held = workspace.run(pinned.rows(listed).sql)
            assert len(held) == len(now.rows)
            assert {row[0]: row for row in held} == self.expected(now.rows)
            for former in former_states:
                found = pinned.feed(listed, listed[:1], former.version)
                if isinstance(found, str):
                    assert former.epoch != now.epoch, found
                else:
                    self.compare(former, now, Changes(workspace, found, 1))

    def compare(self, former: State, now: State, found: Changes) -> None:
        new = self.expected(now.rows)
        changed = {id_ for id_, row in now.rows.items() if former.rows.get(id_) != row}
        assert changed <= {key for (key,) in found.rows}
        assert found.read == len(found.rows)
        assert found.rows == {key: new[key[0]] for key in found.rows}
        assert found.gone == {(id_,) for id_ in former.rows.keys() - now.rows.keys()}
        assert found.total == len(now.rows)

    def expected(self, rows: Rows) -> dict[int, tuple[Any, ...]]:
        return {id_: tuple(row.get(name) for name in self.columns) for id_, row in rows.items()}

    def made(self, ids: set[int]) -> pa.Table:
        """New rows, in the model and for the table."""
        self.step += 1
        for id_ in ids:
            values = {"id": id_, NAMES[1]: f"s{self.step}", "amount": Decimal(id_) + Decimal(self.step) / 100}
            self.rows[id_] = {**values, "extra": f"e{self.step}"} if "extra" in self.columns else values
        return self.written(ids)

    def written(self, ids: set[int]) -> pa.Table:
        schema = self.table.schema().as_arrow()
        named = dict(zip(schema.names, self.columns, strict=True))
        made = [{name: self.rows[id_].get(named[name]) for name in schema.names} for id_ in sorted(ids)]
        return pa.Table.from_pylist(made, schema=schema)

    def alive(self, ids: set[int]) -> list[int]:
        return sorted(ids & self.rows.keys())

    # -- what engines do

    def append(self, ids: set[int]) -> None:
        if new := ids - self.rows.keys():
            self.table.append(self.made(new))

    def upsert(self, ids: set[int]) -> None:
        snapshot, alive = self.table.current_snapshot(), self.alive(ids)
        if snapshot is None or snapshot.schema_id == self.table.schema().schema_id:
            self.table.upsert(self.made(ids), join_cols=["id"])
        else:  # PyIceberg would look for the columns in the schema of the snapshot
            with self.table.transaction() as transaction:
                transaction.delete(In("id", alive))
                transaction.append(self.made(ids))

    def delete(self, ids: set[int]) -> None:
        self.table.delete(In("id", self.alive(ids)))
        for id_ in self.alive(ids):
            del self.rows[id_]

    def overwrite(self, ids: set[int]) -> None:
        low = min(ids)
        for id_ in self.alive(set(range(low, low + 20))):
            del self.rows[id_]
        new = self.made({id_ for id_ in ids if id_ < low + 20})
        inside = And(GreaterThanOrEqual("id", low), LessThan("id", low + 20))
        self.table.overwrite(new, overwrite_filter=inside)

    def rewrite(self, ids: set[int]) -> None:
        if self.rows:
            self.table.overwrite(self.written(set(self.rows)))

    def put_back(self, ids: set[int]) -> None:
        """Delete rows and insert the same again, in one commit."""
        if alive := self.alive(ids):
            with self.table.transaction() as transaction:
                transaction.delete(In("id", alive))
                transaction.append(self.written(set(alive)))

    def delete_positions(self, ids: set[int]) -> None:
        """As an engine does that merges on reading."""
        found = dict[str, list[int]]()
        tasks = list(self.table.scan().plan_files())
        for task in tasks:
            path = task.file.file_path
            held = pq.read_table(path.removeprefix("file://"), columns=["id"]).column(0).to_pylist()
            gone = self.dead.get(path, set())
            found[path] = [at for at, id_ in enumerate(held) if id_ in ids and at not in gone]
        for task in tasks:
            if positions := found[task.file.file_path]:
                delete_positions(self.table, {task.file.file_path: positions}, task.file)
                self.dead.setdefault(task.file.file_path, set()).update(positions)
        for id_ in self.alive(ids):
            del self.rows[id_]

    def roll_back(self, ids: set[int]) -> None:
        known = {one.snapshot_id for one in self.table.metadata.snapshots}
        former = [one for one in self.states if one.snapshot in known]
        if former:
            to = former[min(ids) % len(former)]
            assert to.snapshot is not None
            self.table.manage_snapshots().set_current_snapshot(to.snapshot).commit()
            self.rows = {id_: dict(row) for id_, row in to.rows.items()}
            self.dead = {path: set(positions) for path, positions in to.dead.items()}

    def branch(self, ids: set[int]) -> None:
        """Rows are written on a branch, which then becomes the table."""
        snapshot = self.table.current_snapshot()
        if snapshot is not None and (new := ids - self.rows.keys()):
            name = f"b{self.step}"
            self.table.manage_snapshots().create_branch(snapshot.snapshot_id, name).commit()
            self.table.append(self.made(new), branch=name)
            self.table.manage_snapshots().set_current_snapshot(ref_name=name).commit()

    def expire(self, ids: set[int]) -> None:
        snapshot = self.table.current_snapshot()
        refs = {ref.snapshot_id for ref in self.table.refs().values()}
        old = [one.snapshot_id for one in self.table.metadata.snapshots if one.snapshot_id not in refs]
        if snapshot is not None and old:
            self.table.maintenance.expire_snapshots().by_ids(old).commit()
            self.epoch += 1

    # -- what changes the table itself

    def add_column(self, ids: set[int]) -> None:
        if "extra" not in self.columns:
            with self.table.update_schema() as update:
                update.add_column("extra", StringType())
            self.columns.append("extra")
            self.epoch += 1

    def drop_column(self, ids: set[int]) -> None:
        if "extra" in self.columns:
            with self.table.update_schema() as update:
                update.delete_column("extra")
            self.columns.remove("extra")
            for rows in (self.rows, *(one.rows for one in self.states)):
                for row in rows.values():
                    row.pop("extra", None)
            self.epoch += 1

    def widen(self, ids: set[int]) -> None:
        with self.table.update_schema() as update:
            update.update_column("amount", DecimalType(18, 2))
        self.epoch += 1

    def rename(self, ids: set[int]) -> None:
        name = self.table.schema().fields[1].name
        with self.table.update_schema() as update:
            update.rename_column(name, "label" if name == "name" else "name")
        self.epoch += 1

    def partition(self, ids: set[int]) -> None:
        fields = {one.name for one in self.table.spec().fields}
        with self.table.update_spec() as update:
            if "by_amount" in fields:
                update.remove_field("by_amount")
            elif "by_name" in fields:
                update.remove_field("by_name")
                update.add_field("amount", IdentityTransform(), "by_amount")
            else:
                update.add_field(self.table.schema().fields[1].name, IdentityTransform(), "by_name")


ROWS = [
    "append",
    "upsert",
    "delete",
    "overwrite",
    "rewrite",
    "put_back",
    "delete_positions",
    "roll_back",
    "branch",
]
RARE = ["expire", "add_column", "drop_column", "widen", "rename", "partition"]
OPERATIONS = st.tuples(st.sampled_from([*ROWS, *ROWS, *RARE]), IDS)


@settings(
    max_examples=STEPS // LENGTH,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink a history takes minutes, and each is short
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(OPERATIONS, min_size=LENGTH, max_size=LENGTH))
@pytest.mark.timeout(3000)
def test_every_pair_of_versions_of_a_random_history(operations: list[tuple[str, set[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(Shop(Path(folder)))
        for name, ids in operations:
            getattr(history, name)(ids)
            history.note()
