"""Redshift as a source, as far as a PostgreSQL stands in for it.

It is given what the source needs of Redshift and PostgreSQL lacks: getdate(), and backslashes that escape. That
Redshift takes the same statements is not shown here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.engine.workspace import Workspace
from retl.errors import RetlError
from retl.net import postgres as wire
from retl.observe.signals import Stop
from retl.sources import redshift
from retl.sources.api import Among, Invocation, Since
from retl.sources.redshift import Cluster, Redshift
from retl.sources.sql import REDSHIFT, Selected, statement
from retl.sources.texts import MISFIT
from retl.values.sql import quoted
from tests import servers
from tests.commands import Workshop
from tests.proxy import Proxy

# A type that both have, a literal of it, DuckDB's type, and the text DuckDB has; None: the row is a reject.
VALUES: list[tuple[str, str, str, str | None]] = [
    ("smallint", "-32768", "SMALLINT", "-32768"),
    ("bigint", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("boolean", "true", "BOOLEAN", "true"),
    ("numeric(12,2)", "1.50", "DECIMAL(12,2)", "1.50"),
    ("numeric(38,18)", "12345678901234567890.123456789012345678", "DECIMAL(38,18)", "12345678901234567890.123456789012345678"),
    ("real", "0.1", "FLOAT", "0.1"),
    ("real", "1.1754944e-38", "FLOAT", "1.1754944e-38"),
    ("real", "16777217", "FLOAT", "16777216.0"),
    ("double precision", "0.30000000000000004", "DOUBLE", "0.30000000000000004"),
    ("double precision", "-Infinity", "DOUBLE", "-inf"),
    ("date", "0044-03-15 BC", "DATE", None),
    ("date", "9999-12-31", "DATE", "9999-12-31"),
    ("timestamp", "2026-11-28 10:00:00.000001", "TIMESTAMP", "2026-11-28 10:00:00.000001"),
    ("timestamptz", "2026-03-29 02:30:00+02", "TIMESTAMP WITH TIME ZONE", "2026-03-29 00:30:00+00"),
    ("time", "24:00", "VARCHAR", "24:00:00"),
    ("varchar(20)", "", "VARCHAR", ""),
    ("varchar(20)", "NULL", "VARCHAR", "NULL"),
    ("varchar(20)", ' a\r\nb,"c"\t\\N;\n ', "VARCHAR", ' a\r\nb,"c"\t\\N;\n '),
    ("char(5)", "ab", "VARCHAR", "ab   "),
]  # fmt: skip
STAND_IN = "CREATE FUNCTION getdate() RETURNS timestamp LANGUAGE sql AS 'SELECT clock_timestamp()::timestamp'"
PEOPLE = """CREATE TABLE people (id int PRIMARY KEY, name text, score numeric(12,2), seen timestamptz);
INSERT INTO people SELECT i, 'p' || i, i / 4.0, '2026-11-28 06:00Z' FROM generate_series(1, 2500) i"""


@pytest.fixture
def cluster(postgres: servers.Database) -> servers.Database:
    with postgres.connect() as connection:
        connection.execute(STAND_IN)
        connection.execute(f'ALTER DATABASE "{postgres.dbname}" SET standard_conforming_strings = off')
        connection.execute(PEOPLE)
    return postgres


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


def source(
    database: servers.Database, variables: Mapping[str, Any] | None = None, **options: str
) -> Redshift:
    parts: dict[str, Any] = {
        name: getattr(database, name) for name in ("host", "port", "dbname", "user", "password")
    }
    if "timeout" in options:
        parts["timeout"] = options.pop("timeout")
    return Redshift(Cluster(**parts), Selected(**options), Invocation(Path("."), variables or {}))


def read(
    made: Redshift, workspace: Workspace, *columns: str, since: Since | None = None
) -> list[tuple[Any, ...]]:
    with made.open(workspace) as snapshot:
        names = columns or tuple(snapshot.description.columns)
        query = snapshot.rows(names, since)
        return workspace.run(f"SELECT {', '.join(map(quoted, names))} FROM ({query.sql})")


def refusal(made: Redshift, workspace: Workspace) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(made, workspace)
    return caught.value


def test_every_value_is_exact_or_a_reject(cluster: servers.Database, workspace: Workspace) -> None:
    columns = {f"c{at}": one for at, one in enumerate(VALUES)}
    with cluster.connect() as connection:
        connection.execute(
            f"CREATE TABLE v ({', '.join(f'{name} {one[0]}' for name, one in columns.items())})"
        )
        row = ", ".join("%s::text::" + one[0] for one in VALUES)
        connection.execute(f"INSERT INTO v SELECT {row}", [one[1] for one in VALUES])
        connection.execute("INSERT INTO v DEFAULT VALUES")
    with source(cluster, table="v").open(workspace) as snapshot:
        assert dict(snapshot.description.columns) == {name: one[2] for name, one in columns.items()}
    for name, (kind, _, _, expected) in columns.items():
        with source(cluster, table="v").open(workspace) as snapshot:
            query = snapshot.rows([name])
            found = workspace.run(f'SELECT CAST({name} AS VARCHAR), "{MISFIT}" FROM ({query.sql})')
        assert found == [(expected, None if expected is not None else name), (None, None)], kind


def test_a_cursor_gives_every_row_of_one_state(cluster: servers.Database, workspace: Workspace) -> None:
    first = source(cluster, table="people").open(workspace)
    with cluster.connect() as connection, first:
        before = first.rows(["id", "name"])
        connection.execute("DELETE FROM people WHERE id > 5")
        assert workspace.one(f"SELECT count(*), count(DISTINCT id) FROM ({before.sql})") == (2500, 2500)
        with source(cluster, table="people").open(workspace) as second:
            assert len(workspace.run(second.rows(["id"]).sql)) == 5
            assert second.description.version != first.description.version
            assert cluster.dbname in second.description.version
    assert not list(workspace.directory.glob("*.csv"))


def test_rows_below_a_watermark_are_not_sent(cluster: servers.Database, workspace: Workspace) -> None:
    with cluster.connect() as connection:
        connection.execute("UPDATE people SET seen = NULL WHERE id = 1")
        connection.execute("UPDATE people SET seen = '2026-11-29 06:00Z' WHERE id IN (2, 3)")
    made = source(cluster, table="people")
    since = Since("seen", "TIMESTAMP WITH TIME ZONE", "2026-11-29 06:00:00+00")
    assert sorted(read(made, workspace, "id", since=since)) == [(1,), (2,), (3,)]


def test_only_the_rows_of_some_keys_are_sent(cluster: servers.Database, workspace: Workspace) -> None:
    with source(cluster, table="people").open(workspace) as snapshot:
        query = snapshot.rows_among(["id", "name"], Among("id", (7, 9, -1)))
        assert query is not None
        assert sorted(workspace.run(f"SELECT id, name FROM ({query.sql})")) == [(7, "p7"), (9, "p9")]


@pytest.mark.parametrize("text", ["x'; \\ DROP", "\\'; DROP TABLE people; --", "'", "\\", "plain", ""])
def test_a_variable_is_a_value_whether_a_backslash_escapes_or_not(
    cluster: servers.Database, workspace: Workspace, text: str
) -> None:
    made = source(cluster, {"a": text, "n": -2}, sql="SELECT $a AS a, 1-$n AS n, '\\'$a' AS kept")
    assert read(made, workspace) == [(text, 3, "'$a")]
    with cluster.connect() as connection:
        connection.execute("SET standard_conforming_strings = on")
        found = connection.execute(f"SELECT {redshift.written(text)}".encode()).fetchall()
        assert found == [(text,)]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DELETE FROM people", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1; DROP TABLE people", "SQL_NOT_ONE_SELECT"),
        ("SELECT 'a\\''; DROP TABLE people; --'", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1) x; COMMIT; DROP TABLE people; SELECT * FROM (SELECT 2", "SQL_NOT_ONE_SELECT"),
        ("SELECT nextval('numbers')", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1 FROM", "SQL_SYNTAX"),
        ("SELECT nobody FROM people", "SOURCE_DRIFT"),
        ("SELECT * FROM nothing", "SOURCE_DRIFT"),
        ("SELECT 1 / (id - 2400) AS x FROM people", "MART_UNREADABLE"),
        ("SELECT ('secret' || name)::int AS x FROM people", "MART_UNREADABLE"),
        ("SELECT CASE WHEN id = 2400 THEN pg_terminate_backend(pg_backend_pid()) END AS x FROM people", "CONNECTION_LOST"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_and_changes_nothing(
    cluster: servers.Database, workspace: Workspace, text: str, code: str
) -> None:
    with cluster.connect() as connection:
        connection.execute("CREATE SEQUENCE numbers")
        error = refusal(source(cluster, sql=text), workspace)
        assert error.code == code
        assert "secret" not in error.message
        assert "PostgreSQL" not in error.message
        assert connection.execute("SELECT count(*) FROM people").fetchall() == [(2500,)]
        assert connection.execute("SELECT is_called FROM numbers").fetchall() == [(False,)]
    assert not list(workspace.directory.glob("*.csv"))


def test_a_read_ends_at_its_deadline(cluster: servers.Database, workspace: Workspace) -> None:
    made = source(cluster, sql="SELECT i, pg_sleep(60) FROM generate_series(1, 2) i", timeout="1s")
    assert "was not read within 1 s" in refusal(made, workspace).message


def test_a_lost_connection_gives_nothing(cluster: servers.Database, workspace: Workspace) -> None:
    with Proxy(cluster.host, cluster.port) as proxy:
        through = replace(cluster, host="127.0.0.1", port=proxy.port)
        proxy.drop_request(b"FETCH")
        error = refusal(source(through, table="people"), workspace)
        assert error.code == "CONNECTION_LOST"
        assert error.message.startswith("Redshift at localhost")
    error = refusal(source(through, table="people"), workspace)
    assert (error.code, "Redshift at" in error.message) == ("UNREACHABLE", True)


def test_nothing_is_asked_that_only_newer_servers_have() -> None:
    asked = redshift._SETTINGS.keys() | {"statement_timeout"}
    assert not asked & ({"lock_timeout", "idle_in_transaction_session_timeout"} | wire.ENDLESS.keys())
    assert Cluster(host="h", dbname="d", user="u").port == 5439
    assert (
        Redshift(
            Cluster(host="h", dbname="d", user="u"), Selected(table="t"), Invocation(Path("."), {})
        ).announces
        == ()
    )


def test_dollars_and_quoted_names_hide_no_variable() -> None:
    found = statement("SELECT $$ $a; $$, \"x\\\", $a, '\\'; $a' -- $a", REDSHIFT, {"a": 1}, "source.sql")
    assert found.text(lambda _value: "?") == "SELECT $$ $a; $$, \"x\\\", ?, '\\'; $a' -- $a"


def test_a_super_is_json_and_lists_of_the_catalog_are_texts() -> None:
    column = redshift.Transaction.__dict__["_column"]
    made = object.__new__(redshift.Transaction)
    assert column(made, "a", 4000, -1).type == "JSON"
    assert column(made, "a", 1007, -1).type == "VARCHAR"
    assert column(made, "a", 6551, -1).type == "VARCHAR"  # varbyte


def test_a_table_is_synced(cluster: servers.Database, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=cluster)
    entry = f"type: redshift, host: {cluster.host}, port: {cluster.port}, dbname: {cluster.dbname}, user: {cluster.user}"
    workshop.write("retl.yml", f'sources:\n  dw: {{{entry}, password: "${{POSTGRES_PASSWORD}}"}}\n')
    destination = "{type: postgres, table: crm.people, create: true}"
    workshop.sync(
        "people", source="{from: dw, table: people}", key="[id]", destination=destination, deletes="delete"
    )
    assert workshop.retl("check").code == 0
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 2500)
    with cluster.connect() as connection:
        connection.execute("DELETE FROM people WHERE id = 1; UPDATE people SET name = 'new' WHERE id = 2")
    (run,) = workshop.json("sync")["syncs"]
    assert (run["updated"], run["deleted"], run["unchanged"]) == (1, 1, 2498)
