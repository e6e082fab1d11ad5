"""SQL Server passes the suite with Microsoft's own driver, against an emulator: see tests/mssql.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlglot
from msgspec.structs import replace

from retl.destinations.batch import Field, Kind, Shape, Visit, WriteMode
from retl.destinations.mssql.adapter import PIECE, MsSql, MsSqlOptions
from retl.destinations.mssql.dialect import MsSqlDialect
from retl.destinations.mssql.session import Hand
from retl.errors import Ambiguous, Later, Mismatch, Poisoned, Systemic, TargetError, Unavailable
from retl.values.types import Type
from tests.destinations.rows import Row, Rows, plain
from tests.destinations.suite import (
    CANARY,
    FIELDS,
    STRING,
    VISIT,
    Contents,
    Suite,
    Target,
    as_contents,
    deliver,
    kinds,
    results,
    sample,
)
from tests.destinations.tables import TableSuite
from tests.mssql import GUARDED, Sql
from tests.proxy import Proxy
from tests.tds import Failure

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS)
DIALECT = MsSqlDialect()
HELD = Visit("run-1", 1, exclusive=True)
WRITER, SECRET = "writer", "its;own}secret"


class MsSqlTarget(Target):
    type = "mssql"
    counts_all = False
    commit = "COMMIT TRANSACTION".encode("utf-16le")

    def __init__(self, server: Sql, proxy: Proxy, write: WriteMode = "upsert") -> None:
        self.server, self.proxy, self.write, self.shape = server, proxy, write, SHAPE
        server.users[WRITER] = (SECRET, True)

    def options(self, **changes: Any) -> MsSqlOptions:
        account = {"user": WRITER, "password": SECRET, "dbname": "d", "type": "mssql"}
        server = {"host": self.proxy.host, "port": self.proxy.port, "timeout": 4, "connect_timeout": 4}
        connection = server | account | changes.pop("connection", {})
        return MsSqlOptions.model_validate({"connection": connection, "table": "people"} | changes)

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> MsSql:
        self.shape = shape
        if not self.execute("SELECT name FROM sys.objects WHERE name = N'people'"):
            listed = [
                f"{DIALECT.quoted(f.name)} {DIALECT.ddl(f.type, key=f in shape.key)}"
                for f in (*shape.key, *shape.fields)
            ]
            check = ", CHECK (visits >= 0)" if FIELDS[-1] in shape.fields else ""
            key = ", ".join(DIALECT.quoted(f.name) for f in shape.key)
            self.execute(
                f"CREATE TABLE [people] ({', '.join(listed)}, theirs nvarchar(max) DEFAULT N'nobody',"
                f" PRIMARY KEY ({key}){check})"
            )
        connection = {"password": secret or SECRET} | changes.pop("connection", {})
        return MsSql(self.options(connection=connection, **changes), shape)

    def execute(self, *statements: str) -> list[Row]:
        """As somebody else; the rows of the last."""
        return self.server.execute(*statements)

    def contents(self) -> Contents:
        fields = (*self.shape.key, *self.shape.fields)
        found: Contents = {}
        for row in self.execute(f"SELECT {', '.join(DIALECT.quoted(f.name) for f in fields)} FROM [people]"):
            values = [held(value, f.type.name) for value, f in zip(row, fields, strict=True)]
            pairs = zip(fields[1:], values[1:], strict=True)
            found[(values[0],)] = {f.name: plain(value, f.type) for f, value in pairs}
        return found

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.server.users[WRITER] = (SECRET, False)

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        self.execute(f"UPDATE [people] SET theirs = N'a note' WHERE id = N'{key[0]}'")
        query = f"SELECT theirs FROM [people] WHERE id = N'{key[0]}'"
        return lambda: self.execute(query) == [("a note",)]


def held(value: Any, name: str) -> Any:
    """What the emulator holds as the value that it stands for."""
    kinds: dict[str, Callable[[Any], Any]] = {
        "boolean": bool, "uuid": UUID, "decimal": Decimal, "date": date.fromisoformat, "list": json.loads,
        "timestamp": datetime.fromisoformat, "timestamptz": datetime.fromisoformat,
    }  # fmt: skip
    return value if value is None else kinds.get(name, lambda one: one)(value)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[MsSqlTarget]:
    yield from target_of(tmp_path, "upsert")


def target_of(folder: Path, write: WriteMode) -> Iterator[MsSqlTarget]:
    with Sql(folder) as server, Proxy(server.host, server.port) as proxy:
        yield MsSqlTarget(server, proxy, write)
        server.shutdown()


@pytest.fixture(params=[False, True], ids=["known", "new"])
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch says of its rows being new changes nothing but the way they take."""
    monkeypatch.setattr(Rows, "new", request.param)


