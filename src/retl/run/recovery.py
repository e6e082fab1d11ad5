"""What dead runs left open: batches that were sent, or might have been, and were never acknowledged.

It says which of them a run asks after. Asking itself is the destination's `resolve`, which may act in
a run and only looks in a dry one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from retl.destinations.batch import MODES, Batch, Capabilities
from retl.engine import changes
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace
from retl.ledger import BatchRow, LayerRow, Ledger


def unanswered(
    ledger: Ledger, sync: str, capabilities: Capabilities, now: datetime
) -> Iterator[tuple[LayerRow, Sequence[BatchRow]]]:
    """The batches that are worth asking after, per run: all where the target keeps evidence or honours a key
    (the same bytes, under the same key), else those it works on under a handle. Evidence is sought inside
    the vendor's window; outside it they stay in doubt."""
    window = capabilities.key_window
    for layer in ledger.layers(sync, capabilities.object):
        late = window is not None and (now - layer.started_at).total_seconds() >= window
        every = (capabilities.resolves or window is not None) and not late
        rows = [row for row in ledger.batches(layer.run_id) if row.status == "open"]
        rows = [row for row in rows if every or row.handle is not None]  # a job is asked after at any age
        if rows:
            yield layer, rows


def batches(
    ledger: Ledger,
    workspace: Workspace,
    field_map: FieldMap,
    directory: Path,
    layer: LayerRow,
    rows: Sequence[BatchRow],
    epoch: int,
) -> Iterator[tuple[BatchRow, Batch]]:
    """These batches of a dead run as a destination takes them: keys, and the bytes that were prepared."""
    part = changes.from_part(workspace, field_map, ledger.get_file(layer.part, directory), directory)
    for row in rows:
        yield (
            row,
            Batch(
                part,
                *MODES[row.operation],
                layer.run_id,
                epoch,
                row.first,
                row.last,
                request=ledger.request(layer.run_id, row.batch_id),
                idempotency_key=row.idempotency_key,
            ),
        )
