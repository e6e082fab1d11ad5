-- What the processes of a connection took of its target's limits, as one JSON account: see allowance.py.
CREATE TABLE retl_paces (
  connection TEXT PRIMARY KEY,
  account    TEXT NOT NULL
);
