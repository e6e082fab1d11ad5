"""What the tests of sources saw of the types that each system offers, for the page that compares sources.

It counts the values that those tests assert, so it can say nothing that they do not show."""

from __future__ import annotations

from collections.abc import Sequence

from tests import (
    test_source_clickhouse,
    test_source_delta,
    test_source_iceberg,
    test_source_mysql,
    test_source_postgres,
    test_source_redshift,
    test_source_rest,
    test_source_sqlite,
    test_source_texts,
    test_source_trino,
)

# The types that a system offers and that a source gives exactly, or whose values it rejects one by one.
SERVERS = {
    "mariadb": test_source_mysql.VALUES,
    "mysql": test_source_mysql.VALUES,
    "postgres": test_source_postgres.VALUES,
    "redshift": test_source_redshift.VALUES,
    "sqlite": test_source_sqlite.VALUES,
    "trino": test_source_trino.VALUES,
}
STAND_INS = {
    "mysql": "seen on MariaDB",
    "redshift": "seen on PostgreSQL",
    "trino": "seen on a fake",
    "clickhouse": "seen in recorded answers",
}


def types() -> dict[str, str]:
    """By type of source: how many types and values its tests have, and what becomes of them."""
    found = {name: _judged(values) for name, values in SERVERS.items()}
    tables = {"delta": test_source_delta.TYPES, "iceberg": test_source_iceberg.TYPES}
    for name, columns in tables.items():
        found[name] = f"{len({str(kind) for kind, *_ in columns.values()})} types, all exact"
    good, refused = len(test_source_clickhouse.GOOD), len(test_source_clickhouse.REFUSED)
    found["clickhouse"] = f"{good} types exact, {refused} refused by name"
    found["rest"] = f"{len({kind for kind, *_ in test_source_rest.EXACT})} types of contracts, all exact"
    texts = [(kind, "", "", value) for kind, _, value in test_source_texts.READABLE]
    found["files"] = f"CSV and JSON lines: {_judged(texts)}; Parquet: DuckDB's own"
    found["duckdb"] = "DuckDB's own"
    return {
        name: f"{words} ({STAND_INS[name]})" if name in STAND_INS else words for name, words in found.items()
    }


def _judged(values: Sequence[tuple[str, str, str, str | None]]) -> str:
    kinds, exact = {kind for kind, *_ in values}, [one for one in values if one[3] is not None]
    return (
        f"{len(kinds)} types; of {len(values)} values {len(exact)} exact, {len(values) - len(exact)} rejected"
    )
