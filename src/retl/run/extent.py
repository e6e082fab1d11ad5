"""Extent: how much of the mart a run has to read.

After a mark (a watermark, or a version of the source) only newer rows are read, unless older rows may be due
for another reason.
"""

from __future__ import annotations

from retl.engine import baseline
from retl.engine.workspace import Workspace
from retl.run.job import Job
from retl.run.known import Known
from retl.run.mart import Extent, Mapped, Opened, has_queries
from retl.run.target import Asked


def find(
    job: Job, opened: Opened, mapped: Mapped, known: Known, asked: Asked, workspace: Workspace
) -> Extent:
    """What a run reads that follows a mark."""
    checkpoint, feeds = known.basis.checkpoint, job.sync.changes.strategy == "cdf"
    reasons = {
        "the rows to send were chosen": job.options.selection.forced or job.options.selection.partial,
        "nothing is known of the rows that were delivered": known.basis.restarts or job.options.adopt,
        "rows expire in the target": mapped.capabilities.expires is not None,
        "a key that the target lacked may be there now": job.sync.write == "update_only",
        "a rejected row has no key": any(one.row_id for one in known.open_rejects),
        "delivered rows may be lost": known.distrusted or asked.distrust is not None or asked.emptied,
        "external ids of other syncs may be new": bool(mapped.field_map.lookups),
        "a query of `checks` is about every row": feeds and has_queries(job),
        "the contract edits rows": feeds and mapped.contract.edits,
        "what is sent changed": known.former.get("what") != mapped.fingerprints["what"],
        "no earlier run read it this way": (
            checkpoint is not None
            and (checkpoint.watermark is None or known.former.get("mark") != fingerprint(job, opened))
        ),
        "a run since then did not finish": feeds and _unfinished(known),
    }
    whole = next((reason for reason, holds in reasons.items() if holds), None)
    rows = checkpoint.read_rows if checkpoint else 0
    mark = checkpoint.watermark if checkpoint and whole is None else None
    if mark is None:
        return Extent(whole, rows=rows)
    unknown = workspace.run(f"SELECT key FROM {baseline.BASELINE} WHERE hash IS NULL")
    rejected = [reject.key for reject in known.open_rejects]
    return Extent(
        whole=None,
        mark=mark,
        due=[*(key for (key,) in unknown), *rejected],
        rejected=rejected,
        rows=rows,
    )


def fingerprint(job: Job, opened: Opened) -> str:
    """What a mark is a mark of."""
    if job.sync.changes.strategy == "cdf":
        return f"version of {job.source.identity}"
    return f"{opened.cursor.column} {opened.cursor.column_type}" if opened.cursor else ""


def _unfinished(known: Known) -> bool:
    """Whether a run wrote after the mark was set and did not move it: rows that it delivered may be newer."""
    checkpoint = known.basis.checkpoint
    return checkpoint is not None and any(one.epoch > checkpoint.epoch for one in known.basis.deltas)
