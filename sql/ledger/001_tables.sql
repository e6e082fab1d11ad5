-- What retl remembers. The same text runs on SQLite and on PostgreSQL.
-- Times are ISO 8601 in UTC with microseconds, so they sort as text; JSON is text.

CREATE TABLE retl_meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

-- One row per locked name (a sync, or the object it writes to). The epoch only grows:
-- a run with an older epoch can record nothing. While a run has shards, each has a row too (RUN/SHARD),
-- whose epoch counts its attempts: an earlier attempt can record nothing.
CREATE TABLE retl_locks (
  name  TEXT PRIMARY KEY,
  epoch BIGINT NOT NULL,
  sync  TEXT,
  host  TEXT,
  pid   BIGINT,
  since TEXT
);

-- One row per run. `purpose` is sync, apply, rollback, reconcile (a look), repair, erase or resolve; `of_run` is
-- the run that a rollback undoes; `fields` are the target's fields that it writes; `delta` is the run file of the rows it may
-- write; `distrusts` says which older entries of the baseline no longer hold. After `forgotten_at` the baseline has
-- nothing of this run. The row of an ended run changes no more, but for `sync` and `forgotten_at`: `digest` is the
-- digest of the row, its batches and its files, `chain` that of the whole chain up to this run. A later run that
-- has to change it records the digests before and after in `amends`.
CREATE TABLE retl_runs (
  run_id          TEXT PRIMARY KEY,
  sync            TEXT NOT NULL,
  object          TEXT NOT NULL,
  purpose         TEXT NOT NULL,
  environment     TEXT,
  correlation_id  TEXT,
  status          TEXT NOT NULL,
  epoch           BIGINT NOT NULL,
  started_at      TEXT NOT NULL,
  heartbeat_at    TEXT,
  finished_at     TEXT,
  counts          TEXT NOT NULL DEFAULT '{}',
  phases          TEXT NOT NULL DEFAULT '{}',
  guards          TEXT NOT NULL DEFAULT '[]',
  vars            TEXT NOT NULL,
  options         TEXT NOT NULL,
  fingerprint     TEXT NOT NULL,
  source_identity TEXT NOT NULL,
  source_version  TEXT,
  statistics      TEXT,
  host            TEXT NOT NULL,
  pid             BIGINT NOT NULL,
  os_user         TEXT NOT NULL,
  version         TEXT NOT NULL,
  error           TEXT,
  delta           TEXT,
  delta_rows      BIGINT,
  distrusts       TEXT,
  of_run          TEXT,
  fields          TEXT,
  approved_by     TEXT,
  forgotten_at    TEXT,
  amends          TEXT,
  digest          TEXT,
  chain_id        TEXT,
  chain_no        BIGINT,
  chain           TEXT
);
CREATE INDEX retl_runs_by_sync ON retl_runs (sync, epoch);
CREATE INDEX retl_runs_by_start ON retl_runs (started_at);

-- One row per batch. `answered_at` is when the target answered, `http_status` the status of that answer.
CREATE TABLE retl_batches (
  run_id          TEXT NOT NULL,
  batch_id        TEXT NOT NULL,
  batch_no        BIGINT NOT NULL,
  operation       TEXT NOT NULL,
  first_row       BIGINT NOT NULL,
  last_row        BIGINT NOT NULL,
  status          TEXT NOT NULL,
  outcome         TEXT,
  handle          TEXT,
  idempotency_key TEXT,
  intent          TEXT,
  attempts        BIGINT NOT NULL,
  duration_ms     BIGINT,
  error           TEXT,
  answered_at     TEXT,
  http_status     BIGINT,
  PRIMARY KEY (run_id, batch_id)
);

-- One row per sync and rejected key. A row without a usable key is identified by its digest in `row_id`
-- (otherwise ''). If the sync asks for it, `payload` is the rejected row as JSON, kept for a while.
CREATE TABLE retl_rejects (
  sync       TEXT NOT NULL,
  key        TEXT NOT NULL,
  row_id     TEXT NOT NULL,
  hash       TEXT,
  stage      TEXT NOT NULL,
  code       TEXT NOT NULL,
  reason     TEXT,
  run_id     TEXT,
  first_seen TEXT NOT NULL,
  last_seen  TEXT NOT NULL,
  attempts   BIGINT NOT NULL,
  state      TEXT NOT NULL,
  payload    TEXT,
  kept_since TEXT,
  PRIMARY KEY (sync, key, row_id)
);

