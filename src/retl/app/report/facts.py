"""The content of a report, gathered from the ledger's history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct, field

from retl.ledger import BatchRow, Ledger, RunRow
from retl.observe.mask import MASK
from retl.run.unended import so_far

RUNS_SHOWN = 30
REASONS_SHOWN = 10
KEYS_SHOWN = 5
BATCHES_SHOWN = 100


class Reason(Struct, frozen=True):
    """Rows rejected for the same reason: how many, and a few keys."""

    stage: str
    code: str
    reason: str | None
    rows: int
    keys: Sequence[str]


class Facts(Struct, frozen=True):
    """`runs`: the newest runs of the sync, oldest first. `batches`: the slowest, in the order they were sent.
    `so_far`: rows by what became of them, of a run that has not ended. `states`: one line per sync as in
    `retl status`, or none."""

    run: RunRow
    runs: Sequence[RunRow]
    batches: Sequence[BatchRow]
    batches_in_all: int
    met: Sequence[Reason]  # rejects of this run, from its examples
    open: Sequence[Reason]  # open rejects of the sync
    last_success: datetime | None
    made_at: datetime
    states: Sequence[Mapping[str, Any]] = ()
    so_far: Mapping[str, int] = field(default_factory=dict)


def gather(
    ledger: Ledger,
    run: RunRow,
    *,
    masked: bool,
    states: Sequence[Mapping[str, Any]] = (),
    made_at: datetime | None = None,
) -> Facts:
    """The facts about a run and its sync's history, by default as of now; with `masked` they contain no
    key."""
    batches = [one for one in ledger.batches(run.run_id) if one.status != "split"]
    slowest = sorted(batches, key=lambda one: one.duration_ms or 0, reverse=True)[:BATCHES_SHOWN]
    good = ledger.last_success(run.sync)
    return Facts(
        run=run,
        runs=ledger.runs(run.sync, RUNS_SHOWN)[::-1],
        batches=sorted(slowest, key=lambda one: one.number),
        batches_in_all=len(batches),
        met=_alike(run.counts.get("rejects", ()), masked),
        open=open_reasons(ledger, run.sync, masked=masked),
        last_success=(good.finished_at or good.started_at) if good else None,
        made_at=made_at or ledger.now(),
        so_far=so_far(ledger, run),
        states=states,
    )


def open_reasons(ledger: Ledger, sync: str, *, masked: bool) -> list[Reason]:
    """The most frequent reasons of a sync's open rejects."""
    found = ledger.reject_reasons(sync, REASONS_SHOWN, 0 if masked else KEYS_SHOWN)
    return [
        Reason(stage, code, reason, rows, _shown(keys, masked)) for stage, code, reason, rows, keys in found
    ]


def _alike(rejects: Iterable[Mapping[str, Any]], masked: bool) -> list[Reason]:
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for one in rejects:
        groups.setdefault((one["stage"], one["code"], one["reason"]), []).append(str(one["key"]))
    found = [Reason(*what, len(keys), _shown(keys[:KEYS_SHOWN], masked)) for what, keys in groups.items()]
    return sorted(found, key=lambda one: (-one.rows, one.code))[:REASONS_SHOWN]


def _shown(keys: Sequence[str], masked: bool) -> list[str]:
    return [MASK] if masked else list(keys)
