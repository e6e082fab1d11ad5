"""ClickHouse as a source, against recorded answers of its engine: exact or refused, whole or failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from tenacity import wait_none

from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, RetlError, Stopped
from retl.observe.signals import Stop
from retl.pace import limiter
from retl.project.contracts import Contract
from retl.project.marts import Selected
from retl.sources.api import Invocation, Since
from retl.sources.clickhouse import ClickHouse, Server
from retl.testing.faults import answer, cut, dripping, passed, reset
from tests.clickhouse import PASSWORD, USER, Engine
from tests.commands import Workshop
from tests.servers import Database

GOOD = (
    "id", "price", "big", "name", "kind", "code", "day", "far", "at", "exact", "fine", "uid", "yes", "ratio",
    "tags", "nums",
)  # fmt: skip
REFUSED = {
    "wide": "Int256",
    "ip": "IPv4",
    "fixed": "FixedString(4)",
    "sums": "AggregateFunction(sum, UInt8)",
    "huge": "Decimal(76, 20)",
    "pairs": "Map(String, UInt8)",
}
ID: Mapping[str, Any] = {"id": {"type": "integer"}}
WEEK = "SELECT id, price FROM items WHERE day = {week:Date} AND name = {name:String}; "
THROWS = "SELECT id FROM items WHERE throwIf(id = 2) = 0"
MARK = Since("at", "TIMESTAMP WITH TIME ZONE", "2026-11-28 09:00:01+00")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_PAUSES", wait_none())


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as made:
        yield made
        assert made.missing == []


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path, Stop()) as made:
        yield made


def source(
    engine: Engine,
    contract: Mapping[str, Any] | None = ID,
    variables: Mapping[str, Any] | None = None,
    connection: Mapping[str, Any] | None = None,
    **options: str,
) -> ClickHouse:
    given = {"base_url": engine.url, "user": USER, "password": PASSWORD, "retry": {"attempts": 3}}
    return ClickHouse(
        Server.model_validate({**given, **(connection or {})}),
        Selected.model_validate(options or {"table": "items"}),
        Invocation(
            Path(),
            variables or {},
            contract=Contract.model_validate({"columns": contract}) if contract else None,
        ),
    )


def read(workspace: Workspace, source: ClickHouse, *columns: str, since: Since | None = None) -> Any:
    with source.open(workspace) as snapshot:
        query = snapshot.rows(columns, since)
        return sorted(workspace.run(query.sql, query.parameters))


def failure(workspace: Workspace, source: ClickHouse, *columns: str) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(workspace, source, *(columns or ("id",)))
    return caught.value


def queries() -> list[tuple[str, dict[str, str]]]:
    """What these tests ask, for the recorder."""
    found: list[tuple[str, dict[str, str]]] = []
    with Engine() as engine:
        tables = ("items", "items_gone")
        found += [(f"DESCRIBE (SELECT * FROM `{name}`) FORMAT JSON", {}) for name in tables]
        for columns, where, given in (
            (GOOD, "", {}),
            (("id",), "", {}),
            (("id", "price"), "", {}),
            (
                ("id", "at"),
                " WHERE `at` >= {retl_since:DateTime64(6, 'UTC')} OR `at` IS NULL",
                {"retl_since": "2026-11-28 09:00:01"},
            ),
        ):
            listed = ", ".join(f"`{name}`" for name in columns)
            found.append((f"SELECT {listed} FROM `items`{where} FORMAT Parquet", given))
        week = {"week": "2026-11-28", "name": "é\\n'\""}
        for sql, given in (
            (WEEK, week),
            ("SELECT nothing FROM items", {}),
            ("SELEC id", {}),
            ("INSERT INTO items (id) VALUES (9)", {}),
            ("SELECT 1 AS id) FORMAT JSON; DROP TABLE items; SELECT (1", {}),
            (THROWS, {}),
        ):
            made = source(engine, variables={"week": "2026-11-28", "name": "é\n'\""}, sql=sql)
            relation = made.relation()[0]
            found.append((f"DESCRIBE (SELECT * FROM {relation}) FORMAT JSON", given))
            if sql in (WEEK, THROWS):  # the others are refused before
                found.append((f"SELECT `id` FROM {relation} FORMAT Parquet", given))
    return found


def test_every_type_that_is_read_is_exact(engine: Engine, workspace: Workspace) -> None:
    rows = read(workspace, source(engine, {name: {"type": "json"} for name in GOOD}), *GOOD)
    assert rows[0] == (
        0,
        Decimal("1234567890.12"),
        Decimal("12345678901234567.8901234567"),
        "é\n'\"",
        "new",
        "x",
        date(2026, 11, 28),
        date(1925, 1, 1),
        datetime(2026, 11, 28, 9, tzinfo=UTC),
        datetime(2026, 11, 28, 10, 0, 0, 123456, tzinfo=UTC),
        datetime(2026, 11, 28, 10, 0, 0, 123456, tzinfo=UTC),
        UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        True,
        0.1,
        ["a", "b"],
        [1, None],
    )
    assert rows[1][3] is None
    (asked, *_) = [one for one in engine.asked if "readonly" in one]
    assert (asked["readonly"], asked["max_execution_time"], asked["wait_end_of_query"]) == ("1", "3600", "1")


@pytest.mark.parametrize("column", REFUSED)
def test_a_type_that_would_be_read_as_another_is_refused_by_its_name(
    engine: Engine, workspace: Workspace, column: str
) -> None:
    found = failure(workspace, source(engine, {**ID, column: {"type": "string"}}))
    assert (found.code, f"{column} of type {REFUSED[column]}" in found.message) == (
        "SOURCE_UNSUPPORTED",
        True,
    )
    assert found.hint == f"cast it in `sql`: toString({column}) AS {column}"
    assert len(engine.asked) == 1


def test_all_columns_of_a_table_with_such_a_type_are_refused_too(
    engine: Engine, workspace: Workspace
) -> None:
    assert failure(workspace, source(engine, None)).code == "SOURCE_UNSUPPORTED"


def test_a_variable_is_a_parameter_of_the_server_and_a_semicolon_ends_nothing(
    engine: Engine, workspace: Workspace
) -> None:
    found = source(engine, variables={"week": "2026-11-28", "name": "é\n'\""}, sql=WEEK)
    assert read(workspace, found, "id") == [(0,), (2,)]
    with pytest.raises(DefinitionError, match="uses name, but there is no such variable"):
        source(engine, variables={"week": "2026-11-28"}, sql=WEEK).open(workspace)


def test_a_mark_is_compared_by_the_server(engine: Engine, workspace: Workspace) -> None:
    assert [row[0] for row in read(workspace, source(engine), "id", "at", since=MARK)] == [1, 2]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"table": "items_gone"}, "SOURCE_DRIFT"),
        ({"sql": "SELECT nothing FROM items"}, "SOURCE_DRIFT"),
        ({"sql": "SELEC id"}, "SQL_SYNTAX"),
        ({"sql": "INSERT INTO items (id) VALUES (9)"}, "SQL_SYNTAX"),
        ({"sql": "SELECT 1 AS id) FORMAT JSON; DROP TABLE items; SELECT (1"}, "SQL_SYNTAX"),
        ({"sql": THROWS}, "MART_UNREADABLE"),
    ],
)
def test_what_the_server_refuses_is_said_by_its_code(
    engine: Engine, workspace: Workspace, options: dict[str, str], code: str
) -> None:
    found = failure(workspace, source(engine, **options))
    assert found.code == code, found.message
    assert "DB::Exception" not in str(found)


def test_a_wrong_password_is_named_and_never_said(engine: Engine, workspace: Workspace) -> None:
    found = failure(workspace, source(engine, connection={"password": "other-secret"}))
    assert (found.code, found.hint) == ("MART_UNREADABLE", "check `user` and `password` of the source")
    assert "code 516, AUTHENTICATION_FAILED" in found.message
    assert "other-secret" not in f"{found} {found.hint}"


def test_an_account_that_may_only_read_may_not_be_told_to(engine: Engine, workspace: Workspace) -> None:
    engine.locked = True
    assert read(workspace, source(engine), "id") == [(0,), (1,), (2,)]
    assert [("readonly" in one) for one in engine.asked] == [True, False, False]


PARQUET = b"PAR1" + b"\0" * 100 + b"PAR1"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (answer(200, b"PAR1 some rows, then: Code: 241. DB::Exception: Memory limit"), "HTTP_CUT_OFF"),
        (answer(200, b""), "HTTP_CUT_OFF"),
        (answer(200, PARQUET, X_ClickHouse_Exception_Code="241"), "MART_UNREADABLE"),
        (answer(200, PARQUET, Content_Encoding="gzip"), "HTTP_CUT_OFF"),
        (answer(200, PARQUET), "MART_UNREADABLE"),
        (cut(), "HTTP_CUT_OFF"),
        (reset(applied=True), "HTTP_NO_ANSWER"),
        (answer(503), "HTTP_503"),
        (answer(302, Location="http://127.0.0.1:1/"), "HTTP_302"),
        (answer(500, b"x", X_ClickHouse_Exception_Code="202"), "HTTP_500"),
    ],
)
def test_an_answer_that_is_not_whole_is_no_short_mart(
    engine: Engine, workspace: Workspace, fault: Any, code: str
) -> None:
    engine.misbehave(passed, *[fault] * 3)
    found = failure(workspace, source(engine))
    assert (found.code, found.exit_code) == (code, 1), found.message


def test_what_passes_is_asked_again(engine: Engine, workspace: Workspace) -> None:
    engine.misbehave(reset(applied=False), cut(), passed, cut(), answer(503))
    assert read(workspace, source(engine), "id") == [(0,), (1,), (2,)]


def test_a_stop_ends_a_query_that_does_not_end(engine: Engine, workspace: Workspace) -> None:
    import threading

    engine.misbehave(passed, dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", 20))

    def stop() -> None:
        while len(engine.seen) < 2:
            workspace.stop.event.wait(0.01)
        workspace.stop.request(15)

    other = threading.Thread(target=stop)
    other.start()
    with pytest.raises(Stopped):
        read(workspace, source(engine), "id")
    other.join()


def test_the_file_of_the_rows_is_private_and_goes_away(engine: Engine, workspace: Workspace) -> None:
    with source(engine).open(workspace) as snapshot:
        snapshot.rows(["id"])
        (file,) = workspace.directory.glob("*.parquet")
        assert file.stat().st_mode & 0o777 == 0o600
        assert snapshot.description.version.startswith("3 rows ")
    assert not file.exists()


def test_a_server_that_is_no_clickhouse_is_named(engine: Engine, workspace: Workspace) -> None:
    engine.misbehave(answer(200, "<html>"))
    assert failure(workspace, source(engine)).code == "HTTP_NO_JSON"
    engine.misbehave(answer(404, "<html>"))
    assert failure(workspace, source(engine)).code == "HTTP_404"


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (Server, {"base_url": "http://ch.example.com:8123"}),
        (Server, {"base_url": "https://user:pass@ch.example.com"}),
        (Server, {"base_url": "https://ch.example.com", "user": "a\r\nb"}),
        (Selected, {}),
        (Selected, {"table": "a", "sql": "SELECT 1"}),
        (Selected, {"table": "a", "at": 1}),
    ],
)
def test_a_definition_that_means_nothing_is_refused(model: Any, wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(wrong)


def test_rows_reach_postgres_with_every_digit(tmp_path: Path, engine: Engine, postgres: Database) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(postgres=postgres)
    workshop.environment |= {"CH": engine.url, "SECRET": PASSWORD}
    workshop.write(
        "retl.yml",
        f'sources:\n  dw: {{type: clickhouse, base_url: "${{CH}}", user: {USER}, password: "${{SECRET}}"}}\n',
    )
    workshop.sync(
        "items",
        source="{from: dw, table: items, complete: true}",
        key="[id]",
        deletes="delete",
        contract="{id: {type: integer}, price: {type: decimal, max_digits: 12, decimal_places: 2}}",
        destination="{type: postgres, table: crm.items, create: true}",
    )
    assert workshop.json("sync")["syncs"][0]["inserted"] == 3
    assert workshop.json("sync")["syncs"][0]["unchanged"] == 3
    with postgres.connect() as connection:
        found = connection.execute("SELECT id, price::text FROM crm.items ORDER BY id").fetchall()
    assert found == [(0, "1234567890.12"), (1, "1234567889.12"), (2, "1234567888.12")]
