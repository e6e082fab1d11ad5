"""What every target says of a row that somebody else edited: results, their codes, and decisions of people.

How edits are noticed and what is written is the target's own matter.
"""

from __future__ import annotations

from collections.abc import Sequence

from retl.destinations.batch import Decision, Kind, RowResult

GONE, REMOVED = "GONE", "somebody removed the row at the target"
EDITED = "somebody edited it since our last write"
ROUNDS = 5  # in which rows may change, appear or vanish while they are written
BUSY = RowResult(Kind.RETRY, "APPEARED", "the row appeared, vanished or changed while it was written")

# of a rollback
_EDITED_SINCE = "somebody edited it since that run"
GONE_SINCE = RowResult(Kind.KEPT, "GONE", "somebody removed the row since that run")
MADE_SINCE = RowResult(Kind.KEPT, "APPEARED", "somebody made the row again since that run")
TOUCHED_SINCE = RowResult(Kind.KEPT, "EDITED", _EDITED_SINCE)
PARTLY_RESTORED = RowResult(Kind.MERGED, "EDITED", _EDITED_SINCE)


def conflict(code: str, reason: str, both: str) -> RowResult:
    """A row that waits for a decision; the digest names what was met."""
    return RowResult(Kind.CONFLICT, code, f"{reason} [{both}]")


def decided(decision: Decision | None, queued: RowResult, both: str) -> RowResult | None:
    """The result of a row in conflict; None if the mart's row is written. A decision about another version
    of the row is none."""
    if decision is None or decision.both != both:
        return queued
    return None if decision.side == "mart" else RowResult(Kind.KEPT, queued.code, "a person decided")


def in_conflict(names: Sequence[str], both: str, decision: Decision | None) -> RowResult | None:
    """The result of a row with these fields in conflict; None if the mart's row is written."""
    reason = f"{', '.join(names)}: edited at the target and changed in the mart"
    return decided(decision, conflict("CONFLICT", reason, both), both)


def spared(strategy: str, both: str, decision: Decision | None) -> RowResult | None:
    """The result of a row that is to be deleted and that somebody touched; None if it is deleted."""
    if strategy == "warehouse_wins":
        return None
    if strategy != "manual":
        return RowResult(Kind.KEPT, "EDITED", f"not deleted: {EDITED}")
    return decided(decision, conflict("DELETE_CONFLICT", f"not deleted: {EDITED}", both), both)


def gone(strategy: str, decision: Decision | None) -> RowResult | None:
    """The result of a row that we left and that is not there any more; None if it is made again."""
    if strategy == "warehouse_wins":
        return None
    if strategy != "manual":
        return RowResult(Kind.KEPT, GONE, REMOVED)
    return decided(decision, conflict(GONE, REMOVED, "gone"), "gone")
