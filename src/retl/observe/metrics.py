"""Metrics of every sync, from the ledger, in the text format of Prometheus.

The file is for node_exporter's textfile collector. It is always complete: syncs of this invocation with their
results, all others with their last run in the ledger. It contains names and counts, never a key or a row
value. A file that cannot be written is a warning and never fails a run.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from retl import __version__
from retl.observe import log
from retl.observe.summary import DELETES, KINDS

STATUSES = (
    "NEVER",
    "RUNNING",
    "SUCCESS",
    "SUCCESS_WITH_REJECTS",
    "FAILED",
    "REFUSED",
    "INTERRUPTED",
    "KILLED",
    "ABANDONED",
    "BLOCKED",
    "PAUSED",
)
MODE = 0o644  # the collector runs as another user

Sample = tuple[Mapping[str, str], float | int]


class LastRun(Struct, frozen=True):
    """The newest run of a sync that has counts."""

    started_at: datetime
    finished_at: datetime | None
    counts: Mapping[str, Any] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)


class Vitals(Struct, frozen=True):
    """The metrics of one sync; times are on the ledger's clock."""

    sync: str
    status: str
    enabled: bool
    open_rejects: int
    in_doubt: int
    last_success: datetime | None = None
    freshness: float | None = None
    run: LastRun | None = None


class Family(Struct, frozen=True):
    """One gauge with its samples; common labels are added when it is written."""

    name: str
    help: str
    samples: Sequence[Sample]

    def lines(self, shared: Mapping[str, str]) -> Iterator[str]:
        if not self.samples:
            return
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} gauge"
        for labels, value in self.samples:
            named = ",".join(f'{name}="{_escaped(text)}"' for name, text in {**shared, **labels}.items())
            yield f"{self.name}{{{named}}} {value!r}"


def text(
    vitals: Sequence[Vitals],
    *,
    exit_code: int,
    now: datetime,
    labels: Mapping[str, str],
    more: Sequence[Family] = (),
) -> str:
    """The whole file; `labels` distinguish this project's samples from others on the same machine. `more`:
    of a process that stays."""
    invocation = [
        Family("retl_build_info", "Version of retl that wrote this file.", [({"version": __version__}, 1)]),
        Family("retl_invocation_exit_code", "Exit code of the last invocation.", [({}, exit_code)]),
        Family(
            "retl_invocation_timestamp_seconds", "When the last invocation ended.", [({}, now.timestamp())]
        ),
    ]
    runs = [(one.sync, one.run) for one in vitals if one.run]
    families = [*invocation, *_states(vitals), *_runs(runs), *more]
    return "".join(f"{line}\n" for family in families for line in family.lines(labels))


def _states(vitals: Sequence[Vitals]) -> Iterator[Family]:
    def of(values: Mapping[str, float | int | None]) -> list[Sample]:
        return [({"sync": sync}, value) for sync, value in values.items() if value is not None]

    yield Family(
        "retl_sync_enabled",
        "1 unless the sync says enabled: false.",
        of({one.sync: int(one.enabled) for one in vitals}),
    )
    yield Family(
        "retl_run_status",
        "1 for the status of the sync, 0 for every other.",
        [({"sync": one.sync, "status": s}, int(s == one.status)) for one in vitals for s in STATUSES],
    )
    yield Family(
        "retl_last_success_timestamp_seconds",
        "When the last successful run ended.",
        of({one.sync: one.last_success.timestamp() if one.last_success else None for one in vitals}),
    )
    yield Family(
        "retl_freshness_seconds",
        "The sync is stale if its last success is older than this.",
        of({one.sync: one.freshness for one in vitals}),
    )
    yield Family(
        "retl_open_rejects", "Rejects still open.", of({one.sync: one.open_rejects for one in vitals})
    )
    yield Family(
        "retl_rows_in_doubt",
        "Rows sent without an answer, waiting for retl resolve.",
        of({one.sync: one.in_doubt for one in vitals}),
    )


def _runs(runs: Sequence[tuple[str, LastRun]]) -> Iterator[Family]:
    def effort(name: str) -> list[Sample]:
        return [({"sync": sync}, run.counts.get(name, 0)) for sync, run in runs]

    yield Family(
        "retl_run_start_timestamp_seconds",
        "When the last run began.",
        [({"sync": sync}, run.started_at.timestamp()) for sync, run in runs],
    )
    yield Family(
        "retl_run_duration_seconds",
        "How long the last run took.",
        [
            ({"sync": sync}, sum(run.phases.values()) or (run.finished_at - run.started_at).total_seconds())
            for sync, run in runs
            if run.finished_at
        ],
    )
    yield Family(
        "retl_run_phase_seconds",
        "How long each phase of the last run took.",
        [({"sync": s, "phase": phase}, seconds) for s, run in runs for phase, seconds in run.phases.items()],
    )
    yield Family(
        "retl_run_rows",
        "Rows of the mart by result in the last run; deleted counts keys that left the mart.",
        [({"sync": s, "kind": kind}, run.counts.get(kind, 0)) for s, run in runs for kind in KINDS],
    )
    yield Family(
        "retl_run_deletes",
        "Planned deletes of the last run, and those that were not done.",
        [
            ({"sync": s, "kind": kind}, run.counts.get("deletes", {}).get(kind, 0))
            for s, run in runs
            for kind in DELETES
        ],
    )
    yield Family("retl_run_batches", "Batches the last run sent.", effort("batches"))
    yield Family("retl_run_retries", "Attempts after a first one in the last run.", effort("retries"))


def write(path: Path, content: str) -> None:
    """Replace the file in one step, readable for everybody. An error is only logged."""
    try:
        _replace(path, content)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        log.get().warning("metrics_unwritten", code="METRICS_UNWRITTEN", file=str(path), why=why)


def _replace(path: Path, content: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):  # a rename would replace a device or link by a file
            raise OSError(None, "it exists and is not a regular file")
    # The name must not end in .prom: the collector reads all such files.
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(content)
            os.fchmod(number, MODE)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