class TestUpsert(Suite, TableSuite):
    kind = MsSql

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[MsSqlTarget]:
        yield from target_of(tmp_path, "upsert")


class TestAppend(Suite):
    @pytest.fixture
    def target(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MsSqlTarget]:
        monkeypatch.setattr(Rows, "new", True)
        yield from target_of(tmp_path, "append")


def ready(target: MsSqlTarget, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> MsSql:
    destination = target.make(shape, **options)
    destination.check(visit)
    destination.prepare(visit)
    return destination


# statements


def test_a_preview_is_a_script_that_does_what_a_run_does(target: MsSqlTarget) -> None:
    destination = ready(target)
    rows = [("a", "it's \\\n; \"", Decimal("1.50"), 1), ("b", None, None, None)]
    script = destination.preview(Rows(SHAPE, rows).batch()).decode()
    target.execute(*script.removesuffix(";\n").split(";\n"))
    assert target.contents() == as_contents(SHAPE, rows)


def test_names_that_could_be_sql_reach_the_server_as_names(target: MsSqlTarget) -> None:
    """Also what ODBC itself would read in a statement: markers of parameters, and braces."""
    names = ("a]b", "c? {d 'x'} --", "[", "it's", "select")
    shape = replace(SHAPE, fields=tuple(Field(name, STRING) for name in names))
    destination = ready(target, shape)
    rows = [("k", "?", "{fn now()}", "[x]", "'; DROP TABLE people; --", None)]
    deliver(destination, Rows(shape, rows).batch())
    assert target.contents() == as_contents(shape, rows)
    assert list(destination.differing(Rows(shape, rows).batch())) == [()]


def test_every_statement_of_a_run_is_read_by_a_grammar_of_tsql(target: MsSqlTarget) -> None:
    shape = replace(SHAPE, deletes="delete", fields=(*FIELDS, Field("score", Type("float"))))
    destination = MsSql(target.options(create=True), shape)
    destination.check(HELD)
    destination.prepare(HELD)
    rows = Rows(shape, [(*row, 0.5) for row in sample(4)])
    deliver(destination, replace(rows.batch(), exclusive=True))
    deliver(destination, rows.batch("delete", last=1))
    list(destination.differing(rows.batch()))
    list(destination.scan())
    destination.resolve(rows.batch(run_id="run-9"), None)
    destination.close()
    sent = [found[1] for one in target.server.statements if (found := GUARDED.fullmatch(one))]
    words = ("SAVE ", "BEGIN ", "COMMIT ", "ROLLBACK ", "IF @@TRANCOUNT")  # which it knows only in part
    read_too = [one for one in sent if not one.startswith(words)]
    assert len(read_too) > 40
    for one in read_too:
        assert sqlglot.parse(one, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)


@pytest.mark.usefixtures("new")
def test_a_large_batch_is_several_statements_of_one_transaction(target: MsSqlTarget) -> None:
    destination = ready(target, connection={"timeout": 60})
    rows = [(f"k{n}", f"{n}'" * 50_000, None, n) for n in range(25)]
    deliver(destination, Rows(SHAPE, rows).batch())
    sent = [one for one in target.server.statements if "OPENJSON" in one]
    assert len(sent) > 2
    assert max(map(len, sent)) < 3 * PIECE
    assert target.contents() == as_contents(SHAPE, rows)


def test_many_refused_rows_are_not_one_list(target: MsSqlTarget) -> None:
    destination = ready(target, connection={"timeout": 60})
    rows = [(f"k{n}", "same", None, n) for n in range(1500)]
    twice = Rows(SHAPE, [*rows, *rows, ("other", None, None, 1)])
    found = deliver(destination, twice.batch())
    assert [one.code for one in found] == [*["KEY_COLLIDES"] * 3000, None]
    assert target.contents() == as_contents(SHAPE, [("other", None, None, 1)])


def test_a_question_is_answered_and_leaves_nothing_behind(target: MsSqlTarget) -> None:
    destination = ready(target)
    deliver(destination, Rows(SHAPE, sample(3)).batch())
    assert destination.ask(f"SELECT count(*) FROM {destination.relation}") == 3
    last = next(found[1] for one in reversed(target.server.statements) if (found := GUARDED.fullmatch(one)))
    assert last == "ROLLBACK TRANSACTION"


# what the table says


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("amount float, name nvarchar(max)", "amount is float"),
        ("amount decimal(12,1), name nvarchar(max)", "amount is decimal"),
        ("amount decimal(12,2), name nchar(9)", "name is nchar"),
        ("amount decimal(12,2), name xml", "name is xml"),
        ("name nvarchar(max)", r"amount is missing"),
        ("name nvarchar(max), amount decimal(12,2), due date NOT NULL", "due is NOT NULL"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_reason(
    target: MsSqlTarget, column: str, words: str
) -> None:
    target.execute(f"CREATE TABLE people (id nvarchar(9) PRIMARY KEY, visits bigint, {column})")
    with pytest.raises(Mismatch, match=words):
        MsSql(target.options(), SHAPE).check(VISIT)


def test_the_hint_for_a_missing_column_is_ddl_that_works(target: MsSqlTarget) -> None:
    target.execute("CREATE TABLE people (id nvarchar(9) PRIMARY KEY, visits bigint, name nvarchar(max))")
    with pytest.raises(Mismatch, match="amount is missing") as caught:
        MsSql(target.options(), SHAPE).check(VISIT)
    statement, _, rest = str(caught.value.hint).partition(";")
    assert "--full" in rest
    target.execute(statement)
    MsSql(target.options(), SHAPE).check(VISIT)


def test_keys_that_a_collation_takes_for_one_collide_and_a_new_spelling_is_a_change(
    target: MsSqlTarget,
) -> None:
    target.execute(
        "CREATE TABLE people (id nvarchar(9) PRIMARY KEY, name nvarchar(9), amount decimal(12,2), visits bigint)"
    )
    destination = ready(target)
    assert destination.folds == (("case", "trailing"),)
    rows = Rows(SHAPE, [("E", "one", None, 1), ("e ", "two", None, 2), ("b", "three", None, 3)])
    codes = [one.code for one in deliver(destination, rows.batch())]
    assert codes == ["KEY_COLLIDES", "KEY_COLLIDES", None]
    deliver(destination, Rows(SHAPE, [("b", "THREE ", None, 3)]).batch(run_id="run-2"))
    assert target.contents()["b",]["name"] == "THREE "


@pytest.mark.usefixtures("new")
def test_values_that_a_column_would_change_in_silence_are_rejects(target: MsSqlTarget) -> None:
    shape = replace(
        SHAPE,
        fields=(Field("name", STRING), Field("code", STRING), Field("score", Type("float"))),
    )
    target.execute(
        "CREATE TABLE people (id nvarchar(9) PRIMARY KEY, name nvarchar(3), code varchar(3), score float)"
    )
    rows = [
        ("k0", "abc", "abc", 0.5), ("k1", "abc ", None, None), ("k2", "a𝄞 ", None, None), ("k3", None, "é", None),
        ("k4", None, "abc ", None), ("k5", None, None, -0.0), ("k6", None, None, 5e-324), ("k7", "ab ", None, 1.0),
        ("k8", "abcd", None, None), ("k9", None, None, float("nan")), ("k10", "\x00", None, None),
    ]  # fmt: skip
    found = deliver(ready(target, shape), Rows(shape, rows).batch())
    inexact = "NOT_EXACT"
    assert [one.code for one in found] == [
        None, inexact, inexact, inexact, inexact, inexact, inexact, None, "22000", "22000", "22000",
    ]  # fmt: skip
    assert target.contents() == as_contents(shape, [rows[0], rows[7]])


def test_a_zone_is_utc_and_a_boolean_may_be_a_number(target: MsSqlTarget) -> None:
    fields = (Field("at", Type("timestamptz")), Field("flag", Type("boolean")))
    shape = replace(SHAPE, fields=fields)
    target.execute("CREATE TABLE people (id nvarchar(9) PRIMARY KEY, at datetime2(7), flag tinyint)")
    moment = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    deliver(ready(target, shape), Rows(shape, [("a", moment, True), ("b", None, False)]).batch())
    kept = [("a", "2026-01-01 10:00:00.000000", 1), ("b", None, 0)]
    assert target.execute("SELECT id, at, flag FROM [people]") == kept


def test_a_trigger_that_keeps_a_row_is_noticed(target: MsSqlTarget) -> None:
    target.make(SHAPE)
    target.server.trigger("BEFORE INSERT ON people WHEN NEW.id = 'k1' BEGIN SELECT RAISE(IGNORE); END")
    found = deliver(ready(target), Rows(SHAPE, sample(3)).batch())
    assert [one.code for one in found] == [None, "SWALLOWED", None]
    assert target.contents() == as_contents(SHAPE, [sample(3)[0], sample(3)[2]])


# errors


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (1205, Unavailable, "40001"),
        (1222, Unavailable, "55P03"),
        (40613, Unavailable, "57P03"),
        (10928, Unavailable, "57P03"),
        (229, Systemic, "42501"),
        (3906, Systemic, "25006"),
        (1105, Systemic, "53100"),
        (9999, Systemic, "MSSQL_9999"),
    ],
)
def test_an_error_says_what_delivery_does_next(
    target: MsSqlTarget, number: int, kind: type[TargetError], code: str
) -> None:
    destination, batch = ready(target), Rows(SHAPE, sample(2)).batch()
    target.server.script.append(("INSERT INTO #retl_stage", number))
    with pytest.raises(kind) as caught:
        destination.write(batch)
    assert caught.value.code == code
    assert target.contents() == {}
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2


