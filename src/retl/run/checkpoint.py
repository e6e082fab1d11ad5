"""The checkpoint a run leaves: what the next one starts from, compacted where that is due."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retl.delivery.lanes import Answered
from retl.engine import baseline
from retl.engine.mapping import Run
from retl.ledger import Checkpoint
from retl.observe import log
from retl.run import planner
from retl.run.job import Job
from retl.run.plan import Plan


def make(
    job: Job, plan: Plan, run: Run, epoch: int, answered: Sequence[Answered], directory: Path
) -> Checkpoint:
    """The checkpoint of a run that reached its end; a new snapshot is durable before it is named."""
    former, ledger = None if plan.forgets else plan.checkpoint, job.ledger
    deltas = ledger.deltas(job.sync.name, plan.capabilities.object)
    snapshot, snapshot_epoch = (former.snapshot, former.snapshot_epoch) if former else (None, 0)
    rows = former.baseline_rows if former else 0
    newer = [delta.delta_rows for delta in deltas]
    if deltas and snapshot is None and baseline.alike(ledger.batches(deltas[0].run_id)):
        rows = newer.pop(0)  # the first delta stands for the snapshot
    if newer and baseline.due(rows, newer):
        path = directory / f"{run.run_id}.snapshot.parquet"
        rows = planner.lay(ledger, plan.workspace, directory, snapshot, deltas)
        baseline.compact(plan.workspace, path)
        ledger.put_file(path.name, path)
        snapshot, snapshot_epoch = path.name, epoch
        log.event("baseline_compacted", rows=rows)
    arrived = [one for one in answered if one.outcome and one.outcome.arrived]
    newest = (run.run_id, arrived[-1].batch.id) if arrived else plan.field_map.shape.newest
    last_read = plan.read if plan.read_whole else former.read_rows if former else 0
    return Checkpoint(
        sync=job.sync.name,
        object=plan.capabilities.object,
        run_id=run.run_id,
        epoch=epoch,
        snapshot=snapshot,
        snapshot_epoch=snapshot_epoch,
        baseline_rows=rows,
        read_rows=last_read,
        watermark=plan.watermark,
        fingerprints=plan.fingerprints,
        newest=newest,
        source_version=plan.source_identity,
        updated_at=ledger.now(),
    )
