"""Freeze, diff, batches: mart × baseline → change set.

In the workspace stand `mart` (the frozen rows, each with its hash; `rows` shows their keys), `candidates`
(what is due of them, or gone) and `changes` (what would leave, in the order it would leave). A row is
its position in the change set.
Nothing here knows a target, and nothing here is kept after the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from retl.contract.judge import MISFIT, Contract, Verdict
from retl.engine.baseline import DELTA, opened
from retl.engine.change_set import ChangeSet
from retl.engine.mapping import FieldMap, Lookup, compared
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.project.definitions import Sync
from retl.values import canonical, storage
from retl.values.keys import key_value_sql
from retl.values.phone import REASON
from retl.values.sql import literal, quoted

FRESH, OWED, DELETES = 0, 1, 2  # phases of a change set; a batch never spans two
_JUDGED_AT_ONCE = 10_000  # rows that become Python objects at a time


@dataclass(frozen=True)
class Selection:
    """Which rows a run is about, beyond what changed."""

    full: bool = False
    limit: int | None = None
    keys: tuple[str, ...] = ()
    where: str | None = None

    @property
    def partial(self) -> bool:
        """A read that says nothing about absent rows."""
        return bool(self.keys) or self.where is not None

    @property
    def forced(self) -> bool:
        """The rows are sent whether they changed or not."""
        return self.full or self.partial


@dataclass(frozen=True)
class Strategy:
    """What makes a row a candidate, and what absence means."""

    everything: bool  # every row, changed or not
    absence: bool  # a key that left the mart is gone
    once: bool  # append: a key in the baseline is never sent again
    hold_unknown: bool  # a row nobody knows about is not sent again
    refresh_before: datetime | None = None  # confirmed before this: send again, it would expire


@dataclass(frozen=True)
class Cursor:
    """The column a watermark moves along, its DuckDB type, and how far before the mark to look (seconds)."""

    column: str
    column_type: str
    lookback: float = 0.0

    @property
    def is_time(self) -> bool:
        return self.column_type.startswith(("TIMESTAMP", "DATE"))


def cursor(sync: Sync, columns: Mapping[str, str]) -> Cursor | None:
    """The watermark's column. DefinitionError if the mart lacks it or it cannot be one."""
    asked = sync.changes
    if asked.watermark is None:
        return None
    kind = columns.get(asked.watermark)
    cursor = Cursor(asked.watermark, kind or "", asked.lookback)
    known = cursor.is_time or (kind or "").endswith("INT") or (kind or "").endswith("INTEGER")
    if kind is None or not known:
        raise DefinitionError(
            "WATERMARK_COLUMN",
            f"the watermark's column {asked.watermark!r} is "
            + ("not in the mart" if kind is None else f"{kind}: it must be a time or an integer"),
            where=f"sync {sync.name}",
        )
    if asked.lookback and not cursor.is_time:
        raise DefinitionError(
            "WATERMARK_LOOKBACK", "`lookback` needs a time column", where=f"sync {sync.name}"
        )
    return cursor


@dataclass(frozen=True)
class Reject:
    """One row that will not be delivered, with its reason (which holds no row values). Where the key does
    not say which row it is, it is '' and `row_id` does; `row` is its number in the frozen mart."""

    key: str
    row_id: str
    hash: str | None
    stage: Literal["key", "contract", "ref", "target"]
    code: str
    reason: str
    column: str | None = None
    row: int | None = None


def select(workspace: Workspace, field_map: FieldMap, selection: Selection) -> int:
    """Drop from the frozen mart what the selection leaves out; returns the rows that stay. What `where`
    chose is in the table `chosen`."""
    conditions = []
    if selection.keys:
        wanted = ", ".join(literal(key) for key in selection.keys)
        conditions.append(f"{field_map.key} IN ({wanted})")
    if selection.where is not None:
        conditions.append('"retl row" IN (SELECT * FROM chosen)')
    if conditions:
        workspace.run(f"DELETE FROM mart WHERE NOT coalesce({' AND '.join(conditions)}, false)")
    count: int = workspace.one("SELECT count(*) FROM mart")[0]
    return count


