"""The mart that every case reads: made-up users whose values follow from their number by arithmetic."""

from __future__ import annotations

from pathlib import Path

import duckdb

TABLE = "mart_users"
COLUMNS = "user_id, segment, total_searches, total_conversions, lifetime_value, last_seen_at"
DDL = (
    "user_id text PRIMARY KEY, segment text, total_searches integer, total_conversions integer,"
    " lifetime_value numeric(12,2), last_seen_at timestamp"
)

# `mixed` scatters the numbers: a prime multiplier within 32 bits. Users stand in an order of their own,
# as in any mart, which is not the key's.
_ROWS = """
CREATE TABLE {table} AS
WITH numbered AS (SELECT range AS n, range * 2654435761 % 4294967296 AS mixed FROM range({rows}))
SELECT
  'user_' || n AS user_id,
  ['power', 'casual', 'new', 'dormant', 'churned'][1 + mixed // 64 % 5] AS segment,
  CAST(mixed // 1024 % 120 AS INTEGER) AS total_searches,
  CAST(mixed // 1024 % 120 // 8 AS INTEGER) AS total_conversions,
  CAST(mixed // 32 % 2000000 / 100.0 AS DECIMAL(12, 2)) AS lifetime_value,
  TIMESTAMP '2026-01-01' + to_seconds(mixed // 4 % 27993600) AS last_seen_at
FROM numbered ORDER BY n
"""


def build(path: Path, rows: int) -> None:
    """A mart of so many rows in the new DuckDB file `path`."""
    with duckdb.connect(str(path)) as warehouse:
        warehouse.execute("SET memory_limit = '1GB'; SET enable_progress_bar = false")
        warehouse.execute(_ROWS.format(table=TABLE, rows=rows))


def build_changed(path: Path, former: Path, updates: int, deletes: int) -> None:
    """The mart of `former` in the new file `path`, so many rows changed and others gone, spread evenly."""
    with duckdb.connect(str(path)) as warehouse:
        warehouse.execute(f"ATTACH '{former}' AS former (READ_ONLY)")
        ((rows,),) = warehouse.execute(f"SELECT count(*) FROM former.{TABLE}").fetchall()
        number = "CAST(user_id[6:] AS BIGINT)"
        gone = f"{number} % {rows // deletes} = 1" if deletes else "false"
        moved = f"{number} % {rows // updates} = 0" if updates else "false"
        warehouse.execute(
            f"CREATE TABLE {TABLE} AS SELECT * REPLACE"
            f" (total_searches + CASE WHEN {moved} THEN 7 ELSE 0 END AS total_searches)"
            f" FROM former.{TABLE} WHERE NOT ({gone})"
        )


def export_csv(mart: Path, path: Path) -> None:
    """The mart as PostgreSQL's COPY takes it."""
    _export(mart, f"COPY (SELECT {COLUMNS} FROM {TABLE}) TO '{path}' (FORMAT csv, HEADER false)")


def export_json(mart: Path, path: Path) -> None:
    """Per line the key, a tab, and the rest as one JSON object."""
    members = ", ".join(f"'{name}', {name}" for name in COLUMNS.split(", ")[1:])
    _export(
        mart,
        f"COPY (SELECT user_id, json_object({members}) FROM {TABLE}) TO '{path}'"
        " (FORMAT csv, HEADER false, DELIMITER '\t', QUOTE '', ESCAPE '')",
    )


def _export(mart: Path, statement: str) -> None:
    with duckdb.connect(str(mart), read_only=True) as warehouse:
        warehouse.execute("SET memory_limit = '1GB'; SET enable_progress_bar = false")
        warehouse.execute(statement)
