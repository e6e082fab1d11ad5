"""The expected rows at the six targets of the sample project, by plain SQL without retl.

It uses the warehouse and the targets but nothing of retl: no sync file, no ledger, no adapter. So it is an
independent check.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retl_demo.campaigns import Campaigns
from retl_demo.warehouse import RUN_DATE

Row = tuple[str | None, ...]
Rows = Mapping[Row, Row]  # key → the other values, all as text


@dataclass(frozen=True)
class Landing:
    """One sync's rows in the warehouse and at the target, as SQL; the first `width` columns are the key.

    `at` is a table of PostgreSQL, or the name of another server. `deletes`: keys that left the mart are
    deleted in the target; otherwise they stay unchanged.
    """

    sync: str
    at: str
    width: int
    mart: str
    columns: tuple[str, ...]
    deletes: bool = False

    @property
    def is_table(self) -> bool:
        return "." in self.at


@dataclass(frozen=True)
class Targets:
    """The three servers of the sample, for our own connections."""

    postgres: Mapping[str, Any] = field(repr=False)  # parameters of psycopg.connect
    redis: Mapping[str, Any] = field(repr=False)  # parameters of redis.Redis
    campaigns: Campaigns


@dataclass(frozen=True)
class Difference:
    """Numbers of wrong rows by kind; all zero if the target has the rows of the mart."""

    lost: int  # missing keys
    doubled: int  # further rows of the same key
    altered: int  # right key, other values
    foreign: int  # unexpected keys

    def __bool__(self) -> bool:
        return any((self.lost, self.doubled, self.altered, self.foreign))


@dataclass(frozen=True)
class Motion:
    """Rows written between two points in time."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


LANDINGS = (
    Landing(
        "user_segments",
        "crm.user_segments",
        1,
        "SELECT user_id, segment, total_searches, total_conversions, lifetime_value FROM mart_user_segments",
        ("user_id", "segment", "total_searches", "total_conversions", "lifetime_value"),
    ),
    Landing(
        "customer_segments",
        "analytics.customer_segments",
        1,
        "SELECT customer_id, segment, lifetime_value, churn_probability, last_purchase_days,"
        " predicted_next_purchase_days, churn_risk_level, engagement_score, 'warehouse'"
        f" FROM customer_analytics WHERE run_date = DATE '{RUN_DATE}'",
        (
            "customer_id",
            "customer_segment",
            "lifetime_value",
            "churn_probability",
            "last_purchase_days",
            "predicted_next_purchase_days",
            "churn_risk_level",
            "engagement_score",
            "source_system",
        ),
    ),
    Landing(
        "product_recommendations",
        "crm.product_recommendations",
        2,
        "SELECT customer_id, place, product_id, recommendation_score, recommendation_reason FROM ("
        " SELECT *, (SELECT 1 + count(*) FROM product_recommendations better"
        "  WHERE better.customer_id = offer.customer_id"
        "  AND better.recommendation_score > offer.recommendation_score) AS place"
        " FROM product_recommendations offer) WHERE place <= 5",
        ("customer_id", "rank", "product_id", "recommendation_score", "recommendation_reason"),
        deletes=True,
    ),
    Landing(
        "email_triggers",
        "crm.email_queue",
        2,
        "SELECT user_id, kind, priority FROM (SELECT user_id, unnest(["
        " CASE WHEN segment = 'new' THEN 'welcome' END,"
        " CASE WHEN segment IN ('dormant', 'churned') AND lifetime_value >= 500 THEN 'win_back' END,"
        " CASE WHEN segment = 'power' AND total_conversions >= 8 THEN 'thank_you' END]) AS kind,"
        " unnest([1, 2, 3]) AS priority FROM mart_user_segments) WHERE kind IS NOT NULL",
        ("user_id", "email_type", "priority"),
    ),
    Landing(
        "recommendations",
        "redis",
        1,
        "SELECT user_id, array_to_string(destinations, ', '), score FROM mart_recommendations",
        ("user_id", "destinations", "score"),
    ),
    Landing(
        "churn_campaign",
        "campaigns",
        1,
        "SELECT customer_id, CAST(lifetime_value AS DOUBLE), CAST(churn_probability AS DOUBLE),"
        f" last_purchase_days FROM customer_analytics WHERE run_date = DATE '{RUN_DATE}'"
        " AND churn_risk_level = 'high' AND lifetime_value >= 500",
        ("id", "lifetime_value", "churn_probability", "last_purchase_days"),
    ),
)


