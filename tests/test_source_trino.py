"""Trino as a source, against a fake that speaks its HTTP protocol with the real client.

The fake is written after https://trino.io/docs/current/develop/client-protocol.html: POST /v1/statement, then GET of
each `nextUri`. DuckDB holds the rows, as the texts that Trino's documentation shows, and answers the SELECT of the
source. What a real Trino casts to those texts is not shown here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pydantic import ValidationError

from retl.engine.workspace import Workspace
from retl.errors import RetlError, Stopped
from retl.observe.signals import Stop
from retl.project.marts import Selected
from retl.sources import trino
from retl.sources.api import Among, Invocation, Since
from retl.sources.texts import MISFIT
from retl.sources.trino import Coordinator, Trino
from retl.testing.server import Exchange, FakeApi
from retl.values.sql import literal, quoted
from tests.commands import Workshop
from tests.servers import Database

# Trino's type, its text of a value, DuckDB's type, and the text DuckDB has; None: the row is a reject.
VALUES: list[tuple[str, str, str, str | None]] = [
    ("boolean", "true", "BOOLEAN", "true"),
    ("tinyint", "-128", "TINYINT", "-128"),
    ("integer", "2147483647", "INTEGER", "2147483647"),
    ("bigint", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("real", "0.10000000149011612", "FLOAT", "0.1"),
    ("double", "0.30000000000000004", "DOUBLE", "0.30000000000000004"),
    ("double", "-Infinity", "DOUBLE", "-inf"),
    ("double", "1.0E-300", "DOUBLE", "1e-300"),
    ("decimal(12,2)", "1.50", "DECIMAL(12,2)", "1.50"),
    ("decimal(38, 10)", "1234567890123456789012345678.1234567890", "DECIMAL(38,10)", "1234567890123456789012345678.1234567890"),
    ("varchar", "", "VARCHAR", ""),
    ("varchar(20)", ' a\r\nb,"c"\t\\N;\n é', "VARCHAR", ' a\r\nb,"c"\t\\N;\n é'),
    ("char(5)", "ab   ", "VARCHAR", "ab   "),
    ("date", "2026-11-28", "DATE", "2026-11-28"),
    ("date", "-0044-03-15", "DATE", None),
    ("date", "12026-11-28", "DATE", None),
    ("time(3)", "24:00:00.000", "VARCHAR", "24:00:00.000"),
    ("timestamp(3)", "2026-11-28 10:00:00.123", "TIMESTAMP", "2026-11-28 10:00:00.123"),
    ("timestamp(12)", "2026-11-28 10:00:00.123456000000", "TIMESTAMP", "2026-11-28 10:00:00.123456"),
    ("timestamp(12)", "2026-11-28 10:00:00.123456000001", "TIMESTAMP", None),
    ("timestamp(6) with time zone", "2026-03-29 00:30:00.000001 UTC", "TIMESTAMP WITH TIME ZONE", "2026-03-29 00:30:00.000001+00"),
    ("timestamp(9) with time zone", "2026-03-29 00:30:00.000000001 UTC", "TIMESTAMP WITH TIME ZONE", None),
    ("uuid", "12151fd2-7586-11e9-8f9e-2a86e4085a59", "UUID", "12151fd2-7586-11e9-8f9e-2a86e4085a59"),
    ("json", '{"a":1.10}', "JSON", '{"a":1.10}'),
    ("array(decimal(3,2))", "[1.50,null]", "JSON", "[1.50,null]"),
    ("row(a bigint, b varchar)", '{"a":1,"b":"x"}', "JSON", '{"a":1,"b":"x"}'),
    ("varbinary", "00FF", "VARCHAR", "00FF"),
    ("interval day to second", "2 03:04:05.600", "VARCHAR", "2 03:04:05.600"),
]  # fmt: skip
_NAMES = {"INTEGER": "integer", "BIGINT": "bigint", "DOUBLE": "double"}
PEOPLE = {"id": "bigint", "name": "varchar", "score": "decimal(12,2)", "seen": "timestamp(6) with time zone"}


class Cluster(FakeApi):
    """A coordinator. `queued`: the answers without rows before the first that has some; `at_once`: rows in one.
    `wrong`: the error that a text in a query brings, as (errorName, message)."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = duckdb.connect()
        self.engine.execute("SET timezone = 'UTC'")
        self.engine.execute("CREATE MACRO json_format(x) AS x; CREATE MACRO to_hex(x) AS x")
        self.types: dict[str, dict[str, str]] = {}
        self.queries: list[str] = []
        self.queued, self.at_once, self.endless = 2, 700, False
        self.wrong: dict[str, tuple[str, str]] = {}
        self.ended: list[str] = []
        self._pages: dict[str, list[dict[str, Any]]] = {}

    def table(self, name: str, types: Mapping[str, str], rows: list[tuple[Any, ...]]) -> None:
        columns = ", ".join(f"{quoted(one)} VARCHAR" for one in types)
        self.engine.execute(f"CREATE OR REPLACE TABLE {name} ({columns})")
        for row in rows:
            self.engine.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        self.types[name] = dict(types)

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if headers.get("authorization") == "Bearer wrong":
            return 401, b"<html>no</html>"
        if method == "POST" and path == "/v1/statement":
            assert headers["x-trino-user"] == "reader"
            assert headers["x-trino-time-zone"] == "UTC"
            assert re.fullmatch(r"query_max_run_time=\d+s", headers["x-trino-session"])
            assert "x-trino-query-data-encoding" not in headers
            return 200, self._begun(body.decode())
        query, at = path.removeprefix("/v1/statement/").split("/")
        if method == "DELETE":
            self.ended.append(query)
            return 204, b""
        if self.endless:
            time.sleep(0.05)
            return 200, self._page(query, {}, int(at))
        return 200, self._pages[query][int(at)]

    def _begun(self, sql: str) -> dict[str, Any]:
        self.queries.append(sql)
        query = f"20261129_093000_{len(self.queries):05}_retl0"
        for part, (name, message) in self.wrong.items():
            if part in sql:
                error = {"message": message, "errorCode": 1, "errorName": name, "errorType": "USER_ERROR"}
                self._pages[query] = [self._page(query, {}), self._page(query, {"error": error})]
                return self._page(query, {}, 1)
        found = self._answer(sql)
        columns, rows = found["columns"], found["data"]
        parts = [{}] * self.queued + [{"columns": columns}]
        parts += [
            {"columns": columns, "data": rows[at : at + self.at_once]}
            for at in range(0, len(rows), self.at_once)
        ]
        pages = [self._page(query, part, at + 1) for at, part in enumerate(parts)]
        pages[-1].pop("nextUri")
        self._pages[query] = pages
        return self._page(query, {}, 0)

    def _page(self, query: str, part: dict[str, Any], following: int | None = None) -> dict[str, Any]:
        stats = {"state": "RUNNING", "queued": False}
        page = {
            "id": query,
            "infoUri": f"{self.url}/ui/query.html?{query}",
            "stats": stats,
            "warnings": [],
            **part,
        }
        return page | (
            {"nextUri": f"{self.url}/v1/statement/{query}/{following}"} if following is not None else {}
        )

    def _answer(self, sql: str) -> dict[str, Any]:
        text = re.sub(r"( AT TIME ZONE 'UTC')? AS (varchar|json|timestamp.*?zone)\)", " AS varchar)", sql)
        result = self.engine.sql(text)
        known = (
            {} if " LIMIT 0" not in sql else next((t for name, t in self.types.items() if name in sql), {})
        )
        columns = [
            {
                "name": name,
                "type": known.get(name, _NAMES.get(str(kind), "varchar")),
                "typeSignature": {"rawType": "varchar", "arguments": [{"kind": "LONG", "value": 9}]},
            }
            for name, kind in zip(result.columns, result.types, strict=True)
        ]
        return {"columns": columns, "data": [list(row) for row in result.fetchall()]}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        made.table("people", PEOPLE, [])
        made.engine.execute(
            "INSERT INTO people SELECT i, 'p' || i, i || '.50', '2026-11-28 06:00:00.000000 UTC' FROM range(1, 2501) t(i)"
        )
        yield made


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