-- What the next run of a sync on an object starts from; `snapshot` names the run file of its compacted baseline,
-- `scope` says for which keys a missing row was a deleted one.
CREATE TABLE retl_checkpoints (
  sync           TEXT NOT NULL,
  object         TEXT NOT NULL,
  run_id         TEXT NOT NULL,
  epoch          BIGINT NOT NULL,
  snapshot       TEXT,
  snapshot_epoch BIGINT NOT NULL,
  baseline_rows  BIGINT NOT NULL,
  read_rows      BIGINT NOT NULL,
  watermark      TEXT,
  fingerprints   TEXT NOT NULL,
  newest         TEXT,
  source_version TEXT,
  others         TEXT NOT NULL,
  updated_at     TEXT NOT NULL,
  scope          TEXT,
  PRIMARY KEY (sync, object)
);

-- Consecutive failures per connection. After a few of them the connection is not used for a while.
CREATE TABLE retl_breakers (
  connection TEXT PRIMARY KEY,
  failures   BIGINT NOT NULL,
  opened_at  TEXT NOT NULL,
  error      TEXT NOT NULL
);

-- The chains of ended runs: each link is a digest of the one before and of the run. `chain_id` is the first run of
-- the chain. `anchors` is JSON: the first and the last number of each row of pruned runs, and the link of the last.
-- A sync goes on with the chain that was updated last; it has several if its state was moved.
CREATE TABLE retl_chains (
  chain_id   TEXT PRIMARY KEY,
  sync       TEXT NOT NULL,
  pruned     BIGINT NOT NULL,
  anchors    TEXT NOT NULL,
  head_no    BIGINT NOT NULL,
  head       TEXT NOT NULL,
  updated_at TEXT NOT NULL
);
CREATE INDEX retl_chains_by_sync ON retl_chains (sync);

-- The SHA-256 of each run file, which outlives the file: it was removed at `removed_at`.
CREATE TABLE retl_digests (
  name       TEXT PRIMARY KEY,
  run_id     TEXT NOT NULL,
  digest     TEXT NOT NULL,
  bytes      BIGINT NOT NULL,
  removed_at TEXT
);
CREATE INDEX retl_digests_by_run ON retl_digests (run_id);

-- Syncs that do not run until somebody resumes them. `run_id` is the run that paused it.
CREATE TABLE retl_paused (
  sync   TEXT PRIMARY KEY,
  since  TEXT NOT NULL,
  by     TEXT NOT NULL,
  reason TEXT NOT NULL,
  run_id TEXT
);

-- Keys that are never delivered again, as keyed digests: the key itself is not kept.
CREATE TABLE retl_suppressed (
  sync       TEXT NOT NULL,
  digest     TEXT NOT NULL,
  since      TEXT NOT NULL,
  erasure_id TEXT NOT NULL,
  PRIMARY KEY (sync, digest)
);

-- One row per erasure, sync and object: who asked when and why, how it ended there, and the proof as JSON. It
-- has no key.
CREATE TABLE retl_erasures (
  erasure_id   TEXT NOT NULL,
  sync         TEXT NOT NULL,
  object       TEXT NOT NULL,
  run_id       TEXT,
  requested_at TEXT NOT NULL,
  requested_by TEXT NOT NULL,
  reason       TEXT NOT NULL,
  status       TEXT NOT NULL,
  proof        TEXT NOT NULL,
  finished_at  TEXT,
  PRIMARY KEY (erasure_id, sync, object)
);

-- One row per run and request that follows it (`then` of a sync), made in the transaction that ends the run.
-- `request` names it, `facts` are the values of the run that it may have, as JSON. `state` is open, done, refused or
-- dropped; `doubts` counts the sends whose answer is not known. `tried_by` is the run that sent it last.
CREATE TABLE retl_requests (
  run_id      TEXT NOT NULL,
  request     TEXT NOT NULL,
  sync        TEXT NOT NULL,
  facts       TEXT NOT NULL,
  due_at      TEXT NOT NULL,
  state       TEXT NOT NULL,
  doubts      BIGINT NOT NULL,
  attempts    BIGINT NOT NULL,
  tried_by    TEXT,
  tried_at    TEXT,
  http_status BIGINT,
  error       TEXT,
  PRIMARY KEY (run_id, request)
);
CREATE INDEX retl_requests_by_sync ON retl_requests (sync, state);

-- Run files, if the ledger has no directory.
CREATE TABLE retl_files (
  name  TEXT NOT NULL,
  chunk BIGINT NOT NULL,
  bytes BYTEA NOT NULL,
  PRIMARY KEY (name, chunk)
);

-- How much of the target's limits all processes of a connection have used, as one JSON account: see allowance.py.
CREATE TABLE retl_paces (
  connection TEXT PRIMARY KEY,
  account    TEXT NOT NULL
);