def find_duplicates(workspace: Workspace, field_map: FieldMap) -> None:
    """Make `duplicated`: the keys that stand in the frozen mart more than once."""
    workspace.run(
        f"CREATE TABLE duplicated AS SELECT key FROM (SELECT {field_map.key} AS key FROM mart"
        f" WHERE {field_map.key_fault} IS NULL) GROUP BY key HAVING count(*) > 1"
    )


def since(
    workspace: Workspace,
    field_map: FieldMap,
    cursor: Cursor,
    mark: str | None,
    owed: Iterable[str],
    now: datetime,
) -> str | None:
    """Watermark: keep of the frozen mart the rows at or past the mark (less the lookback), those without
    a cursor, and those of owed keys; returns the next mark.

    The comparison is typed, and inclusive, since rows that share the mark's value may have come later;
    the baseline knows the ones already delivered. The next mark never lies past `now` for a time, so
    that one far-future row does not hide tomorrow's.
    """
    column = quoted(cursor.column)
    ceiling = f" FILTER ({column} <= {literal(now.isoformat())}::TIMESTAMPTZ)" if cursor.is_time else ""
    newest: str | None = workspace.one(f"SELECT CAST(max({column}){ceiling} AS VARCHAR) FROM mart")[0]
    if mark is not None:
        workspace.load("owed", {"key": "VARCHAR"}, ((key,) for key in owed))
        least = f"CAST({literal(mark)} AS {cursor.column_type})"
        if cursor.lookback:
            least += f" - INTERVAL {literal(f'{cursor.lookback} seconds')}"
        workspace.run(
            f"DELETE FROM mart WHERE {column} < {least}"
            f" AND coalesce({field_map.key} NOT IN (SELECT key FROM owed), TRUE)"
        )
        newest = workspace.one(
            f"SELECT CAST(greatest(CAST({literal(mark)} AS {cursor.column_type}), CAST("
            f"{literal(newest) if newest is not None else 'NULL'} AS {cursor.column_type})) AS VARCHAR)"
        )[0]
    return newest


def fingerprint(workspace: Workspace, field_map: FieldMap, clears: str, salt: str) -> None:
    """Add to each frozen row the CODE of a key fault or NULL, the hash of what would be sent, and whether
    the contract surely accepts it; and make the view `rows` of these, with the key as text.

    They stand beside the row and not in a table of their own: the change set would have to be joined from
    both, which took longer than to write the rows once more."""
    row_hash = canonical.hash_sql(compared(field_map), salt)
    workspace.run(
        f'CREATE TABLE hashed AS SELECT *, {field_map.key_fault} AS "retl fault", {row_hash} AS "retl hash",'
        f' {clears} AS "retl sure", {field_map.field_fault or "NULL"} AS "retl unread" FROM mart'
    )
    workspace.run("DROP TABLE mart")
    workspace.run("ALTER TABLE hashed RENAME TO mart")
    workspace.run(
        f'CREATE VIEW rows AS SELECT "retl row" AS row, {field_map.key} AS key, "retl fault" AS fault,'
        ' "retl hash" AS hash, "retl sure" AS sure, "retl unread" AS unread FROM mart'
    )