def source(cluster: Cluster, variables: Mapping[str, Any] | None = None, **options: Any) -> Trino:
    parts = {name: options.pop(name) for name in ("timeout", "token", "password") if name in options}
    made = Coordinator(base_url=cluster.url, user="reader", **parts)
    return Trino(made, Selected(**options), Invocation(Path("."), variables or {}))


def read(
    made: Trino, workspace: Workspace, *columns: str, since: Since | None = None
) -> list[tuple[Any, ...]]:
    with made.open(workspace) as snapshot:
        names = columns or tuple(snapshot.description.columns)
        query = snapshot.rows(names, since)
        return workspace.run(f"SELECT {', '.join(map(quoted, names))} FROM ({query.sql})")


def refusal(made: Trino, workspace: Workspace) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(made, workspace)
    return caught.value


def test_every_value_is_exact_or_a_reject(cluster: Cluster, workspace: Workspace) -> None:
    columns = {f"c{at}": one for at, one in enumerate(VALUES)}
    types = {name: one[0] for name, one in columns.items()}
    cluster.table("v", types, [tuple(one[1] for one in VALUES), (None,) * len(VALUES)])
    with source(cluster, table="v").open(workspace) as snapshot:
        assert dict(snapshot.description.columns) == {name: one[2] for name, one in columns.items()}
        workspace.run(f"CREATE TEMP TABLE read AS {snapshot.rows(list(columns)).sql}")
        for name, (kind, _, _, expected) in columns.items():
            found = workspace.run(f"SELECT CAST({name} AS VARCHAR) FROM read")
            assert found == [(expected,), (None,)], kind
        misfits = workspace.run(f'SELECT "{MISFIT}" FROM read')
    first = next(name for name, one in columns.items() if one[3] is None)
    assert misfits == [(first,), (None,)]


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("decimal(38,10)", 'CAST("a""b" AS varchar)'),
        ("real", 'CAST(CAST("a""b" AS double) AS varchar)'),
        ("char(5)", '"a""b"'),
        ("varbinary", 'to_hex("a""b")'),
        ("timestamp(6)", 'CAST("a""b" AS varchar)'),
        ("timestamp(6) with time zone", 'CAST("a""b" AT TIME ZONE \'UTC\' AS varchar)'),
        ("time(6) with time zone", 'CAST("a""b" AS varchar)'),
        ("map(varchar,bigint)", 'json_format(CAST("a""b" AS json))'),
    ],
)
def test_a_value_is_asked_for_as_a_text(kind: str, asked: str) -> None:
    assert trino.read('a"b', kind) == asked


