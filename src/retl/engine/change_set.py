"""The change set: the rows of one run in the order they are sent, in the form that the target needs.

A row is identified by its position; `k0…` are its key values, `f0…` its field values, in the order of the
shape. It never decides about a row.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from retl.destinations.batch import Bends, Cell, Layout, Line, Mode, Order, Tuples
from retl.engine import hash
from retl.engine.baseline import BASELINE, DELTA, DROPPED, MOVED, opened
from retl.engine.diff import CANDIDATES, UPSERTS, Ends, ends
from retl.engine.files import write_file, write_values
from retl.engine.hash import MART
from retl.engine.lines import document_sql, line_sql
from retl.engine.literals import Literals, bends_sql
from retl.engine.mapping import FieldMap
from retl.engine.succession import SUCCEEDED
from retl.engine.workspace import RUN_FILE, Workspace
from retl.errors import Failure, InvariantBroken
from retl.model import Formats
from retl.values import csv_text, json_text
from retl.values.cells import cell_sql
from retl.values.keys import key_value_sql
from retl.values.sql import literal
from retl.values.storage import storage_type

T = TypeVar("T")
CHANGES = "changes"  # pos, op, hash, owned, ref, seen, dropped, key, k0…, f0…, n0…
AGAIN = "again"  # the same columns and `place`, the position in CHANGES, of rows that are sent once more
_CHUNK = 1 << 20  # bytes of CSV per chunk
_BLOCK_BYTES = 4 << 20  # approximate size of one block of Python rows as JSON
_BLOCK_ROWS = 32_768  # more than a batch of the usual size
_BLOCKS_KEPT = 4
_NOTHING = "CAST(NULL AS VARCHAR[])"
_KNOWN = ("op", "hash", "owned", "ref", "seen", "dropped")  # of a candidate
_NEW = {"op": "'insert'", "owned": "NULL::BOOLEAN", "ref": "NULL::VARCHAR", "seen": "NULL::BLOB"}
_NEW |= {"dropped": f"NULL::{DROPPED}"}


class Phase(Struct, frozen=True):
    """Rows `first` to `last` (included) of a change set, under one mode. A batch never spans two phases."""

    mode: Mode
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def without(self, positions: Iterable[int]) -> Iterator[Phase]:
        """The phase in parts, without these positions, which are sorted."""
        first = self.first
        for position in positions:
            if first < position:
                yield replace(self, first=first, last=position - 1)
            first = position + 1
        if first <= self.last:
            yield replace(self, first=first)

    def outside(self, spans: Iterable[tuple[int, int]]) -> Iterator[Phase]:
        """The phase in parts, without these ranges of positions (first and last), which are sorted and do not
        overlap."""
        first = self.first
        for begin, end in spans:
            if first < begin <= self.last:
                yield replace(self, first=first, last=begin - 1)
            first = max(first, end + 1)
        if first <= self.last:
            yield replace(self, first=first)

    def cut(self, size: int) -> Iterator[tuple[int, int]]:
        """First and last position of each batch of `size` rows."""
        for first in range(self.first, self.last + 1, size):
            yield first, min(first + size - 1, self.last)


class ChangeSet(Struct, dict=True):
    """The rows of one run in the order they are sent, in the form that the target needs.

    Thread-safe; everything is computed when it is needed. `counts` by op. `parted`: only some positions have
    rows here, those of one share of the keys.
    """

    workspace: Workspace
    field_map: FieldMap
    phases: tuple[Phase, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    table: str = CHANGES
    succeeds: bool = False  # rows that other keys leave the baseline with: see `succession`
    parted: bool = False
    _blocks: dict[tuple[str, int], Future[list[tuple[Any, ...]]]] = field(default_factory=dict)
    _ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "retl-rows"))
    _sizes: dict[str, int] = field(default_factory=dict)
    _lines: dict[Line, str] = field(default_factory=dict)  # as SQL
    _orders: dict[Order, str] = field(default_factory=dict)  # tables
    _bent: dict[str, list[tuple[int]]] = field(default_factory=dict)  # positions, by the SQL that found them
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def keys(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(self._key_list, first, last)

    def refs(self, first: int, last: int) -> Sequence[str | None]:
        return [ref for (ref,) in self._query("ref", first, last)]

    def tuples(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        fields = [f"f{i}" for i in range(len(self.field_map.shape.fields))]
        return self._query(", ".join([self._key_list, *fields]), first, last)

    def cells(self, first: int, last: int, cells: tuple[Cell, ...]) -> Sequence[tuple[Any, ...]]:
        shape = self.field_map.shape
        columns = [(f"k{i}", f.type) for i, f in enumerate(shape.key)]
        columns += [(f"f{i}", f.type) for i, f in enumerate(shape.fields)]
        pairs = zip(columns, cells, strict=False)
        return self._query(", ".join(cell_sql(t, cell, name) for (name, t), cell in pairs), first, last)

    def literals(self, first: int, last: int, tuples: Tuples, most: int) -> Iterator[bytes]:
        return self._literals.pieces(first, last, tuples, most)

    @cached_property
    def _literals(self) -> Literals:
        shape = self.field_map.shape
        return Literals(self.workspace, self.table, shape, len(self), self._block_rows, self._ahead)

    def bent(self, first: int, last: int, bends: Mapping[int, Bends]) -> Sequence[int]:
        """Asked once for all rows: hardly any bend, and a query takes longer than to look at a batch."""
        which = bends_sql(self.field_map.shape, bends)
        with self._lock:
            if which not in self._bent:
                asked = f"SELECT pos FROM {self.table} WHERE {which} ORDER BY pos"
                self._bent[which] = self.workspace.rows(self.workspace.cursor(), asked)
            return [pos - first for (pos,) in _between(self._bent[which], first, last)]

    def documents(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(self._documents, first, last)

    def lines(self, first: int, last: int, line: Line) -> Sequence[str]:
        return [text for (text,) in self._query(self._line(line), first, last)]

    def tuples_of(self, first: int, last: int, lines: tuple[Line, ...]) -> Sequence[tuple[str, ...]]:
        return self._query(", ".join(map(self._line, lines)), first, last)

    def _line(self, line: Line) -> str:
        if line not in self._lines:
            self._lines[line] = line_sql(line, self.field_map)
        return self._lines[line]

    def seen(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(self._seen, first, last)

    def undo(self, first: int, last: int) -> Sequence[tuple[str, str | None, bytes | None]]:
        return self._query("undo, before, seen", first, last)

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
        shape = self.field_map.shape
        columns = [(f"k{i}", f.type) for i, f in enumerate(shape.key)]
        if not delete:
            columns += [(f"f{i}", f.type) for i, f in enumerate(shape.fields)]
            columns += [(f"n{i}", one.mart.type) for i, one in enumerate(shape.newest)]
        listed = ", ".join(f"{csv_text.csv_sql(t, name)} AS {name}" for name, t in columns)
        listed = f"pos - {first} AS pos, {listed}" if numbered else listed
        if shape.cautious:
            listed += ", '\\x' || hex(seen) AS seen"
        return self.copied(listed, first, last, [name for name, t in columns if csv_text.is_text(t)])

    def file(self, first: int, last: int, layout: Layout, *, delete: bool) -> Path:
        path = self.workspace.directory / f"lane-{os.getpid()}-{first}.{layout.format}"
        write_file(self.workspace, self.field_map, self.table, (first, last), path, layout, delete=delete)
        return path

    def parquet(self, first: int, last: int, *, delete: bool) -> Path:
        path = self.workspace.directory / f"lane-{os.getpid()}-{first}.parquet"
        write_values(self.workspace, self.field_map.shape, self.table, (first, last), path, delete=delete)
        return path

    def copied(self, listed: str, first: int, last: int, texts: Sequence[str]) -> Iterator[bytes]:
        """Chunks of a CSV of these columns (SQL); every value of the columns `texts` is quoted."""
        quote = f", FORCE_QUOTE ({', '.join(texts)})" if texts else ""
        path = self.workspace.directory / f"lane-{os.getpid()}-{first}.csv"
        self.workspace.rows(
            self.workspace.cursor(),
            f"COPY (SELECT {listed} FROM {self.table} WHERE pos BETWEEN {first} AND {last})"
            f" TO {literal(str(path))} (FORMAT csv, HEADER false, NULLSTR ''{quote})",
        )
        with path.open("rb") as file:
            path.unlink()
            while chunk := file.read(_CHUNK):
                yield chunk

    def samples(self, count: int) -> list[tuple[int, str, str]]:
        """(position, op, key) of the first rows."""
        return self.workspace.run(f"SELECT pos, op, key FROM {self.table} ORDER BY pos LIMIT {count}")

    def positions(self, of: Mapping[str, T]) -> dict[int, T]:
        """What is given by key, by position; keys that are not due have none."""
        if not of:
            return {}
        self.workspace.load("asked_positions", {"key": "VARCHAR"}, ((key,) for key in of))
        rows = f"SELECT pos, key FROM {self.table} WHERE key IN (SELECT key FROM asked_positions)"
        return {pos: of[key] for pos, key in self.workspace.run(rows)}

    def deletes_by_ref(self) -> dict[str, list[int]]:
        """The positions of deletes by the external id of their object, as far as it is known."""
        found: dict[str, list[int]] = {}
        if self.counts.get("delete"):
            rows = self.workspace.run(
                f"SELECT ref, pos FROM {self.table} WHERE op = 'delete' AND ref IS NOT NULL"
            )
            for ref, position in rows:
                found.setdefault(ref, []).append(position)
        return found

    def texts(self, positions: Iterable[int]) -> dict[int, tuple[str, str, str | None]]:
        """Per position: op, key as text, hash in hex."""
        listed = ", ".join(str(int(p)) for p in positions) or "-1"
        rows = self.workspace.run(
            f"SELECT pos, op, key, lower(hex(hash)) FROM {self.table} WHERE pos IN ({listed})"
        )
        return {pos: (op, key, digest) for pos, op, key, digest in rows}

    def digest(self) -> str:
        """The same rows, operations and values have the same digest in any order."""
        row = "md5_number(concat_ws('/', op, hex(encode(key)), coalesce(hex(hash), '')))"
        found = self.workspace.one(
            f"SELECT count(*), bit_xor({row}), coalesce(sum(CAST({row} % 1000000007 AS BIGINT)), 0)"
            f" FROM {self.table}"
        )
        return sha256("/".join(map(str, found)).encode()).hexdigest()

    def write_delta(self, path: Path, *, compares: bool = False) -> None:
        """Write one row per candidate of this run, without payload, to a file private to this user. A key
        that a row succeeds is another line at the row's position: it shares the row's answer.

        `batch` is NULL: batches are cut while they are sent, and halved if the target refuses one. Where it
        `compares` rows with what others did, a row that is not ours has no `owned`: no answer makes it ours.
        """
        owned = "coalesce(owned, FALSE)"
        if compares:
            owned = "CASE WHEN op = 'insert' THEN FALSE ELSE nullif(owned, FALSE) END"
        lines = (
            f"SELECT pos, op, key, hash, {owned} AS owned, ref, seen, dropped, {self._unsent} AS unsent"
            " FROM changes"
        )
        if self.succeeds:
            lines += (
                f" UNION ALL SELECT c.pos, '{MOVED}', s.key, NULL, coalesce(s.owned, FALSE), s.ref, NULL,"
                f" NULL, NULL FROM {SUCCEEDED} s"
                ' JOIN changes c ON c.key = s."by"'
            )
        write_delta(self.workspace, f"({lines})", path)

    def pick(self, positions: Iterable[int]) -> ChangeSet:
        """Some rows as a change set of its own, AGAIN, numbered from 0 in the same order. Valid until the
        next call."""
        self.workspace.load("picked", {"picked_at": "BIGINT"}, ((position,) for position in positions))
        self.workspace.run(
            f"CREATE OR REPLACE TABLE {AGAIN} AS SELECT row_number() OVER (ORDER BY pos) - 1 AS pos,"
            f" pos AS place, * EXCLUDE (pos, picked_at) FROM {self.table} JOIN picked ON pos = picked_at"
            " ORDER BY 1"
        )
        number: int = self.workspace.one(f"SELECT count(*) FROM {AGAIN}")[0]
        return type(self)(self.workspace, self.field_map, (), {"picked": number}, table=AGAIN)

    def draw(self, number: int) -> ChangeSet:
        """As `pick`, of rows that are drawn at random."""
        drawn = f"SELECT pos FROM {self.table} USING SAMPLE {int(number)} ROWS"
        return self.pick(sorted(position for (position,) in self.workspace.run(drawn)))

    def may_follow(self, order: Order, first: int, last: int) -> set[int]:
        """Positions of the rows for which another row of this change set can have the value they refer to; of
        a unique value, those that no earlier row asks for."""
        cursor = self.workspace.cursor()
        if order not in self._orders:
            self._orders[order] = f"may_follow_{len(self._orders)}"
            mine = ", ".join(self._texts(order.fields))
            upserts = f"FROM {self.table} WHERE op <> 'delete'"
            others = ", ".join(self._texts(order.refers_to))
            query = (
                f"SELECT pos {upserts} AND ({mine}) IN (SELECT ({others}) {upserts})"
                if order.refers_to
                else f"SELECT min(pos) AS pos {upserts} GROUP BY {mine}"
            )
            cursor.execute(f"CREATE TABLE {self._orders[order]} AS {query} ORDER BY pos")
        found = f"SELECT pos FROM {self._orders[order]} WHERE pos BETWEEN {first} AND {last}"
        return {pos for (pos,) in cursor.execute(found).fetchall()}

    def _texts(self, names: Sequence[str]) -> list[str]:
        """SQL of fields as texts, because a field and the key it refers to may have different types."""
        shape = self.field_map.shape
        columns = {one.name: f"f{i}" for i, one in enumerate(shape.fields)}
        columns |= {one.name: f"k{i}" for i, one in enumerate(shape.key)}
        return [f"CAST({columns[name]} AS VARCHAR)" for name in names]

    @property
    def _unsent(self) -> str:
        """SQL of the names of the fields that are not sent with a row, because they are empty."""
        kept = [
            (f"f{i}", one.name) for i, one in enumerate(self.field_map.shape.fields) if one.nulls == "keep"
        ]
        if not kept:
            return _NOTHING
        names = ", ".join(f"CASE WHEN {f} IS NULL THEN {literal(name)} END" for f, name in kept)
        present = f"list_filter([{names}], lambda name: name IS NOT NULL)"
        return f"CASE WHEN op <> 'delete' THEN {present} END"

    @cached_property
    def _documents(self) -> str:
        return f"{self._key_list}, {document_sql(self.field_map)}"

    @cached_property
    def _seen(self) -> str:
        of, zone = self.field_map.shape.newest, self.field_map.timezone
        texts = [json_text.json_sql(one.mart.type, f"n{i}", Formats(), zone) for i, one in enumerate(of)]
        return ", ".join(["seen", *(f"json_extract_string({text}, '$')" for text in texts)])

    @cached_property
    def _key_list(self) -> str:
        return ", ".join(f"k{i}" for i in range(len(self.field_map.shape.key)))

    def _query(self, columns: str, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        """A slice of one ordered stream. A query costs about 3.5 ms, more than a small batch. So rows are
        read in aligned blocks of a few megabytes, and the next block while this one is sent."""
        with self._lock:
            size = self._block_rows(columns)
            if last - first + 1 >= size:
                return self._complete(self._fetch(columns, first, last), first, last)
            rows: list[tuple[Any, ...]] = []
            for number in range(first // size, last // size + 1):
                block = self._block(columns, number, size)
                if (number + 1) * size < len(self):
                    self._block(columns, number + 1, size)
                start = number * size
                if self.parted:
                    rows += [row[1:] for row in _between(block.result(), first, last)]
                else:
                    rows += block.result()[max(first - start, 0) : last - start + 1]
            return self._complete(rows, first, last)

    def _complete(self, rows: Sequence[tuple[Any, ...]], first: int, last: int) -> Sequence[tuple[Any, ...]]:
        """The rows; InvariantBroken ROWS_LACKING if some of a share are not there."""
        if self.parted and len(rows) != last - first + 1:
            raise InvariantBroken(
                "ROWS_LACKING", f"positions {first} to {last} of the change set have {len(rows)} rows"
            )
        return rows

    def _block(self, columns: str, number: int, size: int) -> Future[list[tuple[Any, ...]]]:
        if (columns, number) not in self._blocks:
            while len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.pop(next(iter(self._blocks)))
            first = number * size
            listed = f"pos, {columns}" if self.parted else columns
            self._blocks[columns, number] = self._ahead.submit(self._fetch, listed, first, first + size - 1)
        return self._blocks[columns, number]

    def _fetch(self, columns: str, first: int, last: int) -> list[tuple[Any, ...]]:
        return self.workspace.rows(
            self.workspace.cursor(),
            f"SELECT {columns} FROM {self.table} WHERE pos BETWEEN {first} AND {last} ORDER BY pos",
        )

    def _block_rows(self, columns: str) -> int:
        if columns not in self._sizes:
            weigh = f"SELECT avg(strlen(to_json(row({columns})))) FROM {self.table} USING SAMPLE 500 ROWS"
            try:
                weight = self.workspace.rows(self.workspace.cursor(), weigh)[0][0]
            except Failure:  # values too large to weigh: one row at a time
                weight = _BLOCK_BYTES
            self._sizes[columns] = max(1, min(_BLOCK_ROWS, int(_BLOCK_BYTES / max(weight or 1, 1))))
        return self._sizes[columns]


def _between(rows: Sequence[tuple[Any, ...]], first: int, last: int) -> Sequence[tuple[Any, ...]]:
    """The rows at these positions; rows begin with their position and are sorted by it."""
    position = itemgetter(0)
    return rows[bisect_left(rows, first, key=position) : bisect_right(rows, last, key=position)]


def assemble(
    workspace: Workspace,
    field_map: FieldMap,
    *,
    write: Mode,
    retried: Iterable[str] = (),
    limit: int | None = None,
    succeeds: bool = False,
) -> ChangeSet:
    """Create CHANGES: the due candidates with their payload, in the order they are sent. Keys that the target
    rejected before (`retried`) come last, but before all deletes."""
    shape = field_map.shape
    keys = [f"k{i}" for i in range(len(shape.key))]
    types = [one.type for one in shape.key]
    plain = [one.name for one in types] == ["string"]  # the key's text is its value: stored once
    workspace.load("retried", {"key": "VARCHAR"}, ((key,) for key in retried))
    late = "0"
    if workspace.run("SELECT 1 FROM retried LIMIT 1"):
        late = f"CASE WHEN {field_map.key} IN (SELECT key FROM retried) THEN 1 ELSE 0 END"
    due = ends(workspace)
    deletes, same = due.get(("delete", None)), dict[str, str]()
    if late == "0" and not deletes and _are_new(workspace, due):
        same = {"phase": late, **_NEW}  # to sort them with each row takes a third of the time
    columns = {"phase": late, **{name: f'"retl {name}"' for name in _KNOWN}}
    stored = [name for name in columns if name not in same]
    listed = [f"{columns[name]} AS {name}" for name in stored]
    listed += [] if plain else [f"{field_map.key} AS key"]
    parts = [f"SELECT {', '.join(listed)}, {field_map.payload} FROM {_upserts(workspace, due)}"]
    if deletes:
        typed = ", ".join(f"{key_value_sql(types, i, 'key')} AS {name}" for i, name in enumerate(keys))
        nothing = "".join(f", NULL AS f{i}" for i in range(len(shape.fields)))
        nothing += "".join(f", NULL AS n{i}" for i in range(len(shape.newest)))
        parts.append(
            "SELECT 2 AS phase, op, former AS hash, owned, ref, seen, dropped,"
            f" {'' if plain else 'key, '}{typed}{nothing}"
            f" FROM {CANDIDATES} WHERE op = 'delete' AND ending IS NULL"
        )
    top = f" LIMIT {limit}" if limit is not None else ""
    workspace.run(
        "CREATE TABLE ordered AS SELECT row_number() OVER () - 1 AS pos, * FROM"
        f" (SELECT * FROM ({' UNION ALL '.join(parts)})"
        f" ORDER BY {', '.join([*({'phase'} - same.keys()), *keys])}{top})"
    )
    shown = ["pos", *(f"{same.get(name, name)} AS {name}" for name in columns)]  # shards rely on the order
    shown += [f"* EXCLUDE ({', '.join(['pos', *stored])})", *(["k0 AS key"] if plain else [])]
    workspace.run(f"CREATE VIEW {CHANGES} AS SELECT {', '.join(shown)} FROM ordered")
    counts = dict(workspace.run(f"SELECT op, count(*) FROM {CHANGES} GROUP BY op"))
    spans = workspace.run(f"SELECT phase, min(pos), max(pos) FROM {CHANGES} GROUP BY phase ORDER BY phase")
    phases = tuple(Phase("delete" if n == 2 else write, first, last) for n, first, last in spans)
    return ChangeSet(workspace, field_map, phases, counts, succeeds=succeeds)


def only(changes: ChangeSet, table: str, mode: Mode) -> ChangeSet:
    """Make CHANGES of the rows that have a key in this table, with its `op`."""
    workspace = changes.workspace
    workspace.run(
        f"CREATE TABLE remaining AS SELECT row_number() OVER (ORDER BY pos) - 1 AS pos, r.op,"
        f" c.* EXCLUDE (pos, op) FROM {CHANGES} c JOIN {table} r USING (key)"
    )
    workspace.run(f"DROP VIEW {CHANGES}")
    workspace.run("DROP TABLE ordered")
    workspace.run(f"CREATE VIEW {CHANGES} AS FROM remaining")
    counts = dict(workspace.run(f"SELECT op, count(*) FROM {CHANGES} GROUP BY op"))
    number = sum(counts.values())
    return ChangeSet(workspace, changes.field_map, (Phase(mode, 0, number - 1),) if number else (), counts)


def due_rows(workspace: Workspace, field_map: FieldMap) -> str:
    """SQL of the due rows of the mart as they would be sent, without their order: row, hash, owned, ref, key,
    k0…, f0…, n0…"""
    return (
        f'SELECT "retl row" AS row, "retl hash" AS hash, "retl owned" AS owned, "retl ref" AS ref,'
        f" {field_map.key} AS key, {field_map.payload} FROM {_upserts(workspace, ends(workspace))}"
    )


def _upserts(workspace: Workspace, due: Ends) -> str:
    """SQL of the due rows of the mart, with the columns of their candidates. If every row that is not
    rejected is an insert, no join is needed; a join takes as long as the sort."""
    # the mart's columns may have any name that does not begin with "retl "
    if _are_new(workspace, due):
        rejected = f"SELECT row FROM {CANDIDATES} WHERE ending IS NOT NULL AND row IS NOT NULL"
        every = due.get(("insert", None)) == hash.count(workspace)
        some = "" if every else f' WHERE "retl row" NOT IN ({rejected})'
        same = ", ".join(f'{sql} AS "retl {name}"' for name, sql in _NEW.items())
        return f"(SELECT *, {same} FROM {MART}{some})"
    known = 'row AS "retl at", op AS "retl op", owned AS "retl owned", ref AS "retl ref", seen AS "retl seen"'
    known += ', dropped AS "retl dropped"'
    rows = f"SELECT {known} FROM {CANDIDATES} WHERE ending IS NULL AND op IN {UPSERTS}"
    return f'{MART} JOIN ({rows}) ON "retl row" = "retl at"'


def _are_new(workspace: Workspace, due: Ends) -> bool:
    """Whether every due row of the mart is an insert."""
    kept = sum(number for (op, _), number in due.items() if op in ("insert", "none"))
    return kept == hash.count(workspace) and not due.keys() & {("update", None), ("refresh", None)}


def write_delta(workspace: Workspace, rows: str, path: Path) -> None:
    """Write a relation with pos, op, key, hash, owned, ref, seen, dropped and unsent as a delta."""
    path.touch(mode=0o600)
    workspace.run(
        'COPY (SELECT CAST(0 AS INTEGER) AS "partition", CAST(NULL AS BIGINT) AS batch,'
        " CAST(pos AS BIGINT) AS row, op, key, hash, owned, ref, CAST(seen AS BLOB) AS seen,"
        f" CAST(dropped AS {DROPPED}) AS dropped, CAST(unsent AS VARCHAR[]) AS unsent FROM {rows})"
        f" TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{DELTA}'}})"
    )


def sample(
    workspace: Workspace, field_map: FieldMap, count: int, confirmed_after: datetime | None, seed: str
) -> ChangeSet:
    """A sample of confirmed keys in the baseline, to read them in the target: the same for one seed."""
    alive = ""
    if confirmed_after is not None:
        alive = f" AND confirmed_at > {literal(confirmed_after.isoformat())}::TIMESTAMPTZ"
    there = (
        "(seen IS NULL OR (octet_length(seen) > 0 AND octet_length(seen) % 8 = 0))"  # not known to be gone
    )
    drawn = (
        f"(SELECT key FROM {BASELINE} WHERE hash IS NOT NULL AND {there}{alive}"
        f" ORDER BY hash(key, {literal(seed)}) LIMIT {count})"
    )
    rows = f"row_number() OVER () - 1 AS pos, key FROM {drawn}"
    return of_keys(workspace, field_map, "sample", rows)


def from_delta(workspace: Workspace, field_map: FieldMap, delta: Path) -> ChangeSet:
    """The candidates of an earlier run (position, key, external id, digests), to resolve its open batches."""
    newest = "".join(
        f", CAST(NULL AS {storage_type(one.mart.type)}) AS n{i}"
        for i, one in enumerate(field_map.shape.newest)
    )
    former = f"FROM {opened(workspace, delta, DELTA)} WHERE op <> '{MOVED}' ORDER BY row"
    rows = f"row AS pos, key, ref, seen{newest} {former}"
    return of_keys(workspace, field_map, "former", rows)


def of_keys(workspace: Workspace, field_map: FieldMap, table: str, rows: str) -> ChangeSet:
    """Rows that consist of a key, as `table`: from the columns (SQL) pos, key and others of a relation."""
    types = [one.type for one in field_map.shape.key]
    typed = ", ".join(f"{key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types)))
    workspace.run(f"CREATE OR REPLACE TABLE {table} AS SELECT *, {typed} FROM (SELECT {rows}) ORDER BY pos")
    number: int = workspace.one(f"SELECT count(*) FROM {table}")[0]
    phases = (Phase("delete", 0, number - 1),) if number else ()
    return ChangeSet(workspace, field_map, phases, {"delete": number}, table=table)
