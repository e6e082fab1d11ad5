"""What the ledger knows of the object that a run writes to: the baseline, the open rejects, and the ids that
other syncs learned.

It reads the ledger and builds tables of the workspace. It asks no target and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import Outcome
from retl.engine import answers, baseline, diff, mapping
from retl.engine.baseline import Distrust
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.ledger import Checkpoint, DeltaRow, Ledger, RejectRow
from retl.observe.signals import Stop
from retl.run.job import Job
from retl.run.mart import Mapped
from retl.run.plan import Basis
from retl.run.resolve import has_doubt
from retl.run.trace import arrived
from retl.values.suppressed import Suppressed

_REMADE = "remade"  # key
_LEFT_OUT = "left_out"  # key


class Known(Struct, frozen=True):
    """What the ledger knows about the object that the run writes. The baseline is a table now."""

    object: str  # the place whose baseline it is: the run's, or another address of it
    basis: Basis
    baseline_rows: int
    open_rejects: Sequence[RejectRow]
    known_rejects: frozenset[tuple[str, str | None]]  # (key, hash) of open and dismissed ones
    distrusted: bool  # a run has distrusted rows, and they are not compacted yet
    suppressed: Suppressed  # keys that are never sent or stored again

    @property
    def former(self) -> Mapping[str, str]:
        """The fingerprints of the baseline; empty before the first run."""
        return self.basis.former

    def differs(self, mapped: Mapped, name: str) -> bool:
        """Whether a fingerprint differs from the baseline's."""
        return bool(self.former) and self.former.get(name) != mapped.fingerprints[name]


def know(
    job: Job,
    mapped: Mapped,
    workspace: Workspace,
    target: str,
    resolved: Mapping[str, Outcome] = MappingProxyType({}),
) -> Known:
    """Build the baseline of the object `target`, and the external ids of other syncs, from the ledger.
    `resolved` are outcomes by batch id that a dry run found and did not record."""
    sync, ledger = job.sync, job.ledger
    checkpoint, deltas = ledger.checkpoint(sync.name, target), ledger.deltas(sync.name, target)
    former = _former(checkpoint, deltas)
    restarts = bool(former) and former.get("who") != mapped.fingerprints["who"]
    _load_external_ids(job, workspace)
    remade = _load_remade(job, workspace, target, checkpoint) if sync.write == "update_only" else {}
    newest = _newest(ledger, checkpoint, deltas)
    basis = Basis(checkpoint, tuple(deltas), former, newest, restarts, remade)
    kept = ([], None) if restarts else (deltas, checkpoint.snapshot if checkpoint else None)
    if job.options.adopt:  # as if there were no state, except rows without an answer
        unanswered = [one for one in kept[0] if has_doubt(ledger, one)]
        runs = tuple(one.run_id for one in unanswered)
        basis = Basis(None, tuple(unanswered), {}, None, True, remade, runs)
        kept = (unanswered, None)
    rows = build_baseline(ledger, workspace, kept[1], kept[0], resolved)
    if remade:
        baseline.doubt(workspace, _REMADE)
    open_rejects = ledger.rejects(sync.name)
    refused = [*open_rejects, *ledger.rejects(sync.name, "dismissed")]
    if mapped.capabilities.whole and refused:  # the target may lack them, whatever it had before
        workspace.load(_LEFT_OUT, {"key": "VARCHAR"}, ((one.key,) for one in refused))
        baseline.doubt(workspace, _LEFT_OUT)
    return Known(
        object=target,
        basis=basis,
        baseline_rows=rows,
        open_rejects=open_rejects,
        known_rejects=frozenset((one.key, one.hash) for one in refused),
        distrusted=any(one.distrusts is not None for one in deltas),
        suppressed=ledger.suppressed(sync.name, target, job.siblings),
    )


def _former(checkpoint: Checkpoint | None, deltas: Sequence[DeltaRow]) -> Mapping[str, str]:
    """The fingerprints of the baseline. Runs that did not end well may have written rows since the
    checkpoint, with other fields: what their digests are of is known too."""
    newer = [one.fingerprint for one in deltas if checkpoint is None or one.epoch > checkpoint.epoch]
    former = checkpoint.fingerprints if checkpoint else newer[-1] if newer else {}
    known = diff.remembered(former, *newer)
    return {**former, "digests": known} if former else former


def holding(ledger: Ledger, sync: str) -> list[int]:
    """The epochs of the rollbacks that nothing took back: what they restored is held until its row changes in
    the mart."""
    runs = ledger.taken_back(sync)
    own = {run.run_id for run in runs}
    return [run.epoch for run in runs if run.of_run not in own]


def build_baseline(
    ledger: Ledger,
    workspace: Workspace,
    snapshot: str | None,
    deltas: Sequence[DeltaRow],
    resolved: Mapping[str, Outcome] = MappingProxyType({}),
) -> int:
    """Build the baseline from the ledger's files and answers, with the outcomes in `resolved`; returns its
    number of rows."""

    folder, returned = workspace.directory, ledger.answers(one.run_id for one in deltas)

    def delta(one: DeltaRow) -> baseline.Delta:
        rows = ledger.batches(one.run_id)
        files = [ledger.get_file(name, folder) for name in returned.get(one.run_id, ())]
        found = {(row.first, row.last): row.batch_id for row in rows if row.batch_id in resolved}
        held = {span: path for span, batch in found.items() if (path := ledger.returned(batch, folder))}
        if held:
            files.append(answers.recovered(workspace, one.run_id, ledger.next_answers(one.run_id), held))
        return baseline.Delta(
            ledger.get_file(one.delta, folder) if one.delta else None,
            one.started_at,
            [replace(row, outcome=resolved.get(row.batch_id, row.outcome)) for row in rows],
            one.epoch,
            Distrust(**one.distrusts) if one.distrusts is not None else None,
            files,
        )

    built = [delta(one) for one in deltas]
    return baseline.build(workspace, ledger.get_file(snapshot, folder) if snapshot else None, built)


def confirmed(ledger: Ledger, checkpoint: Checkpoint) -> int:
    """How many rows of its object the target has confirmed so far. Reads the files of the baseline."""
    deltas = ledger.deltas(checkpoint.sync, checkpoint.object)
    with private_directory() as folder, Workspace(folder, Stop()) as workspace:
        return build_baseline(ledger, workspace, checkpoint.snapshot, deltas)


def _load_remade(
    job: Job, workspace: Workspace, target: str, checkpoint: Checkpoint | None
) -> dict[str, int]:
    """Load the keys that other syncs inserted or deleted since this sync's checkpoint: what it wrote to these
    rows is gone. Returns the epoch of the last run of each other sync. If the deltas are compacted, the keys
    that were only updated are among them."""
    workspace.run(f"CREATE OR REPLACE TABLE {_REMADE} (key VARCHAR)")
    newest = {name: e for name, e in job.ledger.newest_epochs(target).items() if name != job.sync.name}
    seen = checkpoint.others if checkpoint else {}
    for name, epoch in newest.items():
        since = seen.get(name, 0)
        if epoch > since:
            other = job.ledger.checkpoint(name, target)
            _build_other_baseline(job.ledger, workspace, name, target)
            compacted = other.snapshot_epoch if other else 0
            workspace.run(f"INSERT INTO {_REMADE} {baseline.remade(since, compacted)}")
    return newest


def _newest(
    ledger: Ledger, checkpoint: Checkpoint | None, deltas: Sequence[DeltaRow]
) -> tuple[str, str] | None:
    for delta in reversed(deltas):
        done = [batch for batch in ledger.batches(delta.run_id) if arrived(batch)]
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
