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


def test_a_subtree_whose_root_is_refused_is_refused_alone(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, TREE.replace("name text", "name text CHECK (name <> 'n1990')"))
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, CASE WHEN i < 1990 AND i >= 1980 THEN i + 1 END::INT AS parent,"
        " 'n' || i AS name FROM range(2000) t(i)"
    )
    sync(workshop, "nodes", batch="{rows: 500}")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["inserted"], done["rejected"]) == ("SUCCESS_WITH_REJECTS", 1989, 11)
    assert {one["code"] for one in done["rejects"]} == {"23503", "23514"}


def test_an_append_finds_the_parents_in_its_own_batch_and_appends_once(
    workshop: Workshop, postgres: Database
) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, CASE WHEN i < 99 THEN i + 1 WHEN i = 150 THEN 1000 END::INT"
        " AS parent, 'n' || i AS name FROM range(200) t(i)"
    )
    sync(workshop, "nodes", write="append", first_run="send")
    done = only(workshop, "--sync", "nodes")
    assert (done["inserted"], done["rejected"]) == (199, 1)
    assert one(postgres, "SELECT count(*) FROM nodes") == 199


def test_a_wrong_reference_stops_the_run_within_its_first_batches(
    workshop: Workshop, postgres: Database
) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, (i + 100000)::INT AS parent, 'n' AS name FROM range(5000) t(i)"
    )
    sync(workshop, "nodes", batch="{rows: 100}")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["error"]["code"], done["exit_code"]) == ("FAILED", "ALL_REFUSED", 1)
    assert done["rejected"] <= 400
    assert done["not_attempted"] == 5000 - done["rejected"]


def test_a_reference_to_another_table_does_not_wait(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, ORDERS)
    workshop.warehouse("CREATE TABLE orders AS SELECT i::INT AS id, i::INT AS customer FROM range(5000) t(i)")
    sync(workshop, "orders", batch="{rows: 100}")
    done = only(workshop, "--sync", "orders")
    assert (done["status"], done["error"]["code"]) == ("FAILED", "ALL_REFUSED")
    assert done["rejected"] <= 400


# --- unique values that move


def ranks(postgres: Database) -> str:
    return str(one(postgres, "SELECT string_agg(rank::text, ',' ORDER BY player) FROM ranks"))


MOVES = {
    "a swap": ("rank = 5 - rank WHERE rank IN (2, 3)", "0,1,3,2,4,5,6,7,8,9"),
    "and back": ("rank = 5 - rank WHERE rank IN (2, 3)", "0,1,2,3,4,5,6,7,8,9"),
    "a rotation": ("rank = (rank + 1) % 3 WHERE rank < 3", "1,2,0,3,4,5,6,7,8,9"),
    "a chain up": ("rank = rank + 1", "2,3,1,4,5,6,7,8,9,10"),
    "a chain down": ("rank = rank - 2", "0,1,-1,2,3,4,5,6,7,8"),
    "five swaps": ("rank = 7 - rank", "7,6,8,5,4,3,2,1,0,-1"),
}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("int UNIQUE", 5000),
        ("int UNIQUE", 3),
        ("int NOT NULL UNIQUE", 4),
        ("int UNIQUE DEFERRABLE INITIALLY IMMEDIATE", 2),
    ],
)
def test_unique_values_move_between_rows_in_one_run(
    workshop: Workshop, postgres: Database, kind: str, size: int
) -> None:
    execute(postgres, RANKS.replace("int UNIQUE", kind))
    workshop.warehouse("CREATE TABLE ranks AS SELECT 'p' || i AS player, i::INT AS rank FROM range(10) t(i)")
    sync(workshop, "ranks", key="player", batch=f"{{rows: {size}}}")
    only(workshop, "--sync", "ranks")
    execute(postgres, "UPDATE ranks SET theirs = 'a note'")
    for move, (change, wanted) in MOVES.items():
        workshop.warehouse(f"UPDATE ranks SET {change}")
        done = only(workshop, "--sync", "ranks")
        assert (move, done["status"], done["rejected"], ranks(postgres)) == (move, "SUCCESS", 0, wanted)
    workshop.warehouse("UPDATE ranks SET rank = rank + 1 WHERE rank > 4; INSERT INTO ranks VALUES ('p00', 5)")
    assert only(workshop, "--sync", "ranks")["status"] == "SUCCESS"
    assert ranks(postgres) == "8,5,7,9,6,4,3,2,1,0,-1"
    assert one(postgres, "SELECT count(*) FROM ranks WHERE theirs = 'a note'") == 10


