"""The SQL of the markers: what this ledger has delivered to a table, kept beside the table.

One row per batch is written in the batch's own transaction, and per sync one row is a fence against older
runs. A batch is found by its run, so a sync may get another name meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from retl.destinations.batch import Batch, Visit
from retl.destinations.postgres.relation import Relation
from retl.values.sql import literal, quoted

MARKER = "retl_applied"
_WHOLE = "snapshot"  # the author of a fence
_LEAVES = 250  # partitions that a marker lists
_MARK = "(state_id, run_id, batch, attempt)"


class Markers(Struct, frozen=True):
    """The statements about the markers of one sync on one table."""

    relation: Relation
    state_id: str
    sync: str

    @property
    def table(self) -> str:
        """Of the markers, in the schema of the relation."""
        return f"{quoted(self.relation.schema)}.{MARKER}"

    def create(self) -> str:
        return (
            f"CREATE TABLE {self.table} (state_id text NOT NULL, sync text NOT NULL, run_id text NOT NULL,"
            " batch text NOT NULL, attempt integer NOT NULL, epoch bigint NOT NULL, object text NOT NULL,"
            " storage text NOT NULL, state text NOT NULL CHECK (state IN ('applied', 'void', 'fence')),"
            " author text NOT NULL, written integer NOT NULL, not_written jsonb NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now(),"
            " PRIMARY KEY (state_id, run_id, batch, attempt))"
        )

    def mark(self, batch: Batch, attempt: int, author: str, written: int, not_written: Any) -> str:
        """Writes the marker; row count 0 if a newer run has begun, or there is already a marker. The marker
        of a batch of which no row was written is replaced."""
        fence = f"SELECT epoch FROM {self.table} WHERE {self._fence} FOR SHARE"
        row = self._row(batch.run_id, batch.id, attempt, batch.epoch, "applied", author, written, not_written)
        return (
            f"WITH fence AS ({fence}) INSERT INTO {self.table} AS m {row}"
            f" WHERE NOT EXISTS (SELECT FROM fence WHERE epoch > {batch.epoch})"
            f" ON CONFLICT {_MARK} DO UPDATE SET not_written ="
            " excluded.not_written, written = excluded.written, applied_at = now()"
            " WHERE m.state = 'applied' AND m.written = 0"
        )

    def void(self, batch: Batch, attempt: int, author: str) -> str:
        """Ensures that the attempt is never applied; row count 0 if it already has a marker. Waits for a
        transaction that is committing it."""
        row = self._row(batch.run_id, batch.id, attempt, batch.epoch, "void", author, 0, [])
        return f"INSERT INTO {self.table} {row} ON CONFLICT DO NOTHING"

    def marked(self, batch: Batch, attempt: int, *, wait: bool = True) -> str:
        """state, author and not_written of the attempt's marker; with `wait` it waits for a transaction that
        changes it."""
        return (
            f"SELECT state, author, not_written FROM {self.table} WHERE {self._state}"
            f" AND run_id = {literal(batch.run_id)} AND batch = {literal(batch.id)} AND attempt = {attempt}"
            + (" FOR SHARE" if wait else "")
        )

    def fence(self, epoch: int, *, whole: bool) -> str:
        """Prevents commits by runs of an older epoch; row count 0 if a newer run has begun. `whole`: the sync
        owns every row of the table."""
        row = self._row("", self.sync, 0, epoch, "fence", _WHOLE if whole else "", 0, [])
        return (
            f"INSERT INTO {self.table} AS m {row}"
            f" ON CONFLICT {_MARK} DO UPDATE SET epoch = excluded.epoch, author = excluded.author,"
            " object = excluded.object, storage = excluded.storage, applied_at = now()"
            " WHERE m.epoch <= excluded.epoch"
        )

    def owned(self) -> str:
        """Whether a sync of this ledger owns every row of the table."""
        return (
            f"SELECT EXISTS (SELECT FROM {self.table} WHERE {self._state} AND run_id = ''"
            f" AND object = {literal(str(self.relation))} AND author = {literal(_WHOLE)})"
        )

    def prune(self, visit: Visit) -> str:
        """Deletes the markers of earlier runs on this table, except those that the ledger will ask for."""
        kept = ", ".join(map(literal, sorted({"", visit.run_id, *visit.keep})))
        return (
            f"DELETE FROM {self.table} WHERE {self._state} AND sync = {literal(self.sync)}"
            f" AND object = {literal(str(self.relation))} AND epoch < {visit.epoch}"
            f" AND run_id NOT IN ({kept})"
        )

    def trace(self) -> str:
        """Per marker of this ledger on this table: sync, run, batch (fence: its epoch), and whether the
        storage was replaced since."""
        return (
            f"SELECT sync, run_id, CASE state WHEN 'fence' THEN epoch::text ELSE batch END,"
            f" NOT ({_parts('storage')} <@ {_parts(self._storage)}) FROM {self.table} WHERE {self._state}"
            f" AND ((state = 'applied' AND object = {literal(str(self.relation))}) OR ({self._fence}))"
        )

    def strangers(self) -> str:
        """Whether other ledgers have delivered to this table and this one never, and whether another has
        since this one last did; when another last did."""
        ours = f"FILTER (WHERE {self._state})"
        others = f"FILTER (WHERE NOT ({self._state}))"
        return (
            f"SELECT coalesce(bool_or(NOT ({self._state})) AND NOT bool_or({self._state}), false),"
            f" coalesce(max(applied_at) {others} > max(applied_at) {ours}, false), max(applied_at) {others}"
            f" FROM {self.table} WHERE object = {literal(str(self.relation))}"
        )

    @property
    def _state(self) -> str:
        return f"state_id = {literal(self.state_id)}"

    @property
    def _fence(self) -> str:
        return f"{self._state} AND run_id = '' AND batch = {literal(self.sync)}"

    @property
    def _storage(self) -> str:
        """A text that changes whenever the table's rows are rewritten: by TRUNCATE, DROP and CREATE, a
        restored dump, a rewrite. A partitioned table has the storage of its partitions, one by one: a new
        one rewrites nothing. Of very many it is their sum."""
        table = f"to_regclass({literal(self.relation.sql)})"
        leaves = (
            f"SELECT CASE WHEN count(*) <= {_LEAVES} THEN string_agg(concat(relid::oid, ':', node), ','"
            " ORDER BY relid::oid) ELSE sum(node)::text END FROM (SELECT relid,"
            f" pg_relation_filenode(relid)::bigint AS node FROM pg_partition_tree({table}) WHERE isleaf) AS l"
        )
        return f"concat({table}::oid, '/,', coalesce(({leaves}), pg_relation_filenode({table})::text))"

    def _row(
        self, run: str, batch: str, attempt: int, epoch: int, state: str, author: str, written: int, rest: Any
    ) -> str:
        texts = [literal(text) for text in (self.state_id, self.sync, run, batch)]
        values = ", ".join([*texts, f"{attempt}", f"{epoch}", literal(str(self.relation))])
        outcome = f"{literal(state)}, {literal(author)}, {written}, {literal(json.dumps(rest))}::jsonb"
        return (
            "(state_id, sync, run_id, batch, attempt, epoch, object, storage, state, author, written,"
            f" not_written) SELECT {values}, {self._storage}, {outcome}"
        )


def _parts(storage: str) -> str:
    """The parts of a storage: the table, and what has its rows."""
    return f"string_to_array({storage}, ',')"
