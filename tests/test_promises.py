"""Promises that are about whole runs: one snapshot, the same bytes, a dry run that needs no rights to write."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests import duckdb_files
from tests.commands import ROWS, Workshop
from tests.proxy import Proxy
from tests.servers import Database

TABLE = "{{type: postgres, table: crm.{name}, create: true}}"
HOSTILE = """
CREATE OR REPLACE TABLE users AS SELECT i AS user_id,
  ['', 'NULL', 'Zoë "q" \\\\', e'tab\\tline\\nend', '=1+1', '\\.'][1 + i % 6] || i AS email,
  CASE WHEN i % 5 = 0 THEN NULL ELSE CAST(i AS DECIMAL(12, 2)) / 3 END AS spend,
  TIMESTAMP '2026-03-29 02:30:00' + INTERVAL (i) MINUTE AS seen, [i::VARCHAR, NULL, 'a,b'] AS tags,
  {'n': i, 'x': 'ü'}::JSON AS extra FROM range(1, 41) t(i)"""


@pytest.fixture
def workshop(tmp_path: Path, postgres: Database) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(postgres=postgres)
    return made


def contents(postgres: Database, table: str) -> list[tuple[Any, ...]]:
    with postgres.connect() as connection:
        return connection.execute(f"SELECT t.*::text FROM crm.{table} AS t ORDER BY user_id").fetchall()


SLOW = """
connections:
  slow:
    type: postgres
    host: "${POSTGRES_HOST}"
    port: "${POSTGRES_PORT}"
    dbname: "${POSTGRES_DB}"
    user: "${POSTGRES_USER}"
    password: "${POSTGRES_PASSWORD}"
    limits: {requests: 4, per: 1s}