def diff(workspace: Workspace, strategy: Strategy, baseline_rows: int, *, whole: bool) -> None:
    """Make `candidates` (row, key, op, sure, owned, ref) from `rows` × `baseline`, and give the rows
    of a key that stands there twice their fault. `op` is insert, update, refresh, or why the row is no
    candidate: skipped, in_doubt; and of keys the mart no longer has: gone, or left if they are not ours.
    Unchanged rows are left out. Where the mart is not `whole` any more, `duplicated` knows of it."""
    known = "b.key IS NOT NULL"
    op = "CASE WHEN r.row IS NULL THEN CASE WHEN b.owned THEN 'gone' ELSE 'left' END"
    op += f" WHEN r.fault IS NOT NULL THEN 'unchanged' WHEN NOT {known} THEN 'insert'"
    if strategy.once:
        op += " WHEN b.hash IS NULL THEN 'in_doubt' WHEN b.hash <> r.hash THEN 'skipped'"
    else:
        if strategy.hold_unknown:
            op += " WHEN b.hash IS NULL THEN 'in_doubt'"
        op += " WHEN true" if strategy.everything else " WHEN b.hash IS DISTINCT FROM r.hash"
        op += " THEN 'update'"
        if strategy.refresh_before is not None:
            before = f"{literal(strategy.refresh_before.isoformat())}::TIMESTAMPTZ"
            op += f" WHEN b.confirmed_at < {before} THEN 'refresh'"
    candidates = (
        "CREATE OR REPLACE TABLE candidates AS SELECT * FROM ("
        f"SELECT r.row, coalesce(r.key, b.key) AS key, {op} ELSE 'unchanged' END AS op, r.sure,"
        " b.owned, b.ref"
        f" FROM rows r {'FULL' if whole else 'LEFT'} JOIN baseline b ON b.key = r.key"
        ") WHERE op <> 'unchanged'"
    )
    if whole:
        workspace.run(candidates)
        if not _repeated(workspace, baseline_rows):
            return
        workspace.run(
            "CREATE TABLE duplicated AS"
            " SELECT key FROM rows WHERE fault IS NULL GROUP BY key HAVING count(*) > 1"
        )
    workspace.run(
        'UPDATE mart SET "retl fault" = \'KEY_DUPLICATE\' WHERE "retl row" IN'
        " (SELECT row FROM rows WHERE fault IS NULL AND key IN (SELECT key FROM duplicated))"
    )
    workspace.run(candidates)


def _repeated(workspace: Workspace, baseline_rows: int) -> bool:
    """Does any key stand in the whole mart twice? The baseline has each key once: so many rows as met it
    must have met so many keys, and only the others have to be looked at by themselves."""
    new, unmet = workspace.one(
        "SELECT count(*) FILTER (op = 'insert'), count(*) FILTER (op IN ('gone', 'left')) FROM candidates"
    )
    usable = workspace.one("SELECT count(*) FROM rows WHERE fault IS NULL")[0]
    return usable - new > baseline_rows - unmet or bool(
        workspace.run(
            "SELECT key FROM candidates WHERE op = 'insert' GROUP BY key HAVING count(*) > 1 LIMIT 1"
        )
    )


def edit(workspace: Workspace, judged: Contract, original: str | None) -> Contract:
    """Where the contract may edit, every row passes through the model before it is hashed: replace the
    frozen mart by the model's values, remember its verdicts, and return the contract of the new columns.
    Under the name `original`, if there is one, the mart stays as it was."""
    names = list(judged.columns)
    storage_types = {name: storage.storage_type(rule.type) for name, rule in judged.columns.items()}
    refused: list[tuple[Any, ...]] = []

    def edited() -> Iterator[tuple[Any, ...]]:
        for chunk in _chunks(workspace, judged, 'SELECT "retl row" FROM mart'):
            rows = [dict(zip((*names, MISFIT), row, strict=False)) for row in chunk]
            for (*_, number), row, verdict in zip(chunk, rows, judged.judge_and_edit(rows), strict=True):
                if isinstance(verdict, Verdict):
                    refused.append((number, "contract", verdict.code, verdict.reason, verdict.column))
                after = verdict if isinstance(verdict, dict) else row
                yield (number, *(_as_text(after[name]) for name in names))

    workspace.load("edited", {"retl row": "BIGINT", **storage_types}, edited(), lenient=True)
    workspace.run(f"ALTER TABLE mart RENAME TO {original}" if original else "DROP TABLE mart")
    workspace.run("ALTER TABLE edited RENAME TO mart")
    workspace.load("verdicts", _VERDICT, refused)
    return judged.over({name: storage_types[name] for name in names})


def judge(workspace: Workspace, judged: Contract, key: Sequence[str]) -> None:
    """Let Pydantic decide the candidates that SQL did not clear; make `rejects` of them and of the key
    faults, and take them out of the candidates. `key` names the key's columns in the mart."""
    if not judged.edits:
        workspace.load("verdicts", _VERDICT, _refused(workspace, judged))
    if workspace.run("SELECT 1 FROM rows WHERE unread IS NOT NULL LIMIT 1"):
        workspace.run(
            f"INSERT INTO verdicts SELECT r.row, 'contract', 'NO_PHONE', {literal(REASON)}, r.unread"
            " FROM rows r JOIN candidates c USING (row)"
            " WHERE r.unread IS NOT NULL AND c.op NOT IN ('skipped', 'in_doubt')"
            " AND r.row NOT IN (SELECT row FROM verdicts)"
        )
    _make_rejects(workspace, key)
    workspace.run("DELETE FROM candidates WHERE row IN (SELECT row FROM verdicts)")


