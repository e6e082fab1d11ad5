"""What every run sent, one row for each row that it attempted: from the deltas and answers in the ledger.

It reads the ledger and makes a relation of the workspace. It asks no target, changes no ledger and has no
value of a row but its key. A run whose delta was removed is not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from retl.destinations.batch import Kind, Outcome
from retl.engine.baseline import DELTA, MOVED, UNANSWERED, all_opened
from retl.engine.workspace import Workspace
from retl.errors import writing
from retl.ledger import BatchRow, Delivered, Ledger
from retl.values.keys import spellings
from retl.values.sql import literal

LOG = "writebacks"
COLUMNS = (
    "writeback_id",
    "pipeline_run_id",
    "target_system",
    "target_entity",
    "operation",
    "record_key",
    "fields_written",
    "write_status",
    "http_status_code",
    "error_message",
    "write_timestamp",
    "duration_ms",
    "retry_count",
    "idempotency_key",
    "batch_id",
)
EXPORTS = {".parquet": "FORMAT parquet", ".csv": "FORMAT csv, HEADER", ".json": "FORMAT json, ARRAY true"}
ORDER = "write_timestamp NULLS LAST, pipeline_run_id, position"
_BACKWARDS = "write_timestamp DESC NULLS FIRST, pipeline_run_id DESC, position DESC"
_AT_ONCE = 500  # deltas in one query
_STATUS = {
    Kind.WRITTEN: "success",
    Kind.MERGED: "success",
    Kind.KEPT: "success",
    Kind.SKIPPED: "success",
    Kind.CONFLICT: "failed",
    Kind.REJECTED: "failed",
    Kind.RETRY: "retrying",
    Kind.UNKNOWN: "retrying",
}
_IN_PART = "written in part: fields that somebody edited stay"
_NOT_WRITTEN = "not written: what somebody edited stays"
_NO_ANSWER = "no answer: it is unknown whether it arrived"
_RUNS = {"run_id": "VARCHAR", "system": "VARCHAR", "entity": "VARCHAR", "masked": "BOOLEAN"}
_RUNS |= {"upserted": "VARCHAR[]", "deleted": "VARCHAR[]"}
_RESULT = {"kind": "VARCHAR", "code": "VARCHAR", "reason": "VARCHAR"}
_SPANS = {"run_id": "VARCHAR", "first": "BIGINT", "last": "BIGINT", **_RESULT, "deletes": "BOOLEAN"}
_SPANS |= {"http_status": "INTEGER", "answered_at": "TIMESTAMPTZ", "duration_ms": "BIGINT"}
_SPANS |= {"attempts": "BIGINT", "idempotency_key": "VARCHAR", "batch_id": "VARCHAR"}
_SINGLES = {"run_id": "VARCHAR", "position": "BIGINT", **_RESULT}
_SENT = {"run_id": "VARCHAR", "position": "BIGINT", "op": "VARCHAR", "key": "VARCHAR", "unsent": "VARCHAR[]"}


class Asked(Struct, frozen=True):
    """Which rows: of these syncs, of this run, with this key, answered since this moment; only the newest
    `limit` of them."""

    syncs: Collection[str] | None = None
    run_id: str | None = None
    key: str | None = None
    since: datetime | None = None
    limit: int | None = None


def load(ledger: Ledger, workspace: Workspace, asked: Asked, hides: Callable[[str], bool]) -> int:
    """Create LOG with COLUMNS and `position`; returns how many runs are older than their deltas. `hides` says
    of a sync whether its keys are masked."""
    names = [None] if asked.syncs is None else asked.syncs
    runs = [run for name in names for run in ledger.delivered(name, asked.run_id, asked.since)]
    undoing = _undoing(ledger, runs)
    stored = ledger.file_names()
    files = {run.run_id: run.delta for run in (*runs, *undoing) if run.delta in stored}
    found = [run for run in runs if run.run_id in files]
    _load_sent(ledger, workspace, files, None if asked.key is None else spellings([asked.key]))
    touched = {run_id for (run_id,) in workspace.run("SELECT DISTINCT run_id FROM sent")}
    workspace.load("logged_runs", _RUNS, (_run(one, hides(one.sync)) for one in found))
    workspace.load("logged_spans", _SPANS, _spans(ledger, touched))
    workspace.load("logged_singles", _SINGLES, _singles(ledger, touched))
    _load_undone(workspace, undoing)
    since = f" AND s.answered_at >= {literal(asked.since.isoformat())}::TIMESTAMPTZ" if asked.since else ""
    newest = f" ORDER BY {_BACKWARDS} LIMIT {asked.limit}" if asked.limit is not None else ""
    workspace.run(f"CREATE OR REPLACE VIEW {LOG} AS {_log(since)}{newest}")
    return len(runs) - len(found)


def has_rows(workspace: Workspace) -> bool:
    """Whether the loaded log has any."""
    return bool(workspace.run(f"SELECT 1 FROM {LOG} LIMIT 1"))


def unanswered(
    ledger: Ledger, workspace: Workspace, run_id: str, hides: Callable[[str], bool], number: int
) -> dict[str, list[str]]:
    """Per batch of a run the first keys without an answer, to look them up in the target."""
    load(ledger, workspace, Asked(run_id=run_id), hides)
    rows = workspace.run(
        f"SELECT batch_id, record_key FROM {LOG} WHERE error_message = {literal(_NO_ANSWER)}"
        f" QUALIFY row_number() OVER (PARTITION BY batch_id ORDER BY {ORDER}) <= {number} ORDER BY {ORDER}"
    )
    found: dict[str, list[str]] = {}
    for batch, key in rows:
        found.setdefault(batch, []).append(key)
    return found


def edited(
    ledger: Ledger, workspace: Workspace, sync: str, run_id: str, keys: Sequence[str]
) -> dict[str, str]:
    """Of these keys, those whose row in the target somebody had edited when this run came: `kept` where it
    wrote nothing, `merged` where it wrote the other fields. Those of a run without a delta are not known."""
    stored, runs = ledger.file_names(), ledger.delivered(sync, run_id, None)
    files = {run.run_id: run.delta for run in runs if run.delta in stored}
    _load_sent(ledger, workspace, files, keys)
    workspace.load("logged_spans", _SPANS, _spans(ledger, files))
    workspace.load("logged_singles", _SINGLES, _singles(ledger, files))
    _load_undone(workspace, ())
    found = f"SELECT key, kind FROM ({_answered()}) WHERE kind IN ('kept', 'merged')"
    return dict(workspace.run(found))


def _log(since: str) -> str:
    """SQL of the log over the loaded tables."""
    statuses = " ".join(f"WHEN '{kind}' THEN '{status}'" for kind, status in _STATUS.items())
    said = "coalesce(code || ': ' || reason, code, reason)"
    written = "kind IN ('written', 'merged', 'unknown')"
    return (
        "SELECT left(sha256(run_id || '/' || position), 32) AS writeback_id, run_id AS pipeline_run_id,"
        " system AS target_system, entity AS target_entity,"
        " CASE WHEN deletes THEN 'delete' ELSE op END AS operation,"
        " CASE WHEN masked THEN '***' ELSE coalesce(key, '***') END AS record_key,"  # NULL: erased
        f" CASE WHEN NOT {written} THEN [] WHEN deletes THEN deleted"
        " ELSE list_filter(upserted, lambda name: NOT list_contains(coalesce(unsent, []), name))"
        " END AS fields_written,"
        " CASE WHEN kind IN ('written', 'merged') AND undone THEN 'rolled_back' ELSE"
        f" CASE kind {statuses} END END AS write_status,"
        " coalesce(try_cast(regexp_extract(code, '^HTTP_([0-9]{3})$', 1) AS INTEGER), http_status)"
        " AS http_status_code,"
        f" CASE kind WHEN 'merged' THEN '{_IN_PART}' WHEN 'kept' THEN coalesce({said}, '{_NOT_WRITTEN}')"
        f" WHEN 'unknown' THEN coalesce({said}, '{_NO_ANSWER}')"
        f" ELSE {said} END AS error_message,"
        " answered_at AS write_timestamp, duration_ms, greatest(attempts - 1, 0) AS retry_count,"
        " idempotency_key, batch_id, position, kind"
        f" FROM ({_answered(since)}) JOIN logged_runs USING (run_id)"
    )


def _answered(since: str = "") -> str:
    """SQL of the sent rows with their answers."""
    chosen = ", ".join(
        f"CASE WHEN x.position IS NULL THEN s.{name} ELSE x.{name} END AS {name}" for name in _RESULT
    )
    return (
        f"SELECT p.*, {chosen}, s.deletes, s.http_status, s.answered_at, s.duration_ms, s.attempts,"
        " s.idempotency_key, s.batch_id, u.key IS NOT NULL AS undone"
        " FROM sent p ASOF JOIN logged_spans s ON p.run_id = s.run_id AND p.position >= s.first"
        " LEFT JOIN logged_singles x ON x.run_id = p.run_id AND x.position = p.position"
        " LEFT JOIN undone u ON u.run_id = p.run_id AND u.key = p.key"
        f" WHERE p.position <= s.last{since}"
    )


def _undoing(ledger: Ledger, runs: Sequence[Delivered]) -> list[Delivered]:
    """The rollbacks of these runs, and the rollbacks of those, newest first."""
    wanted, found = {run.run_id for run in runs}, []
    for run in sorted(ledger.rollbacks(), key=lambda one: one.started_at):
        if run.of_run in wanted:
            wanted.add(run.run_id)
            found.append(run)
    return found[::-1]


def _load_undone(workspace: Workspace, undoing: Sequence[Delivered]) -> None:
    """Create `undone`: the keys of a run that a rollback wrote, if no later rollback undid that."""
    workspace.run("CREATE OR REPLACE TABLE undone (run_id VARCHAR, key VARCHAR)")
    for run in undoing:
        workspace.run(
            f"INSERT INTO undone SELECT DISTINCT {literal(run.of_run or '')}, key FROM ({_answered()})"
            f" WHERE run_id = {literal(run.run_id)} AND kind IN ('written', 'merged') AND NOT undone"
        )


def _load_sent(
    ledger: Ledger, workspace: Workspace, files: Mapping[str, str], keys: Sequence[str] | None
) -> None:
    """Create `sent`: the rows of these deltas. With keys only the row groups that can have them are read: the
    rows of a delta are sorted by their keys."""
    columns = ", ".join(f"{name} {kind}" for name, kind in _SENT.items())
    workspace.run(f"CREATE OR REPLACE TABLE sent ({columns})")
    named = {f"key{n}": one for n, one in enumerate(keys or ())}
    wanted = f" AND key IN ({', '.join(f'${name}' for name in named)})" if named else ""
    names = list(files.items())
    for first in range(0, len(names), _AT_ONCE):
        part = [
            (run_id, ledger.get_file(n, workspace.directory)) for run_id, n in names[first : first + _AT_ONCE]
        ]
        workspace.load("logged_files", {"path": "VARCHAR", "run_id": "VARCHAR"}, ((p, r) for r, p in part))
        workspace.run(
            "INSERT INTO sent SELECT run_id, row, op, key, unsent"
            f" FROM {all_opened(workspace, [path for _, path in part], DELTA)}"
            f" JOIN logged_files ON path = filename WHERE op <> '{MOVED}'{wanted}",
            named,
        )
        for _, path in part:
            if path.parent == workspace.directory:
                path.unlink()  # a copy


def _run(run: Delivered, masked: bool) -> tuple[object, ...]:
    scheme, separator, rest = run.object.partition("://")
    host, _, entity = rest.partition("/")
    fields = run.fields or {}
    return (
        run.run_id,
        f"{scheme}{separator}{host}",
        entity,
        masked,
        json.dumps(fields.get("upsert", [])),
        json.dumps(fields.get("delete", [])),
    )


def _batches(ledger: Ledger, run_ids: Collection[str]) -> Iterator[tuple[str, BatchRow, Outcome]]:
    """The batches that were sent, or may have been."""
    for run_id in sorted(run_ids):
        for batch in ledger.batches(run_id):
            if batch.status != "split" and (batch.status == "open" or batch.attempts):
                yield run_id, batch, batch.outcome or UNANSWERED


def _spans(ledger: Ledger, run_ids: Collection[str]) -> Iterator[tuple[object, ...]]:
    for run_id, batch, outcome in _batches(ledger, run_ids):
        one = outcome.default
        yield (
            *(run_id, batch.first, batch.last, one.kind.value, one.code, one.reason),
            *(batch.operation == "delete", batch.http_status, batch.answered_at, batch.duration_ms),
            *(batch.attempts, batch.idempotency_key, batch.batch_id),
        )


def _singles(ledger: Ledger, run_ids: Collection[str]) -> Iterator[tuple[object, ...]]:
    for run_id, batch, outcome in _batches(ledger, run_ids):
        for row, one in outcome.exceptions.items():
            yield run_id, batch.first + row, one.kind.value, one.code, one.reason


def export(workspace: Workspace, path: Path) -> int:
    """Write the log to a file that only this user can read; returns the number of rows. The ending of its
    name says which format: parquet, csv or json. Failure FILE_UNWRITABLE."""
    kind = EXPORTS[path.suffix]
    with writing(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    listed = ", ".join(COLUMNS)
    if path.suffix == ".csv":
        listed = listed.replace(
            "fields_written", "CAST(to_json(fields_written) AS VARCHAR) AS fields_written"
        )
    rows = f"SELECT {listed} FROM {LOG} ORDER BY {ORDER}"
    (written,) = workspace.one(f"COPY ({rows}) TO {literal(str(path))} ({kind}, USE_TMP_FILE false)")
    return int(written)
