"""Succession: keys that left the mart while another row of it stands for the same object at the target.

The target does not tell the two keys apart (`Capabilities.folds`), or it gave both one external id. To delete
such an object would delete what the mart still has. So the row that stays is due, and the entry of the other
key leaves the baseline with its answer; of several keys of one object that all left, one is deleted. It
decides by keys and ids alone and reads no target.
"""

from __future__ import annotations

from retl.engine.baseline import BASELINE
from retl.engine.diff import CANDIDATES, Strategy
from retl.engine.hash import ROWS
from retl.engine.mapping import FieldMap
from retl.engine.workspace import Workspace

SUCCEEDED = "succeeded"  # key, "by": the key it leaves with, … ; also the ending of its candidate


def withhold(
    workspace: Workspace, field_map: FieldMap, strategy: Strategy, *, whole: bool, resend: bool
) -> None:
    """Withhold the deletes of objects that another key stands for, and create SUCCEEDED. Where no key is
    folded and no delete has an external id, this costs one look at the deletes. `resend`: a row that stays
    may be sent again; else the target would take it twice, and both keys stay in the baseline."""
    workspace.run(
        f'CREATE TABLE {SUCCEEDED} (key VARCHAR, "by" VARCHAR, row BIGINT, unknown BOOLEAN, owned BOOLEAN,'
        " ref VARCHAR)"
    )
    due = f"FROM {CANDIDATES} WHERE op = 'delete' AND ending IS NULL"
    named = bool(strategy.absence and workspace.run(f"SELECT 1 {due} AND ref IS NOT NULL LIMIT 1"))
    if field_map.folds:
        _by_folded_key(workspace, field_map, whole=whole)
    if named:
        _by_external_id(workspace)
    if field_map.folds or named:
        _settle(workspace, once=strategy.once or not resend, hold_unknown=strategy.hold_unknown)
        _delete_once(workspace, field_map)


def _by_folded_key(workspace: Workspace, field_map: FieldMap, *, whole: bool) -> None:
    """Find the entries whose key the target does not tell from that of a row. Without the `whole` mart any
    entry may be one: a key that other rows still have would have been a fault of this row."""
    left = f"(SELECT key FROM {CANDIDATES} WHERE op = 'delete')" if whole else BASELINE
    usable = "r.key IS NOT NULL" if whole else "r.fault IS NULL"
    _find(
        workspace,
        f"SELECT b.key, r.row, r.fault FROM {ROWS} r JOIN {left} b"
        f" ON {field_map.folded('r.key')} = {field_map.folded('b.key')} WHERE {usable} AND b.key <> r.key",
    )


def _by_external_id(workspace: Workspace) -> None:
    """Find the deletes of an object whose external id another row of the mart has too, under its own key or
    under one that it succeeds."""
    held = f'SELECT key, ref FROM {BASELINE} UNION ALL SELECT "by", ref FROM {SUCCEEDED}'
    _find(
        workspace,
        f"SELECT d.key, r.row, r.fault FROM {CANDIDATES} d JOIN ({held}) b ON b.ref = d.ref"
        f" JOIN {ROWS} r ON r.key = b.key WHERE d.op = 'delete' AND d.ending IS NULL AND b.key <> d.key",
    )


def _delete_once(workspace: Workspace, field_map: FieldMap) -> None:
    """Of several deletes of one object keep one: the others leave the baseline with it."""
    objects = ["ref", field_map.folded("key")] if field_map.folds else ["ref"]
    for one in objects:
        workspace.run(
            f'INSERT INTO {SUCCEEDED} SELECT key, "by", NULL, NULL, owned, ref FROM (SELECT key, owned, ref,'
            f' first(key) OVER (PARTITION BY {one} ORDER BY ref IS NULL, key) AS "by" FROM {CANDIDATES}'
            f" WHERE op = 'delete' AND ending IS NULL AND {one} IS NOT NULL) WHERE key <> \"by\""
        )
        _end(workspace)


def _settle(workspace: Workspace, *, once: bool, hold_unknown: bool) -> None:
    """Make the rows that succeed an entry due, as updates of its object. A row that is sent only `once`, or
    that may have arrived, stays where it is."""
    _end(workspace)
    workspace.run(
        "CREATE OR REPLACE TABLE successors AS SELECT s.row, bool_or(s.owned) AS owned, max(s.ref) AS ref,"
        f" bool_or(s.unknown) AS unknown FROM {SUCCEEDED} s JOIN {ROWS} r USING (row)"
        " WHERE r.fault IS NULL GROUP BY s.row"
    )
    doubt = " WHEN s.unknown THEN 'in_doubt'" if once or hold_unknown else ""
    otherwise = " ELSE 'skipped'" if once else ""
    ending = f"CASE WHEN op <> 'insert' THEN ending{doubt}{otherwise} END"
    workspace.run(
        f"UPDATE {CANDIDATES} SET op = CASE op WHEN 'insert' THEN 'update' ELSE op END, ending = {ending},"
        f" owned = coalesce({CANDIDATES}.owned, FALSE) OR s.owned, ref = coalesce({CANDIDATES}.ref, s.ref)"
        f" FROM successors s WHERE s.row = {CANDIDATES}.row"
    )
    if not once:
        workspace.run(
            f"INSERT INTO {CANDIDATES} SELECT r.row, r.key, 'update', NULL, r.cleared, b.owned OR s.owned,"
            f" coalesce(b.ref, s.ref), NULL, b.hash, b.dropped FROM successors s JOIN {ROWS} r USING (row)"
            f" JOIN {BASELINE} b USING (key)"
            f" WHERE s.row NOT IN (SELECT row FROM {CANDIDATES} WHERE row IS NOT NULL)"
        )


def _find(workspace: Workspace, pairs: str) -> None:
    """Add entries to SUCCEEDED from SQL of (key of the entry, row that stands for it, its fault); of several
    rows a usable one, then the first."""
    workspace.run(
        f"INSERT INTO {SUCCEEDED} SELECT p.key, r.key, p.row, b.hash IS NULL, b.owned, b.ref FROM"
        f" (SELECT key, arg_min(row, (fault IS NOT NULL, row)) AS row FROM ({pairs}) GROUP BY key) p"
        f" JOIN {ROWS} r USING (row) JOIN {BASELINE} b ON b.key = p.key"
        f" WHERE p.key NOT IN (SELECT key FROM {SUCCEEDED})"
    )


def _end(workspace: Workspace) -> None:
    workspace.run(
        f"UPDATE {CANDIDATES} SET ending = '{SUCCEEDED}' WHERE op = 'delete'"
        f" AND key IN (SELECT key FROM {SUCCEEDED})"
    )
