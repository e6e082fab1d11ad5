"""PostgreSQL as a source: one state of the database, every value exact or a reject, and one sentence for each
thing that goes wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.engine.workspace import Workspace
from retl.errors import RetlError, Stopped
from retl.observe.signals import Stop
from retl.project.marts import Selected
from retl.sources.api import Invocation, Since
from retl.sources.postgres import Database, Postgres
from retl.sources.texts import MISFIT
from retl.values.sql import quoted
from tests import servers
from tests.commands import Workshop
from tests.pooler import Pooler
from tests.proxy import Proxy

# PostgreSQL's type, a literal of it, DuckDB's type, and the text DuckDB has; None: the row is a reject.
VALUES: list[tuple[str, str, str, str | None]] = [
    ("smallint", "-32768", "SMALLINT", "-32768"),
    ("bigint", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("oid", "4294967295", "UINTEGER", "4294967295"),
    ("boolean", "true", "BOOLEAN", "true"),
    ("numeric(12,2)", "1.50", "DECIMAL(12,2)", "1.50"),
    ("numeric(12,2)", "NaN", "DECIMAL(12,2)", None),
    ("numeric(38,18)", "12345678901234567890.123456789012345678", "DECIMAL(38,18)", "12345678901234567890.123456789012345678"),
    ("numeric(2,-3)", "12000", "DECIMAL(5,0)", "12000"),
    ("numeric(3,5)", "0.00123", "DECIMAL(5,5)", ".00123"),
    ("numeric(39,0)", "1" * 39, "VARCHAR", "1" * 39),
    ("numeric", "1.50", "DECIMAL(38,18)", "1.500000000000000000"),
    ("numeric", "0.1234567890123456789", "DECIMAL(38,18)", None),
    ("numeric", "Infinity", "DECIMAL(38,18)", None),
    ("real", "0.1", "FLOAT", "0.1"),
    ("double precision", "1e-300", "DOUBLE", "1e-300"),
    ("double precision", "0.30000000000000004", "DOUBLE", "0.30000000000000004"),
    ("double precision", "NaN", "DOUBLE", "nan"),
    ("double precision", "-Infinity", "DOUBLE", "-inf"),
    ("date", "infinity", "DATE", "infinity"),
    ("date", "10000-01-01", "DATE", "10000-01-01"),
    ("date", "0044-03-15 BC", "DATE", None),
    ("timestamp", "-infinity", "TIMESTAMP", "-infinity"),
    ("timestamp", "10000-01-01 00:00:00.000001", "TIMESTAMP", "10000-01-01 00:00:00.000001"),
    ("timestamp", "0044-03-15 12:00:00 BC", "TIMESTAMP", None),
    ("timestamp", "294276-12-31 23:59:59", "TIMESTAMP", None),
    ("timestamptz", "2026-03-29 02:30:00+02", "TIMESTAMP WITH TIME ZONE", "2026-03-29 00:30:00+00"),
    ("timestamptz", "infinity", "TIMESTAMP WITH TIME ZONE", "infinity"),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "UUID", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("json", '{"a": 1.10, "a":2}', "JSON", '{"a": 1.10, "a":2}'),
    ("jsonb", "12345678901234567890.10", "JSON", "12345678901234567890.10"),
    ("json", '"\\ud800"', "JSON", None),
    ("text", "", "VARCHAR", ""),
    ("text", "\\.", "VARCHAR", "\\."),
    ("text", "NULL", "VARCHAR", "NULL"),
    ("text", ' a\r\nb,"c"\t\\N;\n ', "VARCHAR", ' a\r\nb,"c"\t\\N;\n '),
    ("char(5)", "ab", "VARCHAR", "ab   "),
    ("bytea", "\\x00ff", "VARCHAR", "\\x00ff"),
    ("mood", 'sad "x"', "VARCHAR", 'sad "x"'),
    ("pair", '(1,"a,b")', "VARCHAR", '(1,"a,b")'),
    ("few", "5", "INTEGER", "5"),
    ("few[]", "{5}", "VARCHAR", "{5}"),
    ("inet", "10.0.0.1/8", "VARCHAR", "10.0.0.1/8"),
    ("money", "-1234.5", "VARCHAR", "-$1,234.50"),
    ("interval", "1 mon 2 days 03:04:05.6", "VARCHAR", "1 mon 2 days 03:04:05.6"),
    ("time", "24:00", "VARCHAR", "24:00:00"),
    ("int4range", "(1,5]", "VARCHAR", "[2,6)"),
    ("bit(3)", "101", "VARCHAR", "101"),
    ("numeric[]", "{1.50,NaN}", "VARCHAR", "{1.50,NaN}"),
    ("int[]", "{1,NULL,3}", "INTEGER[]", "[1, NULL, 3]"),
    ("int[]", "{{1},{2}}", "INTEGER[]", None),
    ("text[]", '{a,NULL,"NULL","x,\\"y",""}', "VARCHAR[]", "[a, NULL, 'NULL', 'x,\"y', '']"),
    ("text[]", "[0:1]={a,b}", "VARCHAR[]", None),
    ("date[]", "{infinity,2026-01-01}", "DATE[]", "[infinity, 2026-01-01]"),
    ("timestamp[]", '{"0044-03-15 12:00:00 BC"}', "TIMESTAMP[]", None),
    ("float8[]", "{NaN,0.1}", "DOUBLE[]", "[nan, 0.1]"),
]  # fmt: skip
TYPES = """CREATE TYPE mood AS ENUM ('ok', 'sad "x"'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN few AS int CHECK (value < 10)"""
SYNC = {
    "source": "{from: app, table: people}",
    "key": "[id]",
    "destination": "{type: postgres, table: crm.people, create: true}",
    "deletes": "delete",
    "guards": "{max_delete_rate: 1, max_row_drop: 1}",
}
PEOPLE = """CREATE TABLE people (id int PRIMARY KEY, name text, score numeric(12,2), seen timestamptz);
INSERT INTO people SELECT i, 'p' || i, i / 4.0, '2026-11-28 06:00Z' FROM generate_series(1, 20) i"""


def source(
    database: servers.Database, variables: Mapping[str, Any] | None = None, **options: str
) -> Postgres:
    parts: dict[str, Any] = {
        name: getattr(database, name) for name in ("host", "port", "dbname", "user", "password")
    }
    parts |= {name: options.pop(name) for name in ("timeout", "user", "password") if name in options}
    return Postgres(Database(**parts), Selected(**options), Invocation(Path("."), variables or {}))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


def read(
    made: Postgres, workspace: Workspace, *columns: str, since: Since | None = None
) -> list[tuple[Any, ...]]:
    """The asked columns (by default all) of every row, as a freeze would read them."""
    with made.open(workspace) as snapshot:
        names = columns or tuple(snapshot.description.columns)
        query = snapshot.rows(names, since)
        return workspace.run(f"SELECT {', '.join(map(quoted, names))} FROM ({query.sql})")


def refusal(made: Postgres, workspace: Workspace) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(made, workspace)
    return caught.value


def project(folder: Path, database: servers.Database, **parts: Any) -> Workshop:
    workshop = Workshop(folder)
    workshop.use(postgres=database)
    entry = {
        "type": "postgres", "host": database.host, "port": database.port, "dbname": database.dbname,
        "user": database.user, "password": '"${POSTGRES_PASSWORD}"',
    }  # fmt: skip
    lines = ", ".join(f"{name}: {value}" for name, value in (entry | parts).items())
    workshop.write("retl.yml", f"sources:\n  app: {{{lines}}}\n")
    return workshop


def test_every_value_is_exact_or_a_reject(every_postgres: servers.Database, workspace: Workspace) -> None:
    columns = {f"c{at}": one for at, one in enumerate(VALUES)}
    with every_postgres.connect() as connection:
        connection.execute(TYPES)
        connection.execute(
            f"CREATE TABLE v ({', '.join(f'{name} {one[0]}' for name, one in columns.items())})"
        )
        row = ", ".join("%s::text::" + one[0] for one in VALUES)
        connection.execute(f"INSERT INTO v SELECT {row}", [one[1] for one in VALUES])
        connection.execute("INSERT INTO v DEFAULT VALUES")
    with source(every_postgres, table="v").open(workspace) as snapshot:
        assert dict(snapshot.description.columns) == {name: one[2] for name, one in columns.items()}
    for name, (kind, _, _, expected) in columns.items():
        with source(every_postgres, table="v").open(workspace) as snapshot:
            query = snapshot.rows([name])
            found = workspace.run(f'SELECT CAST({name} AS VARCHAR), "{MISFIT}" FROM ({query.sql})')
        assert found == [(expected, None if expected is not None else name), (None, None)], kind


def test_long_texts_arrive_whole(postgres: servers.Database, workspace: Workspace) -> None:
    text = "SELECT i, repeat('é\"x' || chr(10), i * 700000) AS x FROM generate_series(1, 3) i"
    with postgres.connect() as connection:
        expected = connection.execute(f"SELECT i, md5(x) FROM ({text}) t").fetchall()
    with source(postgres, sql=text).open(workspace) as snapshot:
        query = snapshot.rows(["i", "x"])
        assert workspace.run(f"SELECT i, md5(x) FROM ({query.sql}) ORDER BY i") == expected
    assert not list(workspace.directory.glob("*.csv"))


def test_a_row_of_one_null_is_a_row(postgres: servers.Database, workspace: Workspace) -> None:
    made = source(postgres, sql="SELECT NULL::text AS a FROM generate_series(1, 3)")
    assert read(made, workspace) == [(None,)] * 3


def test_variables_are_values_and_never_sql(postgres: servers.Database, workspace: Workspace) -> None:
    values = {"a": "x'; \\ DROP", "n": -2, "none": None, "yes": True, "day": "2026-11-28"}
    text = (
        "SELECT $a AS a, 1-$n AS n, $none::int AS none, $yes AS yes, $day::date + 1 AS day,"
        ' \'$a\' || $$ $a $t$ $$ || E\'\\\'$a\' AS quoted, "$a".x AS "$n" /* $a */ FROM (SELECT 1 x) "$a" -- $b;\n ; '
    )
    ((a, n, none, yes, day, quoted, x),) = read(source(postgres, values, sql=text), workspace)
    assert (a, n, none, yes, str(day), quoted, x) == (
        values["a"],
        3,
        None,
        True,
        "2026-11-29",
        "$a $a $t$ '$a",
        1,
    )
    error = refusal(source(postgres, sql="SELECT $b"), workspace)
    assert (error.code, "$b" in error.message) == ("VAR_MISSING", True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DELETE FROM people", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1; DROP TABLE people", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1) x; COMMIT; DROP TABLE people; SELECT * FROM (SELECT 2", "SQL_NOT_ONE_SELECT"),
        ("WITH x AS (DELETE FROM people RETURNING id) SELECT * FROM x", "SQL_NOT_ONE_SELECT"),
        ("SELECT id FROM people FOR UPDATE", "SQL_NOT_ONE_SELECT"),
        ("SELECT nextval('numbers')", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1) AS x) TO PROGRAM 'id' --", "SQL_SYNTAX"),
        ("SELECT 1 FROM", "SQL_SYNTAX"),
        ("SELECT $1::int", "SQL_SYNTAX"),
        ("SELECT * INTO copied FROM people", "SQL_SYNTAX"),
        ("SELECT nobody FROM people", "SOURCE_DRIFT"),
        ("SELECT * FROM nothing", "SOURCE_DRIFT"),
        ("SELECT 1 AS a, 2 AS \"A\"", "COLUMN_NAME"),
        ("SELECT 1 / (id - 7) AS x FROM people", "MART_UNREADABLE"),
        ("SELECT ('secret' || name)::int AS x FROM people", "MART_UNREADABLE"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence_and_changes_nothing(
    postgres: servers.Database, workspace: Workspace, text: str, code: str
) -> None:
    with postgres.connect() as connection:
        connection.execute(f"{PEOPLE}; CREATE SEQUENCE numbers")
        error = refusal(source(postgres, sql=text), workspace)
        assert error.code == code
        assert "secret" not in error.message
        assert connection.execute("SELECT count(*) FROM people").fetchall() == [(20,)]
        assert connection.execute("SELECT is_called FROM numbers").fetchall() == [(False,)]


def test_one_state_is_read_whatever_others_write_meanwhile(
    postgres: servers.Database, workspace: Workspace
) -> None:
    with postgres.connect() as connection:
        connection.execute(PEOPLE)
        first = source(postgres, table="people").open(workspace)
        connection.execute("DELETE FROM people WHERE id > 5")
        with first:
            assert len(workspace.run(first.rows(["id", "name"]).sql)) == 20
        with source(postgres, table="people").open(workspace) as second:
            assert len(workspace.run(second.rows(["id"]).sql)) == 5
            assert second.description.version != first.description.version
        with source(postgres, table="people").open(workspace) as third:
            assert third.description.version == second.description.version


def test_only_the_columns_in_use_are_read(postgres: servers.Database, workspace: Workspace) -> None:
    with postgres.connect() as connection:
        connection.execute(f"{PEOPLE}; CREATE ROLE reader LOGIN PASSWORD 'pass-of-reader'")
        try:
            made = source(postgres, table="people", user="reader", password="pass-of-reader")
            error = refusal(made, workspace)
            assert (error.code, error.hint) == ("MART_UNREADABLE", "GRANT SELECT on it to reader")
            connection.execute("GRANT SELECT (id, name) ON people TO reader")
            assert len(read(made, workspace, "id", "name")) == 20
            assert "permission denied" in refusal(made, workspace).message
        finally:
            connection.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_rows_below_a_watermark_are_not_sent(postgres: servers.Database, workspace: Workspace) -> None:
    with postgres.connect() as connection:
        connection.execute(f"{PEOPLE}; UPDATE people SET seen = NULL WHERE id = 1")
        connection.execute("UPDATE people SET seen = '2026-11-29 06:00Z' WHERE id IN (2, 3)")
    made = source(postgres, table="people")
    since = Since("seen", "TIMESTAMP WITH TIME ZONE", "2026-11-29 06:00:00+00")
    assert sorted(read(made, workspace, "id", since=since)) == [(1,), (2,), (3,)]
    assert sorted(read(made, workspace, "id", since=Since("id", "INTEGER", "19"))) == [(19,), (20,)]


def test_a_server_that_dies_half_way_gives_nothing(postgres: servers.Database, workspace: Workspace) -> None:
    text = "SELECT i, CASE WHEN i = 50000 THEN pg_terminate_backend(pg_backend_pid()) END AS x FROM generate_series(1, 90000) i"
    error = refusal(source(postgres, sql=text), workspace)
    assert (error.code, error.hint) == ("CONNECTION_LOST", "run again")
    with Proxy(postgres.host, postgres.port) as proxy:
        through = replace(postgres, host="127.0.0.1", port=proxy.port)
        proxy.drop_request(b"COPY (")
        assert refusal(source(through, sql="SELECT 1 AS a"), workspace).code == "CONNECTION_LOST"
    assert refusal(source(through, sql="SELECT 1 AS a"), workspace).code == "UNREACHABLE"
    assert not list(workspace.directory.glob("*.csv"))


def test_a_read_ends_at_its_deadline(postgres: servers.Database, workspace: Workspace) -> None:
    error = refusal(
        source(postgres, sql="SELECT i, pg_sleep(60) FROM generate_series(1, 2) i", timeout="1s"), workspace
    )
    assert (error.code, error.hint) == ("MART_UNREADABLE", "raise `timeout` of the source in retl.yml")


def test_a_stop_request_ends_a_read(postgres: servers.Database, workspace: Workspace) -> None:
    with source(postgres, sql="SELECT pg_sleep(60)::text AS a").open(workspace) as snapshot:
        stop = threading.Timer(0.3, workspace.stop.request, [signal.SIGTERM])
        stop.start()
        with pytest.raises(Stopped):
            snapshot.rows(["a"])


def test_a_pooler_that_shares_its_sessions_is_refused(
    postgres: servers.Database, workspace: Workspace
) -> None:
    with Pooler(postgres.host, postgres.port, "transaction") as pooler:
        through = replace(postgres, host="127.0.0.1", port=pooler.port)
        assert refusal(source(through, sql="SELECT 1 AS a"), workspace).code == "POOLER_MODE"


def test_a_table_is_synced_to_the_same_server(every_postgres: servers.Database, tmp_path: Path) -> None:
    workshop = project(tmp_path / "project", every_postgres)
    workshop.sync("people", **SYNC)
    with every_postgres.connect() as connection:
        connection.execute(f"{PEOPLE}; UPDATE people SET score = 'NaN' WHERE id = 4")
        assert workshop.retl("check").code == 0
        (run,) = workshop.json("sync")["syncs"]
        assert (run["status"], run["read"], run["inserted"]) == ("SUCCESS_WITH_REJECTS", 20, 19)
        assert [one["code"] for one in run["rejects"]] == ["UNREPRESENTABLE"]
        connection.execute("DELETE FROM people WHERE id = 1; UPDATE people SET name = 'new' WHERE id = 2")
        connection.execute("UPDATE people SET score = 1 WHERE id = 4")
        (run,) = workshop.json("sync")["syncs"]
        assert (run["updated"], run["deleted"], run["inserted"], run["unchanged"]) == (1, 1, 1, 17)
        assert differences(connection, "id, name, score, seen") == []
    assert ":" in workshop.json("show")["source_version"]


def test_a_key_that_its_type_has_no_room_for_is_a_reject(postgres: servers.Database, tmp_path: Path) -> None:
    workshop = project(tmp_path / "project", postgres)
    workshop.sync("people", **SYNC | {"key": "[score]", "guards": "{max_reject_rate: 1}"})
    with postgres.connect() as connection:
        connection.execute(
            f"{PEOPLE}; UPDATE people SET score = 'NaN' WHERE id = 4; UPDATE people SET score = NULL WHERE id = 5"
        )
        (run,) = workshop.json("sync")["syncs"]
        assert sorted(one["code"] for one in run["rejects"]) == ["KEY_NULL", "KEY_TYPE"]
        assert connection.execute("SELECT count(*) FROM crm.people").fetchall() == [(18,)]


@pytest.mark.parametrize(
    ("change", "more", "code"),
    [
        ("DROP TABLE people", {}, "SOURCE_DRIFT"),
        ("ALTER TABLE people DROP COLUMN name", {}, "SOURCE_DRIFT"),
        ("ALTER TABLE people ALTER COLUMN name TYPE int USING 1", {}, "SOURCE_DRIFT"),
        ("SELECT 1", {"password": "wrong-canary"}, "28000"),
        ("SELECT 1", {"dbname": "nowhere"}, "3D000"),
        ("SELECT 1", {"port": 1}, "UNREACHABLE"),
    ],
)
def test_a_run_names_what_is_wrong_with_its_source(
    postgres: servers.Database, tmp_path: Path, change: str, more: dict[str, Any], code: str
) -> None:
    workshop = project(tmp_path / "project", postgres, **more)
    workshop.sync("people", **SYNC | {"contract": "{id: {type: integer}, name: {type: string}}"})
    with postgres.connect() as connection:
        connection.execute(PEOPLE)
        connection.execute(change)
    said = workshop.retl("sync", "--output", "json")
    (run,) = said.document["syncs"]
    assert run["error"]["code"] == code, run
    for words in ("sync", "check", "validate"):
        said = workshop.retl(words)
        assert "canary" not in said.out + said.err
        assert said.code != 0 or words == "validate"
        assert "Traceback" not in said.err


def test_plain_text_is_refused_off_this_machine(postgres: servers.Database, tmp_path: Path) -> None:
    workshop = project(tmp_path / "project", postgres, host="db.example.com", sslmode="prefer")
    workshop.sync("people", **SYNC)
    said = workshop.retl("validate")
    assert said.code == 2
    assert "does not verify db.example.com" in said.err


def differences(connection: Any, columns: str) -> list[tuple[Any, ...]]:
    ours, theirs = f"SELECT {columns} FROM people", f"SELECT {columns} FROM crm.people"
    query = f"(({ours} EXCEPT ALL {theirs}) UNION ALL ({theirs} EXCEPT ALL {ours}))"
    found: list[tuple[Any, ...]] = connection.execute(query).fetchall()
    return found
