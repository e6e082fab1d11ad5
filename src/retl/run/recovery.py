"""Recovery: resolves batches that dead runs left open. They may have been sent, but have no answer.

It is a separate step before planning: the baseline that planning builds includes its answers. A run resolves,
which may act on the target; a dry run only looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import asdict

from retl.delivery.lanes import Delivery
from retl.destinations.batch import MODES, UNKNOWN, Batch, Kind, Outcome, RowResult
from retl.destinations.window import KeyWindow, Moment
from retl.engine import answers, change_set
from retl.engine.workspace import Workspace
from retl.errors import Systemic
from retl.ledger import Acknowledgement, BatchRow, DeltaRow, Ledger
from retl.observe import log
from retl.run.job import Job
from retl.run.mart import Mapped
from retl.run.trace import Lost


class Settled(Struct, frozen=True):
    """What became of rows that earlier runs sent and got no answer for: those that `arrived`, are `missing`
    (they did not arrive, so they are due), were `refused`, are sent `again` although nobody knows, or are
    still `unknown` and wait for a person."""

    arrived: int = 0
    missing: int = 0
    refused: int = 0
    again: int = 0
    unknown: int = 0

    def document(self) -> dict[str, int]:
        """The numbers, if something was found out or is done about it."""
        return asdict(self) if self.arrived or self.missing or self.refused or self.again else {}

    def note(self) -> str | None:
        """The same as a sentence."""
        found = self.document()
        parts = [f"{words}: {found[name]:,}" for name, words in _SETTLED.items() if found.get(name)]
        return f"rows that earlier runs sent without an answer: {'; '.join(parts)}" if parts else None


_SETTLED = {
    "arrived": "arrived",
    "missing": "did not arrive and are due again",
    "refused": "refused",
    "again": "still unknown and sent again",
    "unknown": "still unknown",
}
_LOST = Outcome(RowResult(Kind.RETRY))
_ENDS = {Kind.RETRY: "missing", Kind.REJECTED: "refused", Kind.CONFLICT: "refused", Kind.UNKNOWN: None}


class Found(Struct, frozen=True):
    """What was found about batches that dead runs left open. A dry run also has their outcomes by batch id,
    and the number of rows in those that only a run can resolve."""

    outcomes: Mapping[str, Outcome] = MappingProxyType({})
    unanswered: int = 0
    settled: Settled = Settled()


NOTHING = Found()


def abandon_dead_runs(ledger: Ledger, sync: str, run_id: str, epoch: int) -> None:
    """The caller holds the lock, so every other RUNNING run of the sync is dead."""
    for dead in ledger.dead_runs(sync):
        if dead.run_id != run_id:
            head = ledger.abandon(dead.run_id, epoch)
            log.event("run_abandoned", dead=dead.run_id, chain=head)


def resolve(
    job: Job,
    mapped: Mapped,
    workspace: Workspace,
    target: str,
    delivery: Delivery,
    epoch: int,
    doubtful: str | None = None,
) -> Settled:
    """Resolve the open batches that dead runs sent to the object `target`, if possible, record their outcomes
    and return what became of their rows. `doubtful`: a run that ended, whose batches without an answer are
    asked for once more."""
    found: Counter[str] = Counter()
    for delta, rows in _open(job, mapped, target, doubtful):
        with closing(job.lane(mapped.field_map.shape)) as destination:
            for row, batch in _batches(job.ledger, mapped, workspace, delta, rows, epoch):
                log.event("batch_settling", batch=row.batch_id)
                outcome = delivery.resolve(destination, batch, row.handle)
                log.event("batch_settled", batch=row.batch_id, level="debug")
                if outcome != Outcome(UNKNOWN):
                    _record_returned(job.ledger, workspace, delta.run_id, row)
                    answer = Acknowledgement(row.batch_id, outcome, row.attempts + 1, None, None)
                    job.ledger.acknowledge(delta.run_id, epoch, [answer])
                    found += _ended(outcome, len(batch))
    return Settled(**found)


def _record_returned(ledger: Ledger, workspace: Workspace, run_id: str, row: BatchRow) -> None:
    """Make what the target returned with a batch part of the baseline; before its outcome is recorded."""
    held = ledger.returned(row.batch_id, workspace.directory)
    if held is not None:
        number = ledger.next_answers(run_id)
        path = answers.recovered(workspace, run_id, number, {(row.first, row.last): held})
        ledger.put_file(path.name, path)


def take_back(ledger: Ledger, epoch: int, lost: Lost) -> None:
    """Record that batches with an answer are at the target no longer: their rows are due again."""
    for run_id, row in lost:
        ledger.acknowledge(run_id, epoch, [Acknowledgement(row.batch_id, _LOST, row.attempts, None, None)])


def look(job: Job, mapped: Mapped, workspace: Workspace, target: str, lost: Lost = ()) -> Found:
    """What `resolve` would find, without changing the target, and `take_back` would record."""
    outcomes = {row.batch_id: _LOST for _, row in lost}  # of batches that are not open
    unanswered, ended = 0, Counter[str]()
    for delta, rows in _open(job, mapped, target):
        with closing(job.lane(mapped.field_map.shape)) as destination:
            for row, batch in _batches(job.ledger, mapped, workspace, delta, rows, epoch=0):
                try:
                    outcome = destination.resolve(batch, row.handle, act=False)
                except Systemic:  # this account lacks the right to look
                    outcome = Outcome(UNKNOWN)
                if isinstance(outcome, Outcome) and outcome != Outcome(UNKNOWN):
                    outcomes[row.batch_id] = outcome
                    ended += _ended(outcome, len(batch))
                else:
                    unanswered += len(batch)
    return Found(outcomes, unanswered, Settled(**ended))


def _ended(outcome: Outcome, rows: int) -> Counter[str]:
    """How many of the `rows` of a batch ended how, by the names of Settled."""
    kinds = Counter(one.kind for one in outcome.exceptions.values())
    kinds[outcome.default.kind] += rows - len(outcome.exceptions)
    found: Counter[str] = Counter()
    for kind, number in kinds.items():
        if name := _ENDS.get(kind, "arrived"):
            found[name] += number
    return found


def _open(
    job: Job, mapped: Mapped, target: str, doubtful: str | None = None
) -> Iterator[tuple[DeltaRow, Sequence[BatchRow]]]:
    """The open batches that can be resolved, per run. If the target keeps evidence: all of them. If it
    honours a key (the same bytes under the same key): those whose key is inside its window. Otherwise only
    those with a handle. The others stay in doubt."""
    capabilities, ledger = mapped.capabilities, job.ledger
    keyed = capabilities.key_window is not None
    for delta in ledger.deltas(job.sync.name, target):
        rows = [
            row
            for row in ledger.batches(delta.run_id)
            if (row.status == "open" or (delta.run_id == doubtful and row.outcome == Outcome(UNKNOWN)))
            and (row.handle is not None or (_within(mapped, ledger, row) if keyed else capabilities.resolves))
        ]
        if rows:
            yield delta, rows


def _window(mapped: Mapped, ledger: Ledger, row: BatchRow) -> KeyWindow | None:
    """The window of the batch's key, since its intent: it was not sent before that."""
    seconds = mapped.capabilities.key_window
    if seconds is None or row.intent is None:
        return None
    return KeyWindow(seconds, ledger.now, Moment.load(row.intent))


def _within(mapped: Mapped, ledger: Ledger, row: BatchRow) -> bool:
    window = _window(mapped, ledger, row)
    return window is not None and not window.over


def _batches(
    ledger: Ledger,
    mapped: Mapped,
    workspace: Workspace,
    delta: DeltaRow,
    rows: Sequence[BatchRow],
    epoch: int,
) -> Iterator[tuple[BatchRow, Batch]]:
    """These batches of a dead run for a destination: keys, and the prepared requests."""
    assert delta.delta is not None  # only a run with a delta has batches
    file = ledger.get_file(delta.delta, workspace.directory)
    former = change_set.from_delta(workspace, mapped.field_map, file)
    for row in rows:
        yield (
            row,
            Batch(
                former,
                *MODES[row.operation],
                delta.run_id,
                epoch,
                row.first,
                row.last,
                request=ledger.request(delta.run_id, row.batch_id),
                idempotency_key=row.idempotency_key,
                window=_window(mapped, ledger, row),
            ),
        )
