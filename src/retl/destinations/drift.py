"""The error that says how a table does not fit a sync, with the DDL that corrects it."""

from __future__ import annotations

from collections.abc import Sequence

from retl.destinations.batch import WriteMode
from retl.errors import Mismatch

Fault = tuple[str, str | None]  # what is wrong, and the statement that corrects it


def fills(write: WriteMode) -> str:
    """What the hint says of a column that somebody has to make."""
    if write in ("append", "insert_only"):
        return f"rows that are there already stay empty in it, because {write} changes none"
    return "then, if it was delivered before, `retl sync --full` fills it in all rows"


def drift(faults: Sequence[Fault], write: WriteMode) -> Mismatch:
    """TARGET_DRIFT of these faults, of a sync that writes like this."""
    fixes = [fix for _, fix in faults if fix]
    advice = [f"{fix};" for fix in fixes]
    if any(" ADD COLUMN " in fix or " ADD [" in fix for fix in fixes):  # SQL Server has no word for it
        advice.append(fills(write))
    return Mismatch("TARGET_DRIFT", "; ".join(what for what, _ in faults), hint=" ".join(advice) or None)
