"""The checkpoint of a run, where the next run starts; the baseline is compacted if due."""

from __future__ import annotations

from collections.abc import Sequence

from retl.delivery.lanes import Answered
from retl.engine import baseline
from retl.engine.workspace import Workspace
from retl.ledger import Checkpoint, Ledger
from retl.observe import log
from retl.run import known
from retl.run.plan import Plan


def make(
    ledger: Ledger, sync: str, plan: Plan, workspace: Workspace, epoch: int, answered: Sequence[Answered]
) -> Checkpoint:
    """The checkpoint of a run that reached its end. A new snapshot is durable before it is recorded."""
    former = None if plan.basis.restarts else plan.basis.checkpoint
    deltas = ledger.deltas(sync, plan.capabilities.object)
    snapshot, snapshot_epoch = (former.snapshot, former.snapshot_epoch) if former else (None, 0)
    rows = former.baseline_rows if former else 0
    newer = [delta.delta_rows for delta in deltas]
    if deltas and snapshot is None and baseline.alike(ledger.batches(deltas[0].run_id)):
        rows = newer.pop(0)  # the first delta stands for the snapshot
    if newer and baseline.due(rows, newer):
        path = workspace.directory / f"{plan.run.run_id}.snapshot.parquet"
        rows = known.build_baseline(ledger, workspace, snapshot, deltas)
        baseline.compact(workspace, path)
        ledger.put_file(path.name, path)
        snapshot, snapshot_epoch = path.name, epoch
        log.event("baseline_compacted", rows=rows)
    arrived = [one for one in answered if one.outcome and one.outcome.arrived]
    return Checkpoint(
        sync=sync,
        object=plan.capabilities.object,
        run_id=plan.run.run_id,
        epoch=epoch,
        snapshot=snapshot,
        snapshot_epoch=snapshot_epoch,
        baseline_rows=rows,
        read_rows=plan.read_rows,
        watermark=plan.watermark,
        fingerprints=plan.fingerprints,
        newest=(plan.run.run_id, arrived[-1].batch.id) if arrived else plan.basis.newest,
        source_version=plan.source_version,
        updated_at=ledger.now(),
    )