@pytest.mark.parametrize(
    ("number", "words", "kind", "code"),
    [
        (4060, 'Cannot open database "d" requested by the login. The login failed.', Systemic, "3D000"),
        (18456, "Login failed for user 'writer'.", Systemic, "28000"),
        (40615, "Cannot open server 's' requested by the login. Client with IP address '10.0.0.1' is not allowed to access the server.", Systemic, "28000"),
        (40613, "Database 'd' on server 's' is not currently available. Please retry the connection later.", Unavailable, "57P03"),
        (40501, "The service is currently busy. Retry the request after 10 seconds.", Unavailable, "57P03"),
        (40197, "The service has encountered an error processing your request. Please try again.", Unavailable, "57P03"),
        (49918, "Cannot process request. Not enough resources to process request.", Unavailable, "57P03"),
        (10928, "Resource ID: 1. The request limit for the database is 60 and has been reached.", Unavailable, "57P03"),
    ],
)  # fmt: skip
def test_a_refused_login_says_what_to_do(
    target: MsSqlTarget, number: int, words: str, kind: type[TargetError], code: str
) -> None:
    target.server.refuses = Failure(number, words, 14)
    with pytest.raises(kind) as caught:
        target.make(SHAPE).check(VISIT)
    assert caught.value.code == code