@pytest.mark.parametrize("write", ["upsert", "update_only"])
def test_a_swap_that_a_trigger_would_see_is_refused_with_the_remedy(
    workshop: Workshop, postgres: Database, write: str
) -> None:
    execute(postgres, RANKS)
    execute(postgres, "INSERT INTO ranks SELECT 'p' || i, i FROM generate_series(0, 9) AS i")
    execute(
        postgres,
        "CREATE TABLE seen (rank int); CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO seen VALUES (NEW.rank); RETURN NULL; END $$;"
        " CREATE TRIGGER see AFTER UPDATE ON ranks FOR EACH ROW EXECUTE FUNCTION see()",
    )
    workshop.warehouse(
        "CREATE TABLE ranks AS SELECT 'p' || i AS player, CASE i WHEN 1 THEN 2 WHEN 2 THEN 1 WHEN 9 THEN 10"
        " WHEN 8 THEN 9 ELSE i END::INT AS rank FROM range(10) t(i)"
    )
    sync(workshop, "ranks", key="player", write=write)
    done = only(workshop, "--sync", "ranks")
    assert (done["status"], done["rejected"]) == ("SUCCESS_WITH_REJECTS", 2)
    assert all("DEFERRABLE" in one["reason"] for one in done["rejects"]), done["rejects"]
    assert ranks(postgres) == "0,1,2,3,4,5,6,7,9,10"
    assert one(postgres, "SELECT count(*) FROM seen WHERE rank IS NULL") == 0
    execute(postgres, "DROP TRIGGER see ON ranks")
    assert only(workshop, "--sync", "ranks")["status"] == "SUCCESS"
    assert ranks(postgres) == "0,2,1,3,4,5,6,7,9,10"


def test_a_value_that_a_row_of_somebody_else_has_stays_theirs(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, RANKS)
    execute(postgres, "INSERT INTO ranks VALUES ('theirs', 3), ('t2', 100)")
    workshop.warehouse("CREATE TABLE ranks AS SELECT 'p' || i AS player, i::INT AS rank FROM range(50) t(i)")
    workshop.warehouse("INSERT INTO ranks VALUES ('q1', 7)")
    sync(workshop, "ranks", key="player")
    done = only(workshop, "--sync", "ranks")
    assert (done["status"], done["inserted"], done["rejected"]) == ("SUCCESS_WITH_REJECTS", 49, 2)
    assert one(postgres, "SELECT rank FROM ranks WHERE player = 'theirs'") == 3
    assert one(postgres, "SELECT player FROM ranks WHERE rank = 7") == "p7"
    execute(postgres, "DELETE FROM ranks WHERE player = 'theirs'")
    assert only(workshop, "--sync", "ranks")["inserted"] == 1


def test_a_wrong_value_for_a_unique_column_stops_the_run(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, RANKS)
    workshop.warehouse(
        "CREATE TABLE ranks AS SELECT 'p' || i AS player, i::INT AS rank FROM range(5000) t(i)"
    )
    sync(workshop, "ranks", key="player", batch="{rows: 100}")
    only(workshop, "--sync", "ranks")
    workshop.warehouse("UPDATE ranks SET rank = 7")
    done = only(workshop, "--sync", "ranks")
    assert (done["status"], done["exit_code"]) == ("FAILED", 1)
    assert done["rejected"] <= 400


