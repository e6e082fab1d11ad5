"""What a run records while it works, in this order: run, delta, batches, checkpoint.

Every entry is durable when its call returns. If the epoch is no longer the newest of the sync, the call
changes nothing and raises LOCK_LOST. `epoch` is always that of the lock the caller holds: a run that
recovers batches of a dead run passes the id of the dead run and its own epoch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from retl.errors import InvariantBroken, LedgerError
from retl.ledger import chain
from retl.ledger.files import chunks_of, request_of, returned_of, stored_for
from retl.ledger.lock import Attempt, Lock
from retl.ledger.requests import Requests
from retl.ledger.rows import (
    Acknowledgement,
    BatchRow,
    Checkpoint,
    DeltaRow,
    FollowUpRow,
    RejectChanges,
    RunEnd,
    RunKey,
    RunRow,
    RunStart,
    cell,
    columns,
    packed,
)

_DELTAS = """
WHERE sync = ? AND object = ? AND (delta IS NOT NULL OR distrusts IS NOT NULL) AND forgotten_at IS NULL
  AND epoch > COALESCE(
  (SELECT snapshot_epoch FROM retl_checkpoints WHERE sync = ? AND object = ?), 0)
ORDER BY epoch, started_at
"""
_ACKNOWLEDGE = """
UPDATE retl_batches SET status = ?, outcome = ?, attempts = ?, duration_ms = ?, error = ?, answered_at = ?,
  http_status = ?
WHERE run_id = ? AND batch_id = ?
"""
_FINISH = """
UPDATE retl_runs SET status = ?, counts = ?, phases = ?, guards = ?, error = ?, source_version = ?,
  statistics = ?, finished_at = ?
