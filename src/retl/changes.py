"""Freeze, diff, batches: mart × baseline → change set.

Three tables in the spool: `mart` (the frozen rows), `rows` (each row's key, fault and hash) and
`changes` (what would leave, in the order it would leave). A row is its position in the change set.
Nothing here knows a target, and nothing here is kept after the run.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from retl import values
from retl.batch import Batch, Operation
from retl.contract import Contract
from retl.mapping import FieldMap, compared
from retl.spool import Spool
from retl.values import literal, quoted

FRESH, OWED, DELETES = 0, 1, 2  # phases of a change set; a batch never spans two
_CHUNK = 1 << 20  # bytes of CSV handed out at once
_BLOCK_BYTES = 4 << 20  # what one block of rows held in Python may weigh as JSON, roughly
_BLOCK_ROWS = 4096
_BLOCKS_KEPT = 4
_GONE = "FROM baseline b WHERE b.owned AND b.key NOT IN (SELECT key FROM rows WHERE key IS NOT NULL)"
_JUDGED_AT_ONCE = 10_000  # rows that become Python objects at a time


@dataclass(frozen=True)
class Selection:
    """Which rows a run is about, beyond what changed."""

    full: bool = False
    limit: int | None = None
    keys: tuple[str, ...] = ()
    where: str | None = None

    @property
    def partial(self) -> bool:
        """A read that says nothing about absent rows."""
        return bool(self.keys) or self.where is not None

    @property
    def forced(self) -> bool:
        """The rows are sent whether they changed or not."""
        return self.full or self.partial


@dataclass(frozen=True)
class Strategy:
    """What makes a row a candidate, and what absence means."""

    everything: bool  # every row, changed or not
    absence: bool  # a key that left the mart is gone
    once: bool  # append: a key in the baseline is never sent again
    hold_unknown: bool  # a row nobody knows about is not sent again
    refresh_before: datetime | None = None  # confirmed before this: send again, it would expire


@dataclass(frozen=True)
class Reject:
    """One row that will not be delivered, with its reason (which holds no row values)."""

    key: str
    hash: str | None
    stage: Literal["key", "contract", "target"]
    code: str
    reason: str
    column: str | None = None


def select(spool: Spool, field_map: FieldMap, selection: Selection) -> int:
    """Drop from the frozen mart what the selection leaves out; returns the rows that stay."""
    conditions = []
    if selection.keys:
        wanted = ", ".join(literal(key) for key in selection.keys)
        conditions.append(f"{field_map.key} IN ({wanted})")
    if selection.where is not None:
        conditions.append(f"({selection.where}\n)")
    if conditions:
        spool.run(f"DELETE FROM mart WHERE NOT coalesce({' AND '.join(conditions)}, false)")
    count: int = spool.one("SELECT count(*) FROM mart")[0]
    return count


def fingerprint(spool: Spool, field_map: FieldMap, clears: str, salt: str) -> None:
    """Make `rows`: per frozen row its key as text, the CODE of a key fault or NULL, the hash of what
    would be sent, and whether the contract surely accepts it."""
    row_hash = values.hash_sql(compared(field_map), salt)
    spool.run(
        f'CREATE TABLE rows AS SELECT "retl row" AS row, {field_map.key} AS key,'
        f" {field_map.key_fault} AS fault, {row_hash} AS hash, {clears} AS sure FROM mart"
    )
    spool.run(
        "UPDATE rows SET fault = 'KEY_DUPLICATE' WHERE fault IS NULL AND key IN"
        " (SELECT key FROM rows WHERE fault IS NULL GROUP BY key HAVING count(*) > 1)"
    )


def diff(spool: Spool, strategy: Strategy) -> None:
    """Make `candidates` (row, key, op, hash, sure, owned, ref) from `rows` × `baseline`. `op` is insert,
    update, refresh, or why the row is no candidate: skipped, in_doubt. Unchanged rows are left out."""
    known = "b.key IS NOT NULL"
    if strategy.once:
        op = f"CASE WHEN NOT {known} THEN 'insert' WHEN b.hash IS NULL THEN 'in_doubt'"
        op += " WHEN b.hash <> r.hash THEN 'skipped' ELSE 'unchanged' END"
    else:
        op = f"CASE WHEN NOT {known} THEN 'insert'"
        if strategy.hold_unknown:
            op += " WHEN b.hash IS NULL THEN 'in_doubt'"
        op += " WHEN true" if strategy.everything else " WHEN b.hash IS DISTINCT FROM r.hash"
        op += " THEN 'update'"
        if strategy.refresh_before is not None:
            op += f" WHEN b.at < {literal(strategy.refresh_before.isoformat())}::TIMESTAMPTZ THEN 'refresh'"
        op += " ELSE 'unchanged' END"
    spool.run(
        "CREATE TABLE candidates AS SELECT * FROM ("
        f"SELECT r.row, r.key, {op} AS op, r.hash, r.sure, b.owned, b.ref"
        " FROM rows r LEFT JOIN baseline b ON b.key = r.key WHERE r.fault IS NULL"
        ") WHERE op <> 'unchanged'"
    )


def judge(spool: Spool, contract: Contract, table: str = "candidates") -> None:
    """Let Pydantic decide the candidates that SQL did not clear; make `rejects` of them and of the key
    faults, and take them out of the candidates."""
    columns = {"row": "BIGINT", "stage": "VARCHAR", "code": "VARCHAR", "reason": "VARCHAR", "col": "VARCHAR"}
    spool.load("verdicts", columns, _verdicts(spool, contract, table))
    faults = "CASE fault " + " ".join(f"WHEN '{c}' THEN {literal(t)}" for c, t in KEY_FAULTS.items()) + " END"
    spool.run(
        "CREATE TABLE rejects AS "
        f"SELECT row, coalesce(key, '') AS key, hash, 'key' AS stage, fault AS code, {faults} AS reason,"
        " NULL::VARCHAR AS col FROM rows WHERE fault IS NOT NULL"
        " UNION ALL SELECT v.row, r.key, r.hash, v.stage, v.code, v.reason, v.col"
        " FROM verdicts v JOIN rows r USING (row)"
    )
    spool.run(f"DELETE FROM {table} WHERE row IN (SELECT row FROM verdicts)")


KEY_FAULTS = {
    "KEY_NULL": "a key column is NULL",
    "KEY_BLANK": "a key column is blank",
    "KEY_DUPLICATE": "the key stands in the mart more than once",
    "KEY_TYPE": "a key value does not fit the key's type",
}


def _verdicts(spool: Spool, contract: Contract, table: str) -> Iterator[tuple[Any, ...]]:
    names = list(contract.columns)
    listed = ", ".join(f"m.{quoted(name)}" for name in names)
    cursor = spool.cursor()
    cursor.execute(
        f'SELECT c.row, {listed} FROM {table} c JOIN mart m ON m."retl row" = c.row'
        " WHERE NOT c.sure AND c.op NOT IN ('skipped', 'in_doubt') ORDER BY c.row"
    )
    while chunk := cursor.fetchmany(_JUDGED_AT_ONCE):
        spool.stop.check()
        verdicts = contract.judge([dict(zip(names, row[1:], strict=True)) for row in chunk])
        for row, verdict in zip(chunk, verdicts, strict=True):
            if verdict is not None:
                yield (row[0], "contract", verdict.code, verdict.reason, verdict.column)


def assemble(
    spool: Spool,
    field_map: FieldMap,
    *,
    absence: bool,
    owed: Iterable[str],
    limit: int | None,
    directory: Path,
) -> ChangeSet:
    """Make `changes`: the candidates with their payload in the order they leave (rows whose last
    refusal came from the target go last, deletes after everything), and the object that hands it out."""
    keys = [f"k{i}" for i in range(len(field_map.shape.key))]
    key_types = [f.type for f in field_map.shape.key]
    spool.load("owed", {"key": "VARCHAR"}, ((key,) for key in owed))
    order = ", ".join(["phase", *keys])
    parts = [
        "SELECT CASE WHEN c.key IN (SELECT key FROM owed) THEN 1 ELSE 0 END AS phase, c.op, c.key, c.hash,"
        f" c.owned, c.ref, {field_map.payload} FROM candidates c JOIN mart ON"
        " mart.\"retl row\" = c.row WHERE c.op IN ('insert', 'update', 'refresh')"
    ]
    if absence:
        values_of_key = ", ".join(
            f"{values.key_value_sql(key_types, i, 'b.key')} AS {name}" for i, name in enumerate(keys)
        )
        nothing = "".join(f", NULL AS f{i}" for i in range(len(field_map.shape.fields)))
        parts.append(
            f"SELECT 2 AS phase, 'delete' AS op, b.key, NULL AS hash, b.owned, b.ref, {values_of_key}{nothing}"
            f" {_GONE}"
        )
    top = f" LIMIT {limit}" if limit is not None else ""
    spool.run(
        "CREATE TABLE changes AS SELECT row_number() OVER () - 1 AS pos, * FROM"
        f" (SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {order}{top})"
    )
    counted = spool.run(
        "SELECT phase, op, count(*), min(pos), max(pos) FROM changes GROUP BY ALL ORDER BY 1, 2"
    )
    ranges: dict[int, tuple[int, int]] = {}
    counts: dict[str, int] = {}
    for phase, op, number, first, last in counted:
        low, high = ranges.get(phase, (first, last))
        ranges[phase] = (min(low, first), max(high, last))
        counts[op] = counts.get(op, 0) + number
    return ChangeSet(spool, field_map, directory, ranges, counts)


@dataclass
class ChangeSet:
    """The rows of one run in the order they leave, handed out in the form the target drinks.

    Thread-safe; nothing is made before it is asked for. `counts` by op, `ranges` of positions by phase.
    """

    spool: Spool
    field_map: FieldMap
    directory: Path
    ranges: Mapping[int, tuple[int, int]]
    counts: Mapping[str, int]
    table: str = "changes"
    _blocks: dict[tuple[str, int], list[tuple[Any, ...]]] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def cut(self, phase: int, size: int) -> Iterator[tuple[int, int]]:
        """First and last position of each batch of a phase."""
        if phase in self.ranges:
            low, high = self.ranges[phase]
            for first in range(low, high + 1, size):
                yield first, min(first + size - 1, high)

    def keys(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(self._key_list, first, last)

    def tuples(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        fields = [f"f{i}" for i in range(len(self.field_map.shape.fields))]
        return self._query(", ".join([self._key_list, *fields]), first, last)

    def documents(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(f"{self._key_list}, {document_sql(self.field_map)}", first, last)

    def csv(self, first: int, last: int, *, delete: bool) -> Iterator[bytes]:
        shape = self.field_map.shape
        columns = [(f"k{i}", f.type) for i, f in enumerate(shape.key)]
        if not delete:
            columns += [(f"f{i}", f.type) for i, f in enumerate(shape.fields)]
        listed = ", ".join(f"{values.csv_sql(t, name)} AS {name}" for name, t in columns)
        texts = ", ".join(name for name, t in columns if values.is_text(t))
        quote = f", FORCE_QUOTE ({texts})" if texts else ""
        path = self.directory / f"lane-{os.getpid()}-{first}.csv"
        cursor = self.spool.cursor()
        cursor.execute(
            f"COPY (SELECT pos - {first} AS pos, {listed} FROM {self.table} WHERE pos BETWEEN {first} AND"
            f" {last}) TO {literal(str(path))} (FORMAT csv, HEADER false, NULLSTR ''{quote})"
        )
        with path.open("rb") as file:
            path.unlink()
            while chunk := file.read(_CHUNK):
                yield chunk

    def samples(self, count: int) -> list[tuple[int, str, str]]:
        """(position, op, key) of the first rows."""
        return self.spool.run(f"SELECT pos, op, key FROM {self.table} ORDER BY pos LIMIT {count}")

    def texts(self, positions: Iterable[int]) -> dict[int, tuple[str, str, str | None]]:
        """Per position: op, key as text, hash in hex."""
        listed = ", ".join(str(int(p)) for p in positions) or "-1"
        rows = self.spool.run(
            f"SELECT pos, op, key, lower(hex(hash)) FROM {self.table} WHERE pos IN ({listed})"
        )
        return {pos: (op, key, digest) for pos, op, key, digest in rows}

    def write_part(self, path: Path) -> None:
        """The durable trace of what this run may touch: no payload, one row per candidate."""
        path.touch(mode=0o600)
        self.spool.run(
            "COPY (SELECT pos AS row, op, key, hash, coalesce(owned, false) AS owned, ref FROM changes"
            f" ORDER BY pos) TO {literal(str(path))} (FORMAT parquet)"
        )

    @property
    def _key_list(self) -> str:
        return ", ".join(f"k{i}" for i in range(len(self.field_map.shape.key)))

    def _query(self, columns: str, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        """A slice of one ordered stream. A query costs about 3.5 ms, more than a small batch, so rows
        come in aligned blocks that weigh a few megabytes."""
        with self._lock:
            size = self._block_rows(columns)
            if last - first + 1 >= size:
                return self._fetch(columns, first, last)
            rows: list[tuple[Any, ...]] = []
            for number in range(first // size, last // size + 1):
                if (columns, number) not in self._blocks:
                    while len(self._blocks) >= _BLOCKS_KEPT:
                        self._blocks.pop(next(iter(self._blocks)))
                    self._blocks[columns, number] = self._fetch(
                        columns, number * size, (number + 1) * size - 1
                    )
                block = self._blocks[columns, number]
                start = number * size
                rows += block[max(first - start, 0) : last - start + 1]
            return rows

    def _fetch(self, columns: str, first: int, last: int) -> list[tuple[Any, ...]]:
        return (
            self.spool.cursor()
            .execute(f"SELECT {columns} FROM {self.table} WHERE pos BETWEEN {first} AND {last} ORDER BY pos")
            .fetchall()
        )

    def _block_rows(self, columns: str) -> int:
        if columns not in self._sizes:
            weight = (
                self.spool.cursor()
                .execute(
                    f"SELECT avg(strlen(to_json(row({columns})))) FROM {self.table} USING SAMPLE 500 ROWS"
                )
                .fetchall()[0][0]
            )
            self._sizes[columns] = max(1, min(_BLOCK_ROWS, int(_BLOCK_BYTES / max(weight or 1, 1))))
        return self._sizes[columns]


def document_sql(field_map: FieldMap) -> str:
    """SQL of one JSON object of the fields (not the key) of a change; NULL under `nulls: keep` is left
    out."""
    members = []
    for i, one in enumerate(field_map.shape.fields):
        text = values.json_sql(one.type, f"f{i}", field_map.formats, field_map.timezone)
        member = f"{literal(_json_name(one.name))} || {text}"
        members.append(f"CASE WHEN f{i} IS NOT NULL THEN {member} END" if one.nulls == "keep" else member)
    if not members:
        return "'{}'"
    return (
        f"'{{' || array_to_string(list_filter([{', '.join(members)}], lambda m: m IS NOT NULL), ',') || '}}'"
    )


def _json_name(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) + ":"


def rejected(spool: Spool) -> list[tuple[str, str | None]]:
    """(key, hash in hex) of every row that key or contract refused."""
    return [(key, digest) for key, digest in spool.run("SELECT key, lower(hex(hash)) FROM rejects")]


def rejects(spool: Spool, limit: int | None = None) -> list[Reject]:
    """What key and contract refused, in the order of the mart's keys."""
    top = f" LIMIT {limit}" if limit is not None else ""
    rows = spool.run(
        f"SELECT key, lower(hex(hash)), stage, code, reason, col FROM rejects ORDER BY key, row{top}"
    )
    return [Reject(*row) for row in rows]


def gone(spool: Spool) -> int:
    """How many keys of the baseline, ours to delete, the mart no longer has."""
    count: int = spool.one(f"SELECT count(*) {_GONE}")[0]
    return count


def sample(
    spool: Spool, field_map: FieldMap, count: int, confirmed_after: datetime | None, directory: Path
) -> ChangeSet:
    """Confirmed keys drawn from the baseline, as something an adapter can read by."""
    types = [f.type for f in field_map.shape.key]
    keys = ", ".join(f"{values.key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types)))
    alive = (
        f" AND at > {literal(confirmed_after.isoformat())}::TIMESTAMPTZ"
        if confirmed_after is not None
        else ""
    )
    spool.run(
        f"CREATE OR REPLACE TABLE sample AS SELECT row_number() OVER () - 1 AS pos, key, {keys} FROM"
        f" (SELECT key FROM baseline WHERE hash IS NOT NULL{alive}) USING SAMPLE {count} ROWS"
    )
    number: int = spool.one("SELECT count(*) FROM sample")[0]
    return ChangeSet(spool, field_map, directory, {}, {"delete": number}, table="sample")
