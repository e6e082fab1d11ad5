"""What the target returned with each batch: files of a run that stand beside its delta.

A destination puts digests in bulk (`Returns`), batch by batch, from several lanes. They become one Parquet
file per group of acknowledged batches, which must be durable before the group is acknowledged. Rows without
an answer, and rows of batches that were never acknowledged, have no digests: their `seen` is unknown. The
file is specified in docs/formats.md.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from retl.destinations.batch import Batch
from retl.engine.workspace import RUN_FILE, Workspace
from retl.values.sql import literal

ANSWERS = "answers 1"  # the format, as files record it


@dataclass
class Answers:
    """The returns of one run. Thread-safe."""

    workspace: Workspace
    run_id: str
    _files: dict[tuple[int, int], Path] = field(default_factory=dict)  # by first and last position
    _numbers: count[int] = field(default_factory=count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def digests(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        with self._lock:
            path = self.workspace.directory / f"returned-{next(self._numbers)}.csv"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(chunks)
        with self._lock:
            former = self._files.get((batch.first, batch.last))
            self._files[batch.first, batch.last] = path
        if former is not None:
            former.unlink()

    def collect(self, batches: Sequence[Batch], number: int) -> Path | None:
        """Write what was returned with these batches, or with parts of them, as file `number` of the run.
        None if there is nothing."""
        with self._lock:
            spans = [
                span
                for span in self._files
                if any(one.first <= span[0] and span[1] <= one.last for one in batches)
            ]
            taken = {span: self._files.pop(span) for span in spans}
        filled = {span: path for span, path in taken.items() if path.stat().st_size}
        path = self.workspace.directory / f"{self.run_id}.answers-{number:06}.parquet"
        if filled:
            self._write(filled, path)
        for one in taken.values():
            one.unlink()
        return path if filled else None

    def _write(self, filled: dict[tuple[int, int], Path], path: Path) -> None:
        path.touch(mode=0o600)
        firsts = ", ".join(f"{literal(str(one))}: {first}" for (first, _), one in filled.items())
        files = ", ".join(literal(str(one)) for one in filled.values())
        rows = (
            f"SELECT MAP {{{firsts}}}[filename] + row AS row, unhex(substr(seen, 3)) AS seen"
            f" FROM read_csv([{files}], columns = {{'row': 'BIGINT', 'seen': 'VARCHAR'}}, header = false,"
            " delim = ',', quote = '\"', auto_detect = false, filename = true)"
        )
        self.workspace.rows(
            self.workspace.cursor(),
            f"COPY (SELECT row, last(seen) AS seen FROM ({rows}) GROUP BY row ORDER BY row)"
            f" TO {literal(str(path))} ({RUN_FILE}, KV_METADATA {{retl: '{ANSWERS}'}})",
        )
