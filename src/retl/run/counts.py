"""What became of every row: a plan and its answers → numbers, rejects, and what ends an open reject.

It only reads the workspace; it decides nothing and forgives nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retl import ledger
from retl.delivery.lanes import Answered
from retl.destinations.batch import Kind
from retl.engine import baseline, changes
from retl.engine.changes import Reject, Selection
from retl.ledger import RejectChanges, RejectRow
from retl.observe.summary import Counts, Deletes
from retl.run.plan import Plan

_UPSERTS = ("insert", "update", "refresh")


@dataclass
class Account:
    """A run's plan and the answers it got; made anew when there are more answers."""

    plan: Plan
    answered: Sequence[Answered]

    def counts(self) -> Counts:
        """The plan's numbers, corrected by what really became of each row."""
        planned = self.plan.counts()
        if self.plan.adopting or not len(self.plan.change_set):
            return planned

        def rows(kind: Kind | None, *ops: str) -> int:
            return sum(self._ends.get((op, kind), 0) for op in ops)

        return Counts(
            read=planned.read,
            unchanged=planned.unchanged,
            inserted=rows(Kind.WRITTEN, "insert"),
            updated=rows(Kind.WRITTEN, "update"),
            refreshed=rows(Kind.WRITTEN, "refresh"),
            rejected=planned.rejected + rows(Kind.REJECTED, *_UPSERTS),
            skipped=planned.skipped + rows(Kind.SKIPPED, *_UPSERTS),
            in_doubt=planned.in_doubt + rows(Kind.UNKNOWN, *_UPSERTS),
            not_attempted=planned.not_attempted + rows(Kind.RETRY, *_UPSERTS) + rows(None, *_UPSERTS),
            deleted=rows(Kind.WRITTEN, "delete") + rows(Kind.SKIPPED, "delete"),
            deletes=Deletes(
                planned=planned.deletes.planned,
                rejected=planned.deletes.rejected + rows(Kind.REJECTED, "delete"),
                in_doubt=rows(Kind.UNKNOWN, "delete"),
                not_attempted=planned.deletes.not_attempted
                + rows(Kind.RETRY, "delete")
                + rows(None, "delete"),
            ),
        )

    @cached_property
    def _ends(self) -> dict[tuple[str, Kind | None], int]:
        """Rows of the change set by op and by what became of them (None = never handed out)."""
        counted = self.plan.workspace.run(f"SELECT op, kind, count(*) FROM ({self._answers()}) GROUP BY ALL")
        ends: dict[tuple[str, Kind | None], int] = {(op, Kind(kind)): n for op, kind, n in counted}
        for op, total in self.plan.change_set.counts.items():
            ends[op, None] = total - sum(n for (one, _), n in ends.items() if one == op)
        return ends

    def _answers(self) -> str:
        rows = "(SELECT pos AS row, op, key, hash FROM changes)"
        return baseline.answered(self.plan.workspace, rows, self.answered)

    @cached_property
    def target_rejects(self) -> list[Reject]:
        """The rows the target refused; makes `refused` of them. Their numbers in the mart are told as long
        as it is there: for payloads."""
        numbered = self.plan.payload is not None
        self.plan.workspace.run(
            "CREATE OR REPLACE TABLE refused AS SELECT a.row AS pos, a.key, '' AS row_id, a.hash,"
            f" {'r.row' if numbered else 'CAST(NULL AS BIGINT) AS row'},"
            " coalesce(a.code, 'REJECTED') AS code, coalesce(a.reason, '') AS reason"
            f" FROM ({self._answers()}) a"
            f"{' LEFT JOIN rows r ON r.key = a.key AND r.fault IS NULL' if numbered else ''}"
            " WHERE a.kind = 'rejected'"
        )
        rows = self.plan.workspace.run(
            "SELECT key, row_id, lower(hex(hash)), code, reason, row FROM refused ORDER BY pos"
        )
        return [
            Reject(key, row_id, digest, "target", code, reason, row=row)
            for key, row_id, digest, code, reason, row in rows
        ]

    def _payloads(self) -> Mapping[int | None, str]:
        """The rejected rows as documents, by their number in the frozen mart."""
        if self.plan.payload is None or not (self.target_rejects or self.plan.counts().rejected):
            return {}
        named = "SELECT key, row_id, row FROM"
        return self.plan.payload.load(
            self.plan.workspace, f"{named} rejects UNION ALL {named} refused WHERE row IS NOT NULL"
        )

    def examples(self, number: int) -> list[dict[str, Any]]:
        """The first rejects, for people: no hashes."""
        found = [*changes.rejects(self.plan.workspace, number), *self.target_rejects][:number]
        return [{"key": r.key, "stage": r.stage, "code": r.code, "reason": r.reason} for r in found]

    def reject_changes(self, former: Sequence[RejectRow], selection: Selection) -> RejectChanges:
        """Every open reject of this run, and which former ones ended: applied, or withdrawn because the
        row is gone or healed. What this run did not look at stays open."""
        mine = [*changes.rejects(self.plan.workspace), *self.target_rejects]
        kept = self._payloads()
        opened = tuple(
            ledger.Reject(r.key, r.hash, r.stage, r.code, r.reason, r.row_id, kept.get(r.row)) for r in mine
        )
        still = {(reject.key, reject.row_id) for reject in mine}
        others = [(r.key, r.row_id) for r in former if (r.key, r.row_id) not in still]
        if not others:
            return RejectChanges(opened)
        workspace = self.plan.workspace
        workspace.load("former", {"key": "VARCHAR", "row_id": "VARCHAR"}, others)
        ended = workspace.run(
            "SELECT f.key, f.row_id, r.key IS NULL OR c.key IS NULL, a.kind FROM former f"
            " LEFT JOIN standing r USING (key)"
            " LEFT JOIN (SELECT DISTINCT key FROM candidates) c USING (key)"
            f" LEFT JOIN ({self._answers()}) a ON a.key = f.key"
        )  # of a row without a usable key, whose key is '', nothing is there but itself
        whole = not selection.partial and selection.limit is None
        closed = [
            (key, row_id, "applied" if kind is not None else "withdrawn")
            for key, row_id, not_due, kind in ended
            if kind in ("written", "skipped") or (kind is None and not_due and whole)
        ]
        return RejectChanges(opened, tuple(closed))