def test_rows_are_those_of_one_query_over_all_its_pages(cluster: Cluster, workspace: Workspace) -> None:
    with source(cluster, table="people").open(workspace) as snapshot:
        described = snapshot.description.version
        query = snapshot.rows(["id", "score"])
        assert workspace.one(f"SELECT count(*), sum(id), min(score) FROM ({query.sql})")[:2] == (
            2500,
            3126250,
        )
        assert snapshot.description.version != described
        assert snapshot.description.version.endswith("_00002_retl0")
    assert cluster.queries == [
        'SELECT * FROM "people" LIMIT 0',
        'SELECT CAST("id" AS varchar), CAST("score" AS varchar) FROM "people"',
    ]
    assert cluster.ended == []
    assert not list(workspace.directory.glob("*.csv"))


def test_a_page_that_is_lost_on_the_way_is_asked_for_again(cluster: Cluster, workspace: Workspace) -> None:
    def lost(exchange: Exchange) -> bool:
        exchange.reply(503, b"", {})
        return True

    def fine(_exchange: Exchange) -> bool:
        return False

    cluster.misbehave(*([fine] * 8), lost, fine, lost)
    assert len(read(source(cluster, table="people"), workspace, "id")) == 2500


def test_rows_below_a_watermark_are_not_sent(cluster: Cluster, workspace: Workspace) -> None:
    cluster.engine.execute("UPDATE people SET seen = NULL WHERE id = '1'")
    cluster.engine.execute("UPDATE people SET seen = '2026-11-29 06:00:00.000000 UTC' WHERE id IN ('2', '3')")
    since = Since("seen", "TIMESTAMP WITH TIME ZONE", "2026-11-29 06:00:00+00")
    assert sorted(read(source(cluster, table="people"), workspace, "id", since=since)) == [(1,), (2,), (3,)]
    assert cluster.queries[-1].endswith(
        ' WHERE "seen" >= CAST(\'2026-11-29 06:00:00 UTC\' AS timestamp(6) with time zone) OR "seen" IS NULL'
    )


def test_only_the_rows_of_some_keys_are_asked_for(cluster: Cluster, workspace: Workspace) -> None:
    with source(cluster, table="people").open(workspace) as snapshot:
        query = snapshot.rows_among(["name"], Among("id", (7, -9)))
        assert query is not None
        assert workspace.run(f"SELECT name FROM ({query.sql})") == [("p7",)]
        assert cluster.queries[-1] == 'SELECT "name" FROM "people" WHERE "id" IN (7, -9)'


def test_a_variable_is_a_value_and_never_sql(cluster: Cluster, workspace: Workspace) -> None:
    text = "x'; \\ DROP"
    made = source(cluster, {"a": text, "n": -2}, sql="SELECT $a AS a, 1-$n AS n, '$a' AS kept -- $b\n;")
    assert read(made, workspace) == [(text, 3, "$a")]
    assert trino.written(True) == "TRUE"
    assert trino.written("o'hara") == literal("o'hara")