def _make_rejects(workspace: Workspace, key: Sequence[str]) -> None:
    """One row each. A row without a usable key is itself: its digest tells it from others, and it is the
    same one as long as nothing in it changes. The rows of one key have the digest of them all."""
    said = "CASE r.fault " + " ".join(f"WHEN '{c}' THEN {literal(t)}" for c, t in KEY_FAULTS.items()) + " END"
    fault = f"'key' AS stage, r.fault AS code, {said} AS reason, NULL::VARCHAR AS col FROM rows r"
    parts = ", ".join(f"CAST(m.{quoted(name)} AS VARCHAR)" for name in key)
    row_id = f"left(sha256(CAST(to_json([{parts}]) AS VARCHAR) || hex(r.hash)), 32)"
    workspace.run(
        "CREATE TABLE rejects AS"
        f" SELECT r.row, '' AS key, {row_id} AS row_id, unhex({row_id}) AS hash, {fault}"
        " JOIN mart m ON m.\"retl row\" = r.row WHERE r.fault <> 'KEY_DUPLICATE'"
        f" UNION ALL SELECT r.row, r.key, '', g.hash, {fault} JOIN"
        " (SELECT key, unhex(left(sha256(string_agg(hex(hash), '/' ORDER BY hash)), 32)) AS hash FROM rows"
        " WHERE fault = 'KEY_DUPLICATE' GROUP BY key) g ON g.key = r.key WHERE r.fault = 'KEY_DUPLICATE'"
        " UNION ALL SELECT v.row, r.key, '', r.hash, v.stage, v.code, v.reason, v.col"
        " FROM verdicts v JOIN rows r USING (row) WHERE r.fault IS NULL"
    )


_VERDICT = {"row": "BIGINT", "stage": "VARCHAR", "code": "VARCHAR", "reason": "VARCHAR", "col": "VARCHAR"}


def refuse_missing(workspace: Workspace, lookups: Sequence[Lookup]) -> int:
    """Take the candidates out whose id of another sync's row is not there yet; they are rejects until it
    is. Returns how many of them the baseline has."""
    known = 0
    for one in lookups:
        reason = f"{one.field}: sync {one.sync} has not learnt the id of the row that {one.columns} names"
        workspace.run(
            'CREATE OR REPLACE TABLE waiting AS SELECT c.*, "retl hash" AS hash FROM candidates c'
            ' JOIN mart ON "retl row" = c.row'
            f" WHERE c.op IN ('insert', 'update', 'refresh') AND {one.key} IS NOT NULL AND {one.ref} IS NULL"
        )
        workspace.run(
            f"INSERT INTO rejects SELECT row, key, '', hash, 'ref', 'REF_MISSING', {literal(reason)},"
            f" {literal(one.columns)} FROM waiting"
        )
        workspace.run("DELETE FROM candidates WHERE row IN (SELECT row FROM waiting)")
        known += workspace.one("SELECT count(*) FROM waiting WHERE op <> 'insert'")[0]
    return known


def refuse_unnamed(workspace: Workspace) -> int:
    """Take the deletes out that only the target's own id could name, where that was never learnt; they are
    rejects. Returns how many those are."""
    workspace.run(
        "INSERT INTO rejects SELECT NULL, key, '', NULL, 'ref', 'REF_UNKNOWN',"
        " 'the target''s own id of this row was never learnt', NULL"
        " FROM candidates WHERE op = 'gone' AND ref IS NULL"
    )
    workspace.run("DELETE FROM candidates WHERE op = 'gone' AND ref IS NULL")
    count: int = workspace.one("SELECT count(*) FROM rejects WHERE code = 'REF_UNKNOWN'")[0]
    return count


