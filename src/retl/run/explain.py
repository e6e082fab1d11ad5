"""Explains single rows: `retl explain`.

It makes the same plan as a run. It writes nothing, and contacts the target only to read, if asked. Sensitive
values are replaced before the request is made, so no text has to be searched for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from retl.destinations.batch import MODES, Batch, Field, Mode
from retl.destinations.value import SIZE
from retl.engine import judge, payload
from retl.engine.change_set import ChangeSet
from retl.engine.diff import OUTSIDE, UPSERTS, seen_sql
from retl.engine.lines import document_sql
from retl.engine.scratch import private_directory
from retl.engine.selection import PASSED
from retl.engine.suppression import SUPPRESSED
from retl.engine.workspace import Workspace
from retl.observe.mask import MASK, hide
from retl.run import pipeline, writeback
from retl.run.job import Clock, Job
from retl.run.plan import Plan
from retl.run.run import new_run
from retl.values import storage
from retl.values.keys import key_form, key_texts, key_value_sql
from retl.values.sql import literal, quoted

_ERASED = "ERASED:"  # how the note about erased rows begins

_STAND_INS = {  # per type, what replaces a sensitive value in a request
    "string": MASK,
    "uuid": "00000000-0000-0000-0000-000000000000",
    "boolean": "false",
    "date": "1970-01-01",
    "timestamp": "1970-01-01 00:00:00",
    "timestamptz": "1970-01-01 00:00:00+00",
    "json": f'"{MASK}"',
    "list": "[]",
}
_NEXT = {
    "insert": "insert it: the baseline has no such key",
    "update": "update it: it differs from what was confirmed",
    "refresh": "send it again: it will expire soon in the target",
    "delete": "delete it: the key left the mart",
    "skipped": "skip it: append delivers each key once",
    "in_doubt": "hold it: it may have arrived, and this target would take it twice",
    "unchanged": "nothing: it is the same as confirmed",
    "succeeded": "nothing: another key stands for the same object in the target",
    "outside": "nothing: the key left the mart, but it is outside `deletes: {within: …}`",
    "passed": "nothing: its row is older than the mark of the watermark, so a run does not read it"
    " (`retl sync --key` sends it)",
    "gone": "nothing: the key left the mart, and its row in the target is kept",
    "erased": "nothing: this key was erased, and is never sent again (ERASED)",
    "unknown": "nothing: this key is neither in the mart nor in the baseline",
}
_KEPT = "nothing: its mart row is the same as when the edit in the target was kept"
_BUT_REJECTED = ", although today's contract rejects it"
_UNLESS = ", unless somebody edited it in the target (`--read` looks)"
_EDITED = {
    "conflict": "queue it: somebody edited it in the target, and a person decides (`retl conflicts`)",
    "kept": "leave it: somebody edited it in the target, and that edit stays",
    "merged": "send a part of it: the fields that somebody edited in the target stay",
    "written": "send it: nobody edited in the target what it changes",
}


def explain(job: Job, keys: Sequence[str], count: int, *, read: bool, reveal: bool) -> dict[str, Any]:
    """Per row: mart row, verdict, fields, request, baseline, open reject, what the next run will do; with
    `read` also the row in the target. Without keys: the first `count` rows in the order of sending."""
    with ExitStack() as hold:
        rows, chosen = _found(job, keys, count, hold, reveal=reveal)
        found, plan = [rows.explained(one, read=read) for one in chosen], rows.plan
        any_erased = any(one.op == "erased" for one in chosen)
    return {
        "sync": job.sync.name,
        "object": plan.capabilities.object,
        "key_form": key_form([one.type for one in plan.field_map.shape.key], job.sync.key),
        "rows": found,
        "guards": [{"code": r.code, "message": r.message, "hint": r.hint} for r in plan.refusals],
        "notes": [one for one in (*plan.notes, *plan.standing) if any_erased or not one.startswith(_ERASED)],
    }


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether an explained row is in the mart or in the baseline, or is erased."""
    beside = (_NEXT["erased"], _NEXT["passed"])
    return bool(row["row"] or row["baseline"] or row["next"] in beside)


