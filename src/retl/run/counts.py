"""The outcome of every row: candidates by op and ending → the numbers of a run, its rejects, and the open
rejects that it closes.

Dry runs, refusals, summaries and the history use the same relation to count. It reads the workspace and
decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from msgspec import Struct

from retl import ledger
from retl.delivery.answered import Answered
from retl.destinations.batch import SETTLED, Kind
from retl.engine import baseline, judge
from retl.engine.change_set import CHANGES
from retl.engine.diff import CANDIDATES, UPSERTS, Ends
from retl.engine.hash import ROWS
from retl.engine.judge import Reject
from retl.engine.workspace import Workspace
from retl.ledger import RejectChanges, RejectRow
from retl.observe.summary import Conflicts, Counts, Deletes, counted
from retl.run.plan import Plan

_ENDINGS = {  # answer → its name in the numbers; None: the row was in no batch
    Kind.WRITTEN: "written",
    Kind.MERGED: "merged",
    Kind.KEPT: "edited",
    Kind.CONFLICT: "conflict",
    Kind.SKIPPED: "skipped",
    Kind.REJECTED: "rejected",
    Kind.RETRY: "not_attempted",
    Kind.UNKNOWN: "in_doubt",
    None: "not_attempted",
}


def numbers(read: int, ends: Ends, write: str = "upsert") -> Counts:
    """The numbers of a run. Rows of the mart that are not candidates are unchanged. A key that left the mart
    and is kept is not counted. Under update_only a row that is new to the baseline was updated: the target
    had it. Under append and insert_only every row that was written is new, also one that was sent before
    without an answer."""

    def rows(ending: str, *ops: str) -> int:
        return sum(ends.get((op, ending), 0) for op in ops)

    mart = (*UPSERTS, "none")
    new = rows("written", "insert") + rows("merged", "insert")
    known = rows("written", "update") + rows("merged", "update")
    if write == "update_only":
        new, known = 0, new + known
    elif write in ("append", "insert_only"):
        new, known = new + known, 0
    conflicts = Conflicts(rows("merged", *mart), rows("edited", *mart), rows("conflict", *mart))
    deletes = {ending: rows(ending, "delete") for ending in {*_ENDINGS.values()}}
    return Counts(
        read=read,
        unchanged=read - sum(number for (op, _), number in ends.items() if op in mart),
        inserted=new,
        updated=known,
        refreshed=rows("written", "refresh") + rows("merged", "refresh"),
        rejected=rows("rejected", *mart) + conflicts.queued,
        skipped=rows("skipped", *mart) + conflicts.kept,
        in_doubt=rows("in_doubt", *mart),
        not_attempted=rows("not_attempted", *mart),
        deleted=deletes["written"] + deletes["skipped"],
        deletes=Deletes(
            planned=sum(deletes.values()),
            rejected=deletes["rejected"] + deletes["conflict"],
            in_doubt=deletes["in_doubt"],
            not_attempted=deletes["not_attempted"],
            kept=deletes["edited"],
        ),
        conflicts=conflicts,
    )


def if_taken(plan: Plan, others: Mapping[tuple[str, Kind], int] | None = None) -> Counts:
    """The numbers of a plan if the target accepts every row, except `others` (by op and what becomes of
    them)."""
    ends = Counter(plan.ends)
    for (op, kind), rows in (others or {}).items():
        ends[op, None] -= rows
        ends[op, _ENDINGS[kind]] += rows
    return _numbers(plan, _ended(ends, "skipped" if plan.adopting else "written"))


def if_refused(plan: Plan) -> Counts:
    """The numbers of a plan that a guard refused: no row was attempted."""
    return _numbers(plan, _ended(Counter(plan.ends), "not_attempted"))


def _numbers(plan: Plan, ends: Ends) -> Counts:
    if plan.capabilities.in_place:  # a row that is the same was only compared
        ends = {end: rows for end, rows in ends.items() if end != ("refresh", "written")}
    return numbers(plan.read, ends, plan.field_map.shape.write)


def _ended(ends: Counter[tuple[str, str | None]], ending: str) -> Ends:
    """Give rows without an ending this one."""
    for op in (*UPSERTS, "delete"):
        ends[op, ending] += ends.pop((op, None), 0)
    return ends


Dismissals = frozenset[tuple[str, str, str, str | None]]  # key, row id, code, hash in hex


def dismissals(rows: Sequence[RejectRow]) -> Dismissals:
    """What these dismissed rejects of the ledger cover: the same row with the same code."""
    return frozenset((one.key, one.row_id, one.code, one.hash) for one in rows)


def still_open(found: Iterable[Reject], dismissed: Dismissals) -> Iterator[Reject]:
    """The rejects that nobody has dismissed."""
    return (one for one in found if (one.key, one.row_id, one.code, one.hash) not in dismissed)


def dismissed_note(rows: int) -> str:
    until = "it changes" if rows == 1 else "they change"
    return f"{counted(rows, 'rejected row', 'is')} dismissed, until {until}"


class Account(Struct, dict=True):
    """A run's plan and its answers; for more answers make a new one."""

    plan: Plan
    workspace: Workspace
    answered: Sequence[Answered]
    dismissed: Dismissals = frozenset()

    def counts(self) -> Counts:
        """The numbers of the run, by the actual outcome of each row."""
        if not self.plan.writes:
            return if_taken(self.plan)
        ends = Counter(self.plan.ends)
        found = self.workspace.run(f"SELECT op, kind, count(*) FROM ({self._answers()}) GROUP BY ALL")
        for op, kind, number in found:
            ends[op, None] -= number
            ends[op, _ENDINGS[Kind(kind)]] += number
        return _numbers(self.plan, _ended(ends, _ENDINGS[None]))

    def _answers(self) -> str:
        rows = f"(SELECT pos AS row, op, key, hash FROM {CHANGES})"
        return baseline.answered(self.workspace, rows, self.answered)

    @cached_property
    def target_rejects(self) -> list[Reject]:
        """The rows that the target rejected, or that wait for a person's decision, also as the table
        `refused`. They have row numbers (for payloads) if the mart is still there."""
        numbered = self.plan.payload is not None
        self.workspace.run(
            "CREATE OR REPLACE TABLE refused AS SELECT a.row AS pos, a.key, '' AS row_id, a.hash,"
            f" {'r.row' if numbered else 'CAST(NULL AS BIGINT) AS row'},"
            " CASE a.kind WHEN 'rejected' THEN 'target' ELSE 'conflict' END AS stage,"
            " coalesce(a.code, 'REJECTED') AS code, coalesce(a.reason, '') AS reason"
            f" FROM ({self._answers()}) a"
            f"{f' LEFT JOIN {ROWS} r ON r.key = a.key AND r.fault IS NULL' if numbered else ''}"
            " WHERE a.kind IN ('rejected', 'conflict')"
        )
        rows = self.workspace.run(
            "SELECT key, row_id, lower(hex(hash)), stage, code, reason, row FROM refused ORDER BY pos"
        )
        return [
            Reject(key, row_id, digest, stage, code, reason, row=row)
            for key, row_id, digest, stage, code, reason, row in rows
        ]

    @property
    def rejects(self) -> list[Reject]:
        """Every reject of the run."""
        return [*judge.rejects(self.workspace), *self.target_rejects]

    def number_dismissed(self) -> int:
        if not self.dismissed:
            return 0
        return len(self.rejects) - sum(1 for _ in still_open(self.rejects, self.dismissed))

    def open_refusals(self) -> int:
        """The rows that the target refused, without those that somebody has dismissed."""
        refused = [one for one in self.target_rejects if one.stage == "target"]
        return sum(1 for _ in still_open(refused, self.dismissed))

    def examples(self, number: int) -> list[dict[str, Any]]:
        """The first rejects that are not dismissed, for people: no hashes."""
        most = None if self.dismissed else number
        found = [*judge.rejects(self.workspace, most), *self.target_rejects]
        found = list(islice(still_open(found, self.dismissed), number))
        return [{"key": r.key, "stage": r.stage, "code": r.code, "reason": r.reason} for r in found]

    def reject_changes(self, former: Sequence[RejectRow], *, whole: bool) -> RejectChanges:
        """The open rejects of this run, and the former ones that it closes: applied, or withdrawn because the
        row is gone or valid now. Unless the run checked the `whole` mart, the others stay open."""
        mine = self.rejects
        kept = self._payloads(bool(mine))
        opened = tuple(
            ledger.Reject(r.key, r.hash, r.stage, r.code, r.reason, r.row_id, kept.get(r.row)) for r in mine
        )
        still = {(reject.key, reject.row_id) for reject in mine}
        others = [(r.key, r.row_id) for r in former if (r.key, r.row_id) not in still]
        if not others:
            return RejectChanges(opened)
        self.workspace.load("former_rejects", {"key": "VARCHAR", "row_id": "VARCHAR"}, others)
        ended = self.workspace.run(
            "SELECT f.key, f.row_id, s.key IS NULL OR c.key IS NULL, a.kind FROM former_rejects f"
            f" LEFT JOIN {judge.STANDING} s USING (key)"
            f" LEFT JOIN (SELECT DISTINCT key FROM {CANDIDATES} WHERE ending IS DISTINCT FROM 'rejected') c"
            " USING (key)"
            f" LEFT JOIN ({self._answers()}) a ON a.key = f.key"
        )  # a row without a usable key has the key '', which joins nothing
        closed = [
            (key, row_id, "applied" if kind is not None else "withdrawn")
            for key, row_id, not_due, kind in ended
            if kind in SETTLED or (kind is None and not_due and whole)
        ]
        return RejectChanges(opened, tuple(closed))

    def _payloads(self, any_rejected: bool) -> Mapping[int | None, str]:
        """The rejected rows as documents, by row number in the mart."""
        if self.plan.payload is None or not any_rejected:
            return {}
        named = "SELECT key, row_id, row FROM"
        rejected = f"{named} {judge.REJECTS} UNION ALL {named} refused WHERE row IS NOT NULL"
        return self.plan.payload.load(self.workspace, rejected)
