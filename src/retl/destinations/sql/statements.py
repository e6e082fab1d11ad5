"""The SQL that moves one sync's batches into its table, as text, in the words of a dialect.

A batch is staged in a temporary table, then applied: UPDATE of the keys that are there, INSERT of the others.
Two plain statements instead of one upsert, because the upsert of some databases looks at every unique index,
and would write over another row. The transaction keeps others away, or makes one of both fail. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from retl.destinations.batch import Batch, Bends, Cell, Field, Shape, SoftDelete, Visit
from retl.destinations.sql.dialect import ROW, Column, Dialect, Relation, Table

MARKER = "retl_applied"
_LISTED = 1000  # numbers in one statement


class Statements:
    """The statements of one sync. `first` and `last` are row numbers inside the staged batch, from 0."""

    def __init__(self, dialect: Dialect, relation: Relation, shape: Shape, table: Table | None) -> None:
        self.dialect, self.relation, self.shape = dialect, relation, shape
        self.missing = table is None
        self.table = table or Table({})
        self.keys = [dialect.quoted(one.name) for one in shape.key]
        self.columns = [*self.keys, *(dialect.quoted(one.name) for one in shape.fields)]
        self.marker = relation.sql.removesuffix(dialect.quoted(relation.name)) + dialect.quoted(MARKER)
        self._t = f"{relation.sql} AS t"
        self._same_key = " AND ".join(
            f"t.{key} = s.{key}{self.column(one).collation}"
            for key, one in zip(self.keys, shape.key, strict=True)
        )
        self._there = f"EXISTS (SELECT 1 FROM {self._t}{dialect.locked} WHERE {self._same_key})"

    def column(self, of: Field) -> Column:
        """As the table has it, or as `create` will make it."""
        found = self.table.columns.get(self.dialect.folded(of.name))
        return found or self.dialect.made(of, key=of in self.shape.key)

    @property
    def folding(self) -> bool:
        """Whether two keys of different texts may be one row of the table."""
        return any(self.column(one).folds for one in self.shape.key if one.type.name == "string")

    @property
    def bends(self) -> dict[int, Bends]:
        """By the position in a row: which values would become other ones."""
        fields = (*self.shape.key, *self.shape.fields)
        found = ((n, self.dialect.bends(one, self.column(one))) for n, one in enumerate(fields))
        return {n: bends for n, bends in found if bends is not None}

    @property
    def cells(self) -> tuple[Cell, ...]:
        fields = (*self.shape.key, *self.shape.fields)
        return tuple(self.dialect.cell(one, self.column(one)) for one in fields)

    # --- staging

    def make_stage(self) -> list[str]:
        fields = (*self.shape.key, *self.shape.fields)
        return self.dialect.make_stage(self.relation, [self.column(one) for one in fields])

    def empty(self) -> str:
        return f"DELETE FROM {self.dialect.stage}"

    def into(self, batch: Batch, *, staged: bool) -> str:
        """An INSERT into the stage, or into the table itself, where every row should be new. Its rows are to
        follow."""
        columns = self.keys if batch.operation == "delete" else self.columns
        if staged and self.dialect.numbers:
            columns = [ROW, *columns]
        into = self.dialect.stage if staged else self.relation.sql
        return f"{self.dialect.insert} {into} ({', '.join(columns)})"

    def fill(self, batch: Batch, *, staged: bool) -> str:
        """The same for rows as SQL writes them behind VALUES."""
        return f"{self.into(batch, staged=staged)} VALUES "

    def collisions(self) -> str:
        """The numbers of the staged rows with keys that are equal in the table."""
        keys = ", ".join(
            f"{key}{self.column(one).collation}" for key, one in zip(self.keys, self.shape.key, strict=True)
        )
        counted = f"SELECT {ROW}, count(*) OVER (PARTITION BY {keys}) AS retl_count FROM {self.dialect.stage}"
        return f"SELECT {ROW} - 1 FROM ({counted}) AS s WHERE retl_count > 1"

    def take_out(self, rows: Iterable[int]) -> list[str]:
        """Statements that remove rows from the stage; some databases refuse a list of many thousands."""
        numbers = [str(row + 1) for row in rows]
        return [
            f"DELETE FROM {self.dialect.stage} WHERE {ROW} IN ({', '.join(numbers[at : at + _LISTED])})"
            for at in range(0, len(numbers), _LISTED)
        ]

    # --- applying

    def update(self, first: int, last: int) -> str | None:
        """Give the rows of the table that are not as the stage says its values; None if nothing is compared.
        It counts these rows."""
        if not any(one.compared for one in self.shape.fields):
            return None
        sets = {self.dialect.quoted(one.name): self._new(one) for one in self.shape.fields}
        rows = f"{self._between(first, last)} AND {self._same_key} AND {self._differs()}"
        return self.dialect.update(self.relation, sets, rows)

    def insert(self, first: int, last: int, *, absent: bool = True) -> str:
        """INSERT the staged rows, or only those whose keys the table lacks."""
        rows = self._between(first, last) + (f" AND NOT {self._there}" if absent else "")
        staged = ", ".join(f"s.{column}" for column in self.columns)
        return (
            f"{self.dialect.insert} {self.relation.sql} ({', '.join(self.columns)})"
            f" SELECT {staged} FROM {self.dialect.stage} AS s WHERE {rows} ORDER BY s.{ROW}"
        )

    def delete(self, first: int, last: int) -> str:
        if isinstance(self.shape.deletes, SoftDelete):
            sets = {
                self.dialect.quoted(name): self._constant(value)
                for name, value in self.shape.deletes.set.items()
            }
            return self.dialect.update(
                self.relation, sets, f"{self._between(first, last)} AND {self._same_key}"
            )
        return self.remove(first, last)

    def remove(self, first: int, last: int) -> str:
        """DELETE the rows of the table that have the keys of the staged ones."""
        return self.dialect.delete(self.relation, self.keys, self._between(first, last))

    def there(self, first: int, last: int) -> str:
        """The numbers of the staged rows whose keys the table has."""
        return (
            f"SELECT s.{ROW} - 1 FROM {self.dialect.stage} AS s"
            f" WHERE {self._between(first, last)} AND {self._there}"
        )

    def sent(self, first: int, last: int) -> str:
        """How many of these staged rows there are."""
        return f"SELECT count(*) FROM {self.dialect.stage} AS s WHERE {self._between(first, last)}"

    def due(self, first: int, last: int) -> str:
        """How many rows of the table `update` should change."""
        return (
            f"SELECT count(*) FROM {self.dialect.stage} AS s JOIN {self._t} ON {self._same_key}"
            f" WHERE {self._between(first, last)} AND {self._differs()}"
        )

    def _between(self, first: int, last: int) -> str:
        return f"s.{ROW} BETWEEN {first + 1} AND {last + 1}"

    def _new(self, field: Field) -> str:
        column = self.dialect.quoted(field.name)
        if field.only_if_empty:
            return f"COALESCE(t.{column}, s.{column})"
        return f"COALESCE(s.{column}, t.{column})" if field.nulls == "keep" else f"s.{column}"

    def _differs(self) -> str:
        """Whether a compared field is not as it would be left."""
        return f"({' OR '.join(map(self._changed, self._compared)) or '1 = 0'})"

    def _changed(self, field: Field) -> str:
        old = f"t.{self.dialect.quoted(field.name)}"
        return f"NOT {self.dialect.same(old, self._new(field), field, self.column(field))}"

    @property
    def _compared(self) -> list[Field]:
        return [one for one in self.shape.fields if one.compared]

    def _constant(self, value: Any) -> str:
        return self.dialect.literal(json.dumps(value) if isinstance(value, dict | list) else value)

    def staged(self, batch: Batch, values: str) -> str:
        """An INSERT into the stage. `values`: the rows of the batch with their numbers, as SQL has them."""
        columns = ", ".join(self.keys if batch.operation == "delete" else self.columns)
        return f"INSERT INTO {self.dialect.stage} ({ROW}, {columns}) VALUES\n{values}"

    def script(self, batch: Batch, staged: Sequence[str]) -> str:
        """The transaction of a batch, as its database's own shell takes it. `staged`: the statements that
        stage its rows."""
        last = len(batch) - 1
        steps = [*self.make_stage(), self.dialect.begins, self.mark(batch, 0, ""), *staged]
        if batch.operation == "delete":
            steps.append(self.delete(0, last))
        elif batch.mode in ("upsert", "update_only"):
            steps.append(self.update(0, last) or "")
        elif batch.mode == "replace":
            steps.append(self.remove(0, last))
        if batch.mode in ("upsert", "insert_only", "append", "replace"):
            steps.append(self.insert(0, last, absent=batch.mode != "append"))
        return "".join(f"{step};\n" for step in (*steps, "COMMIT") if step)

    # --- reading

    def read(self, fields: Sequence[Field]) -> str:
        """Number and these fields of the staged rows that the table has."""
        listed = "".join(f", t.{self.dialect.quoted(one.name)}" for one in fields)
        return f"SELECT s.{ROW} - 1{listed} FROM {self.dialect.stage} AS s JOIN {self._t} ON {self._same_key}"

    def differing(self) -> str:
        """Of the staged rows that the table has: number, and per compared field whether it differs."""
        changed = "".join(f", {_flag(self._changed(one))}" for one in self._compared)
        return (
            f"SELECT s.{ROW} - 1{changed} FROM {self.dialect.stage} AS s JOIN {self._t} ON {self._same_key}"
        )

    def scan(self) -> str:
        return f"SELECT {', '.join(f't.{key}' for key in self.keys)} FROM {self.keyed}"

    @property
    def keyed(self) -> str:
        """The rows of the table that have a key, behind FROM."""
        given = " AND ".join(f"t.{key} IS NOT NULL" for key in self.keys)
        return f"{self._t} WHERE {given}"

    def texts(self, fields: Sequence[Field]) -> list[tuple[str, str]] | None:
        """The values of key and fields, each with its text; None if one has none."""
        found = list[tuple[str, str]]()
        for one in (*self.shape.key, *fields):
            value = f"t.{self.dialect.quoted(one.name)}"
            text = self.dialect.text(value, one, self.column(one))
            if text is None:
                return None
            found.append((value, text))
        return found

    # --- creating what is missing

    def create_schema(self) -> str:
        named = self.relation.sql.removesuffix(f".{self.dialect.quoted(self.relation.name)}")
        return self.dialect.make_schema(named)

    def create_table(self) -> str:
        columns = [f"{self.dialect.quoted(one.name)} {self._ddl(one, key=True)}" for one in self.shape.key]
        columns += [f"{self.dialect.quoted(one.name)} {self._ddl(one)}" for one in self.shape.fields]
        return f"CREATE TABLE {self.relation.sql} ({', '.join([*columns, self._primary()])})"

    def _primary(self) -> str:
        return f"PRIMARY KEY ({', '.join(self.keys)})"

    def _ddl(self, field: Field, *, key: bool = False) -> str:
        return self.dialect.ddl(field.type, key=key) + (" NOT NULL" if key else "")

    def add_column(self, field: Field) -> str:
        column = f"{self.dialect.quoted(field.name)} {self.dialect.ddl(field.type, key=False)}"
        return f"ALTER TABLE {self.relation.sql} {self.dialect.add} {column}"

    def change_column(self, name: str, to: str | None) -> str:
        """Rename a column, or drop it."""
        if to is not None:
            return self.dialect.rename(self.relation, name, to)
        return f"ALTER TABLE {self.relation.sql} DROP COLUMN {self.dialect.quoted(name)}"

    def add_key(self) -> str:
        name = self.dialect.quoted(f"{self.relation.name}_retl_key")
        return f"CREATE UNIQUE INDEX {name} ON {self.relation.sql} ({', '.join(self.keys)})"

    def create_marker(self) -> str:
        text, key, number = (self.dialect.marks[kind] for kind in ("text", "key", "number"))
        columns = [f"{name} {key} NOT NULL" for name in ("state_id", "sync", "run_id", "batch")]
        columns += [f"attempt {number} NOT NULL", f"epoch {number} NOT NULL"]
        columns += [f"{name} {text} NOT NULL" for name in ("object", "storage", "state", "author")]
        columns += [f"written {number} NOT NULL", f"not_written {text} NOT NULL"]
        columns += [f"applied_at {self.dialect.now}"]
        columns += [f"PRIMARY KEY (state_id, run_id, batch, attempt){self.dialect.one_mark}"]
        return f"{self.dialect.make_marks} {self.marker} ({', '.join(columns)})"

    # --- marks: one row per batch, and per sync one row as a fence against older runs

    def mark(self, batch: Batch, attempt: int, author: str) -> str:
        """Marks the batch as applied, before it is: nobody sees that before COMMIT. Row count 0 if there is a
        mark already, or a newer run has begun."""
        fence = f"SELECT 1 FROM {self.marker} WHERE {self._fence} AND epoch > {batch.epoch}"
        row = (batch.run_id, batch.id, attempt, batch.epoch, "applied", author, len(batch))
        return f"{self._make(*row)} AND NOT EXISTS ({fence}{self.dialect.shared})"

    def note(self, batch: Batch, attempt: int, written: int, not_written: list[Any]) -> str:
        """Completes the mark of a batch of which not every row was written."""
        noted = self.dialect.literal(json.dumps(not_written))
        return (
            f"UPDATE {self.marker} SET written = {written}, not_written = {noted}"
            f" WHERE {self._one(batch.run_id, batch.id, attempt)}"
        )

    def void(self, batch: Batch, attempt: int, author: str) -> str:
        """Ensures that the attempt is never applied; row count 0 if it already has a mark."""
        return self._make(batch.run_id, batch.id, attempt, batch.epoch, "void", author, 0)

    def marked(self, batch: Batch, attempt: int, *, wait: bool = True) -> str:
        """state, author and not_written of the attempt's mark; with `wait` it waits for a transaction that
        writes it."""
        one = self._one(batch.run_id, batch.id, attempt)
        shared = self.dialect.shared if wait else ""
        return f"SELECT state, author, not_written FROM {self.marker} WHERE {one}{shared}"

    def move_fence(self, epoch: int) -> list[str]:
        """Prevents commits by runs of an older epoch; row counts 0 if a newer run has begun."""
        moved = f"object = {self._object}, storage = {self.dialect.storage(self.relation)}"
        moved += ", written = written + 1"  # some databases do not count a row that stays as it was
        return [
            f"UPDATE {self.marker} SET epoch = {epoch}, {moved} WHERE {self._fence} AND epoch <= {epoch}",
            self._make("", self.shape.sync, 0, epoch, "fence", "", 0),
        ]

    def carry(self, storage: str) -> str:
        """After a change of the columns: the marks of the table as it was hold for it as it is."""
        now, before = self.dialect.storage(self.relation), self.dialect.literal(storage)
        return (
            f"UPDATE {self.marker} SET storage = {now} WHERE object = {self._object} AND storage = {before}"
        )

    def prune(self, visit: Visit) -> str:
        """Deletes the marks of earlier runs on this table, except those that the ledger will ask for."""
        kept = ", ".join(map(self.dialect.literal, sorted({"", visit.run_id, *visit.keep})))
        sync = self.dialect.literal(self.shape.sync)
        return (
            f"DELETE FROM {self.marker} WHERE {self._state} AND sync = {sync} AND object = {self._object}"
            f" AND epoch < {visit.epoch} AND run_id NOT IN ({kept})"
        )

    def trace(self) -> str:
        """Per mark of this ledger on this table: sync, run, batch, epoch, and whether its rows are surely
        gone: the table was created again, or it is empty and only rows were added."""
        gone = f"storage <> {self.dialect.storage(self.relation)}"
        if self.missing:
            gone = "1 = 1"
        elif self.shape.write == "append":
            gone += f" OR (written > 0 AND NOT EXISTS (SELECT 1 FROM {self._t}))"
        ours = f"(state = 'applied' AND object = {self._object}) OR ({self._fence})"
        return (
            f"SELECT sync, run_id, batch, epoch, {_flag(gone)} FROM {self.marker}"
            f" WHERE {self._state} AND ({ours})"
        )

    def strangers(self) -> str:
        """How many ledgers have delivered to this table, whether this one has, and whether another has since
        this one last did."""
        ours, others = (
            f"max(CASE WHEN {one} THEN applied_at END)" for one in (self._state, f"NOT {self._state}")
        )
        return (
            f"SELECT count(DISTINCT state_id), coalesce(max({_flag(self._state)}), 0),"
            f" {_flag(f'{others} > {ours}')} FROM {self.marker}"
            f" WHERE object = {self._object}"
        )

    @property
    def _object(self) -> str:
        return self.dialect.literal(self.relation.identity)

    @property
    def _state(self) -> str:
        return f"state_id = {self.dialect.literal(self.shape.state_id)}"

    @property
    def _fence(self) -> str:
        return self._one("", self.shape.sync, 0)

    def _one(self, run: str, batch: str, attempt: int) -> str:
        named = f"run_id = {self.dialect.literal(run)} AND batch = {self.dialect.literal(batch)}"
        return f"{self._state} AND {named} AND attempt = {attempt}"

    def _make(
        self, run: str, batch: str, attempt: int, epoch: int, state: str, author: str, written: int
    ) -> str:
        """INSERT a mark, unless there is one."""
        texts = [self.dialect.literal(text) for text in (self.shape.state_id, self.shape.sync, run, batch)]
        values = [*texts, str(attempt), str(epoch), self._object, self.dialect.storage(self.relation)]
        values += [self.dialect.literal(state), self.dialect.literal(author), str(written), "'[]'"]
        there = f"SELECT 1 FROM {self.marker} WHERE {self._one(run, batch, attempt)}"
        insert, absent = self.dialect.insert, f"NOT EXISTS ({there})"
        if self.dialect.insert_absent:
            insert, absent = self.dialect.insert_absent, "1 = 1"
        return (
            f"{insert} {self.marker} (state_id, sync, run_id, batch, attempt, epoch, object,"
            f" storage, state, author, written, not_written) SELECT {', '.join(values)}"
            f"{self.dialect.from_nothing} WHERE {absent}"
        )


def _flag(condition: str) -> str:
    """1 if it is true, else 0: some databases have no conditions among values."""
    return f"CASE WHEN {condition} THEN 1 ELSE 0 END"
