"""The sample warehouse: made-up users in a DuckDB file, and a day on which one in a hundred changes.

Every value is computed from a user's number by integer arithmetic, without random numbers, hash functions or
a clock. So the rows are the same on every machine, day and DuckDB version.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

RUN_DATE = date(2026, 11, 20)  # as in the sample project's retl.yml
MARTS = ("mart_user_segments", "mart_recommendations", "customer_analytics", "product_recommendations")

# `mixed` scatters the numbers: a prime multiplier within 32 bits.
_USERS = """
CREATE OR REPLACE TABLE users AS
WITH numbered AS (SELECT range AS n, range * 2654435761 % 4294967296 AS mixed FROM range($users))
SELECT
  n + 1 AS number,
  format('u{:06d}', n + 1) AS user_id,
  format('u{:06d}@example.com', n + 1) AS email,
  mixed // 64 AS taste,
  CAST(mixed // 7 % 900 AS INTEGER) AS signed_up_days,
  CAST(least(mixed // 11 % 400, mixed // 7 % 900) AS INTEGER) AS idle_days,
  mixed // 1024 % 120 AS searches,
  mixed // 1024 % 120 // 8 AS conversions,
  (mixed // 1024 % 120 // 8) * (1999 + mixed // 32 % 20000) AS spent_cents,
  5 + mixed // 256 % 4 AS offers
FROM numbered
ORDER BY n
"""
# Evenly distributed: of `every` users, exactly `changed` match.
_CHANGE = """
UPDATE users SET searches = searches + 7, spent_cents = spent_cents + 1000, offers = 3
WHERE number * $changed // $every > (number - 1) * $changed // $every
"""


def project() -> Path:
    """The folder of the sample project: in the installed package or in the repository."""
    installed = Path(__file__).parent / "project"
    return installed if installed.is_dir() else Path(__file__).parents[2]


def build(path: Path, users: int = 20_000, run_date: date = RUN_DATE) -> None:
    """Create the sample warehouse in the DuckDB file `path`; existing sample tables are replaced."""
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(path)) as warehouse:
        warehouse.execute("CREATE OR REPLACE TABLE sample AS SELECT $day AS run_date", {"day": run_date})
        warehouse.execute(_USERS, {"users": users})
        _build_marts(warehouse)


def change(path: Path, fraction: float = 0.01) -> int:
    """Change this fraction of the users, always the same ones, as after a day. Returns how many.

    Each of them searched and spent more, and (if a customer) has three products left to offer.
    """
    import duckdb

    with duckdb.connect(str(path)) as warehouse:
        ((users,),) = warehouse.execute("SELECT count(*) FROM users").fetchall()
        changed = round(int(users) * fraction)
        warehouse.execute(_CHANGE, {"changed": changed, "every": users})
        _build_marts(warehouse)
    return changed


def _build_marts(warehouse: DuckDBPyConnection) -> None:
    for mart in MARTS:
        select = (project() / "sql" / "marts" / f"{mart}.sql").read_text(encoding="utf-8")
        warehouse.execute(f"CREATE OR REPLACE TABLE {mart} AS {select}")
