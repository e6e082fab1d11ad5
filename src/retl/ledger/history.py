"""The past: runs for `retl runs`, `show` and `status`, and how state is moved or deleted.

It never decides what a run does. The caller who moves or deletes state holds the lock of these syncs. Their
epochs grow nevertheless, so that an older run can record nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from retl.errors import DefinitionError
from retl.ledger.rows import RunRow, cell
from retl.ledger.state import State

_UNUSED = """
status <> 'RUNNING' AND started_at < ? AND run_id NOT IN (SELECT run_id FROM retl_checkpoints)
AND NOT EXISTS (SELECT 1 FROM retl_checkpoints AS c
  WHERE substr(c.newest, 3, length(retl_runs.run_id)) = retl_runs.run_id)
AND ((delta IS NULL AND distrusts IS NULL) OR epoch <= (SELECT c.snapshot_epoch FROM retl_checkpoints c
  WHERE c.sync = retl_runs.sync AND c.object = retl_runs.object))
"""

_STATE = """
SELECT 1 FROM retl_checkpoints WHERE sync = ? UNION SELECT 1 FROM retl_rejects WHERE sync = ?
UNION SELECT 1 FROM retl_runs WHERE sync = ? AND delta IS NOT NULL
"""
_REASONS = """
SELECT stage, code, reason, count(*) FROM retl_rejects WHERE state = 'open' AND sync = ?
GROUP BY stage, code, reason ORDER BY count(*) DESC, stage, code, reason LIMIT ?
"""
_KEYS = """
SELECT key FROM retl_rejects WHERE state = 'open' AND sync = ? AND stage = ? AND code = ?
AND COALESCE(reason, '') = COALESCE(?, '') ORDER BY key LIMIT ?
"""


class History(State):
    """The ledger as the command line sees it."""

    def runs(self, sync: str | None = None, limit: int = 20) -> list[RunRow]:
        """The newest runs, newest first."""
        where = "WHERE sync = COALESCE(?, sync) ORDER BY started_at DESC, run_id DESC LIMIT ?"
        return self._database.rows(RunRow, "retl_runs", where, sync, limit)

    def run(self, run_id: str | None = None) -> RunRow | None:
        """One run; by default the last one."""
        where = "WHERE run_id = COALESCE(?, run_id) ORDER BY started_at DESC, run_id DESC LIMIT 1"
        found = self._database.rows(RunRow, "retl_runs", where, run_id)
        return found[0] if found else None

    def last_statistics(self, sync: str) -> Mapping[str, Any]:
        """The statistics of the newest good run that has them, by column."""
        where = (
            "WHERE sync = ? AND statistics IS NOT NULL AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS')"
            " ORDER BY epoch DESC, started_at DESC LIMIT 1"
        )
        found = self._database.rows(RunRow, "retl_runs", where, sync)
        return (found[0].statistics if found else None) or {}

    def last_success(self, sync: str) -> RunRow | None:
        """The newest run that delivered the mart, with or without rejects."""
        where = (
            "WHERE sync = ? AND status IN ('SUCCESS', 'SUCCESS_WITH_REJECTS') AND purpose <> 'repair'"
            " ORDER BY epoch DESC LIMIT 1"
        )
        found = self._database.rows(RunRow, "retl_runs", where, sync)
        return found[0] if found else None

    def open_rejects(self) -> dict[str, int]:
        """How many open rejects each sync has; syncs without any are left out."""
        sql = "SELECT sync, count(*) FROM retl_rejects WHERE state = 'open' GROUP BY sync ORDER BY sync"
        return {str(row[0]): int(row[1]) for row in self._database.query(sql)}

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
        sql = (
            "INSERT INTO retl_meta (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
        with self._database.transaction():
            self._database.change(sql, f"told {alert} {sync}", " ".join(sorted(troubles)))

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
            for table in ("retl_runs", "retl_checkpoints", "retl_rejects"):
                self._database.change(f"UPDATE {table} SET sync = ? WHERE sync = ?", new, old)
            self._database.change("UPDATE retl_locks SET epoch = ? WHERE name IN (?, ?)", epoch, old, new)
            self._move_reported(old, new)

    def reset(self, sync: str, object: str | None) -> None:
        """Forget what was delivered to an object: the next run starts with an empty baseline. Without an
        object: all objects, and the sync's rejects. The runs stay in the history."""
        with self._database.transaction():
            self._outdate(sync)
            files = self._forget(sync, object)
            if object is None:
                self._database.change("DELETE FROM retl_rejects WHERE sync = ?", sync)
        self._files.drop(files)

    def prune(self, keep: timedelta) -> int:
        """Remove older runs that no baseline needs, and older closed rejects; returns the number of runs."""
        database, before = self._database, cell(self.now() - keep)
        with database.transaction():
            gone = database.change(f"DELETE FROM retl_runs WHERE {_UNUSED}", before)
            database.change("DELETE FROM retl_batches WHERE run_id NOT IN (SELECT run_id FROM retl_runs)")
            closed = "state IN ('applied', 'withdrawn') AND last_seen < ?"
            database.change(f"DELETE FROM retl_rejects WHERE {closed}", before)
            open_ = {
                f"request-{batch_id}"
                for (batch_id,) in database.query("SELECT batch_id FROM retl_batches WHERE status = 'open'")
            }
            # Inside the transaction: an intent stores its request in another one, which must not begin
            # between the two reads.
            self._files.drop(n for n in self._files.names() if n.startswith("request-") and n not in open_)
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