# --- where rows are compared, or kept as they were

UNDONE = [{"rollback": "{keep: 1d}"}, {"conflicts": "target_wins"}]


@pytest.mark.parametrize("undone", UNDONE, ids=["images", "conflicts"])
@pytest.mark.parametrize("shards", [{}, {"shards": "2"}], ids=["one", "shards"])
def test_rows_that_are_kept_or_compared_arrive_in_one_run_too(
    workshop: Workshop, postgres: Database, undone: dict[str, str], shards: dict[str, str]
) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, CASE WHEN i < 399 THEN i + (399 - i) // 2 + 1 END::INT AS"
        " parent, 'n' || i AS name FROM range(400) t(i)"
    )
    sync(workshop, "nodes", batch="{rows: 50}", **undone, **shards)
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["inserted"], done["rejected"]) == ("SUCCESS", 400, 0)
    assert only(workshop, "--sync", "nodes")["unchanged"] == 400
    # it is known what the table held after the rounds: an edit is seen, and nothing else is taken for one
    workshop.warehouse("UPDATE nodes SET name = name || 'x'")
    execute(postgres, "UPDATE nodes SET name = 'theirs' WHERE id = 7")
    done = only(workshop, "--sync", "nodes")
    kept = 1 if "conflicts" in undone else 0
    assert (done["updated"], done["conflicts"]["kept"], done["rejected"]) == (400 - kept, kept, 0)
    assert one(postgres, "SELECT count(*) FROM nodes WHERE name LIKE '%x'") == 400 - kept


def nodes(postgres: Database) -> list[Any]:
    with postgres.connect() as connection:
        return connection.execute("SELECT * FROM nodes ORDER BY id").fetchall()


@pytest.mark.parametrize("shards", [{}, {"shards": "2"}], ids=["one", "shards"])
def test_rows_that_waited_for_others_are_taken_back_as_they_were(
    workshop: Workshop, postgres: Database, shards: dict[str, str]
) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, CASE WHEN i < 99 THEN i + 1 END::INT AS parent,"
        " 'n' || i AS name FROM range(200) t(i)"
    )
    limits = "{max_delete_rate: 1, max_failed_rate: 1}"
    sync(
        workshop,
        "nodes",
        batch="{rows: 20}",
        rollback="{keep: 1d}",
        deletes="delete",
        guards=limits,
        **shards,
    )
    first = only(workshop, "--sync", "nodes")
    assert first["inserted"] == 200
    execute(postgres, "ALTER TABLE nodes ADD COLUMN notes text; UPDATE nodes SET notes = 'of ' || id")
    before = nodes(postgres)
    # a chain the other way round, other names, and rows that come and leave
    workshop.warehouse(
        "UPDATE nodes SET parent = CASE WHEN id BETWEEN 1 AND 98 THEN id - 1 END, name = name || 'x'"
        " WHERE id < 150; DELETE FROM nodes WHERE id > 190; INSERT INTO nodes VALUES (300, 301, 'a'), (301, NULL, 'b')"
    )
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["updated"], done["deleted"]) == ("SUCCESS", 150, 9), done
    assert nodes(postgres) != before
    said = workshop.retl("rollback", str(done["run_id"]), "--no-pause", "--output", "json")
    assert said.code == 0, said.err
    assert said.document["syncs"][0]["rejected"] == 0
    assert nodes(postgres) == before


def test_inserted_parents_are_taken_back_after_their_children(workshop: Workshop, postgres: Database) -> None:
    execute(postgres, TREE)
    workshop.warehouse(
        "CREATE TABLE nodes AS SELECT i::INT AS id, nullif(i - 1, -1)::INT AS parent, 'n' || i AS name"
        " FROM range(200) t(i)"
    )
    sync(workshop, "nodes", batch="{rows: 20}", rollback="{keep: 1d}", guards="{max_failed_rate: 1}")
    first = only(workshop, "--sync", "nodes")
    execute(postgres, "INSERT INTO nodes VALUES (-1, 150, 'theirs')")  # whose parents must stay
    words = ("rollback", str(first["run_id"]), "--no-pause", "--allow-deletes", "200", "--output", "json")
    said = workshop.retl(*words)
    assert said.code == 0, said.err
    (done,) = said.document["syncs"]
    assert (done["status"], done["deleted"], done["deletes"]["rejected"]) == ("SUCCESS_WITH_REJECTS", 49, 151)
    assert one(postgres, "SELECT count(*) FROM nodes") == 152