def refused(job: Job, keys: Sequence[str], *, reveal: bool) -> dict[tuple[str, str], tuple[str, Any]]:
    """Per rejected row of these keys, by key and row id: the column that is to blame, and its value in the
    mart now. Rows that are rejected for other reasons, and by the target, have none."""
    found = {}
    with ExitStack() as hold:
        rows, chosen = _found(job, keys, len(keys), hold, reveal=reveal)
        for one in chosen:
            if one.column is not None and one.row is not None:
                value = rows.mart_row(one.row).get(one.column)
                found[one.reject_key or "", one.row_id] = (one.column, value)
    return found


def _found(
    job: Job, keys: Sequence[str], count: int, hold: ExitStack, *, reveal: bool
) -> tuple[Rows, list[_Chosen]]:
    """The rows of a plan; the target is not asked. A source that can reads only the rows of the keys. If the
    mart lacks one of them, it is read again as a whole: what becomes of that key depends on other rows."""
    for enough in (tuple(keys), ()):
        workspace = hold.enter_context(Workspace(hold.enter_context(private_directory()), job.stop))
        alone = replace(job, shards=1, options=replace(job.options, explains=enough))
        plan = pipeline.plan(alone, new_run(job), workspace, Clock(), hold, recover=None)
        rows = Rows(job, plan, workspace, reveal)
        chosen = rows.chosen(keys, count)
        if not plan.narrowed or all(one.row is not None for one in chosen):
            break
    return rows, chosen


class _Chosen(Struct, frozen=True):
    """One row to explain: its position in `chosen`, and in the mart (None if the mart lacks the key)."""

    pos: int
    key: str | None
    op: str
    row: int | None
    document: str | None
    code: str | None
    reason: str | None
    column: str | None
    reject_key: str | None  # with row_id: the id of this row's reject in the ledger
    row_id: str


