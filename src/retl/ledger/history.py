"""The past: runs for `retl runs`, `show` and `status`, and how state is moved or deleted.

It never decides what a run does. The caller who moves or deletes state holds the lock of these syncs. Their
epochs grow nevertheless, so that an older run can record nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from retl.errors import DefinitionError
from retl.ledger import pruning
from retl.ledger.files import batch_of
from retl.ledger.lock import is_held
from retl.ledger.pruning import Pruned
from retl.ledger.rows import ROWS_WRITTEN, Cell, Delivered, Pause, RunRow, cell, columns, packed
from retl.ledger.state import State

_STATE = """
SELECT 1 FROM retl_checkpoints WHERE sync = ? UNION SELECT 1 FROM retl_rejects WHERE sync = ?
UNION SELECT 1 FROM retl_runs WHERE sync = ? AND delta IS NOT NULL AND forgotten_at IS NULL
"""
_REASONS = """
SELECT stage, code, reason, count(*) FROM retl_rejects WHERE state = 'open' AND sync = ?
GROUP BY stage, code, reason ORDER BY count(*) DESC, stage, code, reason LIMIT ?
"""
_KEYS = """
SELECT key FROM retl_rejects WHERE state = 'open' AND sync = ? AND stage = ? AND code = ?
AND COALESCE(reason, '') = COALESCE(?, '') ORDER BY key LIMIT ?
"""
_NEWEST = "epoch DESC, started_at DESC, run_id DESC"
_OWNED = "SELECT run_id FROM retl_runs WHERE sync = ?"
# What `state mv` moves; where both syncs may have a row of one identity, that of the old name stays.
_OF_A_SYNC = {
    "retl_runs": None,
    "retl_chains": None,
    "retl_checkpoints": None,
    "retl_rejects": None,
    "retl_erasures": None,
    "retl_requests": None,
    "retl_paused": "''",
    "retl_suppressed": "digest",
}


class History(State):
    """The ledger as the command line sees it."""

    def runs(self, sync: str | None = None, limit: int = 20) -> list[RunRow]:
        """The newest runs, newest first. Those of a sync by their epochs: a clock may be set back."""
        if sync is not None:
            return self._runs(f"WHERE sync = ? ORDER BY {_NEWEST} LIMIT ?", sync, limit)
        return self._runs("ORDER BY started_at DESC, run_id DESC LIMIT ?", limit)

    def run(self, run_id: str | None = None) -> RunRow | None:
        """One run; by default the last one."""
        where = "WHERE run_id = COALESCE(?, run_id) ORDER BY started_at DESC, run_id DESC LIMIT 1"
        return next(iter(self._runs(where, run_id)), None)

    def has_history(self, sync: str, host: str, pid: int) -> bool:
        """Whether this ledger delivered anything before the first run of a sync: with that sync, or with
        another one in an earlier process. `host` and `pid` are of a first run that is not recorded."""
        sql = "SELECT started_at, host, pid FROM retl_runs WHERE sync = ? ORDER BY started_at, run_id LIMIT 1"
        found = self._database.query(sql, sync)
        began, host, pid = found[0] if found else (cell(self.now()), host, pid)
        sql = (
            "SELECT 1 FROM retl_runs WHERE status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS') AND (sync = ?"
            " OR (started_at < ? AND NOT (host = ? AND pid = ?))) LIMIT 1"
        )
        return bool(self._database.query(sql, sync, began, host, pid))

    def holder(self, sync: str) -> RunRow | None:
        """The run that has the lock of a sync, if one has it and has begun."""
        where = (
            "WHERE sync = ? AND status = 'RUNNING'"
            " AND epoch = (SELECT epoch FROM retl_locks WHERE name = ? AND pid IS NOT NULL)"
        )
        return next(iter(self._database.rows(RunRow, "retl_runs", where, sync, sync)), None)

    def runs_like(self, part: str) -> list[RunRow]:
        """The newest two runs whose ids begin or end with this text."""
        where = (
            "WHERE substr(run_id, 1, CAST(? AS INTEGER)) = ?"
            " OR substr(run_id, length(run_id) - CAST(? AS INTEGER) + 1) = ?"
            " ORDER BY started_at DESC, run_id DESC LIMIT 2"
        )
        size = len(part)
        return self._runs(where, size, part, size, part) if size >= 4 else []

    def last_statistics(self, sync: str) -> Mapping[str, Any]:
        """The statistics of the newest good run that has them, by column."""
        where = (
            "WHERE sync = ? AND statistics IS NOT NULL AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS')"
            " ORDER BY epoch DESC, started_at DESC LIMIT 1"
        )
        found = self._database.rows(RunRow, "retl_runs", where, sync)
        return (found[0].statistics if found else None) or {}

    def last_run(self, sync: str) -> RunRow | None:
        """The newest run of a sync that had to do with its mart, and did more than to compare."""
        where = (
            f"WHERE sync = ? AND purpose NOT IN ('reconcile', 'resolve', 'erase') ORDER BY {_NEWEST} LIMIT 1"
        )
        return next(iter(self._runs(where, sync)), None)

    def _runs(self, where: str, *values: Cell) -> list[RunRow]:
        """Runs as people see them: one whose lock is gone was KILLED, and the next run marks it ABANDONED."""
        found = self._database.rows(RunRow, "retl_runs", where, *values)
        return [replace(one, status="KILLED") if self._is_dead(one) else one for one in found]

    def _is_dead(self, run: RunRow) -> bool:
        """Whether a run that did not end has lost its lock: a later one has it, or nobody."""
        if run.status != "RUNNING":
            return False
        found = self._database.query("SELECT epoch, pid FROM retl_locks WHERE name = ?", run.sync)
        if not found or found[0][0] != run.epoch or found[0][1] is None:
            return True
        return not is_held(self._database, self.lock_files, self.state_id, run.sync)

    def last_success(self, sync: str) -> RunRow | None:
        """The newest run that delivered the mart, with or without rejects."""
        where = (
            "WHERE sync = ? AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS')"
            " AND purpose NOT IN ('reconcile', 'repair', 'resolve', 'erase') ORDER BY epoch DESC LIMIT 1"
        )
        found = self._database.rows(RunRow, "retl_runs", where, sync)
        return found[0] if found else None

    def last_written(self, sync: str) -> RunRow | None:
        """The newest run that sent rows of the mart of a sync and wrote one, or died and may have."""
        some = "counts LIKE ? AND counts NOT LIKE ?"  # a number is there, and does not begin with a zero
        wrote = " OR ".join(["counts = '{}'", *(f"({some})" for _ in ROWS_WRITTEN)])
        where = (
            f"WHERE sync = ? AND purpose IN ('sync', 'apply') AND delta_rows > 0 AND ({wrote})"
            " ORDER BY epoch DESC, started_at DESC LIMIT 1"
        )
        numbers = [f'%"{name}":{digit}%' for name in ROWS_WRITTEN for digit in ("", "0")]
        return next(iter(self._database.rows(RunRow, "retl_runs", where, sync, *numbers)), None)

    def delivered(self, sync: str | None, run_id: str | None, since: datetime | None) -> list[Delivered]:
        """The runs with a delta, oldest first; of a sync, one run, or those that went on since a moment."""
        where = (
            "WHERE delta IS NOT NULL AND sync = COALESCE(?, sync) AND run_id = COALESCE(?, run_id)"
            " AND COALESCE(finished_at, '9') >= ? ORDER BY started_at, run_id"
        )
        return self._database.rows(Delivered, "retl_runs", where, sync, run_id, cell(since) or "")

    def rollbacks(self) -> list[Delivered]:
        """The runs that undo another one, oldest first."""
        where = "WHERE delta IS NOT NULL AND of_run IS NOT NULL ORDER BY started_at, run_id"
        return self._database.rows(Delivered, "retl_runs", where)

    def file_names(self) -> frozenset[str]:
        """The run files that are there."""
        return frozenset(self._files.names())

    def last_reconcile(self, sync: str, *, partial: bool = False) -> RunRow | None:
        """The newest run that compared every key with the target; with `partial` also one that compared a
        sample, repaired or took ownership."""
        kinds = "%" if partial else 'look"%'
        where = (
            "WHERE sync = ? AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS') AND options LIKE ?"
            " ORDER BY epoch DESC LIMIT 1"
        )
        found = self._database.rows(RunRow, "retl_runs", where, sync, f'%"reconcile":"{kinds}')
        return found[0] if found else None

    def taken_back(self, sync: str) -> list[RunRow]:
        """The runs of a sync that took back others, oldest first."""
        where = "WHERE sync = ? AND of_run IS NOT NULL ORDER BY epoch"
        return self._database.rows(RunRow, "retl_runs", where, sync)

    def pause(self, sync: str, by: str, reason: str, run_id: str | None = None) -> None:
        """Let no run of a sync write until `resume`. A newer reason replaces an older one."""
        row = Pause(sync, self.now(), by, reason, run_id)
        names = ", ".join(columns(Pause))
        with self._decided():
            self._database.change("DELETE FROM retl_paused WHERE sync = ?", sync)
            self._database.change(f"INSERT INTO retl_paused ({names}) VALUES (?, ?, ?, ?, ?)", *packed(row))

    def resume(self, sync: str) -> Pause | None:
        """End the pause of a sync; returns it."""
        with self._decided():
            found = self.paused(sync)
            self._database.change("DELETE FROM retl_paused WHERE sync = ?", sync)
        return found

    def paused(self, sync: str) -> Pause | None:
        found = self._database.rows(Pause, "retl_paused", "WHERE sync = ?", sync)
        return found[0] if found else None

    def open_rejects(self, stage: str | None = None) -> dict[str, int]:
        """How many open rejects each sync has, of one stage or of all; syncs without any are left out."""
        sql = (
            "SELECT sync, count(*) FROM retl_rejects WHERE state = 'open' AND stage = COALESCE(?, stage)"
            " GROUP BY sync ORDER BY sync"
        )
        return {str(row[0]): int(row[1]) for row in self._database.query(sql, stage)}

    def reject_reasons(
        self, sync: str, limit: int, keys: int
    ) -> list[tuple[str, str, str | None, int, list[str]]]:
        """The most frequent (stage, code, reason) of a sync's open rejects: count and some keys."""
        grouped = self._database.query(_REASONS, sync, limit)
        return [
            (
                str(stage),
                str(code),
                reason,
                int(rows),
                [str(key) for (key,) in self._database.query(_KEYS, sync, stage, code, reason, keys)],
            )
            for stage, code, reason, rows in grouped
        ]

    def reported(self, alert: str, sync: str) -> frozenset[str] | None:
        """The problems of a sync that were reported to an alert's recipient; None if nothing ever was."""
        found = self._database.query("SELECT value FROM retl_meta WHERE name = ?", f"told {alert} {sync}")
        return frozenset(found[0][0].split()) if found else None

    def remember(self, alert: str, sync: str, troubles: frozenset[str]) -> None:
        """Store the problems that the recipient knows now."""
        self.keep(f"told {alert} {sync}", " ".join(sorted(troubles)))

    @property
    def read_only(self) -> bool:
        return self._database.read_only

    def kept(self, name: str) -> str | None:
        """A text that `keep` stored."""
        found = self._database.query("SELECT value FROM retl_meta WHERE name = ?", name)
        return str(found[0][0]) if found else None

    def keep(self, name: str, text: str) -> None:
        """Store a text, in place of the last one of this name."""
        sql = (
            "INSERT INTO retl_meta (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
        with self._database.transaction():
            self._database.change(sql, name, text)

    def _move_reported(self, old: str, new: str) -> None:
        """The problems reported for `old` replace those of `new`."""
        rows = self._database.query("SELECT name, value FROM retl_meta WHERE name LIKE ?", "told %")
        reported = {tuple(name.split(" ")[1:]): (name, value) for name, value in rows}
        for (_, sync), (name, _) in reported.items():
            if sync in (old, new):
                self._database.change("DELETE FROM retl_meta WHERE name = ?", name)
        for (alert, sync), (_, value) in reported.items():
            if sync == old:
                self.remember(alert, new, frozenset(value.split()))

    def rename(self, old: str, new: str) -> None:
        """Move the state of sync `old` to `new`. DefinitionError if `new` has state itself."""
        with self._database.transaction():
            if self._database.query(_STATE, new, new, new):
                raise DefinitionError(
                    "STATE_EXISTS",
                    f"sync {new} has state of its own",
                    hint=f"retl state reset {new}, or keep it",
                )
            epoch = self._outdate(old, new)
            for table, identity in _OF_A_SYNC.items():
                if identity is not None:
                    both = f"SELECT {identity} FROM {table} WHERE sync = ?"
                    self._database.change(
                        f"DELETE FROM {table} WHERE sync = ? AND {identity} IN ({both})", new, old
                    )
                self._database.change(f"UPDATE {table} SET sync = ? WHERE sync = ?", new, old)
            self._database.change("UPDATE retl_locks SET epoch = ? WHERE name IN (?, ?)", epoch, old, new)
            self._move_reported(old, new)

    def reset(self, sync: str, object: str | None, *, wholly: bool = False) -> None:
        """Forget what was delivered to an object: the next run starts with an empty baseline. Without an
        object: all objects, and the sync's rejects. The runs stay in the history; `wholly`: without their
        files, so nothing says any more which keys they sent."""
        with self._database.transaction():
            self._outdate(sync)
            files = self._forget(sync, object)
            if wholly:
                owned = {run_id for (run_id,) in self._database.query(_OWNED, sync)}
                files += [one for one in self._files.names() if one.split(".")[0] in owned]
                self._mark_removed(files)
            if object is None:
                self._database.change("DELETE FROM retl_rejects WHERE sync = ?", sync)
                self._database.change("DELETE FROM retl_meta WHERE name = ?", f"notes {sync}")
        self._files.drop(set(files))

    def prune(self, sync: str, keep: timedelta, *, dry_run: bool = False) -> Pruned:
        """Remove what is older of a sync's history: runs that nothing needs, and closed rejects. The caller
        holds the lock of the sync."""
        database, before = self._database, cell(self.now() - keep)
        if dry_run:
            return pruning.prune(database, sync, before, dry_run=True)
        with database.transaction():
            gone = pruning.prune(database, sync, before, dry_run=False)
            open_ = {
                batch_id
                for (batch_id,) in database.query("SELECT batch_id FROM retl_batches WHERE status = 'open'")
            }
            # Inside the transaction: an intent stores its request in another one, which must not begin
            # between the two reads.
            self._files.drop(n for n in self._files.names() if (of := batch_of(n)) and of not in open_)
        self._files.drop(gone.files)
        return gone

    def _outdate(self, *syncs: str) -> int:
        """Make every earlier epoch of these syncs stale; returns the newest one."""
        epochs = []
        for sync in syncs:
            found = self._database.query(
                "INSERT INTO retl_locks (name, epoch) VALUES (?, 1) "
                "ON CONFLICT (name) DO UPDATE SET epoch = retl_locks.epoch + 1 RETURNING epoch",
                sync,
            )
            epochs.append(int(found[0][0]))
        return max(epochs)
