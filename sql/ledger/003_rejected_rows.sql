-- `row_id` is a digest that identifies a row without a usable key (otherwise ''). If the sync asks for it, the
-- rejected row itself is stored for a while, as JSON.

ALTER TABLE retl_rejects RENAME TO retl_rejects_1;

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

INSERT INTO retl_rejects
  (sync, key, row_id, hash, stage, code, reason, run_id, first_seen, last_seen, attempts, state)
SELECT sync, key, '', hash, stage, code, reason, run_id, first_seen, last_seen, attempts, state
FROM retl_rejects_1;

DROP TABLE retl_rejects_1;