class Rows:
    """The requested rows of a plan, changed or not, as a separate change set."""

    def __init__(self, job: Job, plan: Plan, workspace: Workspace, reveal: bool) -> None:
        self.job, self.plan, self.workspace, self.reveal = job, plan, workspace, reveal
        self.shape = plan.field_map.shape
        self.mapped = document_sql(plan.field_map)
        self._edits: dict[str, Mapping[str, str]] = {}

    def chosen(self, keys: Sequence[str], count: int) -> list[_Chosen]:
        """Create `chosen` with the real values, and `shown` with replacements for sensitive ones."""
        workspace, names = self.workspace, [f"k{i}" for i in range(len(self.shape.key))]
        workspace.load("asked", {"key": "VARCHAR"}, zip(key_texts(keys, len(self.job.sync.key)), strict=True))
        some = (
            "WHERE r.key IN (SELECT key FROM asked)"
            if keys
            else f"ORDER BY s.op IS NULL AND x.row IS NULL, r.key, r.row LIMIT {int(count)}"
        )
        workspace.run(
            "CREATE TABLE looked AS SELECT r.row, r.key, r.hash, NULL::VARCHAR AS ref, x.code, x.reason,"
            " x.col, x.key AS reject_key, x.row_id,"
            " coalesce(s.op, n.ending, CASE WHEN x.row IS NULL THEN 'unchanged' ELSE 'rejected' END) AS op"
            f", {seen_sql(self.plan.compares)} AS seen"
            " FROM rows r LEFT JOIN baseline b ON b.key = r.key"
            " LEFT JOIN changes s ON s.key = r.key AND s.op <> 'delete' AND r.fault IS NULL"
            " LEFT JOIN candidates n ON n.row = r.row AND n.ending IN ('skipped', 'in_doubt')"
            f" LEFT JOIN rejects x ON x.row = r.row {some}"
        )
        types = [field.type for field in self.shape.key]
        # TRY: a text that is no key of these types is a key that nothing has.
        parts = "".join(f", TRY({key_value_sql(types, i, 'a.key')}) AS {n}" for i, n in enumerate(names))
        empty = "".join(f", NULL AS f{i}" for i in range(len(self.shape.fields)))
        passed = f"WHEN a.key IN (FROM {PASSED}) THEN 'passed'" if self.job.sync.changes.watermark else ""
        absent = (
            f"SELECT NULL AS row, a.key, NULL AS hash, b.ref, {seen_sql(self.plan.compares)} AS seen,"
            " x.code, x.reason, x.col,"
            f" coalesce(s.op, CASE WHEN a.key IN (SELECT key FROM {SUPPRESSED}) THEN 'erased'"
            f" WHEN x.code IS NOT NULL THEN 'rejected' {passed} WHEN b.key IS NULL THEN 'unknown'"
            f" WHEN n.ending = '{OUTSIDE}' THEN '{OUTSIDE}'"
            " WHEN a.key IN (SELECT key FROM succeeded) THEN 'succeeded' ELSE 'gone' END)"
            f" AS op{parts}{empty}"
            " FROM asked a LEFT JOIN baseline b ON b.key = a.key LEFT JOIN changes s ON s.key = a.key"
            " LEFT JOIN rejects x ON x.key = a.key AND x.row IS NULL"
            " LEFT JOIN candidates n ON n.key = a.key AND n.op = 'delete'"
            " WHERE a.key NOT IN (SELECT key FROM rows WHERE key IS NOT NULL)"
        )
        payload = f'SELECT "retl row" AS row, {self.plan.field_map.payload} FROM mart'
        workspace.run(
            "CREATE TABLE chosen AS SELECT row_number() OVER () - 1 AS pos, * FROM (SELECT * FROM ("
            f"SELECT * FROM looked JOIN ({payload}) USING (row) UNION ALL BY NAME {absent}"
            ") ORDER BY key, row)"
        )
        workspace.run(f"CREATE TABLE shown AS SELECT *{self._replaced(names)} FROM chosen")
        listed = f"pos, key, op, row, CASE WHEN row IS NOT NULL THEN {self.mapped} END, code, reason, col"
        listed += ", coalesce(reject_key, key), coalesce(row_id, '')"
        return [_Chosen(*found) for found in workspace.run(f"SELECT {listed} FROM shown ORDER BY pos")]

    def _replaced(self, names: Sequence[str]) -> str:
        """The end of a SELECT: stand-ins for sensitive values and their digests."""
        fields = [*zip(names, self.shape.key, strict=True), *self._fields()]
        hidden = [f"{_stand_in(name, field)} AS {name}" for name, field in fields if self._hides(field)]
        if any(map(self._hides, self.shape.fields)):
            hidden.append(f"{_unseen(len(self.shape.compared))} AS seen")
        return f" REPLACE ({', '.join(hidden)})" if hidden else ""

    def explained(self, one: _Chosen, *, read: bool) -> dict[str, Any]:
        one = self._judged(one)
        rejected = {"code": one.code, "reason": one.reason, "column": one.column} if one.code else None
        delivered = self._baseline(one.key)
        found: dict[str, Any] = {
            "key": self._key(one.key),
            "row": None if one.row is None else self.mart_row(one.row),
            "verdict": None if one.row is None else {"accepted": rejected is None, **(rejected or {})},
            "fields": self._masked_fields(one.document),
            "request": self.request(one),
            "baseline": delivered,
            "reject": self._reject(one.reject_key, one.row_id),
            "next": self._next(one, delivered),
        }
        if read:
            found["target"] = self._target(one)
            if self.shape.conditional and one.key is not None:
                found["sides"] = self._sides(one, found)
                if self._due(one):
                    found["next"] = _EDITED.get(found["sides"]["row"], found["next"])
        return found

    def _judged(self, one: _Chosen) -> _Chosen:
        """The row with today's verdict: a run judges only rows that are due."""
        if one.row is None or one.code is not None or one.op in UPSERTS:
            return one
        found = judge.verdict(self.workspace, self.plan.contract, one.row)
        return (
            one if found is None else replace(one, code=found.code, reason=found.reason, column=found.column)
        )

    def _sides(self, one: _Chosen, found: Mapping[str, Any]) -> dict[str, Any]:
        """What a run would do about other people's edits: of the row, and per field when we left it, what the
        target has, what the mart has, and what becomes of it."""
        operation: Mode = self.job.sync.write if one.row is not None else "delete"
        destination = self.job.lane(self.shape)
        try:
            (peeked,) = destination.peek(self._batch("chosen", one.pos, operation))
        finally:
            destination.close()
        left = found["baseline"] and {name: found["baseline"][name] for name in ("at", "run_id")}
        target, mart = found["target"] or {}, found["fields"] or {}
        fields = {
            name: {"left": left, "target": target.get(name), "mart": mart.get(name), "verdict": verdict}
            for name, verdict in peeked.fields.items()
        }
        return {"row": peeked.result.kind.value, "code": peeked.result.code, "fields": fields}

    def _masked_fields(self, document: str | None) -> dict[str, Any] | None:
        """The fields as they are sent, with masks for sensitive values."""
        if document is None:
            return None
        found: dict[str, Any] = json.loads(document, parse_float=Decimal)
        hidden = {field.name for field in self.shape.fields if self._hides(field)}
        return _masked(found, hidden)

    def _fields(self) -> Iterator[tuple[str, Field]]:
        return ((f"f{i}", field) for i, field in enumerate(self.shape.fields))

    def _hides(self, field: Field) -> bool:
        return field.sensitive and not self.reveal

    def _key(self, key: str | None) -> str | None:
        return MASK if key is not None and any(map(self._hides, self.shape.key)) else key

    def mart_row(self, row: int) -> dict[str, Any]:
        rules = self.plan.contract.columns
        listed = ", ".join(quoted(name) for name in rules)
        (found,) = self.workspace.run(f'SELECT {listed} FROM mart WHERE "retl row" = {row}')
        return {
            name: MASK if value is not None and rules[name].sensitive and not self.reveal else value
            for name, value in zip(rules, found, strict=True)
        }

    def _batch(self, table: str, pos: int, operation: Mode) -> Batch:
        rows = ChangeSet(self.workspace, self.plan.field_map, table=table)
        run = self.plan.run
        return Batch(rows, *MODES[operation], run.run_id, 0, pos, pos, run.started_at.isoformat())

    def request(self, one: _Chosen) -> str | None:
        """The exact request for this row alone; for an unchanged row, what `--key` would send."""
        if one.code is not None or one.op in ("unknown", "succeeded", "gone", "erased", "passed"):
            return None
        operation: Mode = "delete" if one.op == "delete" else self.job.sync.write
        destination = self.job.lane(self.shape)
        try:
            sent = destination.preview(self._batch("shown", one.pos, operation))
            return sent.decode(errors="replace").replace("\r\n", "\n")
        finally:
            destination.close()

    def _target(self, one: _Chosen) -> Mapping[str, Any] | None:
        able = self.plan.capabilities
        if one.key is None or not (able.readable or able.looks):
            return None
        destination = self.job.lane(self.shape)
        try:
            (found,) = destination.read(self._batch("chosen", one.pos, "delete"))
        finally:
            destination.close()
        hidden = {field.name for field in (*self.shape.key, *self.shape.fields) if self._hides(field)}
        return found and _masked(found, hidden)

    def _baseline(self, key: str | None) -> dict[str, Any] | None:
        """The confirmed state of a key; None if it was never delivered."""
        if key is None:
            return None
        found = self.workspace.run(
            f"SELECT hash IS NOT NULL, owned, ref, confirmed_at FROM baseline WHERE key = {literal(key)}"
        )
        if not found:
            return None
        ((confirmed, owned, ref, at),) = found
        state = "confirmed" if confirmed else "unknown"
        run_id = self._run_at(at)
        edited = self._edited(run_id).get(key) if self.shape.conditional and run_id else None
        return {"state": state, "at": at, "run_id": run_id, "owned": owned, "ref": ref, "edited": edited}

    def _edited(self, run_id: str) -> Mapping[str, str]:
        """By key, what this run left as somebody else had edited it: the row, or some of its fields."""
        if run_id not in self._edits:
            keys = [
                key for (key,) in self.workspace.run("SELECT DISTINCT key FROM chosen WHERE key NOT NULL")
            ]
            ledger, sync = self.job.ledger, self.job.sync.name
            self._edits[run_id] = writeback.edited(ledger, self.workspace, sync, run_id, keys)
        return self._edits[run_id]

    def _run_at(self, at: datetime) -> str | None:
        runs = self.job.ledger.runs(self.job.sync.name, limit=10_000)
        return next((run.run_id for run in runs if run.started_at == at), None)

    def _reject(self, key: str | None, row_id: str) -> dict[str, Any] | None:
        for one in self.job.ledger.rejects(self.job.sync.name):
            if (one.key, one.row_id) == (key, row_id):
                seen = {"first_seen": one.first_seen, "last_seen": one.last_seen, "attempts": one.attempts}
                kept = {} if one.payload is None else {"payload": self._kept_row(one.payload)}
                return {"stage": one.stage, "code": one.code, "reason": one.reason, **seen, **kept}
        return None

    def _kept_row(self, document: str) -> dict[str, Any]:
        sensitive = {name for name, rule in self.plan.contract.columns.items() if rule.sensitive}
        return payload.shown(document, sensitive.union(self.job.sync.rejects.mask))

    def _next(self, one: _Chosen, delivered: Mapping[str, Any] | None) -> str:
        if self.plan.refusals:
            return f"nothing: the run would be REFUSED ({self.plan.refusals[0].code})"
        if one.op == "rejected":
            return f"reject it: {one.reason} [{one.code}]"
        if one.op in ("insert", "update", "refresh") and self.plan.adopting:
            return "take it as delivered, without sending it (first_run: adopt)"
        if one.op == "update" and delivered is not None and delivered["state"] == "unknown":
            return "send it again: it is unknown whether the last delivery arrived"
        if one.op == "unchanged":
            kept = delivered is not None and delivered["edited"] == "kept"
            return (_KEPT if kept else _NEXT[one.op]) + (_BUT_REJECTED if one.code is not None else "")
        return _NEXT[one.op] + (_UNLESS if self._due(one) and self.shape.conditional else "")

    def _due(self, one: _Chosen) -> bool:
        """Whether the next run would write or delete this row if nobody had edited it."""
        return one.op in (*UPSERTS, "delete") and not (self.plan.refusals or self.plan.adopting)


def _unseen(fields: int) -> str:
    """SQL of `seen` with zeros for the digests of fields: who guesses a value could compare its digest."""
    digits = 2 * SIZE * fields
    return f"unhex(repeat('0', least(2 * octet_length(seen), {digits})) || substr(hex(seen), {digits + 1}))"


def _masked(row: Mapping[str, Any], hidden: set[str]) -> dict[str, Any]:
    return {name: hide(name, value, hidden) for name, value in row.items()}


def _stand_in(name: str, field: Field) -> str:
    text = literal(_STAND_INS.get(field.type.name, "0"))
    return f"CASE WHEN {name} IS NOT NULL THEN CAST({text} AS {storage.storage_type(field.type)}) END"
