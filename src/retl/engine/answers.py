"""What the target returned with each batch: files of a run that stand beside its delta.

A destination puts digests in bulk (`Returns`), batch by batch, from several lanes. They become one Parquet
file per group of acknowledged batches, which must be durable before the group is acknowledged. A destination
with a COMMIT keeps them before it, batch by batch: if the run dies, the next one finds them (`recovered`).
Rows without an answer have no digests: their `seen` is unknown. The files have the positions of the plan, and
are specified in docs/formats.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Protocol

from msgspec import Struct, field

from retl.destinations.batch import Batch
from retl.engine.workspace import RUN_FILE, Workspace
from retl.observe import log
from retl.values import csv_text
from retl.values.sql import literal

ANSWERS = "answers 1"  # the format, as files record it
IMAGES = "images 1"
LATEST = 10**18  # the first number of files that a run with shards makes itself: after all of theirs
_LONGEST_DIGESTS = 2 << 20  # bytes of a line
Span = tuple[int, int]  # first and last position


class Store(Protocol):
    """Makes files durable."""

    def put_file(self, name: str, path: Path) -> None: ...

    def put_returned(self, run_id: str, batch_id: str, path: Path) -> None:
        """The digests of a batch, in the place of earlier ones; only if the ledger has it, and it is open."""


class Updated(Struct, frozen=True):
    """A file of digests and of these fields as they were; `first` is the position of row 0."""

    path: Path
    first: int
    names: Sequence[str]

    @property
    def rows(self) -> str:
        """SQL of row (the position), seen and before (a JSON object of texts)."""
        texts = [f"b{n}" for n in range(len(self.names))]
        columns = {"row": "BIGINT", "seen": "VARCHAR"} | dict.fromkeys(texts, "VARCHAR")
        members = ", ".join(f"{literal(name)}, {one}" for name, one in zip(self.names, texts, strict=True))
        return (
            f"(SELECT {self.first} + row AS row, unhex(substr(seen, 3)) AS seen,"
            f" CAST(json_object({members}) AS VARCHAR) AS before"
            f" FROM {csv_text.reading([self.path], columns, _longest([self.path]))})"
        )


class Kept(Struct, frozen=True):
    """A file of images that is durable elsewhere: its digests are still to be recorded."""

    path: Path

    @property
    def rows(self) -> str:
        """SQL of row, seen and before."""
        return f"(FROM read_parquet({literal(str(self.path))}) WHERE seen IS NOT NULL)"


class Answers(Struct):
    """The returns of one run. Thread-safe.

    `numbers` are those of files with images, and `files` of files with digests: of a row that is in several,
    the highest number counts. Batches are cut from `table`, where `place` is the position of a row in the
    plan.
    """

    workspace: Workspace
    run_id: str
    table: str
    store: Store
    numbers: Iterator[int] = field(default_factory=count)
    files: Iterator[int] = field(default_factory=lambda: count(1))
    place: str = "pos"
    _images: dict[Span, list[Path]] = field(default_factory=dict)  # of attempts that are not committed
    _files: dict[Span, Path] = field(default_factory=dict)  # digests of such attempts, or of others
    _both: dict[Span, Updated] = field(default_factory=dict)  # digests and images in one file
    _kept: dict[Span, Path | Kept] = field(default_factory=dict)  # digests that are durable already
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def again(self, table: str) -> Answers:
        """The returns of rows that are sent once more, from a table of `ChangeSet.pick`, as long as it is
        there. The ledger knows no such batch: their digests are durable only when they are recorded."""
        run = self.workspace, self.run_id
        return Answers(*run, table, self.store, self.numbers, self.files, "place")

    def digests(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        path = self._put(chunks)
        with self._lock:
            former = self._files.get((batch.first, batch.last))
            self._files[batch.first, batch.last] = path
        if former is not None:
            former.unlink()

    def _put(self, chunks: Iterable[bytes]) -> Path:
        with self._lock:
            name = f"returned-{next(self.numbers)}.csv"
        return self.workspace.save(name, chunks)

    def updated(self, batch: Batch, chunks: Iterable[bytes], names: Sequence[str]) -> None:
        path = self._put(chunks)
        with self._lock:
            former = self._both.get((batch.first, batch.last))
            self._both[batch.first, batch.last] = Updated(path, batch.first, names)
        if former is not None:
            former.path.unlink()

    def images(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        path = self._put(chunks)
        with self._lock:
            self._images.setdefault((batch.first, batch.last), []).append(path)

    def keep(self, batch: Batch, *, images: bool) -> None:
        """Images: one file, which has every row of the batch with its operation and key. `before` is NULL if
        the target lacked it, `seen` are the digests after the write. A later image of a row stands for an
        earlier one of the same attempt."""
        kept = self._keep_images(batch) if images else None
        if self.place == "pos" and batch.operation != "delete":  # a deleted row has no digests
            self._keep_digests(batch, kept)
        elif kept is not None:
            kept.path.unlink()

    def _keep_digests(self, batch: Batch, kept: Kept | None) -> None:
        at = batch.first, batch.last
        with self._lock:
            told = {span: self._files.pop(span) for span in _inside(self._files, [batch])}
            gone = [self._both.pop(span).path for span in _inside(self._both, [batch])]
            former = self._kept.pop(at, None)
        text = told.pop(at) if kept is None and [*told] == [at] else self._text(batch, kept, told)
        if former is not None or text.stat().st_size:
            self.store.put_returned(self.run_id, batch.id, text)
            log.event("digests_kept", batch=batch.id, level="debug")
        with self._lock:
            self._kept[at] = kept or text  # images are read again in less time than a text
        gone += [*told.values(), *([text] if kept else []), *([_path(former)] if former else [])]
        for path in gone:
            path.unlink()

    def _text(self, batch: Batch, kept: Kept | None, told: Mapping[Span, Path]) -> Path:
        """The digests of a batch as a destination puts them, in one file."""
        rows = f"SELECT row, seen FROM {kept.rows}" if kept else _seen(told)
        path = self._put(())
        self.workspace.rows(
            self.workspace.cursor(),
            f"COPY (SELECT row - {batch.first}, concat('\\x', hex(seen)) FROM ({rows}) ORDER BY row)"
            f" TO {literal(str(path))} (FORMAT csv, HEADER false, USE_TMP_FILE false)",
        )
        return path

    def _keep_images(self, batch: Batch) -> Kept:
        with self._lock:
            taken = [path for span in _inside(self._images, [batch]) for path in self._images.pop(span)]
            number = next(self.numbers)
            told = {span: self._files[span] for span in _inside(self._files, [batch])}
            both = [self._both[span] for span in _inside(self._both, [batch])]
        path = self.workspace.directory / f"{batch.run_id}.images-{number:06}.parquet"
        self._write_images(batch, _returned(taken, told, both), path)
        for one in taken:
            one.unlink()
        self.store.put_file(path.name, path)
        log.event("images_kept", file=path.name, level="debug")
        return Kept(path)

    def forget(self, batch: Batch) -> None:
        """Drop what was put for an attempt that was not applied."""
        with self._lock:
            gone = [path for span in _inside(self._images, [batch]) for path in self._images.pop(span)]
            gone += [self._both.pop(span).path for span in _inside(self._both, [batch])]
            gone += [self._files.pop(span) for span in _inside(self._files, [batch])]
        for one in gone:
            one.unlink()

    def _write_images(self, batch: Batch, returned: str, path: Path) -> None:
        path.touch(mode=0o600)
        self.workspace.rows(
            self.workspace.cursor(),
            f"COPY (SELECT CAST(c.{self.place} AS BIGINT) AS row, c.op, c.key, r.before, r.seen"
            f" FROM {self.table} c LEFT JOIN ({returned}) r ON r.row = c.pos"
            f" WHERE c.pos BETWEEN {batch.first} AND {batch.last}"
            f" ORDER BY 1) TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{IMAGES}'}})",
        )

    def record(self, batches: Sequence[Batch]) -> None:
        """Make durable what was returned with these batches, or with parts of them; called before their
        answers are."""
        path = self.collect(batches)
        if path is not None:
            self.store.put_file(path.name, path)
            path.unlink()

    def collect(self, batches: Sequence[Batch]) -> Path | None:
        """Write what was returned with them to a new file; None if there is nothing."""
        with self._lock:
            kept = {span: self._kept.pop(span) for span in _inside(self._kept, batches)}
            told = {span: self._files.pop(span) for span in _inside(self._files, batches)}
            both = {span: self._both.pop(span) for span in _inside(self._both, batches)}
        files = [*map(_path, kept.values()), *told.values(), *(one.path for one in both.values())]
        path = None
        if any(one.stat().st_size for one in files):
            path = self.workspace.directory / f"{self.run_id}.answers-{next(self.files):06}.parquet"
            self._write(_seen({**kept, **both, **told}), path)
        for one in files:
            one.unlink()
        return path

    def _write(self, digests: str, path: Path) -> None:
        if self.place != "pos":
            rows = f"({digests}) d JOIN {self.table} c ON c.pos = d.row"
            digests = f"SELECT c.{self.place} AS row, d.seen, d.size FROM {rows}"
        _write(self.workspace, digests, path)


def recovered(workspace: Workspace, run_id: str, number: int, held: Mapping[Span, Path]) -> Path:
    """A new file of the digests that a run which died kept of these batches, and nobody has recorded."""
    path = workspace.directory / f"{run_id}.answers-{number:06}.parquet"
    _write(workspace, _seen(held), path)
    return path


def _write(workspace: Workspace, digests: str, path: Path) -> None:
    """Of a row that was sent again as a part of its batch, the part counts."""
    path.touch(mode=0o600)
    workspace.rows(
        workspace.cursor(),
        f"COPY (SELECT row, arg_min(seen, size) AS seen FROM ({digests}) GROUP BY row ORDER BY row)"
        f" TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{ANSWERS}'}})",
    )


def _path(one: Path | Kept) -> Path:
    return one if isinstance(one, Path) else one.path


def _inside(spans: Iterable[Span], batches: Sequence[Batch]) -> list[Span]:
    """The spans of these batches, or of parts of them, in their order."""
    return sorted(
        span for span in spans if any(one.first <= span[0] and span[1] <= one.last for one in batches)
    )


def _returned(images: Sequence[Path], told: Mapping[Span, Path], both: Sequence[Updated | Kept]) -> str:
    """SQL of each row once: row, before, seen. Of several images of a row the last one counts."""
    files = [one for one in images if one.stat().st_size]
    filled = {span: path for span, path in told.items() if path.stat().st_size}
    if len(both) == 1 and not (files or filled):  # the rule, and half the time
        return f"SELECT row, before, seen FROM {both[0].rows}"
    parts = [f"SELECT row, before, seen, -1 AS file FROM {one.rows}" for one in both]
    parts.append(f"SELECT row, NULL AS before, seen, 0 AS file FROM ({_digests(filled)})")
    if files:
        numbers = ", ".join(f"{literal(str(one))}: {n}" for n, one in enumerate(files))
        columns = {"row": "BIGINT", "before": "VARCHAR"}
        parts.append(
            f"SELECT row, before, NULL AS seen, MAP {{{numbers}}}[filename] AS file"
            f" FROM {csv_text.reading(files, columns, _longest(files), filename=True)}"
        )
    read = " UNION ALL ".join(parts)
    return (
        f"SELECT row, arg_max(before, file) AS before, arg_max(seen, file) AS seen FROM ({read}) GROUP BY row"
    )


def _seen(files: Mapping[Span, Path | Updated | Kept]) -> str:
    """SQL of row, seen, and the size of the span that it was put for."""
    parts = [
        f"SELECT row, seen, {last - first} AS size FROM {one.rows}"
        for (first, last), one in files.items()
        if not isinstance(one, Path)
    ]
    filled = {span: one for span, one in files.items() if isinstance(one, Path) and one.stat().st_size}
    if filled or not parts:
        parts.append(_digests(filled))
    return " UNION ALL ".join(parts)


def _longest(files: Sequence[Path]) -> int:
    """Bytes of a line at most. DuckDB takes memory for lines of the length that it is asked for."""
    return max(_LONGEST_DIGESTS, *(one.stat().st_size for one in files))


def _digests(filled: Mapping[Span, Path]) -> str:
    """SQL of row, seen, size of these files, by their first and last position."""
    if not filled:
        return "SELECT NULL::BIGINT AS row, NULL::BLOB AS seen, 0 AS size WHERE FALSE"
    firsts, sizes = (
        ", ".join(f"{literal(str(one))}: {number}" for one, number in numbers)
        for numbers in (
            [(one, first) for (first, _), one in filled.items()],
            [(one, last - first) for (first, last), one in filled.items()],
        )
    )
    columns = {"row": "BIGINT", "seen": "VARCHAR"}
    read = csv_text.reading([*filled.values()], columns, _LONGEST_DIGESTS, filename=True)
    return (
        f"SELECT MAP {{{firsts}}}[filename] + row AS row, unhex(substr(seen, 3)) AS seen,"
        f" MAP {{{sizes}}}[filename] AS size FROM {read}"
    )
