"""The change set: the rows of one run in the order they leave, in the form the target drinks.

A row is its position; `k0…` are its key's values, `f0…` its fields', in the order of the shape. It
hands out, it never decides.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from retl.destinations.batch import FieldsText, FieldText, KeyText, Line, Piece, Size
from retl.engine.baseline import DELTA
from retl.engine.mapping import FieldMap
from retl.engine.workspace import RUN_FILE, Workspace
from retl.model import Formats
from retl.values import csv_text, json_text
from retl.values.sql import literal

_CHUNK = 1 << 20  # bytes of CSV handed out at once
_BLOCK_BYTES = 4 << 20  # what one block of rows held in Python may weigh as JSON, roughly
_BLOCK_ROWS = 32_768  # more than a batch of the usual size
_BLOCKS_KEPT = 4


@dataclass
class ChangeSet:
    """The rows of one run in the order they leave, handed out in the form the target drinks.

    Thread-safe; nothing is made before it is asked for. `counts` by op, `ranges` of positions by phase.
    """

    workspace: Workspace
    field_map: FieldMap
    directory: Path
    ranges: Mapping[int, tuple[int, int]]
    counts: Mapping[str, int]
    table: str = "changes"
    _blocks: dict[tuple[str, int], Future[list[tuple[Any, ...]]]] = field(default_factory=dict)
    _ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "retl-rows"))
    _sizes: dict[str, int] = field(default_factory=dict)
    _lines: dict[Line, str] = field(default_factory=dict)  # as SQL
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

    def refs(self, first: int, last: int) -> Sequence[str | None]:
        return [ref for (ref,) in self._query("ref", first, last)]

    def tuples(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        fields = [f"f{i}" for i in range(len(self.field_map.shape.fields))]
        return self._query(", ".join([self._key_list, *fields]), first, last)

    def documents(self, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        return self._query(self._documents, first, last)

    def lines(self, first: int, last: int, line: Line) -> Sequence[str]:
        if line not in self._lines:
            self._lines[line] = line_sql(line, self.field_map)
        return [text for (text,) in self._query(self._lines[line], first, last)]

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
        shape = self.field_map.shape
        columns = [(f"k{i}", f.type) for i, f in enumerate(shape.key)]
        if not delete:
            columns += [(f"f{i}", f.type) for i, f in enumerate(shape.fields)]
        listed = ", ".join(f"{csv_text.csv_sql(t, name)} AS {name}" for name, t in columns)
        listed = f"pos - {first} AS pos, {listed}" if numbered else listed
        texts = ", ".join(name for name, t in columns if csv_text.is_text(t))
        quote = f", FORCE_QUOTE ({texts})" if texts else ""
        path = self.directory / f"lane-{os.getpid()}-{first}.csv"
        cursor = self.workspace.cursor()
        cursor.execute(
            f"COPY (SELECT {listed} FROM {self.table} WHERE pos BETWEEN {first} AND {last})"
            f" TO {literal(str(path))} (FORMAT csv, HEADER false, NULLSTR ''{quote})"
        )
        with path.open("rb") as file:
            path.unlink()
            while chunk := file.read(_CHUNK):
                yield chunk

    def samples(self, count: int) -> list[tuple[int, str, str]]:
        """(position, op, key) of the first rows."""
        return self.workspace.run(f"SELECT pos, op, key FROM {self.table} ORDER BY pos LIMIT {count}")

    def texts(self, positions: Iterable[int]) -> dict[int, tuple[str, str, str | None]]:
        """Per position: op, key as text, hash in hex."""
        listed = ", ".join(str(int(p)) for p in positions) or "-1"
        rows = self.workspace.run(
            f"SELECT pos, op, key, lower(hex(hash)) FROM {self.table} WHERE pos IN ({listed})"
        )
        return {pos: (op, key, digest) for pos, op, key, digest in rows}

    def digest(self) -> str:
        """Names this change set: the same rows, operations and values in any order have the same digest."""
        row = "md5_number(concat_ws('/', op, hex(encode(key)), coalesce(hex(hash), '')))"
        found = self.workspace.one(
            f"SELECT count(*), bit_xor({row}), coalesce(sum(CAST({row} % 1000000007 AS BIGINT)), 0)"
            f" FROM {self.table}"
        )
        return sha256("/".join(map(str, found)).encode()).hexdigest()

    def write_delta(self, path: Path) -> None:
        """The durable trace of what this run may touch: no payload, one row per candidate, for us alone.

        Batches are cut while they are sent, and halved where the target refuses one: their numbers are
        not known yet. Nobody asked the target what it holds: `seen` is not known either.
        """
        path.touch(mode=0o600)
        self.workspace.run(
            'COPY (SELECT CAST(0 AS INTEGER) AS "partition", CAST(NULL AS BIGINT) AS batch,'
            " CAST(pos AS BIGINT) AS row, op, key, hash, coalesce(owned, false) AS owned, ref,"
            " CAST(NULL AS BLOB) AS seen FROM changes)"
            f" TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{DELTA}'}})"
        )

    @cached_property
    def _documents(self) -> str:
        return f"{self._key_list}, {document_sql(self.field_map)}"

    @cached_property
    def _key_list(self) -> str:
        return ", ".join(f"k{i}" for i in range(len(self.field_map.shape.key)))

    def _query(self, columns: str, first: int, last: int) -> Sequence[tuple[Any, ...]]:
        """A slice of one ordered stream. A query costs about 3.5 ms, more than a small batch, so rows
        come in aligned blocks that weigh a few megabytes, and the next one is made while this is sent."""
        with self._lock:
            size = self._block_rows(columns)
            if last - first + 1 >= size:
                return self._fetch(columns, first, last)
            rows: list[tuple[Any, ...]] = []
            for number in range(first // size, last // size + 1):
                block = self._block(columns, number, size)
                if (number + 1) * size < len(self):
                    self._block(columns, number + 1, size)
                start = number * size
                rows += block.result()[max(first - start, 0) : last - start + 1]
            return rows

    def _block(self, columns: str, number: int, size: int) -> Future[list[tuple[Any, ...]]]:
        if (columns, number) not in self._blocks:
            while len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.pop(next(iter(self._blocks)))
            first = number * size
            self._blocks[columns, number] = self._ahead.submit(self._fetch, columns, first, first + size - 1)
        return self._blocks[columns, number]

    def _fetch(self, columns: str, first: int, last: int) -> list[tuple[Any, ...]]:
        return (
            self.workspace.cursor()
            .execute(f"SELECT {columns} FROM {self.table} WHERE pos BETWEEN {first} AND {last} ORDER BY pos")
            .fetchall()
        )

    def _block_rows(self, columns: str) -> int:
        if columns not in self._sizes:
            weight = (
                self.workspace.cursor()
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
    fields = field_map.shape.fields
    names = [literal(_json_name(one.name)) for one in fields]
    texts = [_field_sql(field_map, i) for i in range(len(fields))]
    if all(one.nulls == "clear" for one in fields):  # one concat is three times as fast as a list
        members = ", ',', ".join(f"{name}, {text}" for name, text in zip(names, texts, strict=True))
        return f"concat('{{', {members}, '}}')" if members else "'{}'"
    kept = ", ".join(
        f"CASE WHEN f{i} IS NOT NULL OR {one.nulls == 'clear'} THEN {name} || {text} END"
        for i, (one, name, text) in enumerate(zip(fields, names, texts, strict=True))
    )
    return f"'{{' || array_to_string(list_filter([{kept}], lambda m: m IS NOT NULL), ',') || '}}'"


def line_sql(line: Line, field_map: FieldMap) -> str:
    """SQL of what a line says of a change; never NULL."""

    def piece(one: Piece) -> str:
        match one:
            case KeyText(index, "json"):
                return json_text.json_sql(field_map.shape.key[index].type, f"k{index}", Formats())
            case KeyText(index):
                return f"url_encode(CAST(k{index} AS VARCHAR))"
            case FieldText(index):
                return _field_sql(field_map, index)
            case FieldsText():
                return document_sql(field_map)
            case Size(of):
                return f"strlen({line_sql(of, field_map)})"
            case str():
                return literal(one)

    return f"concat({', '.join(map(piece, line))})"


def _field_sql(field_map: FieldMap, index: int) -> str:
    kind = field_map.shape.fields[index].type
    return json_text.json_sql(kind, f"f{index}", field_map.formats, field_map.timezone)


def _json_name(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) + ":"
