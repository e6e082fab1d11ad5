"""Which PostgreSQL errors concern a row's values, and the reason given for each."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from retl.destinations.batch import Kind, Order, RowResult

if TYPE_CHECKING:
    import psycopg


CARDINALITY = "21000"  # one statement has a key twice


UNSUPPORTED = "0A000"  # of COPY: a table with row-level security


_POLICY = "ExecWithCheckOptions"  # of PostgreSQL: where 42501 is about a row and not about a right


_TOO_LARGE = "54000"


_POISON = {_TOO_LARGE, "44000", "P0001"}  # besides classes 22 and 23; P0001 is a trigger's RAISE


_UNREADABLE = {"42601", "42602", "42622", "42704"}  # of tsquery, jsonpath, names


_REASONS = {
    "23502": "it must have a value",
    "23001": "a row that refers to it forbids it",
    "23503": "the row it refers to, or that refers to it, forbids it",
    "23505": "another row has the same value",
    "23514": "the check refuses it",
    "23P01": "another row excludes it",
    "22001": "the value is too long",
    "22003": "the number is out of range",
    "22021": "the text holds a character that PostgreSQL cannot store",
    _TOO_LARGE: "a value is larger than PostgreSQL can take",
    "P0001": "a trigger of the table refuses the row",
}


def rejection(error: psycopg.Error, names: Collection[str]) -> RowResult | None:
    """The row's result if the error concerns its values, else None.
    `names` are the columns that may be named."""
    code = error.sqlstate or ""
    if code == "42501" and error.diag.source_function == _POLICY:
        return RowResult(Kind.REJECTED, code, "a row-level security policy refuses the row")
    if code[:2] not in ("22", "23") and code not in _POISON:
        return None
    place = error.diag.constraint_name or error.diag.column_name or _copied_column(error, names)
    reason = _REASONS.get(code, "the value does not fit its column" if code[:2] == "22" else "it is refused")
    where = (error.diag.source_function or "") if code == _TOO_LARGE else ""
    if where.startswith(("index_form_tuple", "_bt_check_third_page")):
        reason = "the value is too long for an index"
    elif where == "RelationGetBufferForTuple":
        reason = "the row does not fit a page of PostgreSQL (8 kB): its columns are too many, or too wide"
    elif error.diag.source_function == "ExecFindPartition":
        reason = "no partition of the table takes it"
    return RowResult(Kind.REJECTED, code, f"{place}: {reason}" if place else reason)


def refused(code: str, constraint: str, order: Order | None = None) -> RowResult:
    """The result of a row that this constraint refuses, found without an error."""
    return RowResult(Kind.REJECTED, code, f"{constraint}: {_REASONS[code]}", order=order)


def unreadable(error: psycopg.Error, names: Collection[str]) -> RowResult | None:
    """The row's result if the error is that of a cast from text: some types call it an error of syntax."""
    found = rejection(error, names)
    if found is None and error.sqlstate in _UNREADABLE:
        return RowResult(Kind.REJECTED, error.sqlstate, "the value does not fit its column")
    return found


def _copied_column(error: psycopg.Error, names: Collection[str]) -> str | None:
    """The column of a COPY error is only in CONTEXT, next to the value."""
    found = re.match(r"COPY \S+, \S+ \d+, \S+ (.+?): ", error.diag.context or "")
    return found[1] if found and found[1] in names else None
