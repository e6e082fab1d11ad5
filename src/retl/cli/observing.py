"""What machines are told about an invocation, where they asked: metrics, traces, lineage.

Nothing is loaded that was not asked for, and nothing here changes what a run does or how it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retl.cli.invocation import Invocation

if TYPE_CHECKING:
    from retl.definitions import Sync
    from retl.ledger import Ledger
    from retl.observers.metrics import Vitals
    from retl.summary import Summary

LOOK_BACK = 10  # runs among which the newest with numbers is looked for


def write_metrics(
    invocation: Invocation, flag: Path | None, ledger: Ledger | None, summaries: Sequence[Summary]
) -> None:
    """The metrics file, if --metrics-file or RETL_METRICS_FILE names one; a relative one is in the working
    directory and in the project, respectively."""
    setting = invocation.project.settings.retl_metrics_file
    path = flag or (invocation.project.folder / setting if setting else None)
    if path is None:
        return
    from retl import log
    from retl.observers import metrics
    from retl.summary import exit_code

    try:
        opened = ledger or invocation.ledger()
        folder = invocation.project.folder.resolve().name
        labels = {"project": folder} | ({"env": invocation.environment} if invocation.environment else {})
        content = metrics.text(
            _vitals(invocation.project.syncs, opened, summaries),
            exit_code=exit_code([one.exit_code for one in summaries]),
            now=opened.now(),
            labels=labels,
        )
    except Exception as problem:  # noqa: BLE001 - the run is over and has its own exit code
        why = type(problem).__name__
        log.get().warning("metrics_unwritten", code="METRICS_UNWRITTEN", file=str(path), why=why)
        return
    metrics.write(path, content)


def _vitals(syncs: Mapping[str, Sync], ledger: Ledger, summaries: Sequence[Summary]) -> list[Vitals]:
    """Every sync of the project: what this invocation made of it, else what the ledger knows."""
    from retl.observers.metrics import LastRun, Vitals
    from retl.resolution import doubts

    told = {one.sync: one.status for one in summaries}
    rejects = ledger.open_rejects()
    found = []
    for name, sync in sorted(syncs.items()):
        runs, good = ledger.runs(name, LOOK_BACK), ledger.last_success(name)
        counted = next((run for run in runs if run.counts), None)
        known = runs[0].status if runs else "NEVER"
        found.append(
            Vitals(
                sync=name,
                status=told.get(name, known) if sync.enabled else "PAUSED",
                enabled=sync.enabled,
                open_rejects=rejects.get(name, 0),
                # elsewhere a row without an answer is simply sent again
                in_doubt=sum(one.rows for one in doubts(ledger, name)) if sync.first_run else 0,
                last_success=(good.finished_at or good.started_at) if good else None,
                freshness=sync.freshness,
                run=LastRun(counted.started_at, counted.finished_at, counted.counts, counted.phases)
                if counted
                else None,
            )
        )
    return found
