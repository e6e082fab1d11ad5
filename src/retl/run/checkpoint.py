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
    """The checkpoint of a run that reached its end; a new base is durable before it is named."""
    former, ledger = None if plan.forgets else plan.checkpoint, job.ledger
    layers = ledger.layers(job.sync.name, plan.capabilities.object)
    base, base_epoch = (former.base, former.base_epoch) if former else (None, 0)
    base_rows = former.baseline_rows if former else 0
    over = [layer.part_rows for layer in layers]
    if layers and base is None and baseline.alike(ledger.batches(layers[0].run_id)):
        base_rows = over.pop(0)  # the first part stands for the base
    if over and baseline.due(base_rows, over):
        path = directory / f"{run.run_id}.base.parquet"
        base_rows = planner.lay(ledger, plan.workspace, directory, base, layers)
        baseline.compact(plan.workspace, path)
        ledger.put_file(path.name, path)
        base, base_epoch = path.name, epoch
        log.event("baseline_compacted", rows=base_rows)
    arrived = [one for one in answered if one.outcome and one.outcome.arrived]
    newest = (run.run_id, arrived[-1].batch.id) if arrived else plan.visit.newest
    last_read = plan.read if plan.read_whole else former.read_rows if former else 0
    return Checkpoint(
        sync=job.sync.name,
        object=plan.capabilities.object,
        run_id=run.run_id,
        epoch=epoch,
        base=base,
        base_epoch=base_epoch,
        baseline_rows=base_rows,
        read_rows=last_read,
        watermark=plan.watermark,
        fingerprints=plan.fingerprints,
        newest=newest,
        source_version=plan.source_identity,
        extra={},
        updated_at=ledger.now(),
    )
