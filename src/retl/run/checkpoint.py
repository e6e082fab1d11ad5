"""The checkpoint a run leaves: what the next one starts from, compacted where that is due."""

from __future__ import annotations

from collections.abc import Sequence

from retl.delivery.lanes import Answered
from retl.engine import baseline
from retl.engine.workspace import Workspace
from retl.ledger import Checkpoint, Ledger
from retl.observe import log
from retl.run import planner
from retl.run.plan import Plan


def make(
    ledger: Ledger, sync: str, plan: Plan, workspace: Workspace, epoch: int, answered: Sequence[Answered]
) -> Checkpoint:
    """The checkpoint of a run that reached its end; a new base is durable before it is named."""
    former = None if plan.basis.restarts else plan.basis.checkpoint
    layers = ledger.layers(sync, plan.capabilities.object)
    base, base_epoch = (former.base, former.base_epoch) if former else (None, 0)
    base_rows = former.baseline_rows if former else 0
    over = [layer.part_rows for layer in layers]
    if layers and base is None and baseline.alike(ledger.batches(layers[0].run_id)):
        base_rows = over.pop(0)  # the first part stands for the base
    if over and baseline.due(base_rows, over):
        path = workspace.directory / f"{plan.run.run_id}.base.parquet"
        base_rows = planner.build_baseline(ledger, workspace, base, layers)
        baseline.compact(workspace, path)
        ledger.put_file(path.name, path)
        base, base_epoch = path.name, epoch
        log.event("baseline_compacted", rows=base_rows)
    arrived = [one for one in answered if one.outcome and one.outcome.arrived]
    return Checkpoint(
        sync=sync,
        object=plan.capabilities.object,
        run_id=plan.run.run_id,
        epoch=epoch,
        base=base,
        base_epoch=base_epoch,
        baseline_rows=base_rows,
        read_rows=plan.read_rows,
        watermark=plan.watermark,
        fingerprints=plan.fingerprints,
        newest=(plan.run.run_id, arrived[-1].batch.id) if arrived else plan.basis.newest,
        source_version=plan.source_version,
        extra={},
        updated_at=ledger.now(),
    )
