"""The checkpoint of a run, where the next run starts; the baseline is compacted if due."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from retl.delivery.answered import Answered
from retl.engine import baseline
from retl.engine.workspace import Workspace
from retl.ledger import Checkpoint, Ledger
from retl.observe import log
from retl.project.definitions import Sync
from retl.run import known, resolve
from retl.run.plan import Plan
from retl.run.trace import arrived


def move(ledger: Ledger, sync: str, plan: Plan, workspace: Workspace, epoch: int) -> None:
    """Let the object's baseline continue under its new address. What the sync knew there is replaced."""
    former = ledger.checkpoint(sync, plan.moved_from) if plan.moved_from else None
    path = workspace.directory / f"{plan.run.run_id}.moved.parquet"
    rows = baseline.compact(workspace, path)
    ledger.put_file(path.name, path)
    moved = Checkpoint(
        sync=sync,
        object=plan.capabilities.object,
        run_id=former.run_id if former else plan.run.run_id,
        epoch=epoch - 1,
        snapshot=path.name,
        snapshot_epoch=epoch - 1,
        baseline_rows=rows,
        read_rows=former.read_rows if former else 0,
        watermark=former.watermark if former else None,
        fingerprints=plan.basis.former,
        newest=plan.basis.newest,
        source_version=former.source_version if former else None,
        others=former.others if former else {},
        scope=former.scope if former else None,
    )
    ledger.continue_from(moved, epoch)
    log.event("baseline_moved", rows=rows, former=plan.moved_from)


def make(
    ledger: Ledger,
    sync: Sync,
    plan: Plan,
    workspace: Workspace,
    epoch: int,
    answered: Sequence[Answered],
    *,
    whole: bool,
) -> Checkpoint:
    """The checkpoint of a run that reached its end. A new snapshot is durable before it is recorded. `whole`:
    no due row was left out or rejected by the target.

    Where a row without an answer waits for a decision, the snapshot ends before the first run that has one:
    its delta has the hash that was sent, and the batch that `retl resolve` decides about."""
    former = None if plan.basis.restarts else ledger.checkpoint(sync.name, plan.capabilities.object)
    deltas = ledger.deltas(sync.name, plan.capabilities.object)
    if resolve.waits(sync, idempotent=plan.capabilities.idempotent):
        deltas = list(takewhile(lambda one: not resolve.has_doubt(ledger, one), deltas))
    snapshot, snapshot_epoch = (former.snapshot, former.snapshot_epoch) if former else (None, 0)
    rows = former.baseline_rows if former else 0
    newer = [delta.delta_rows or 0 for delta in deltas]
    if deltas and snapshot is None and baseline.alike(ledger.batches(deltas[0].run_id)):
        rows = newer.pop(0)  # the first delta stands for the snapshot
    if newer and baseline.due(rows, newer):
        path = workspace.directory / f"{plan.run.run_id}.snapshot.parquet"
        known.build_baseline(ledger, workspace, snapshot, deltas)
        rows = baseline.compact(workspace, path)
        ledger.put_file(path.name, path)
        snapshot, snapshot_epoch = path.name, deltas[-1].epoch
        log.event("baseline_compacted", rows=rows)
    applied = [one for one in answered if arrived(one)]
    return Checkpoint(
        sync=sync.name,
        object=plan.capabilities.object,
        run_id=plan.run.run_id,
        epoch=epoch,
        snapshot=snapshot,
        snapshot_epoch=snapshot_epoch,
        baseline_rows=rows,
        read_rows=plan.read_rows,
        watermark=plan.watermark,
        fingerprints=plan.fingerprints,
        newest=(plan.run.run_id, applied[-1].batch.id) if applied else plan.basis.newest,
        source_version=plan.source_version,
        others=plan.basis.others if whole else former.others if former else {},
        updated_at=ledger.now(),
        scope=plan.scope,
    )
