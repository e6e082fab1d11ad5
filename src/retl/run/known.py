"""What the ledger knows of the object that a run writes to: the baseline, the open rejects, and the ids that
other syncs learned.

It reads the ledger and builds tables of the workspace. It asks no target and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from retl.destinations.batch import Outcome
from retl.engine import baseline, mapping
from retl.engine.workspace import Workspace
from retl.ledger import BatchRow, Checkpoint, DeltaRow, Ledger, RejectRow
from retl.run.job import Job
from retl.run.mart import Mapped
from retl.run.plan import Basis


@dataclass(frozen=True)
class Known:
    """What the ledger knows about the object that the run writes. The baseline is a table now."""

    basis: Basis
    former: Mapping[str, str]  # the fingerprints of the baseline
    baseline_rows: int
    open_rejects: Sequence[RejectRow]
    known_rejects: frozenset[tuple[str, str | None]]  # (key, hash) of open and dismissed ones

    def differs(self, mapped: Mapped, name: str) -> bool:
        """Whether a fingerprint differs from the baseline's."""
        return bool(self.former) and self.former.get(name) != mapped.fingerprints[name]


def know(
    job: Job, mapped: Mapped, workspace: Workspace, resolved: Mapping[str, Outcome] = MappingProxyType({})
) -> Known:
    """Build the baseline, and the external ids of other syncs, from the ledger. `resolved` are outcomes by
    batch id that a dry run found and did not record."""
    sync, ledger = job.sync, job.ledger
    target = mapped.capabilities.object
    checkpoint, deltas = ledger.checkpoint(sync.name, target), ledger.deltas(sync.name, target)
    former = checkpoint.fingerprints if checkpoint else deltas[-1].fingerprint if deltas else {}
    restarts = bool(former) and former.get("who") != mapped.fingerprints["who"]
    _load_external_ids(job, workspace)
    kept = ([], None) if restarts else (deltas, checkpoint.snapshot if checkpoint else None)
    rows = build_baseline(ledger, workspace, kept[1], kept[0], resolved)
    open_rejects = ledger.rejects(sync.name)
    return Known(
        basis=Basis(checkpoint, tuple(deltas), _newest(ledger, checkpoint, deltas), restarts),
        former=former,
        baseline_rows=rows,
        open_rejects=open_rejects,
        known_rejects=frozenset(
            (one.key, one.hash) for one in [*open_rejects, *ledger.rejects(sync.name, "dismissed")]
        ),
    )


def build_baseline(
    ledger: Ledger,
    workspace: Workspace,
    snapshot: str | None,
    deltas: Sequence[DeltaRow],
    resolved: Mapping[str, Outcome] = MappingProxyType({}),
) -> int:
    """Build the baseline from the ledger's files and answers, with the outcomes in `resolved`; returns its
    number of rows."""

    def answers(run_id: str) -> list[BatchRow]:
        rows = ledger.batches(run_id)
        return [replace(row, outcome=resolved.get(row.batch_id, row.outcome)) for row in rows]

    folder = workspace.directory
    built = [
        baseline.Delta(ledger.get_file(one.delta, folder), one.started_at, answers(one.run_id))
        for one in deltas
    ]
    return baseline.build(workspace, ledger.get_file(snapshot, folder) if snapshot else None, built)


def _newest(
    ledger: Ledger, checkpoint: Checkpoint | None, deltas: Sequence[DeltaRow]
) -> tuple[str, str] | None:
    for delta in reversed(deltas):
        done = [b for b in ledger.batches(delta.run_id) if b.attempts and b.outcome and b.outcome.arrived]
        if done:
            return delta.run_id, done[-1].batch_id
    return checkpoint.newest if checkpoint else None


def _load_external_ids(job: Job, workspace: Workspace) -> None:
    """Load the external ids of other syncs from the ledger, one table per sync."""
    for sync, columns in {one.ref: len(one.by) for one in job.sync.refers_to.values()}.items():
        assert sync is not None
        _build_other_baseline(job.ledger, workspace, sync, job.references[sync])
        workspace.run(
            f"CREATE TABLE {mapping.external_ids(sync)} AS SELECT {mapping.external_ids_key(columns)} AS"
            f' "retl key", ref AS "retl ref" FROM {baseline.BASELINE} WHERE ref IS NOT NULL'
        )


def _build_other_baseline(ledger: Ledger, workspace: Workspace, sync: str, target: str) -> None:
    """Build the baseline of another sync. Its own run may replace the files with a new snapshot meanwhile:
    then their names are read again."""
    while True:
        checkpoint, deltas = ledger.checkpoint(sync, target), ledger.deltas(sync, target)
        try:
            build_baseline(ledger, workspace, checkpoint.snapshot if checkpoint else None, deltas)
            return
        except Exception:  # a file that is gone is a LedgerError or an error of DuckDB
            if (ledger.checkpoint(sync, target), ledger.deltas(sync, target)) == (checkpoint, deltas):
                raise