def expected(warehouse: Path, landing: Landing, former: Rows | None = None) -> Rows:
    """The rows that the target must have: the current mart, and without deletes also earlier keys."""
    import duckdb

    with duckdb.connect(str(warehouse), read_only=True) as connection:
        found = connection.execute(f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM ({landing.mart})").fetchall()
    now = {row[: landing.width]: row[landing.width :] for row in found}
    return now if landing.deletes or former is None else {**former, **now}


def held(targets: Targets, landing: Landing) -> list[Row]:
    """Every row in the target, in no order; none if there is no table yet."""
    if landing.is_table:
        return _in_table(targets, landing)
    return _in_redis(targets) if landing.at == "redis" else _in_campaigns(targets.campaigns)


def applications(targets: Targets, landing: Landing) -> list[Row]:
    """Like `held`, but a row that the campaign tool applied n times is there n times."""
    if landing.at != "campaigns":
        return held(targets, landing)
    times = {str(one.id): one.applied for one in targets.campaigns.recipients().values()}
    return [row for row in held(targets, landing) for _ in range(times[str(row[0])])]


def compare(wanted: Rows, found: Iterable[Row], landing: Landing) -> Difference:
    """The difference between the target and the wanted rows."""
    times: Counter[Row] = Counter()
    altered = 0
    for row in found:
        key, rest = row[: landing.width], row[landing.width :]
        times[key] += 1
        altered += times[key] == 1 and key in wanted and wanted[key] != rest
    return Difference(
        lost=len(wanted.keys() - times.keys()),
        doubled=sum(number - 1 for number in times.values()),
        altered=altered,
        foreign=len(times.keys() - wanted.keys()),
    )


def motion(before: Rows, after: Rows) -> Motion:
    """The smallest number of writes from one state to the other."""
    return Motion(
        inserted=len(after.keys() - before.keys()),
        updated=sum(before[key] != after[key] for key in before.keys() & after.keys()),
        deleted=len(before.keys() - after.keys()),
    )


def written(targets: Targets, landing: Landing) -> Motion:
    """How many written rows the target itself has counted: PostgreSQL's statistics, SET commands of Redis,
    recipients applied by the campaign tool (the last two as `updated`)."""
    if landing.is_table:
        return _counted(targets, landing.at)
    if landing.at == "campaigns":
        return Motion(updated=sum(one.applied for one in targets.campaigns.recipients().values()))
    with _redis(targets) as client:
        sets = client.info("commandstats").get("cmdstat_set", {})
    return Motion(updated=sets.get("calls", 0) - sets.get("failed_calls", 0))


def _in_table(targets: Targets, landing: Landing) -> list[Row]:
    listed = ", ".join(f"{column}::text" for column in landing.columns)
    with _postgres(targets) as connection:
        if connection.execute("SELECT to_regclass(%s)", [landing.at]).fetchone() == (None,):
            return []
        found: list[Row] = connection.execute(f"SELECT {listed} FROM {landing.at}").fetchall()
    return found


def _in_redis(targets: Targets) -> list[Row]:
    with _redis(targets) as client:
        keys = [key.decode() for key in client.scan_iter("reco:*", count=1000)]
        values = client.mget(keys) if keys else []
    found: list[Row] = []
    for key, value in zip(keys, values, strict=True):
        document = json.loads(value, parse_float=str, parse_int=str)
        found.append((key.removeprefix("reco:"), ", ".join(document["destinations"]), document["score"]))
    return found


def _in_campaigns(tool: Campaigns) -> list[Row]:
    names = ("lifetime_value", "churn_probability", "last_purchase_days")
    recipients = tool.recipients().values()
    return [(str(one.id), *(str(one.attributes[name]) for name in names)) for one in recipients]


def _counted(targets: Targets, table: str) -> Motion:
    with _postgres(targets) as connection:
        found = connection.execute(
            "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relid = to_regclass(%s)",
            [table],
        ).fetchone()
    return Motion(*found) if found else Motion()


def _postgres(targets: Targets) -> Any:
    import psycopg

    return psycopg.connect(**targets.postgres, autocommit=True, connect_timeout=10)


def _redis(targets: Targets) -> Any:
    import redis

    return redis.Redis(**targets.redis, socket_timeout=10)