def _refused(workspace: Workspace, judged: Contract) -> Iterator[tuple[Any, ...]]:
    """What the model has against candidates that SQL did not clear."""
    due = "SELECT row FROM candidates WHERE NOT sure AND op NOT IN ('skipped', 'in_doubt')"
    names = (*judged.columns, MISFIT)
    for chunk in _chunks(workspace, judged, due):
        doubtful = judged.doubtful(chunk)
        verdicts = judged.judge([dict(zip(names, row, strict=False)) for row in doubtful])
        for (*_, number), verdict in zip(doubtful, verdicts, strict=True):
            if verdict is not None:
                yield number, "contract", verdict.code, verdict.reason, verdict.column


def _chunks(workspace: Workspace, judged: Contract, due: str) -> Iterator[list[tuple[Any, ...]]]:
    """The rows that are due as the contract selects them, each with its number in the mart at its end."""
    cursor = workspace.cursor()
    cursor.execute(f'SELECT {judged.select()}, "retl row" FROM mart WHERE "retl row" IN ({due})')
    while chunk := cursor.fetchmany(_JUDGED_AT_ONCE):
        workspace.stop.check()
        yield chunk


def _as_text(value: Any) -> Any:
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value


KEY_FAULTS = {
    "KEY_NULL": "a key column is NULL",
    "KEY_BLANK": "a key column is blank",
    "KEY_DUPLICATE": "the key stands in the mart more than once",
    "KEY_TYPE": "a key value does not fit the key's type",
}


def assemble(
    workspace: Workspace,
    field_map: FieldMap,
    *,
    absence: bool,
    owed: Iterable[str],
    limit: int | None,
    directory: Path,
) -> ChangeSet:
    """Make `changes`: the candidates with their payload in the order they leave (rows whose last
    refusal came from the target go last, deletes after everything), and the object that hands it out."""
    keys = [f"k{i}" for i in range(len(field_map.shape.key))]
    key_types = [f.type for f in field_map.shape.key]
    plain = [one.name for one in key_types] == ["string"]  # the key's text is its value: it stands once
    workspace.load("owed", {"key": "VARCHAR"}, ((key,) for key in owed))
    order = ", ".join(["phase", *keys])
    is_owed = workspace.one("SELECT count(*) FROM owed")[0] > 0
    late = f"CASE WHEN {field_map.key} IN (SELECT key FROM owed) THEN {OWED} ELSE {FRESH} END"
    parts = [
        f'SELECT {late if is_owed else FRESH} AS phase, "retl op" AS op, "retl hash" AS hash,'
        f' "retl owned" AS owned, "retl ref" AS ref{"" if plain else f", {field_map.key} AS key"},'
        f" {field_map.payload} FROM {_due(workspace)}"
    ]
    if absence and workspace.one("SELECT count(*) FROM candidates WHERE op = 'gone'")[0]:
        values_of_key = ", ".join(
            f"{key_value_sql(key_types, i, 'b.key')} AS {name}" for i, name in enumerate(keys)
        )
        nothing = "".join(f", NULL AS f{i}" for i in range(len(field_map.shape.fields)))
        parts.append(
            f"SELECT {DELETES} AS phase, 'delete' AS op, NULL AS hash, b.owned, b.ref,"
            f" {'' if plain else 'b.key, '}{values_of_key}{nothing} FROM candidates b WHERE b.op = 'gone'"
        )
    top = f" LIMIT {limit}" if limit is not None else ""
    workspace.run(
        "CREATE TABLE ordered AS SELECT row_number() OVER () - 1 AS pos, * FROM"
        f" (SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {order}{top})"
    )
    workspace.run(f"CREATE VIEW changes AS SELECT *{', k0 AS key' if plain else ''} FROM ordered")
    counted = workspace.run(
        "SELECT phase, op, count(*), min(pos), max(pos) FROM changes GROUP BY ALL ORDER BY 1, 2"
    )
    ranges: dict[int, tuple[int, int]] = {}
    counts: dict[str, int] = {}
    for phase, op, number, first, last in counted:
        low, high = ranges.get(phase, (first, last))
        ranges[phase] = (min(low, first), max(high, last))
        counts[op] = counts.get(op, 0) + number
    return ChangeSet(workspace, field_map, directory, ranges, counts)