# --- syncs of one invocation


def shop(workshop: Workshop, postgres: Database, *, after: bool = True) -> None:
    """Two syncs with deletes, of customers and of the orders that refer to them."""
    execute(postgres, ORDERS)
    workshop.warehouse("CREATE TABLE customers AS SELECT i::INT AS id, 'c' || i AS name FROM range(100) t(i)")
    workshop.warehouse(
        "CREATE TABLE orders AS SELECT i::INT AS id, (i % 100)::INT AS customer FROM range(200) t(i)"
    )
    sync(workshop, "customers", name="customers" if after else "z", deletes="delete")
    later = {"after": "[customers]"} if after else {}
    sync(workshop, "orders", name="orders" if after else "a", deletes="delete", **later)


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_parents_and_children_that_leave_both_marts_are_deleted_in_one_invocation(
    workshop: Workshop, postgres: Database, jobs: str
) -> None:
    shop(workshop, postgres)
    assert {one["status"] for one in run(workshop, "--all", "--jobs", jobs)} == {"SUCCESS"}
    workshop.warehouse("DELETE FROM orders WHERE customer < 3; DELETE FROM customers WHERE id < 3")
    customers, orders = run(workshop, "--all", "--jobs", jobs)
    assert (customers["status"], customers["deleted"], customers["exit_code"]) == ("SUCCESS", 3, 0)
    assert (orders["status"], orders["deleted"]) == ("SUCCESS", 6)
    assert one(postgres, "SELECT count(*) FROM customers") == 97
    assert {one["unchanged"] for one in run(workshop, "--all", "--jobs", jobs)} == {97, 194}


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_children_that_run_before_their_parents_wait_for_them(
    workshop: Workshop, postgres: Database, jobs: str
) -> None:
    shop(workshop, postgres, after=False)
    orders, customers = run(workshop, "--all", "--jobs", jobs)
    assert (orders["sync"], orders["status"], orders["inserted"]) == ("a", "SUCCESS", 200)
    assert (customers["status"], customers["inserted"]) == ("SUCCESS", 100)


@pytest.mark.parametrize("jobs", ["1", "4"])
def test_a_sync_that_fails_holds_back_no_other_and_what_is_still_referred_to_stays(
    workshop: Workshop, postgres: Database, jobs: str
) -> None:
    shop(workshop, postgres)
    run(workshop, "--all")
    workshop.warehouse("DELETE FROM orders WHERE customer < 3; DELETE FROM customers WHERE id < 3")
    workshop.warehouse("UPDATE customers SET name = 'new' WHERE id = 50")
    execute(postgres, "ALTER TABLE orders RENAME COLUMN customer TO buyer")
    customers, orders = run(workshop, "--all", "--jobs", jobs)
    assert (orders["status"], orders["error"]["code"]) == ("REFUSED", "TARGET_DRIFT")
    assert (customers["status"], customers["updated"]) == ("SUCCESS_WITH_REJECTS", 1)
    assert customers["deletes"] == {"planned": 3, "rejected": 3, "in_doubt": 0, "not_attempted": 0, "kept": 0}


# --- the exit code


