"""MySQL and MariaDB as a source: one state of the database, every value exact or a reject."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from retl.engine.workspace import Workspace
from retl.errors import RetlError, Stopped
from retl.observe.signals import Stop
from retl.project.marts import Selected
from retl.sources.api import Among, Invocation, Since
from retl.sources.mysql import MySQL, Server
from retl.sources.texts import MISFIT
from retl.values.sql import quoted
from tests.commands import Workshop
from tests.mysql_server import MySQLDatabase
from tests.proxy import Proxy
from tests.servers import RedisServer

# MySQL's type, a literal of it, DuckDB's type, and the text DuckDB has; None: the row is a reject.
VALUES: list[tuple[str, str, str, str | None]] = [
    ("tinyint(1)", "2", "TINYINT", "2"),
    ("bigint", "-9223372036854775808", "BIGINT", "-9223372036854775808"),
    ("bigint unsigned", "18446744073709551615", "UBIGINT", "18446744073709551615"),
    ("mediumint unsigned zerofill", "7", "UINTEGER", "7"),
    ("bit(1)", "b'1'", "BOOLEAN", "true"),
    ("bit(64)", "b'1000000000000000000000000000000000000000000000000000000000000001'", "UBIGINT", "9223372036854775809"),
    ("year", "2026", "USMALLINT", "2026"),
    ("decimal(12,2)", "-1.50", "DECIMAL(12,2)", "-1.50"),
    ("decimal(12,2) unsigned", "1.50", "DECIMAL(12,2)", "1.50"),
    ("decimal(38,10)", "1234567890123456789012345678.0123456789", "DECIMAL(38,10)", "1234567890123456789012345678.0123456789"),
    ("decimal(65,30)", "0.123456789012345678901234567890", "VARCHAR", "0.123456789012345678901234567890"),
    ("float", "0.1234567", "FLOAT", "0.1234567"),
    ("double", "0.30000000000000004", "DOUBLE", "0.30000000000000004"),
    ("date", "'2026-11-28'", "DATE", "2026-11-28"),
    ("date", "'0000-00-00'", "DATE", None),
    ("datetime(6)", "'9999-12-31 23:59:59.999999'", "TIMESTAMP", "9999-12-31 23:59:59.999999"),
    ("datetime", "'2026-00-10 00:00:00'", "TIMESTAMP", None),
    ("timestamp(6) NULL", "'2026-11-28 06:00:00.5'", "TIMESTAMP WITH TIME ZONE", "2026-11-28 06:00:00.5+00"),
    ("time(3)", "'-838:59:59'", "VARCHAR", "-838:59:59.000"),
    ("char(5)", "'ab'", "VARCHAR", "ab"),
    ("varchar(20)", "''", "VARCHAR", ""),
    ("varchar(20)", "'a\"b,\\r\\n\\\\.é'", "VARCHAR", 'a"b,\r\n\\.é'),
    ("varchar(20)", "'a\\0b'", "VARCHAR", "a\0b"),
    ("varchar(20) COLLATE utf8mb4_bin", "'é'", "VARCHAR", "é"),
    ("varchar(20) CHARACTER SET latin1", "'é'", "VARCHAR", "é"),
    ("varbinary(20)", "x'00ff'", "VARCHAR", "\\x00ff"),
    ("blob", "x'41'", "VARCHAR", "\\x41"),
    ("longtext", "'é'", "VARCHAR", "é"),
    ("enum('a','b')", "'b'", "VARCHAR", "b"),
    ("set('x','y')", "'x,y'", "VARCHAR", "x,y"),
    ("json", "'{\"a\": 1.10}'", "VARCHAR", '{"a": 1.10}'),
]  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


def source(database: MySQLDatabase, variables: dict[str, Any] | None = None, **options: str) -> MySQL:
    parts: dict[str, Any] = {
        name: getattr(database, name) for name in ("host", "port", "dbname", "user", "password")
    }
    parts |= {
        name: options.pop(name) for name in ("timeout", "user", "password", "tls_ca_file") if name in options
    }
    return MySQL(Server(**parts), Selected(**options), Invocation(Path("."), variables or {}))


def read(
    made: MySQL, workspace: Workspace, *columns: str, since: Since | None = None
) -> list[tuple[Any, ...]]:
    with made.open(workspace) as snapshot:
        names = columns or tuple(snapshot.description.columns)
        return workspace.run(
            f"SELECT {', '.join(map(quoted, names))} FROM ({snapshot.rows(names, since).sql})"
        )


def refusal(made: MySQL, workspace: Workspace) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(made, workspace)
    return caught.value


def test_every_value_is_exact_or_a_reject(mysql: MySQLDatabase, workspace: Workspace) -> None:
    columns = {f"c{at}": one for at, one in enumerate(VALUES)}
    mysql.execute(
        "SET SESSION sql_mode = '', time_zone = '+00:00'",
        f"CREATE TABLE v ({', '.join(f'{name} {one[0]}' for name, one in columns.items())}) CHARACTER SET utf8mb4",
        f"INSERT INTO v VALUES ({', '.join(one[1] for one in VALUES)})",
        "INSERT INTO v VALUES ()",
    )
    with source(mysql, table="v").open(workspace) as snapshot:
        assert dict(snapshot.description.columns) == {name: one[2] for name, one in columns.items()}
    for name, (kind, value, _, expected) in columns.items():
        with source(mysql, table="v").open(workspace) as snapshot:
            query = snapshot.rows([name])
            found = workspace.run(f'SELECT CAST({name} AS VARCHAR), "{MISFIT}" FROM ({query.sql})')
        assert found == [(expected, None if expected is not None else name), (None, None)], (kind, value)


def test_variables_are_values_and_long_texts_arrive_whole(mysql: MySQLDatabase, workspace: Workspace) -> None:
    values = {"a": "x'; \\ \" DROP", "n": -2}
    text = "SELECT $a AS a, 1-$n AS n, '$a' AS q, REPEAT('é\"', 2000000) AS x # $b\n -- $b\n /* $b */;"
    ((a, n, q, x),) = read(source(mysql, values, sql=text), workspace)
    assert (a, n, q, x) == (values["a"], 3, "$a", 'é"' * 2000000)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DELETE FROM t", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1; DROP TABLE t", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1) x; DROP TABLE t; SELECT * FROM (SELECT 2", "SQL_NOT_ONE_SELECT"),
        ("SELECT id FROM t INTO OUTFILE '/tmp/x'", "SQL_SYNTAX"),
        ("SELECT 1 FROM", "SQL_SYNTAX"),
        ("SELECT nobody FROM t", "SOURCE_DRIFT"),
        ("SELECT * FROM nothing", "SOURCE_DRIFT"),
        ("SELECT 'secret' + (SELECT 1 UNION SELECT 2)", "MART_UNREADABLE"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_changes_nothing(
    mysql: MySQLDatabase, workspace: Workspace, text: str, code: str
) -> None:
    mysql.execute("CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)")
    error = refusal(source(mysql, sql=text), workspace)
    assert error.code == code
    assert "secret" not in error.message
    assert mysql.execute("SELECT * FROM t") == [(1,)]


def test_one_state_is_read_and_only_what_is_needed(mysql: MySQLDatabase, workspace: Workspace) -> None:
    mysql.execute(
        "CREATE TABLE t (id int, at timestamp NULL) ENGINE=InnoDB",
        "INSERT INTO t VALUES (1, '2026-11-28'), (2, NULL)",
    )
    with source(mysql, table="t").open(workspace) as first:
        mysql.execute("DELETE FROM t WHERE id = 1")
        assert len(workspace.run(first.rows(["id"]).sql)) == 2
    assert read(source(mysql, table="t"), workspace, "id") == [(2,)]
    since = Since("at", "TIMESTAMP WITH TIME ZONE", "2026-11-29 00:00:00+00")
    mysql.execute("INSERT INTO t VALUES (3, '2026-11-28'), (4, '2026-11-30')")
    assert sorted(read(source(mysql, table="t"), workspace, "id", since=since)) == [(2,), (4,)]
    with source(mysql, table="t").open(workspace) as second:
        query = second.rows_among(["id"], Among("id", (4, 9)))
        assert query is not None
        assert workspace.run(f"SELECT id FROM ({query.sql})") == [(4,)]


def test_a_login_a_right_a_network_that_is_missing(mysql: MySQLDatabase, workspace: Workspace) -> None:
    mysql.execute(
        "CREATE TABLE t (id int, secret int)",
        "CREATE OR REPLACE USER reader@'127.0.0.1' IDENTIFIED BY 'pass-of-reader'",
    )
    mysql.execute(f"GRANT SELECT (id) ON {mysql.dbname}.t TO reader@'127.0.0.1'")
    made = source(mysql, table="t", user="reader", password="pass-of-reader")
    error = refusal(made, workspace)
    assert (error.code, error.hint) == ("MART_UNREADABLE", "GRANT SELECT on it to reader")
    made = source(mysql, sql="SELECT id FROM t", user="reader", password="pass-of-reader")
    assert read(made, workspace) == []
    error = refusal(source(mysql, table="t", password="wrong-canary"), workspace)
    assert error.code == "28000"
    assert "canary" not in f"{error.message}{error.hint}"
    assert refusal(source(replace(mysql, dbname="nowhere"), table="t"), workspace).code == "3D000"
    assert refusal(source(replace(mysql, port=1), table="t"), workspace).code == "UNREACHABLE"
    assert (
        refusal(source(mysql, table="t", tls_ca_file="/etc/ssl/certs/ca-certificates.crt"), workspace).code
        == "TLS"
    )


def test_a_server_that_dies_half_way_gives_nothing(mysql: MySQLDatabase, workspace: Workspace) -> None:
    with Proxy(mysql.host, mysql.port) as proxy:
        through = replace(mysql, host="127.0.0.1", port=proxy.port)
        proxy.drop_reply(b"SELECT `a` FROM")
        error = refusal(source(through, sql="SELECT REPEAT('x', 5000000) AS a"), workspace)
    assert (error.code, error.hint) == ("CONNECTION_LOST", "run again")
    assert not list(workspace.directory.glob("*.csv"))


def test_a_deadline_and_a_stop_request_end_a_read(mysql: MySQLDatabase, workspace: Workspace) -> None:
    mysql.execute("CREATE TABLE t AS SELECT seq FROM seq_1_to_60")
    text = "SELECT SLEEP(1) AS a FROM t"
    assert refusal(source(mysql, sql=text, timeout="1s"), workspace).code == "CONNECTION_LOST"
    with source(mysql, sql=text).open(workspace) as snapshot:
        threading.Timer(0.3, workspace.stop.request, [signal.SIGTERM]).start()
        with pytest.raises(Stopped):
            snapshot.rows(["a"])


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_a_table_is_synced(
    mysql: MySQLDatabase, tmp_path: Path, redis_server: RedisServer, kind: str
) -> None:
    workshop = Workshop(tmp_path / "project", {"SHOP_PASSWORD": mysql.password})
    workshop.use(redis=redis_server)
    workshop.write(
        "retl.yml",
        f"sources:\n  shop: {{type: {kind}, host: 127.0.0.1, port: {mysql.port}, dbname: {mysql.dbname},"
        f" user: {mysql.user}, password: \"${{SHOP_PASSWORD}}\"}}\n",
    )  # fmt: skip
    workshop.sync(
        "people",
        source="{from: shop, table: people}",
        key="[id]",
        destination='{type: redis, key: "p:{id}", value: json, ttl: none}',
    )
    mysql.execute("CREATE TABLE people (id int PRIMARY KEY, spend decimal(12,2), at date)", "SET SESSION sql_mode = ''",
                  "INSERT INTO people SELECT seq, seq / 4, '2026-11-28' FROM seq_1_to_40",
                  "UPDATE people SET at = '0000-00-00' WHERE id = 7")  # fmt: skip
    (run,) = workshop.json("sync")["syncs"]
    assert (run["read"], run["inserted"], [one["code"] for one in run["rejects"]]) == (
        40,
        39,
        ["UNREPRESENTABLE"],
    )
    assert redis_server.client().get("p:1") == b'{"spend":0.25,"at":"2026-11-28"}'