WHERE run_id = ?
"""
_ERASED = "UPDATE retl_erasures SET status = ?, finished_at = ? WHERE run_id = ? AND status = 'open'"


class Journal(Requests):
    """The ledger as the pipeline and delivery see it."""

    def begin(self, run: RunStart) -> None:
        """Write the RUNNING row."""
        values = (*packed(run), "RUNNING", cell(self.now()))
        if run.sync in self._locks:
            self._holding[run.run_id] = self._locks[run.sync]
        with self._fenced(run.epoch, sync=run.sync) as database:
            database.change(_insert("retl_runs", *columns(RunStart), "status", "heartbeat_at"), *values)

    def join(self, run_id: str, epoch: int, shard: int) -> Attempt:
        """Record for one shard of a run that another process began and whose lock it holds. Earlier attempts
        at the shard record nothing more."""
        with self._fenced(epoch, run_id=run_id) as database:
            sync = database.query("SELECT sync FROM retl_runs WHERE run_id = ?", run_id)[0][0]
            attempt = Attempt(
                *(database, epoch, f"{run_id}/{shard}"), sync=sync, host=socket.gethostname(), pid=os.getpid()
            )
        self._holding[run_id] = attempt
        return attempt

    def heartbeat(self, run_id: str, epoch: int) -> None:
        """Record that the run is alive, on the connection that holds its lock."""
        lock = self._holding.get(run_id)
        if lock:
            lock.check()
        beats = lock.database if lock else self._database
        with self._fenced(epoch, run_id=run_id, database=beats):
            beats.change("UPDATE retl_runs SET heartbeat_at = ? WHERE run_id = ?", cell(beats.now()), run_id)

    def dead_runs(self, sync: str) -> list[RunRow]:
        """RUNNING runs of a sync, oldest first. They are dead: the caller has the lock and has not begun."""
        where = "WHERE sync = ? AND status = 'RUNNING' ORDER BY epoch, started_at"
        return self._database.rows(RunRow, "retl_runs", where, sync)

    def abandon(self, run_id: str, epoch: int) -> str | None:
        """Mark a dead run ABANDONED; returns the head of its chain. `epoch` is that of the run that found
        it."""
        sql = "UPDATE retl_runs SET status = 'ABANDONED', finished_at = ? WHERE run_id = ? AND status = ?"
        batches, now = chain.batches_of(self._database, run_id), self.now()
        with self._fenced(epoch, run_id=run_id) as database:
            self._end_shards(run_id)
            if database.change(sql, cell(now), run_id, "RUNNING"):
                return chain.join(database, run_id, batches, now)
        return None

    def withdraw(self, run_id: str, epoch: int) -> bool:
        """Delete the RUNNING row of a run that has recorded nothing; False if it has batches or a delta."""
        sql = "DELETE FROM retl_runs WHERE run_id = ? AND status = 'RUNNING' AND delta IS NULL AND NOT EXISTS"
        with self._fenced(epoch, run_id=run_id) as database:
            gone = database.change(f"{sql} (SELECT 1 FROM retl_batches WHERE run_id = ?)", run_id, run_id)
            if gone:
                self._end_shards(run_id)
        return bool(gone)

    def record_delta(
        self,
        run_id: str,
        epoch: int,
        name: str,
        rows: int,
        fingerprint: Mapping[str, str],
        *,
        writes: Mapping[str, Sequence[str]] | None = None,
        restart: str | None = None,
        keep: Sequence[str] = (),
    ) -> None:
        """The durable run file `name` belongs to the baseline from now on; the run `writes` these fields of
        the target, by operation. `restart`: an object; its old baseline is forgotten in the same transaction,
        except the deltas of the runs in `keep`."""
        forgotten: list[str] = []
        with self._fenced(epoch, run_id=run_id) as database:
            if restart is not None:
                sync = database.query("SELECT sync FROM retl_runs WHERE run_id = ?", run_id)[0][0]
                forgotten = self._forget(sync, restart, keep)
            self._record_files(run_id)
            sql = (
                "UPDATE retl_runs SET delta = ?, delta_rows = ?, fingerprint = ?, fields = ? WHERE run_id = ?"
            )
            database.change(sql, name, rows, cell(fingerprint), cell(writes), run_id)
        self._files.drop(forgotten)

    def forget(self, sync: str, object: str, epoch: int, *, keep: Sequence[str] = ()) -> None:
        """Start an empty baseline on an object, except the deltas of the runs in `keep`; `epoch` is that of
        the lock the caller holds."""
        with self._fenced(epoch, sync=sync):
            files = self._forget(sync, object, keep)
        self._files.drop(files)

    def distrust(self, run_id: str, epoch: int, found: Mapping[str, Any]) -> None:
        """Older entries of the baseline no longer hold from this run on (the fields of a Distrust)."""
        with self._fenced(epoch, run_id=run_id) as database:
            database.change("UPDATE retl_runs SET distrusts = ? WHERE run_id = ?", cell(found), run_id)

    def advance(self, run_id: str, lock: Lock, past: int) -> None:
        """Give a run, and the lock it holds, an epoch newer than `past`: the target knows runs that this
        ledger does not."""
        newer = max(lock.epoch, past) + 1
        with self._fenced(lock.epoch, run_id=run_id) as database:
            database.change("UPDATE retl_runs SET epoch = ? WHERE run_id = ?", newer, run_id)
            lock.advance(database, newer)

    def deltas(self, sync: str, object: str) -> list[DeltaRow]:
        """Runs that changed the baseline and are not in the checkpoint's snapshot yet, oldest first."""
        keys = (sync, object, sync, object)
        return self._database.rows(DeltaRow, "retl_runs", _DELTAS, *keys)

    def run_keys(self, run_ids: Iterable[str]) -> dict[str, RunKey]:
        """The runs among these that the ledger knows."""
        found = (
            self._database.rows(RunKey, "retl_runs", "WHERE run_id = ?", run_id) for run_id in set(run_ids)
        )
        return {run.run_id: run for runs in found for run in runs}

    def newest_epochs(self, object: str) -> dict[str, int]:
        """Per sync that inserted or deleted rows of this object, the epoch of its last run that sent any."""
        sql = (
            "SELECT sync, max(epoch) FROM retl_runs AS r WHERE object = ? AND EXISTS"
            " (SELECT 1 FROM retl_batches AS b WHERE b.run_id = r.run_id AND operation <> 'update_only')"
            " GROUP BY sync"
        )
        return {str(sync): int(epoch) for sync, epoch in self._database.query(sql, object)}

    def continue_from(self, checkpoint: Checkpoint, epoch: int) -> None:
        """The object of this checkpoint has another address: the checkpoint replaces what the sync knew
        there. `epoch` is that of the lock the caller holds."""
        with self._fenced(epoch, sync=checkpoint.sync):
            files = self._forget(checkpoint.sync, checkpoint.object)
            self._record_files((checkpoint.snapshot or "").split(".")[0])
            self._put_checkpoint(checkpoint, self.now())
        self._files.drop(files)

    def objects(self, sync: str) -> list[str]:
        """The objects for which a run of the sync has recorded a delta."""
        sql = (
            "SELECT DISTINCT object FROM retl_runs WHERE sync = ? AND delta IS NOT NULL"
            " AND forgotten_at IS NULL ORDER BY object"
        )
        return [str(name) for (name,) in self._database.query(sql, sync)]

    def open_batches(self, run_id: str, epoch: int, batches: Sequence[BatchRow]) -> None:
        """Record batches before they are sent."""
        with self._fenced(epoch, run_id=run_id):
            self._open(run_id, batches)

    def intend(self, run_id: str, epoch: int, batch: BatchRow, request: bytes | None) -> None:
        """Record a batch (opened before or not) before it is sent, with its idempotency key and the bytes
        that every resend must have."""
        with self._fenced(epoch, run_id=run_id):
            if request is not None:
                self._files.put(request_of(batch.batch_id), [request])
            self._open(run_id, [batch])

    def attach(self, run_id: str, epoch: int, batch_id: str, handle: str) -> None:
        """The target accepted the batch under this handle and is working on it."""
        with self._fenced(epoch, run_id=run_id) as database:
            sql = "UPDATE retl_batches SET handle = ? WHERE run_id = ? AND batch_id = ?"
            database.change(sql, handle, run_id, batch_id)

    def acknowledge(
        self, run_id: str, epoch: int, results: Sequence[Acknowledgement], *, stored: bool = True
    ) -> None:
        """Record the outcomes of these batches in one transaction; then remove what is `stored` of them until
        they have one: requests, and what the target returned."""
        now = self.now()
        answers = [replace(one, answered_at=one.answered_at or now) for one in results]
        ends = [("failed" if r.error else "done", *packed(r)[1:], run_id, r.batch_id) for r in answers]
        with self._fenced(epoch, run_id=run_id) as database:
            self._record_files(run_id)
            if run_id not in self._holding:  # a run that the caller recovers
                chain.amend(database, run_id, epoch)
            if database.change_many(_ACKNOWLEDGE, ends) != len(ends):
                raise InvariantBroken("BATCH_UNKNOWN", f"run {run_id} acknowledges a batch it never opened")
        # After the commit: a request without an open batch is harmless; the reverse is not.
        self._files.drop(name for r in results if stored for name in stored_for(r.batch_id))

    def split(self, run_id: str, epoch: int, batch_id: str, halves: Sequence[BatchRow]) -> None:
        """The target refused the whole batch: its halves replace it."""
        with self._fenced(epoch, run_id=run_id) as database:
            sql = "UPDATE retl_batches SET status = 'split' WHERE run_id = ? AND batch_id = ?"
            database.change(sql, run_id, batch_id)
            self._open(run_id, halves)
        self._files.drop(stored_for(batch_id))

    def batches(self, run_id: str) -> list[BatchRow]:
        """A run's batches with their outcomes, by first row; a split batch comes before its halves."""
        where = "WHERE run_id = ? ORDER BY first_row, last_row DESC, batch_no"
        return self._database.rows(BatchRow, "retl_batches", where, run_id)

    def put_returned(self, run_id: str, batch_id: str, path: Path) -> None:
        """Store what the target returns with a batch before it is known whether the batch arrives, in the
        place of an earlier attempt's. Only of an open batch of the ledger: for others nobody would look."""
        sql = "SELECT 1 FROM retl_batches WHERE run_id = ? AND batch_id = ? AND status = 'open'"
        if self._database.query(sql, run_id, batch_id):
            self._files.put(returned_of(batch_id), chunks_of(path))

    def returned(self, batch_id: str, directory: Path) -> Path | None:
        """What was stored so, of a batch that is not acknowledged; a copy may be made in `directory`."""
        try:
            return self._files.get(returned_of(batch_id), directory)
        except LedgerError:
            return None

    def request(self, run_id: str, batch_id: str) -> bytes | None:
        """The request bytes of a batch that is not acknowledged."""
        return self._files.read(request_of(batch_id))

    def finish(
        self,
        run: RunEnd,
        checkpoint: Checkpoint | None,
        rejects: RejectChanges,
        requests: Sequence[FollowUpRow] = (),
    ) -> str:
        """Record the end of a run in one transaction: its row, its checkpoint, its rejects, the requests that
        follow it, and its link in the chain; returns the head of the chain."""
        now, batches = self.now(), chain.batches_of(self._database, run.run_id)
        end = (run.status, *map(cell, (run.counts, run.phases, run.guards, run.error, run.source_version)))
        end = (*end, cell(run.statistics))
        end = (*end, cell(now), run.run_id)
        with self._fenced(run.epoch, run_id=run.run_id) as database:
            database.change(_FINISH, *end)
            self._end_shards(run.run_id)
            sync = database.query("SELECT sync FROM retl_runs WHERE run_id = ?", run.run_id)[0][0]
            self._merge(sync, run.epoch, rejects)
            if checkpoint is not None:
                self._put_checkpoint(checkpoint, now)
            self._record_files(run.run_id)
            self.put_requests(requests)
            if "erasure" in run.counts:
                database.change(_ERASED, run.counts["erasure"]["status"], cell(now), run.run_id)
            head = chain.join(database, run.run_id, batches, now)
        self._holding.pop(run.run_id, None)
        return head

    def checkpoint(self, sync: str, object: str) -> Checkpoint | None:
        found = [row for row in self.checkpoints(sync) if row.object == object]
        return found[0] if found else None

    def checkpoints(self, sync: str) -> list[Checkpoint]:
        """The checkpoints of one sync, by object."""
        return self._database.rows(Checkpoint, "retl_checkpoints", "WHERE sync = ? ORDER BY object", sync)

    def delivering(self) -> list[str]:
        """The syncs that have a checkpoint, by name."""
        return [
            name for (name,) in self._database.query("SELECT DISTINCT sync FROM retl_checkpoints ORDER BY 1")
        ]

    def checkpoints_on(self, object: str) -> list[Checkpoint]:
        """The checkpoints of all syncs that delivered to an object, by sync."""
        return self._database.rows(Checkpoint, "retl_checkpoints", "WHERE object = ? ORDER BY sync", object)

    def _put_checkpoint(self, checkpoint: Checkpoint, now: datetime) -> None:
        names = columns(Checkpoint)
        sql = _insert("retl_checkpoints", *names) + _or_update("sync, object", *names[2:])
        self._database.change(sql, *packed(replace(checkpoint, updated_at=checkpoint.updated_at or now)))

    def _open(self, run_id: str, batches: Sequence[BatchRow]) -> None:
        names = columns(BatchRow)
        sql = _insert("retl_batches", "run_id", *names) + _or_update("run_id, batch_id", *names[1:])
        self._database.change_many(sql, ((run_id, *packed(batch)) for batch in batches))


def _insert(table: str, *names: str) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' for _ in names)})"


def _or_update(key: str, *names: str) -> str:
    return f" ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in names)}"