@pytest.mark.parametrize(
    ("text", "error", "code"),
    [
        ("DELETE FROM people", None, "SQL_NOT_ONE_SELECT"),
        ("SELECT 1; DROP TABLE people", None, "SQL_NOT_ONE_SELECT"),
        ("SELECT 1 AS a, 2 AS \"A\"", None, "COLUMN_NAME"),
        ("SELECT * FROM people", ("SYNTAX_ERROR", "line 1:8: mismatched input"), "SQL_SYNTAX"),
        ("SELECT * FROM people", ("TABLE_NOT_FOUND", "line 1:15: Table 'people' does not exist"), "SOURCE_DRIFT"),
        ("SELECT * FROM people", ("PERMISSION_DENIED", "Access Denied"), "MART_UNREADABLE"),
        ("SELECT * FROM people", ("EXCEEDED_TIME_LIMIT", "Query exceeded"), "MART_UNREADABLE"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    cluster: Cluster, workspace: Workspace, text: str, error: tuple[str, str] | None, code: str
) -> None:
    if error is not None:
        cluster.wrong["people"] = error
    if '"A"' in text:
        cluster._answer = lambda _sql: {  # type: ignore[method-assign]
            "columns": [
                {"name": name, "type": "bigint", "typeSignature": {"rawType": "bigint", "arguments": []}}
                for name in "aA"
            ],
            "data": [],
        }
    assert refusal(source(cluster, sql=text), workspace).code == code


def test_an_error_of_a_row_does_not_quote_it(cluster: Cluster, workspace: Workspace) -> None:
    cluster.wrong['CAST("name"'] = cluster.wrong['SELECT "name"'] = (
        "INVALID_CAST_ARGUMENT",
        "Cannot cast 'secret-canary'",
    )
    error = refusal(source(cluster, sql="SELECT name FROM people"), workspace)
    assert (error.code, "INVALID_CAST_ARGUMENT" in error.message) == ("MART_UNREADABLE", True)
    assert "canary" not in error.message
    assert not list(workspace.directory.glob("*.csv"))


def test_a_query_that_is_not_read_to_its_end_is_ended(cluster: Cluster, workspace: Workspace) -> None:
    cluster.endless = True
    error = refusal(source(cluster, table="people", timeout="1s"), workspace)
    assert (error.code, error.hint) == ("MART_UNREADABLE", "raise `timeout` of the source in retl.yml")
    assert len(cluster.ended) == 1
    workspace.stop.request(15)
    with pytest.raises(Stopped):
        read(source(cluster, table="people"), workspace)
    assert len(cluster.ended) == 2


def test_a_login_that_is_refused_and_a_server_that_is_not_there(
    cluster: Cluster, workspace: Workspace
) -> None:
    error = refusal(source(cluster, table="people", token="wrong"), workspace)
    assert "does not accept the login of reader" in error.message
    assert read(source(cluster, table="people", token="right"), workspace, "id")
    assert read(source(cluster, table="people", password="right"), workspace, "id")
    sent = [headers for _, _, headers, _ in cluster.seen]
    assert {"Bearer right", "Basic cmVhZGVyOnJpZ2h0"} <= {one.get("authorization", "") for one in sent}
    cluster.misbehave(*[lambda exchange: bool(exchange.reply(500, b"a row: secret-canary", {}) or True)] * 3)
    error = refusal(source(cluster, table="people"), workspace)
    assert (error.code, "status 500" in error.message) == ("CONNECTION_LOST", True)
    assert "canary" not in error.message
    gone = Trino(
        Coordinator(base_url="http://127.0.0.1:1", user="u"), Selected(table="t"), Invocation(Path("."), {})
    )
    assert refusal(gone, workspace).code == "CONNECTION_LOST"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"base_url": "http://trino.example"}, "must be https"),
        ({"base_url": "https://trino.example/path"}, "has no path"),
        ({"base_url": "https://trino.example", "password": "p", "token": "t"}, "not both"),
    ],
)
def test_a_connection_is_checked(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Coordinator(user="u", **given)


def test_a_table_is_synced(cluster: Cluster, postgres: Database, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.write(
        "retl.yml", f"sources:\n  lake: {{type: trino, base_url: '{cluster.url}', user: reader}}\n"
    )
    parts = {
        "key": "[id]",
        "destination": "{type: postgres, table: crm.people, create: true}",
        "deletes": "delete",
    }
    workshop.sync("people", source="{from: lake, table: people}", **parts)
    assert "complete: true" in workshop.retl("validate").err
    workshop.sync("people", source="{from: lake, table: people, complete: true}", **parts)
    assert workshop.retl("check").code == 0
    (run,) = workshop.json("sync")["syncs"]
    assert (run["status"], run["inserted"]) == ("SUCCESS", 2500)
    cluster.engine.execute("DELETE FROM people WHERE id = '1'; UPDATE people SET name = 'new' WHERE id = '2'")
    (run,) = workshop.json("sync")["syncs"]
    assert (run["updated"], run["deleted"], run["unchanged"]) == (1, 1, 2498)
    assert "_retl0" in workshop.json("show")["source_version"]