def test_an_error_that_ends_the_transaction_divides_the_batch(target: MsSqlTarget) -> None:
    """A value that does not fit a column of the stage."""
    shape = replace(SHAPE, fields=(*FIELDS[:2], Field("visits", Type("integer"))))
    target.execute(
        "CREATE TABLE people (id nvarchar(9) PRIMARY KEY, name nvarchar(9), amount decimal(12,2), visits tinyint)"
    )
    rows = [*sample(2), ("big", None, None, 256), ("k3", None, None, 3)]
    destination = ready(target, shape)
    with pytest.raises(Poisoned):
        destination.write(Rows(shape, rows).batch())
    found = deliver(destination, Rows(shape, rows).batch())
    assert [one.code for one in found] == [None, None, "22000", None]
    assert target.contents() == as_contents(shape, [*sample(2), rows[3]])


def test_a_refused_commit_is_no_doubt_and_an_unknown_error_of_one_is(target: MsSqlTarget) -> None:
    destination, batch = ready(target), Rows(SHAPE, sample(1)).batch()
    destination.write(Rows(SHAPE, [("z", None, None, 1)]).batch(run_id="run-0"))
    target.server.script.append(("COMMIT TRANSACTION", 3930))
    with pytest.raises(Systemic):
        destination.write(batch)
    destination.write(Rows(SHAPE, [("z", None, None, 2)]).batch(run_id="run-1b"))
    target.server.script.append(("COMMIT TRANSACTION", 8888))
    with pytest.raises(Ambiguous):
        destination.write(batch)
    assert set(kinds(results(destination, batch, destination.resolve(batch, None)))) == {Kind.RETRY}
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN]


def test_a_table_that_is_gone_is_an_error_that_the_server_does_not_catch(target: MsSqlTarget) -> None:
    destination = ready(target)
    destination.write(Rows(SHAPE, sample(1)).batch())
    target.execute("DROP TABLE people")
    with pytest.raises(Systemic, match="no such table"):
        destination.write(Rows(SHAPE, sample(2)).batch(run_id="run-2"))


