"""Rows that a table takes only in some order arrive in one run: trees, unique values that move, and parents and
children in two syncs. What no order can deliver is refused, and a wrong mapping stops the run early.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import Workshop
from tests.servers import Database

TREE = "CREATE TABLE nodes (id int PRIMARY KEY, parent int REFERENCES nodes, name text)"
RANKS = "CREATE TABLE ranks (player text PRIMARY KEY, rank int UNIQUE, theirs text DEFAULT 'theirs')"
ORDERS = (
    "CREATE TABLE customers (id int PRIMARY KEY, name text);"
    " CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL REFERENCES customers)"
)


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def sync(workshop: Workshop, table: str, key: str = "id", name: str | None = None, **parts: str) -> None:
    """A sync of the mart of a table's name."""
    destination = f"{{type: postgres, table: {table}}}"
    given = {"source": f"{{table: {table}}}", "key": f"[{key}]", "destination": destination}
    workshop.sync(name or table, **(given | parts))


def run(workshop: Workshop, *words: str) -> list[dict[str, Any]]:
    """The summaries of all syncs, by name, whatever the exit code."""
    return list(workshop.retl("sync", *words, "--output", "json").document["syncs"])


def only(workshop: Workshop, *words: str) -> dict[str, Any]:
    (found,) = run(workshop, *words)
    return found


def one(postgres: Database, sql: str) -> Any:
    with postgres.connect() as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row[0]


def execute(postgres: Database, sql: str) -> None:
    with postgres.connect() as connection:
        connection.execute(sql)


# --- a table that refers to itself


@pytest.mark.parametrize(
    ("parent", "rows"),
    [
        ("CASE WHEN i < 1999 THEN i + (1999 - i) // 2 + 1 END", 100),  # each parent after its children
        ("CASE WHEN i < 1999 THEN i + 1 END", 100),  # a chain backwards
        ("CASE WHEN i > 0 THEN (hash(i) % i)::INT END", 1000),
        ("CASE WHEN i <> 997 THEN (i * 1009 + 3) % 1999 // 2 * 2 + 1 END", 300),
    ],
    ids=["tree", "chain", "random tree", "refers anywhere"],
)
def test_a_tree_arrives_in_one_run_whatever_the_order_of_its_rows(
    workshop: Workshop, postgres: Database, parent: str, rows: int
) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        f"CREATE TABLE nodes AS SELECT i::INT AS id, ({parent})::INT AS parent, 'n' || i AS name"
        " FROM range(2000) t(i)"
    )
    sync(workshop, "nodes", batch=f"{{rows: {rows}}}")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["inserted"], done["rejected"]) == ("SUCCESS", 2000, 0)
    assert one(postgres, "SELECT count(*) FROM nodes") == 2000
    assert only(workshop, "--sync", "nodes")["unchanged"] == 2000
