"""Looks for suppressed keys wherever retl may have them: at the target, in run files, in rows of the ledger.

It needs no key and writes nothing: it compares digests, so it also finds a person whom a restored backup
brought back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from retl.engine import held, suppression
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.ledger import ErasureRow, Ledger
from retl.run import target
from retl.run.erase import bind, files_of, seal, way
from retl.run.job import Job
from retl.run.mart import Mapped
from retl.run.run import new_run
from retl.values.suppressed import Suppressed


@dataclass(frozen=True)
class Verified:
    """How many suppressed keys are where none may be: in run files (by name), in rows of the ledger, and at
    the target (None: it cannot be listed). `unsealed`: erasures whose proof is not the one in their run."""

    suppressed: int
    files: Mapping[str, int]
    rows: int
    target: int | None
    unfinished: Sequence[str] = ()
    unsealed: Sequence[str] = ()

    @property
    def faults(self) -> list[str]:
        found = [f"{number} suppressed keys in the run file {name}" for name, number in self.files.items()]
        if self.rows:
            found.append(f"{self.rows} suppressed keys in rows of the ledger")
        if self.target:
            found.append(f"{self.target} suppressed keys are at the target again: `retl erase --again`")
        found += [
            f"erasure {one} is not finished: run the same `retl erase` again" for one in self.unfinished
        ]
        return found + [f"the proof of erasure {one} is not the one in its run" for one in self.unsealed]


def verify(job: Job) -> Verified:
    """Look for the suppressed keys of a sync wherever it may have them. It needs no key: it compares digests.
    Writes nothing."""
    ledger, sync = job.ledger, job.sync.name
    with private_directory() as folder, Workspace(folder, job.stop) as workspace, ExitStack() as hold:
        run = new_run(job)
        mapped = bind(job, run, workspace).mapped
        field_map, suppressed, listed = _list(job, run, mapped, workspace, hold)
        there = suppression.count(workspace, field_map, suppressed, held.SCANNED) if listed else None
        files = {}
        for one in files_of(ledger, sync, folder):
            if one.kind != "answers":
                rows = f"(SELECT key FROM {one.rows(workspace)} WHERE key IS NOT NULL)"
                files[one.name] = suppression.count(workspace, field_map, suppressed, rows)
        workspace.load("ledger_keys", {"key": "VARCHAR"}, ((key,) for key in ledger.keys_in_rows(sync)))
        rows_of_ledger = suppression.count(workspace, field_map, suppressed, "ledger_keys")
    mine = ledger.erasures(sync)
    finished = [one for one in mine if one.status in ("erased", "not_erasable")]
    return Verified(
        len(suppressed.digests),
        {name: number for name, number in files.items() if number},
        rows_of_ledger,
        there,
        [one.erasure_id for one in mine if one.status == "open"],
        [one.erasure_id for one in finished if not _sealed(ledger, one)],
    )


def back(job: Job) -> list[str] | None:
    """The suppressed keys that the target has; None if it cannot be listed. Writes nothing."""
    with private_directory() as folder, Workspace(folder, job.stop) as workspace, ExitStack() as hold:
        run = new_run(job)
        mapped = bind(job, run, workspace).mapped
        field_map, suppressed, listed = _list(job, run, mapped, workspace, hold)
        return suppression.found(workspace, field_map, suppressed, held.SCANNED) if listed else None


def _list(
    job: Job, run: Run, mapped: Mapped, workspace: Workspace, hold: ExitStack
) -> tuple[FieldMap, Suppressed, bool]:
    """Create held.SCANNED, if the target can be listed and deletes rows; how it compares keys; which are
    suppressed."""
    destination, field_map = target.visit(job, run, mapped, None, hold).destination, mapped.field_map
    if destination is not None and destination.folds:
        field_map = replace(field_map, folds=destination.folds)
    listed = destination is not None and job.target.scannable and way(job) == "delete"
    if destination is not None and listed:
        held.load_scan(workspace, field_map, destination.scan())
    return field_map, job.ledger.suppressed(job.sync.name, mapped.capabilities.object, job.siblings), listed


def _sealed(ledger: Ledger, erasure: ErasureRow) -> bool:
    run = ledger.run(erasure.run_id) if erasure.run_id else None
    return bool(run and run.counts.get("erasure", {}).get("proof") == seal(erasure.proof))
