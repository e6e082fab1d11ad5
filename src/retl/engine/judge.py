"""Judge: which candidates must not be sent, and why: their keys, the contract, or unknown external ids.

A rejected candidate stays in CANDIDATES with the ending `rejected`; its reason is in REJECTS. No reason
contains a value of the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from retl.contract.judge import MISFIT, Contract, Verdict
from retl.engine.diff import CANDIDATES, UPSERTS
from retl.engine.hash import KEY_FAULTS, MART, ROWS, USABLE_FAULTS
from retl.engine.mapping import FieldMap, Lookup
from retl.engine.workspace import Workspace
from retl.values.phone import REASON
from retl.values.sql import literal, quoted

REJECTS = "rejects"  # row, key, row_id, hash, stage, code, reason, col
STANDING = "standing"  # key: the previously rejected keys that the mart still has
_VERDICTS = "verdicts"
_VERDICT = {"row": "BIGINT", "stage": "VARCHAR", "code": "VARCHAR", "reason": "VARCHAR", "col": "VARCHAR"}
_JUDGED_AT_ONCE = 10_000  # rows as Python objects at a time
_DUE = f"ending IS NULL AND op IN {UPSERTS}"


class Reject(Struct, frozen=True):
    """One row that will not be delivered, with its reason (without row values). Without a usable key, `key`
    is '' and `row_id` identifies the row. `row` is its number in the mart."""

    key: str
    row_id: str
    hash: str | None
    stage: Literal["key", "contract", "ref", "target", "conflict"]
    code: str
    reason: str
    column: str | None = None
    row: int | None = None


def judge(
    workspace: Workspace, judged: Contract, key: Sequence[str], edited: Sequence[tuple[Any, ...]] = ()
) -> None:
    """Validate with Pydantic the due candidates that the prefilter did not clear, and create REJECTS from the
    failures and the key faults. `key` are the key's columns in the mart. `edited` are the rejects of a
    contract that has judged every row already."""
    due = f"SELECT row FROM {CANDIDATES} WHERE NOT cleared AND {_DUE}"
    workspace.load(_VERDICTS, _VERDICT, edited if judged.edits else _rejected(workspace, judged, due))
    if workspace.run(f"SELECT 1 FROM {ROWS} WHERE unread IS NOT NULL LIMIT 1"):
        workspace.run(
            f"INSERT INTO {_VERDICTS} SELECT r.row, 'contract', 'NO_PHONE', {literal(REASON)}, r.unread"
            f" FROM {ROWS} r JOIN {CANDIDATES} c USING (row) WHERE r.unread IS NOT NULL AND {_DUE}"
            f" AND r.row NOT IN (SELECT row FROM {_VERDICTS})"
        )
    _make_rejects(workspace, key)
    _end(workspace, f"row IN (SELECT row FROM {_VERDICTS})", "rejected")


def verdict(workspace: Workspace, judged: Contract, row: int) -> Verdict | None:
    """What the contract says of a row that is not due, which `judge` leaves out; None = accepted. A contract
    that edits has judged it already."""
    found = () if judged.edits else _rejected(workspace, judged, str(row))
    for _, _, code, reason, column in found:
        return Verdict(column, code, reason)
    ((unread,),) = workspace.run(f"SELECT unread FROM {ROWS} WHERE row = {row}")
    return Verdict(unread, "NO_PHONE", REASON) if unread is not None else None


def reject_missing(workspace: Workspace, field_map: FieldMap) -> None:
    """Reject the due candidates that need a still unknown external id of another sync."""
    for lookup in field_map.lookups:
        _reject_missing(workspace, lookup)


def has_unkeyed(workspace: Workspace) -> bool:
    """Whether the mart has a row without a usable key."""
    return bool(workspace.run(f"SELECT 1 FROM {ROWS} WHERE fault NOT IN {USABLE_FAULTS} LIMIT 1"))


def hold_deletes(workspace: Workspace, *, unkeyed: bool, by_ref: bool) -> None:
    """Hold deletes back: all of them while the mart has a row without a usable key (`unkeyed`), because its
    key may be one of the missing ones. With `by_ref`, reject deletes without a known external id."""
    if unkeyed:
        _end(workspace, "op = 'delete' AND ending IS NULL", "not_attempted")
    elif by_ref:
        unnamed = "op = 'delete' AND ending IS NULL AND ref IS NULL"
        workspace.run(
            f"INSERT INTO {REJECTS} SELECT NULL, key, '', NULL, 'ref', 'REF_UNKNOWN',"
            f" 'the external id of this row is not known', NULL FROM {CANDIDATES} WHERE {unnamed}"
        )
        _end(workspace, unnamed, "rejected")


def reject_nothing(workspace: Workspace) -> None:
    """Create REJECTS and STANDING for a run that reads no row of the mart."""
    workspace.run(
        f"CREATE TABLE {REJECTS} (row BIGINT, key VARCHAR, row_id VARCHAR, hash BLOB, stage VARCHAR,"
        " code VARCHAR, reason VARCHAR, col VARCHAR)"
    )
    workspace.run(f"CREATE TABLE {STANDING} (key VARCHAR)")


def find_standing(workspace: Workspace, keys: Iterable[str]) -> None:
    """Create STANDING: the given keys that the mart has. It is used after the mart is dropped."""
    workspace.load(STANDING, {"key": "VARCHAR"}, ((key,) for key in keys))
    if workspace.run(f"SELECT 1 FROM {STANDING} LIMIT 1"):
        standing = f"SELECT key FROM {ROWS} WHERE key IS NOT NULL"
        workspace.run(f"DELETE FROM {STANDING} WHERE key NOT IN ({standing})")


def new_rejects(workspace: Workspace, known: Iterable[tuple[str, str | None]]) -> tuple[int, int]:
    """The number of key and contract rejects that are not known yet, and of those that are; `known` are (key,
    hash in hex)."""
    found = workspace.run(f"SELECT key, lower(hex(hash)) FROM {REJECTS} WHERE stage <> 'ref'")
    seen = set(known)
    new = sum(one not in seen for one in found)
    return new, len(found) - new


def rejects(workspace: Workspace, limit: int | None = None) -> list[Reject]:
    """The rejects so far, in the order of their keys."""
    top = f" LIMIT {limit}" if limit is not None else ""
    rows = workspace.run(
        "SELECT key, row_id, lower(hex(hash)), stage, code, reason, col, row"
        f" FROM {REJECTS} ORDER BY key, row{top}"
    )
    return [Reject(*row) for row in rows]


def codes(workspace: Workspace) -> tuple[str, ...]:
    """The codes of the rejects, the most frequent first."""
    found = workspace.run(f"SELECT code FROM {REJECTS} GROUP BY 1 ORDER BY count(*) DESC, 1")
    return tuple(code for (code,) in found)


def _end(workspace: Workspace, which: str, ending: str) -> None:
    workspace.run(f"UPDATE {CANDIDATES} SET ending = '{ending}' WHERE {which}")


def _make_rejects(workspace: Workspace, key: Sequence[str]) -> None:
    """Create REJECTS. A row without a usable key is identified by its digest: while it is unchanged it is the
    same reject. Rows with the same key have one digest over all of them."""
    reason = (
        "CASE r.fault " + " ".join(f"WHEN '{c}' THEN {literal(t)}" for c, t in KEY_FAULTS.items()) + " END"
    )
    fault = f"'key' AS stage, r.fault AS code, {reason} AS reason, NULL::VARCHAR AS col FROM {ROWS} r"
    parts = ", ".join(f"CAST(m.{quoted(name)} AS VARCHAR)" for name in key)
    row_id = f"left(sha256(CAST(to_json([{parts}]) AS VARCHAR) || hex(r.hash)), 32)"
    workspace.run(
        f"CREATE TABLE {REJECTS} AS"
        f" SELECT r.row, '' AS key, {row_id} AS row_id, unhex({row_id}) AS hash, {fault}"
        f' JOIN {MART} m ON m."retl row" = r.row WHERE r.fault NOT IN {USABLE_FAULTS}'
        f" UNION ALL SELECT r.row, r.key, '', g.hash, {fault} JOIN"
        " (SELECT key, unhex(left(sha256(string_agg(hex(hash), '/' ORDER BY hash)), 32)) AS hash"
        f" FROM {ROWS} WHERE fault IN {USABLE_FAULTS} GROUP BY key) g ON g.key = r.key"
        f" WHERE r.fault IN {USABLE_FAULTS}"
        " UNION ALL SELECT v.row, r.key, '', r.hash, v.stage, v.code, v.reason, v.col"
        f" FROM {_VERDICTS} v JOIN {ROWS} r USING (row) WHERE r.fault IS NULL"
    )


def _reject_missing(workspace: Workspace, lookup: Lookup) -> None:
    missing = f"{_DUE} AND {lookup.key} IS NOT NULL AND {lookup.ref} IS NULL"
    reason = (
        f"{lookup.field}: sync {lookup.sync} has no external id yet for the row that {lookup.columns} names"
    )
    workspace.run(
        'CREATE OR REPLACE TABLE waiting AS SELECT c.row, c.key, "retl hash" AS hash'
        f' FROM {CANDIDATES} c JOIN {MART} ON "retl row" = c.row WHERE {missing}'
    )
    workspace.run(
        f"INSERT INTO {REJECTS} SELECT row, key, '', hash, 'ref', 'REF_MISSING', {literal(reason)},"
        f" {literal(lookup.columns)} FROM waiting"
    )
    _end(workspace, "row IN (SELECT row FROM waiting)", "rejected")


def _rejected(workspace: Workspace, judged: Contract, rows: str) -> Iterator[tuple[Any, ...]]:
    """The model's rejects among the rows that this SQL selects."""
    names = (*judged.columns, MISFIT)
    query = f'SELECT {judged.select()}, "retl row" FROM {MART} WHERE "retl row" IN ({rows})'
    for chunk in workspace.chunks(query, _JUDGED_AT_ONCE):
        doubtful = judged.doubtful(chunk)
        verdicts = judged.judge([dict(zip(names, row, strict=False)) for row in doubtful])
        for (*_, number), verdict in zip(doubtful, verdicts, strict=True):
            if verdict is not None:
                yield number, "contract", verdict.code, verdict.reason, verdict.column