@pytest.mark.parametrize(
    "piece", ["INSERT INTO [dbo].[retl_applied]", "INSERT INTO #retl_stage", "SAVE TRANSACTION"]
)
def test_a_transaction_that_ended_in_silence_is_never_gone_on_without(
    target: MsSqlTarget, piece: str
) -> None:
    destination, batch = ready(target), Rows(SHAPE, sample(2)).batch()
    destination.write(Rows(SHAPE, [("z", None, None, 1)]).batch(run_id="run-0"))
    target.server.ends = piece
    with pytest.raises(Unavailable, match="ended our transaction"):
        destination.write(batch)
    assert target.contents().keys() == {("z",)}
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "late"])
def test_a_silent_network_keeps_neither_the_run_nor_a_thread(target: MsSqlTarget, stopped: bool) -> None:
    """The driver alone waits minutes: its socket is shut down."""
    others = hands()
    destination = ready(target, connection={"timeout": 60 if stopped else 1})
    batch = Rows(SHAPE, sample(1)).batch()
    destination.write(Rows(SHAPE, [("z", None, None, 1)]).batch(run_id="run-0"))
    assert len(hands() - others) == 1
    target.proxy.blackhole()
    if stopped:
        threading.Timer(0.1, destination.interrupt).start()
    with pytest.raises(Unavailable):
        destination.write(batch)
    assert hands() - others == set()
    target.proxy.heal()
    assert target.contents().keys() == {("z",)}


def hands() -> set[threading.Thread]:
    return {one for one in threading.enumerate() if isinstance(one, Hand)}


@pytest.mark.parametrize(
    ("level", "edition", "words"), [(120, 3, "COMPATIBILITY_LEVEL = 130"), (160, 11, "SQL Server, Azure SQL")]
)
def test_a_server_without_what_is_needed_is_refused(
    target: MsSqlTarget, level: int, edition: int, words: str
) -> None:
    target.server.edition = edition
    target.execute(f"UPDATE sys.databases SET compatibility_level = {level}")
    with pytest.raises(Systemic) as caught:
        target.make(SHAPE).check(VISIT)
    assert words in str(caught.value.hint)


def test_a_missing_right_is_named_with_its_grant(target: MsSqlTarget) -> None:
    ready(target)
    target.forbid()
    with pytest.raises(Systemic) as caught:
        target.make(SHAPE).check(VISIT)
    assert "GRANT INSERT ON [dbo].[people] TO" in str(caught.value.hint)


# one ledger at a time


def test_another_run_is_kept_out_until_the_first_has_ended(target: MsSqlTarget) -> None:
    first = ready(target, visit=HELD)
    other = target.make(replace(SHAPE, state_id="state-2"))
    with pytest.raises(Later, match=r"delivering to dbo\.people"):
        other.check(HELD)
    first.write(replace(Rows(SHAPE, sample(1)).batch(), exclusive=True))
    first.close()
    other.check(HELD)
    other.close()


def test_a_run_whose_lock_is_gone_writes_nothing_more(target: MsSqlTarget) -> None:
    destination = ready(target, visit=HELD)
    destination.write(replace(Rows(SHAPE, sample(1)).batch(), exclusive=True))
    target.server.locks.clear()
    with pytest.raises(Systemic, match="kept other ledgers away"):
        destination.write(replace(Rows(SHAPE, sample(2)).batch(run_id="run-2"), exclusive=True))
    destination.close()
    assert target.contents() == as_contents(SHAPE, sample(1))


def test_a_table_that_was_made_again_and_a_strange_ledger_are_seen(target: MsSqlTarget) -> None:
    ready(target).write(Rows(SHAPE, sample(1)).batch())
    assert target.make(replace(SHAPE, state_id="state-2")).check(VISIT).strangers  # type: ignore[union-attr]
    assert not target.make(SHAPE).check(VISIT).replaced  # type: ignore[union-attr]
    target.execute("DROP TABLE people")
    trace = target.make(SHAPE).check(VISIT)
    assert trace is not None
    assert trace.replaced == trace.batches != frozenset()


def test_no_error_tells_a_value_that_the_server_repeats(target: MsSqlTarget) -> None:
    target.execute(
        "CREATE TABLE people (id nvarchar(9) PRIMARY KEY, name nvarchar(30) UNIQUE, amount decimal(12,2), visits int)"
    )
    destination = ready(target)
    deliver(destination, Rows(SHAPE, [("a", CANARY, None, 1)]).batch())
    (found,) = deliver(destination, Rows(SHAPE, [("b", CANARY, None, 1)]).batch(run_id="run-2"))
    assert (found.kind, found.code) == (Kind.REJECTED, "23505")
    assert CANARY not in str(found)