"""
SETTINGS: dict[str, dict[str, str]] = {
    "batches_of_1": {"rows": "1"},
    "batches_of_7": {"rows": "7"},
    "another_zone": {"TZ": "Pacific/Auckland", "rows": "5000"},
    "another_language": {"LANG": "tr_TR.UTF-8", "LC_ALL": "C", "PYTHONHASHSEED": "7", "rows": "5000"},
    "shuffled": {"rows": "5000"},
}


def test_the_same_input_makes_the_same_bytes_and_numbers(workshop: Workshop, postgres: Database) -> None:
    workshop.warehouse(HOSTILE)
    workshop.sync("plain", source="{table: users}", destination=TABLE.format(name="plain"))
    first = workshop.json("sync", "--sync", "plain")["syncs"][0]
    wanted = contents(postgres, "plain")
    assert len(wanted) == first["inserted"] == 40
    for name, setting in SETTINGS.items():
        if name == "shuffled":
            workshop.warehouse("CREATE OR REPLACE TABLE users AS FROM users ORDER BY hash(user_id)")
        size = f"{{rows: {setting['rows']}}}"
        workshop.sync(name, source="{table: users}", destination=TABLE.format(name=name), batch=size)
        environ = {key: value for key, value in setting.items() if key != "rows"}
        said = workshop.process("sync", "--sync", name, "--output", "json", **environ)
        assert said.code == 0, said.err
        again = said.document["syncs"][0]
        assert contents(postgres, name) == wanted, name
        assert (again["read"], again["inserted"]) == (first["read"], first["inserted"])


def test_umask_and_working_directory_change_nothing(
    workshop: Workshop, postgres: Database, tmp_path: Path
) -> None:
    workshop.warehouse(HOSTILE)
    workshop.sync("users", destination=TABLE.format(name="users"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        workshop.command("sync", "--project", str(workshop.folder)),
        cwd=elsewhere,
        env=workshop.environ(),
        capture_output=True,
        text=True,
        umask=0,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(contents(postgres, "users")) == 40
    assert list(elsewhere.iterdir()) == []
    modes = {path.stat().st_mode & 0o077 for path in (workshop.folder / ".retl").rglob("*")}
    assert modes == {0}


def test_the_mart_is_free_while_rows_are_delivered_and_the_run_sees_one_moment(
    workshop: Workshop, postgres: Database
) -> None:
    workshop.write("retl.yml", SLOW)
    workshop.sync(
        "users", destination="{connection: slow, table: crm.users, create: true}", batch="{rows: 2}"
    )
    running = subprocess.Popen(
        workshop.command("sync", "--output", "json"),
        cwd=workshop.folder,
        env=workshop.environ(RETL_LOG_LEVEL="debug"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr
    for line in running.stderr:
        if '"batch_acknowledged"' in line:
            break
    with duckdb_files.opened(workshop.folder / "data" / "warehouse.duckdb") as writer:  # as dbt would
        writer.execute("UPDATE users SET email = 'written while rows were delivered'")
    assert running.poll() is None, "the run was over before the mart was asked for"
    running.stderr.read()
    assert running.wait(60) == 0
    with postgres.connect() as connection:
        emails = {row[0] for row in connection.execute("SELECT email FROM crm.users").fetchall()}
    assert emails == {f"u{n}@example.com" for n in range(1, ROWS + 1)}


def test_a_dry_run_needs_only_the_right_to_read(workshop: Workshop, postgres: Database) -> None:
    workshop.sync("users", destination=TABLE.format(name="users"))
    assert workshop.json("sync")["syncs"][0]["inserted"] == ROWS
    reader = f"reader_{os.getpid()}_{time.time_ns()}"
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {reader} LOGIN PASSWORD 'only-reads'")
        connection.execute(f"GRANT USAGE ON SCHEMA crm TO {reader}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA crm TO {reader}")
    workshop.warehouse("UPDATE users SET email = 'new' WHERE user_id <= 3")
    account = {"POSTGRES_USER": reader, "POSTGRES_PASSWORD": "only-reads"}
    predicted = workshop.json("sync", "--dry-run", **account)["syncs"][0]
    assert (predicted["status"], predicted["updated"], predicted["unchanged"]) == ("SUCCESS", 3, ROWS - 3)
    assert any("has no right to write" in note for note in predicted["notes"])
    refused = workshop.retl("sync", **account)
    assert refused.code == 1
    assert workshop.json("sync")["syncs"][0]["updated"] == 3


def test_the_mart_is_let_go_while_a_slow_target_is_still_being_asked(
    workshop: Workshop, postgres: Database
) -> None:
    """Whoever builds the mart waits for the reading of it, and for nothing else."""
    slow = (
        "SELECT i AS user_id, (SELECT max(sin(j + i % 2)) FROM range(4000000) u(j)) AS x FROM range(9) t(i)"
    )
    workshop.sync("users", source=f'{{sql: "{slow}"}}', destination=TABLE.format(name="users"))
    mart = str(workshop.folder / "data" / "warehouse.duckdb")

    def held() -> bool:
        try:
            duckdb.connect(mart).close()
        except duckdb.IOException:
            return True
        return False

    with Proxy(postgres.host, postgres.port) as proxy:
        proxy.slow(0.1)
        environ = workshop.environ(POSTGRES_HOST=proxy.host, POSTGRES_PORT=str(proxy.port))
        with subprocess.Popen(workshop.command("sync"), cwd=workshop.folder, env=environ) as running:
            while not held():
                assert running.poll() is None
                time.sleep(0.02)
            while held():
                time.sleep(0.02)
            assert running.poll() is None  # it still asks the target
    assert running.returncode == 0
    assert len(contents(postgres, "users")) == 9


def test_what_is_wrong_with_the_mart_is_said_before_what_is_wrong_with_the_target(workshop: Workshop) -> None:
    workshop.sync("users", source='{sql: "SELECT user_id, CAST(email AS INTEGER) AS n FROM users"}')
    document = workshop.retl("sync", "--output", "json", REDIS_HOST="127.0.0.1", REDIS_PORT="9").document
    assert document["syncs"][0]["error"]["code"] == "MART_UNREADABLE"


def test_what_was_never_delivered_goes_straight_into_the_table_and_a_change_does_not(
    workshop: Workshop, postgres: Database
) -> None:
    with postgres.connect() as connection:
        connection.execute(
            "CREATE SCHEMA crm; CREATE TABLE crm.users (user_id bigint PRIMARY KEY, email text, spend"
            " numeric(12,2), way text DEFAULT split_part(current_query(), ' ', 1))"
        )
        workshop.sync("users", destination="{type: postgres, table: crm.users}")
        workshop.json("sync")
        ways = "SELECT way, count(*) FROM crm.users GROUP BY 1 ORDER BY 1"
        assert connection.execute(ways).fetchall() == [("COPY", ROWS)]
        workshop.warehouse(
            "UPDATE users SET spend = 0 WHERE user_id = 7; INSERT INTO users VALUES (99, 'n', 1)"
        )
        workshop.json("sync")
        assert connection.execute(ways).fetchall() == [("COPY", ROWS), ("INSERT", 1)]
