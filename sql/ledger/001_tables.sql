-- What retl remembers. The same text runs on SQLite and on PostgreSQL.
-- Times are ISO 8601 in UTC with microseconds, so they sort as text; JSON is text.

CREATE TABLE retl_meta (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

-- One row per locked name (a sync, or the object it writes to). The epoch only ever grows:
-- a run with an older epoch may record nothing.
CREATE TABLE retl_locks (
  name  TEXT PRIMARY KEY,
  epoch BIGINT NOT NULL,
  sync  TEXT,
  host  TEXT,
  pid   BIGINT,
  since TEXT
);

CREATE TABLE retl_runs (
  run_id          TEXT PRIMARY KEY,
  sync            TEXT NOT NULL,
  object          TEXT NOT NULL,
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
  host            TEXT NOT NULL,
  pid             BIGINT NOT NULL,
  os_user         TEXT NOT NULL,
  version         TEXT NOT NULL,
  error           TEXT,
  part            TEXT,
  part_rows       BIGINT
);
CREATE INDEX retl_runs_by_sync ON retl_runs (sync, epoch);
CREATE INDEX retl_runs_by_start ON retl_runs (started_at);

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
  attempts        BIGINT NOT NULL,
  duration_ms     BIGINT,
  error           TEXT,
  PRIMARY KEY (run_id, batch_id)
);

CREATE TABLE retl_rejects (
  sync       TEXT NOT NULL,
  key        TEXT NOT NULL,
  hash       TEXT,
  stage      TEXT NOT NULL,
  code       TEXT NOT NULL,
  reason     TEXT,
  run_id     TEXT,
  first_seen TEXT NOT NULL,
  last_seen  TEXT NOT NULL,
  attempts   BIGINT NOT NULL,
  state      TEXT NOT NULL,
  PRIMARY KEY (sync, key)
);

CREATE TABLE retl_checkpoints (
  sync           TEXT NOT NULL,
  object         TEXT NOT NULL,
  run_id         TEXT NOT NULL,
  epoch          BIGINT NOT NULL,
  base           TEXT,
  base_epoch     BIGINT NOT NULL,
  baseline_rows  BIGINT NOT NULL,
  read_rows      BIGINT NOT NULL,
  watermark      TEXT,
  fingerprints   TEXT NOT NULL,
  newest         TEXT,
  source_version TEXT,
  extra          TEXT NOT NULL,
  updated_at     TEXT NOT NULL,
  PRIMARY KEY (sync, object)
);

-- Consecutive failures per connection. After a few of them the connection is not used for a while.
CREATE TABLE retl_breakers (
  connection TEXT PRIMARY KEY,
  failures   BIGINT NOT NULL,
  opened_at  TEXT NOT NULL,
  error      TEXT NOT NULL
);

-- Run files, if there is no directory for them.
CREATE TABLE retl_files (
  name  TEXT NOT NULL,
  part  BIGINT NOT NULL,
  bytes BYTEA NOT NULL,
  PRIMARY KEY (name, part)
);