def _due(workspace: Workspace) -> str:
    """SQL of the rows of the mart that are due, with what the candidates say of them. Where each that was
    not refused is an insert there is nothing to be joined, which takes as long as to put them in order.
    """
    inserts, others, refused, total = workspace.one(
        "SELECT (SELECT count(*) FROM candidates WHERE op = 'insert'),"
        " (SELECT count(*) FROM candidates WHERE op <> 'insert'),"
        " (SELECT count(DISTINCT row) FROM rejects), (SELECT count(*) FROM mart)"
    )
    # the mart's columns may have any name that does not begin with "retl "
    if not others and inserts + refused == total:
        kept = ' WHERE "retl row" NOT IN (SELECT row FROM rejects WHERE row IS NOT NULL)' if refused else ""
        same = '\'insert\' AS "retl op", NULL::BOOLEAN AS "retl owned", NULL::VARCHAR AS "retl ref"'
        return f"(SELECT *, {same} FROM mart{kept})"
    said = 'row AS "retl at", op AS "retl op", owned AS "retl owned", ref AS "retl ref"'
    due = f"SELECT {said} FROM candidates WHERE op IN ('insert', 'update', 'refresh')"
    return f'mart JOIN ({due}) ON "retl row" = "retl at"'


def find_standing(workspace: Workspace, keys: Sequence[str]) -> None:
    """Make `standing`: those of the keys that the mart has. It is asked for when the mart is gone."""
    workspace.load("standing", {"key": "VARCHAR"}, ((key,) for key in keys))
    if keys:
        workspace.run("DELETE FROM standing WHERE key NOT IN (SELECT key FROM rows WHERE key IS NOT NULL)")


def rejected(workspace: Workspace) -> list[tuple[str, str | None]]:
    """(key, hash in hex) of every row that key or contract refused."""
    listed = "SELECT key, lower(hex(hash)) FROM rejects WHERE stage <> 'ref'"
    return [(key, digest) for key, digest in workspace.run(listed)]


def rejects(workspace: Workspace, limit: int | None = None) -> list[Reject]:
    """What was refused before delivery, in the order of the mart's keys."""
    top = f" LIMIT {limit}" if limit is not None else ""
    rows = workspace.run(
        "SELECT key, row_id, lower(hex(hash)), stage, code, reason, col, row FROM rejects"
        f" ORDER BY key, row{top}"
    )
    return [Reject(*row) for row in rows]


def reject_codes(workspace: Workspace) -> list[str]:
    """Why rows were refused: every code, the most frequent first."""
    return [
        code for (code,) in workspace.run("SELECT code FROM rejects GROUP BY 1 ORDER BY count(*) DESC, 1")
    ]


def unkeyed(workspace: Workspace) -> int:
    """Rows that have no usable key of their own."""
    count: int = workspace.one("SELECT count(*) FROM rows WHERE fault <> 'KEY_DUPLICATE'")[0]
    return count


def sample(
    workspace: Workspace, field_map: FieldMap, count: int, confirmed_after: datetime | None, directory: Path
) -> ChangeSet:
    """Confirmed keys drawn from the baseline, as something an adapter can read by."""
    types = [f.type for f in field_map.shape.key]
    keys = ", ".join(f"{key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types)))
    alive = (
        f" AND confirmed_at > {literal(confirmed_after.isoformat())}::TIMESTAMPTZ"
        if confirmed_after is not None
        else ""
    )
    workspace.run(
        f"CREATE OR REPLACE TABLE sample AS SELECT row_number() OVER () - 1 AS pos, key, {keys} FROM"
        f" (SELECT key FROM baseline WHERE hash IS NOT NULL{alive}) USING SAMPLE {count} ROWS"
    )
    number: int = workspace.one("SELECT count(*) FROM sample")[0]
    return ChangeSet(workspace, field_map, directory, {}, {"delete": number}, table="sample")


def from_part(workspace: Workspace, field_map: FieldMap, part: Path, directory: Path) -> ChangeSet:
    """A former run's candidates by their positions: keys and refs, for settling its open batches."""
    types = [f.type for f in field_map.shape.key]
    keys = ", ".join(f"{key_value_sql(types, i, 'key')} AS k{i}" for i in range(len(types)))
    workspace.run(
        f"CREATE OR REPLACE TABLE former_part AS SELECT row AS pos, key, ref, {keys}"
        f" FROM {opened(workspace, part, DELTA)} ORDER BY row"
    )
    return ChangeSet(workspace, field_map, directory, {}, {}, table="former_part")
