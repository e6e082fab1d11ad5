"""The requests that follow a run (`then`): which are due, and sending them.

They are recorded in the transaction that ends the run, and before each send, so that none is forgotten and
none is sent again without saying so. A run sends each of them once, and before its own those of earlier runs
that have no answer. What becomes of a request changes nothing in the run that it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from retl.delivery.paced import PacedGate
from retl.destinations.batch import Kind, RowResult
from retl.errors import Ambiguous, Failure, Later, Poisoned, RetlError, Stopped, Systemic, Unavailable
from retl.ledger import FollowUpRow, Lock
from retl.net.messages import Request
from retl.observe import log
from retl.observe.redact import redact
from retl.observe.summary import Counts, Summary, described
from retl.run.job import Follower, Job

_WELL = ("SUCCESS", "SUCCESS_WITH_REJECTS")
_BADLY = ("FAILED", "REFUSED")
_FOLLOWED = ("sync", "apply")  # purposes of runs


def due(
    job: Job, run_id: str, started_at: datetime, epoch: int, status: str, numbers: Counts, code: str | None
) -> list[FollowUpRow]:
    """The requests that follow a run with this end."""
    wanted = _wanted(job, status, numbers, epoch)
    if not wanted:
        return []
    now = job.ledger.now()
    counted = ("read", "inserted", "updated", "deleted", "unchanged", "rejected", "skipped", "in_doubt")
    facts = {
        "id": run_id,
        "sync": job.sync.name,
        "environment": job.environment,
        "status": status,
        "code": code,
        "started_at": _moment(started_at),
        "finished_at": _moment(now),
        "changed": numbers.inserted + numbers.updated + numbers.deleted,
        **{name: getattr(numbers, name) for name in counted},
    }
    return [FollowUpRow(run_id, one.name, job.sync.name, facts, now) for one in wanted]


def planned(job: Job, summary: Summary) -> list[str]:
    """Notes for a dry run: which requests would be sent."""
    rows = job.ledger.open_requests(job.sync.name)
    notes = [
        f"the request {one.request} of run {one.run_id} has no answer: a run sends it again" for one in rows
    ]
    epoch = 1 << 62  # after every run
    wanted = _wanted(job, summary.status, _predicted(summary.counts), epoch)
    return [
        *notes,
        *(f"after this run it would send {one.name} (connection {one.connection})" for one in wanted),
    ]


def follow(job: Job, lock: Lock, summary: Summary) -> Summary:
    """Send what is open, and add to the summary what became of it. The run has ended; only a request that is
    `required` and was not accepted makes the exit code 1. Older requests wait as long as the ledger lacks
    runs, which may have sent them: the run that is told to go on says so."""
    if job.options.purpose not in _FOLLOWED:
        return summary
    try:
        rows = job.ledger.open_requests(job.sync.name)
        if any(one.get("code") == "STATE_BEHIND" for one in summary.guards):
            rows = [row for row in rows if row.run_id == summary.run_id]
        if not rows:
            return summary
        found = _Sending(job, lock, summary.run_id or "")
        found.all(rows)
    except RetlError as problem:
        note = f"requests that follow the run were not sent: {problem.message}; the next run sends them"
        return replace(summary, notes=(*summary.notes, note))
    summary = replace(summary, notes=(*summary.notes, *found.notes), then=found.documents)
    if found.lacking is None or summary.exit_code:
        return summary
    return replace(summary, exit_code=1, error=described(found.lacking))


class _Sending(Struct):
    """The requests of one run, as they are sent."""

    job: Job
    lock: Lock
    run_id: str
    notes: list[str] = field(default_factory=list)
    documents: list[dict[str, Any]] = field(default_factory=list)
    lacking: Failure | None = None
    _silent: dict[str, str] = field(default_factory=dict)  # connections that gave no answer, and why

    def all(self, rows: Sequence[FollowUpRow]) -> None:
        """Send every request once; equal ones of several runs as one."""
        followers = {one.name: one for one in self.job.followers}
        groups: dict[tuple[str, bytes], tuple[Request, list[FollowUpRow]]] = {}
        for row in rows:
            follower = followers.get(row.request)
            if follower is None:
                self._close([row], "dropped", "the sync does not have this request any more")
                continue
            try:
                made = follower.request(row.facts)
            except Poisoned as problem:
                self._close([row], "refused", f"{problem.code}: {problem.message}", follower)
                continue
            groups.setdefault((row.request, made.dump()), (made, []))[1].append(row)
        for (name, _), (made, same) in groups.items():
            self._deliver(followers[name], made, same)

    def _deliver(self, follower: Follower, made: Request, rows: list[FollowUpRow]) -> None:
        """Send a request for the newest of these runs; its answer counts for all of them."""
        newest, doubts = rows[-1], sum(row.doubts for row in rows)
        if (why := self._silent.get(follower.connection)) is not None:
            return self._wait(follower, newest, why)
        attempt = _Attempt(self.job, self.lock, self.run_id, follower, made, newest)
        try:
            retrying = follower.pace.retrying(self.job.sync.retry, self.job.stop.event)
            result: RowResult = retrying(attempt.once)
        except Stopped as problem:
            return self._wait(follower, attempt.row, problem.message)
        except (Ambiguous, Unavailable, Later, Systemic) as problem:
            if not isinstance(problem, Systemic) or attempt.row.http_status is None:
                self._silent[follower.connection] = problem.message
                return self._wait(follower, attempt.row, problem.message)
            result = RowResult(Kind.REJECTED, problem.code, problem.message)
        log.event("follow_up_answered", request=newest.request, status=attempt.row.http_status)
        if doubts:
            before = "may have been sent before, and this ledger has no answer"
            self._note(newest, f"{before}: it may have arrived twice")
        rows = [*rows[:-1], attempt.row]
        if result.kind is Kind.WRITTEN:
            return self._close(rows, "done")
        said = ": ".join(filter(None, (result.code, result.reason)))
        return self._close(rows, "refused", said, follower)

    def _wait(self, follower: Follower, row: FollowUpRow, why: str) -> None:
        """It stays open."""
        sent = "was sent and has no answer" if row.doubts else "was not sent"
        self._note(row, f"{sent} ({redact(why)}): the next run sends it{' again' if row.doubts else ''}")
        self._document(row, "unanswered" if row.doubts else "waiting", why)
        self._lacks(follower, row, f"{sent}: {why}")

    def _close(
        self,
        rows: Sequence[FollowUpRow],
        state: str,
        error: str | None = None,
        follower: Follower | None = None,
    ) -> None:
        error = redact(error) if error else None
        self.job.ledger.change_requests(
            self.lock.epoch, [replace(row, state=state, doubts=0, error=error) for row in rows]
        )
        log.event("follow_up_recorded", request=rows[-1].request, state=state)
        if error:
            self._note(rows[-1], f"was {state}: {error}")
        for row in rows:
            self._document(row, state, error)
        if follower is not None:
            self._lacks(follower, rows[-1], f"was {state}: {error}")

    def _note(self, row: FollowUpRow, text: str) -> None:
        of = "" if row.run_id == self.run_id else f" of run {row.run_id}"
        self.notes.append(f"the request {row.request}{of} {text}")

    def _document(self, row: FollowUpRow, state: str, error: str | None) -> None:
        self.documents.append(
            {
                "request": row.request,
                "run_id": row.run_id,
                "state": state,
                "http_status": row.http_status,
                "error": redact(error) if error else None,
            }
        )

    def _lacks(self, follower: Follower, row: FollowUpRow, why: str) -> None:
        if follower.required and self.lacking is None:
            self.lacking = Failure(
                "THEN_FAILED",
                f"the delivery is confirmed, but the request {row.request}, which is required, {redact(why)}",
                hint="an open request is sent by the next run; a refused one is not",
            )


class _Attempt(Struct):
    """Sending one request; `row` is as the ledger has it."""

    job: Job
    lock: Lock
    run_id: str
    follower: Follower
    made: Request
    row: FollowUpRow

    def once(self) -> RowResult:
        """Send it. Only a request that certainly had no effect is Unavailable."""
        sent, before = False, self.row.doubts

        def intend() -> None:
            nonlocal sent
            if not sent:
                sent = True
                self._record(
                    doubts=before + 1,
                    attempts=self.row.attempts + 1,
                    tried_by=self.run_id,
                    tried_at=self.job.ledger.now(),
                    http_status=None,
                )
                log.event("follow_up_intended", request=self.row.request)

        def answered(status: int) -> None:
            self.row = replace(self.row, http_status=status)

        try:
            return self.follower.send(
                self.made, PacedGate(self.follower.pace, self.job.stop), intend, answered
            )
        except Unavailable:
            if sent:  # the server said that it did nothing
                self._record(doubts=before)
            raise

    def _record(self, **changes: Any) -> None:
        self.row = replace(self.row, **changes)
        self.job.ledger.change_requests(self.lock.epoch, [self.row])


def _wanted(job: Job, status: str, numbers: Counts, epoch: int) -> list[Follower]:
    if job.options.purpose not in _FOLLOWED:
        return []
    ends = {"success" if status in _WELL else "failed" if status in _BADLY else "stopped"}
    if status in _WELL and any(one.when == "changed" for one in job.followers):
        changed = numbers.inserted or numbers.updated or numbers.deleted
        if changed or job.ledger.wrote(job.sync.name, job.object, epoch):
            ends.add("changed")
    return [one for one in job.followers if one.when in ends]


def _predicted(counts: Counts) -> Counts:
    """The counts of a dry run, in which deletes are planned."""
    return replace(counts, deleted=counts.deleted or counts.deletes.planned)


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
