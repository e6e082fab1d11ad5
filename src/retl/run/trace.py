"""The trace of our batches at the target, compared with the ledger in both directions.

A mark that the ledger does not know: the ledger is older than the target (STATE_BEHIND). A batch with an
answer but without a mark: the target is older than the ledger, or was emptied (TARGET_LOST). What is between
the two is distrusted: it is sent again, or stays in doubt, and is never called unchanged. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field

from retl.delivery.answered import Answered
from retl.destinations.api import Destination
from retl.destinations.batch import Kind, Trace, Visit
from retl.engine.baseline import Distrust
from retl.errors import Mismatch
from retl.ledger import BatchRow, Ledger, RunKey
from retl.observe.summary import counted
from retl.project.definitions import Sync
from retl.run.guards import Refusal
from retl.run.job import Job

Marks = frozenset[tuple[str, str]]  # (run id, batch id)
Lost = tuple[tuple[str, BatchRow], ...]  # batches of a run
TAKEN = (
    "another ledger has delivered here since this one last did: another project writes here, or this state is"
    " a former one"
)
FORGOTTEN = "people that this ledger does not know to be erased must be erased again first, or they are sent"


class Compared(Struct, frozen=True):
    """`distrust`: what no longer holds, also if a refusal is accepted. `lost`: the epoch up to which the
    target has everything, if it lacks batches; rows that were deleted later may be back."""

    refusals: tuple[Refusal, ...] = ()
    distrust: Distrust | None = None
    lost: int | None = None


class Expected(Struct, frozen=True):
    """The ledger's side. `object`: the place whose baseline this table has: its own, or another address of
    it. `marks`: batches with an answer since the last checkpoint, and the newest before it. `runs`: those of
    the trace and of these marks that the ledger knows."""

    object: str
    marks: Marks = frozenset()
    runs: Mapping[str, RunKey] = field(default_factory=dict)


def arrived(batch: BatchRow | Answered) -> bool:
    """Whether the target answered that it processed the batch, so that its mark must be there."""
    return bool(batch.attempts and batch.outcome and batch.outcome.arrived)


def expected(ledger: Ledger, sync: str, place: str, trace: Trace) -> Expected:
    """What the ledger knows about the object at this place."""
    runs = ledger.run_keys({run for run, _ in trace.batches})
    found = _object(ledger, sync, place, runs, delivered=trace.epoch > 0)
    checkpoint = ledger.checkpoint(sync, found)
    marks = {checkpoint.newest} if checkpoint and checkpoint.newest else set[tuple[str, str]]()
    for delta in ledger.deltas(sync, found):
        if checkpoint is None or delta.epoch > checkpoint.epoch:
            done = {(delta.run_id, one.batch_id) for one in ledger.batches(delta.run_id) if arrived(one)}
            doubt = delta.distrusts  # what may be lost is unknown already
            marks = marks | done if doubt is None else set() if doubt["own"] else done
    return Expected(found, frozenset(marks), {**runs, **ledger.run_keys({run for run, _ in marks})})


def unknown(trace: Trace, known: Expected) -> frozenset[str]:
    """The runs of this sync that left marks at the target and that the ledger does not know."""
    return frozenset({run for run, _ in trace.batches} - known.runs.keys() - trace.foreign)


def torn(ledger: Ledger, sync: str, trace: Trace, known: Expected) -> Lost:
    """The batches that the target lacks of a run of which it has others: it was put back to a moment of this
    run, so every older batch is there. Empty if no run is torn, or if its rows are no longer told apart."""
    missing = known.marks - trace.batches
    if not missing or unknown(trace, known) or any(run not in known.runs for run, _ in missing):
        return ()
    oldest = min((run for run, _ in missing), key=lambda run: known.runs[run].epoch)
    batches = [one for one in ledger.batches(oldest) if arrived(one)]
    lost = tuple((oldest, one) for one in batches if (oldest, one.batch_id) not in trace.batches)
    told_apart = any(delta.run_id == oldest for delta in ledger.deltas(sync, known.object))
    return lost if told_apart and len(lost) < len(batches) else ()


def compare(
    ledger: Ledger,
    sync: str,
    trace: Trace,
    known: Expected,
    *,
    append: bool,
    comparable: bool = True,
    whole: bool = False,
    lost: Lost = (),
) -> Compared:
    """The refusals of a run, before any is accepted, and what is distrusted. `comparable`: whether a rebuild
    can read the target; `whole`: whether it holds the mart and nothing else; `lost`: batches that are due
    again already."""
    behind = unknown(trace, known)
    if behind:
        refusal = _behind(sync, len(behind), append=append, comparable=comparable, whole=whole)
        return Compared((refusal,), Distrust(rows=0, disown=True))
    missing = known.marks - trace.batches
    if not missing:
        return Compared()
    since = min(known.runs[run].epoch if run in known.runs else 0 for run, _ in missing)
    common, partial = 0, None
    for run_id, run in sorted(known.runs.items(), key=lambda item: -item[1].epoch):
        if run.sync == sync and run.object == known.object and run.epoch <= since:
            marks = {(run_id, one.batch_id) for one in ledger.batches(run_id) if arrived(one)}
            marks -= {(run, one.batch_id) for run, one in lost}
            if marks and marks <= trace.batches:
                common = run.epoch
                break
            if marks & trace.batches:
                partial = run.epoch
    forgotten = (common if partial is None else partial) if append else None
    doubtful = append and partial is not None and not torn(ledger, sync, trace, known)
    rebuild = f"`retl state rebuild {sync}` reads what it has; or " if doubtful and comparable else ""
    refusal = _lost(len(missing), append, taken=trace.taken, rebuild=rebuild, doubtful=doubtful)
    return Compared((refusal,), Distrust(common, forgotten), lost=common)


def lost(
    destination: Destination[Any],
    visit: Visit,
    answered: Sequence[Answered],
    before: Marks,
    is_lost: Callable[[], bool] | None = None,
) -> int:
    """How many batches the target lost since this run looked at it: its own, or of the marks it found
    (`before`). Rows that were rewritten may have other values. An append has `is_lost`, because its rows
    cannot be sent again: there its own rows are read back, and a sample of the others."""
    delivered = {(visit.run_id, one.batch.id): one for one in answered if arrived(one)}
    marks = delivered.keys() | before
    try:
        seen = destination.check(visit) or Trace()
    except Mismatch:  # the object is gone, or no longer fits what was just written
        return len(marks)
    rewritten = marks & seen.replaced
    if is_lost is None:
        return len(marks - seen.batches) + len(rewritten)
    lacking = sum(_lacks_rows(destination, delivered[mark]) for mark in rewritten & delivered.keys())
    return len(marks - seen.batches) + lacking or int(bool(rewritten & before) and is_lost())


def _lacks_rows(destination: Destination[Any], one: Answered) -> bool:
    """Whether a row that was written is not there."""
    if one.operation == "delete":
        return False
    assert one.outcome is not None
    return any(
        row is None and one.outcome.result(number).kind in (Kind.WRITTEN, Kind.MERGED)
        for number, row in enumerate(destination.read(one.batch))
    )


def accepted(refusal: Refusal, job: Job) -> bool:
    """Whether the user passes this guard. An append sync cannot know which rows the unknown runs appended,
    unless somebody says that all of them are there."""
    append = job.sync.write == "append" and not job.options.adopt
    return refusal.code in job.options.accept and not (append and refusal.code == "STATE_BEHIND")


def leave_open(ledger: Ledger, place: str, run_id: str) -> None:
    """Note that a run which is no sync passed STATE_LOST for itself alone: its marks make this ledger one
    that has delivered here, and they must not decide for the syncs."""
    ledger.keep(_open(place), run_id)


def is_open(ledger: Ledger, place: str) -> bool:
    """Whether nobody has decided yet that this ledger delivers to a place where another one did."""
    return bool(ledger.kept(_open(place)))


def decide(ledger: Ledger, place: str) -> None:
    """A sync that passed the guard, or a rebuild, has decided it."""
    if is_open(ledger, place):
        ledger.keep(_open(place), "")


def _open(place: str) -> str:
    return f"strangers {place}"


def strangers(place: str, sync: Sync, last: datetime | None) -> Refusal:
    """`last`: when another ledger last delivered, if the target knows."""
    again = (
        f", and sends every row of today's mart again (`retl state rebuild {sync.name}` reads what is there,"
        " `first_run: adopt` takes all rows as sent)"
    )
    when = f" (last {last.astimezone(UTC):%Y-%m-%d %H:%M} UTC)" if last else ""
    return Refusal(
        "STATE_LOST",
        f"another ledger has delivered to {place}{when}, and no sync of this one has",
        "another project writes here (then choose another table), or the state directory is lost (a new"
        " container or CI job has none: keep it, or set RETL_STATE_URL=postgresql://…); `--accept STATE_LOST`"
        " continues with this ledger"
        + again * (sync.write == "append" and sync.first_run == "send")
        + f"; {FORGOTTEN}",
    )


def _object(ledger: Ledger, sync: str, place: str, runs: Mapping[str, RunKey], *, delivered: bool) -> str:
    """The place that the object's newest run of this sync knew it by, or where its baseline continues, if
    that is still there. `delivered`: the object knows the sync, also if it has no marks of it any more."""
    own = [run for run in runs.values() if run.sync == sync]
    newest = max(own, key=lambda run: run.epoch, default=None)
    seen, found = set[str](), newest.object if newest else place if delivered else None
    while found is not None and found not in seen:
        if ledger.checkpoint(sync, found) or ledger.deltas(sync, found):
            return found
        seen.add(found)
        found = ledger.kept(_moved(found))
    return place


def relocate(ledger: Ledger, sync: str, former: str, place: str, epoch: int) -> None:
    """What was recorded at `place` without a write there replaces the baseline of `former`, another address
    of the object: no mark of the object says so. `epoch` is that of the lock the caller holds."""
    ledger.keep(_moved(former), place)
    ledger.forget(sync, former, epoch)


def _moved(former: str) -> str:
    return f"moved {former}"


def _behind(sync: str, runs: int, *, append: bool, comparable: bool, whole: bool) -> Refusal:
    others = "what is not in the mart leaves" if whole else "no older row is deleted"
    accept = f"; or --accept STATE_BEHIND: every row is sent again, and {others}"
    ways = ["bring the newer ledger back"]
    if comparable:
        ways.append(f"`retl state rebuild {sync}` reads the target")
    elif append:
        ways.append(f"`retl state adopt {sync}` takes every row of today's mart as sent, also what was not")
    return Refusal(
        "STATE_BEHIND",
        f"the target has marks of {counted(runs, 'run')} of this sync that the ledger does not know:"
        " the ledger was restored from a backup, or another copy of it is in use",
        ", or ".join(ways) + ("" if append else accept) + f"; {FORGOTTEN}",
    )


def _lost(batches: int, append: bool, *, taken: bool, rebuild: str, doubtful: bool) -> Refusal:
    hint = "--accept TARGET_LOST appends them again" if append else "`--full` sends every row again"
    if doubtful:
        hint = f"{rebuild}--accept TARGET_LOST appends what came later, and the rows of one run stay in doubt"
    return Refusal(
        "TARGET_LOST",
        f"the target lacks {counted(batches, 'batch')} that the ledger knows as delivered",
        f"it was emptied, restored or replaced: {hint}" + f"; {TAKEN}" * taken,
    )