def test_a_run_that_gets_nothing_through_fails_however_few_its_rows(
    workshop: Workshop, postgres: Database
) -> None:
    execute(postgres, "CREATE TABLE nodes (id int PRIMARY KEY, name text CHECK (name <> 'bad'))")
    workshop.warehouse("CREATE TABLE nodes AS SELECT i::INT AS id, 'good' AS name FROM range(20) t(i)")
    sync(workshop, "nodes")
    assert only(workshop, "--sync", "nodes")["status"] == "SUCCESS"
    workshop.warehouse("INSERT INTO nodes VALUES (100, 'bad')")
    for _ in range(2):  # the reject that is tried again counts like the new one
        done = only(workshop, "--sync", "nodes")
        assert (done["status"], done["exit_code"], done["rejected"]) == ("FAILED", 1, 1)
        assert done["error"]["code"] == "ALL_REFUSED"
    workshop.warehouse("INSERT INTO nodes VALUES (101, 'good')")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["exit_code"], done["inserted"]) == ("SUCCESS_WITH_REJECTS", 0, 1)


def test_a_dismissed_refusal_does_not_fail_a_run_and_a_new_one_beside_it_does(
    workshop: Workshop, postgres: Database
) -> None:
    execute(postgres, "CREATE TABLE nodes (id int PRIMARY KEY, name text CHECK (name <> 'bad'))")
    workshop.warehouse("CREATE TABLE nodes AS SELECT i::INT AS id, 'good' AS name FROM range(20) t(i)")
    workshop.warehouse("UPDATE nodes SET name = 'bad' WHERE id = 15")
    sync(workshop, "nodes")
    assert only(workshop, "--sync", "nodes")["status"] == "SUCCESS_WITH_REJECTS"
    workshop.json("rejects", "dismiss", "--sync", "nodes", "--key", "15")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["exit_code"], done["error"], done["rejects"]) == ("SUCCESS", 0, None, [])
    assert (done["rejected"], workshop.json("rejects")["rejects"]) == (1, [])
    workshop.warehouse("INSERT INTO nodes VALUES (100, 'bad')")
    done = only(workshop, "--sync", "nodes")
    assert (done["error"]["code"], [one["key"] for one in done["rejects"]]) == ("ALL_REFUSED", ["100"])
    assert "rows refused by the target: 1" in done["error"]["message"]


@pytest.mark.parametrize("write", ["insert_only", "update_only"])
def test_a_run_whose_rows_are_all_skipped_is_a_success(
    workshop: Workshop, postgres: Database, write: str
) -> None:
    execute(postgres, "CREATE TABLE nodes (id int PRIMARY KEY, name text)")
    if write == "insert_only":
        execute(postgres, "INSERT INTO nodes SELECT i, 'theirs' FROM generate_series(0, 19) AS i")
    workshop.warehouse("CREATE TABLE nodes AS SELECT i::INT AS id, 'ours' AS name FROM range(20) t(i)")
    sync(workshop, "nodes", write=write)
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["skipped"], done["exit_code"]) == ("SUCCESS", 20, 0)


@pytest.mark.parametrize("bad", ["i >= 850", "i % 7 = 0", "i BETWEEN 400 AND 550"])
def test_rows_that_were_refused_before_count_for_the_failed_rate(
    workshop: Workshop, postgres: Database, bad: str
) -> None:
    execute(postgres, "CREATE TABLE nodes (id int PRIMARY KEY, name text CHECK (name <> 'bad'))")
    workshop.warehouse(
        f"CREATE TABLE nodes AS SELECT i::INT AS id, CASE WHEN {bad} THEN 'bad' ELSE 'good' END AS name"
        " FROM range(1000) t(i)"
    )
    sync(workshop, "nodes", guards="{max_failed_rate: 0.2}")
    assert only(workshop, "--sync", "nodes")["status"] == "SUCCESS_WITH_REJECTS"
    workshop.warehouse("UPDATE nodes SET name = 'better' WHERE name = 'good' AND id < 100")
    sync(workshop, "nodes", guards="{max_failed_rate: 0.2}", batch="{rows: 50}")
    done = only(workshop, "--sync", "nodes")
    assert (done["status"], done["error"]["code"], done["exit_code"]) == ("FAILED", "FAILED_RATE", 1)
