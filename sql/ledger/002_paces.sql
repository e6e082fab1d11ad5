-- How much of its target's limits each connection has used, as one JSON account: see pace/allowance.py.
CREATE TABLE retl_paces (
  connection TEXT PRIMARY KEY,
  account    TEXT NOT NULL
);
