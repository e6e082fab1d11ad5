"""MySQL and MariaDB pass the suite in each write mode, and keep the promises that are theirs alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pytest
from msgspec.structs import replace

from retl.destinations.batch import Field, Kind, Shape, Visit, WriteMode
from retl.destinations.mysql.adapter import MySQL, MySQLOptions
from retl.destinations.mysql.dialect import MySQLDialect
from retl.destinations.mysql.session import MySQLSession
from retl.errors import DefinitionError, Later, Mismatch, Systemic, Unavailable
from retl.net.mysql import MySQLConnection
from retl.values.cells import literal_sql
from retl.values.storage import storage_type
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
    sample,
)
from tests.destinations.tables import TableSuite
from tests.mysql_server import MySQLDatabase, fresh
from tests.proxy import Proxy
from tests.test_lossless_pairs import VALUES
from tests.test_lossless_tables import bent, is_same, told

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS)
DIALECT = MySQLDialect()
HELD = Visit("run-1", 1, exclusive=True)
WRITER, SECRET = "writer", "its-own-secret"


class MySQLTarget(Target):
    """An account with the documented rights and no other."""

    type = "mysql"
    counts_all = False
    commit = b"\3COMMIT"

    def __init__(self, database: MySQLDatabase, proxy: Proxy, write: WriteMode = "upsert") -> None:
        self.database, self.proxy, self.write, self.shape = database, proxy, write, SHAPE
        self.user = f"{WRITER}@'%'"
        self.execute(
            f"CREATE OR REPLACE USER {self.user} IDENTIFIED BY '{SECRET}'",
            f"GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, TRIGGER, CREATE TEMPORARY TABLES ON"
            f" {database.dbname}.* TO {self.user}",
        )

    def options(self, **changes: Any) -> MySQLOptions:
        account = {"user": WRITER, "password": SECRET, "dbname": self.database.dbname}
        server = {"host": self.proxy.host, "port": self.proxy.port, "timeout": 1, "connect_timeout": 1}
        connection = server | account | changes.pop("connection", {})
        return MySQLOptions.model_validate({"connection": connection, "table": "people"} | changes)

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> MySQL:
        self.shape = shape
        listed = [
            f"{DIALECT.quoted(f.name)} {DIALECT.ddl(f.type, key=f in shape.key)}"
            for f in (*shape.key, *shape.fields)
        ]
        check = ", CHECK (visits IS NULL OR visits >= 0)" if FIELDS[-1] in shape.fields else ""
        key = ", ".join(DIALECT.quoted(f.name) for f in shape.key)
        self.execute(
            f"CREATE TABLE IF NOT EXISTS people ({', '.join(listed)}, theirs TEXT DEFAULT 'nobody',"
            f" PRIMARY KEY ({key}){check})"
        )
        connection = {"password": secret or SECRET} | changes.pop("connection", {})
        return MySQL(self.options(connection=connection, **changes), shape)

    def execute(self, *statements: str) -> list[Row]:
        """As somebody else; the rows of the last."""
        return self.database.execute(*statements)

    def contents(self) -> Contents:
        fields = (*self.shape.key, *self.shape.fields)
        found: Contents = {}
        for row in self.execute(f"SELECT {', '.join(DIALECT.quoted(f.name) for f in fields)} FROM people"):
            values = [read(value, f.type) for value, f in zip(row, fields, strict=True)]
            pairs = zip(fields[1:], values[1:], strict=True)
            found[(values[0],)] = {f.name: plain(value, f.type) for f, value in pairs}
        return found

    def poison(self, row: Row) -> Row:
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.execute(
            f"REVOKE ALL ON {self.database.dbname}.* FROM {self.user}",
            f"GRANT SELECT, CREATE TEMPORARY TABLES ON {self.database.dbname}.* TO {self.user}",
        )

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        self.execute(f"UPDATE people SET theirs = 'a note' WHERE id = '{key[0]}'")
        query = f"SELECT theirs = 'a note' FROM people WHERE id = '{key[0]}'"
        return lambda: self.execute(query) == [(1,)]


def read(value: Any, type_: Type) -> Any:
    """What MySQL holds as the value that it stands for."""
    if value is None:
        return None
    match type_.name:
        case "boolean":
            return bool(value)
        case "uuid":
            return UUID(value)
        case "timestamptz":
            return value.replace(tzinfo=UTC)
        case "list":
            return json.loads(value)
        case _:
            kinds = {"integer": int, "float": float, "decimal": Decimal, "date": date, "timestamp": datetime}
            assert isinstance(value, kinds.get(type_.name, str))
            return value


@pytest.fixture(params=[False, True], ids=["known", "new"])
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch says of its rows being new changes nothing but the way they take."""
    monkeypatch.setattr(Rows, "new", request.param)


class TestUpsert(Suite, TableSuite):
    kind = MySQL

    @pytest.fixture
    def target(self, mysql: MySQLDatabase) -> Iterator[MySQLTarget]:
        yield from target_of(mysql, "upsert")


if os.environ.get("RETL_TEST_ALL"):  # what differs from an upsert is shared with SQLite, which always runs it

    class TestAppend(Suite):
        @pytest.fixture
        def target(self, mysql: MySQLDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[MySQLTarget]:
            monkeypatch.setattr(Rows, "new", True)
            yield from target_of(mysql, "append")


def target_of(database: MySQLDatabase, write: WriteMode) -> Iterator[MySQLTarget]:
    with Proxy(database.host, database.port) as proxy:
        yield MySQLTarget(database, proxy, write)


@pytest.fixture
def target(mysql: MySQLDatabase) -> Iterator[MySQLTarget]:
    yield from target_of(mysql, "upsert")


def ready(target: MySQLTarget, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> MySQL:
    destination = target.make(shape, **options)
    destination.check(visit)
    destination.prepare(visit)
    return destination


# modes


def test_a_preview_is_a_script_that_does_what_a_run_does(target: MySQLTarget) -> None:
    destination = ready(target)
    rows = [("a", "it's \\' ; \"", Decimal("1.50"), 1), ("b", None, None, None)]
    script = destination.preview(Rows(SHAPE, rows).batch()).decode()
    target.execute(*filter(str.strip, script.split(";\n")))
    assert target.contents() == as_contents(SHAPE, rows)


def test_a_replaced_row_is_new_and_a_refused_one_stays_as_it_was(target: MySQLTarget) -> None:
    shape = replace(SHAPE, write="replace")
    destination = ready(target, shape)
    deliver(destination, Rows(shape, sample(2)).batch("replace"))
    target.execute("UPDATE people SET theirs = 'a note'")
    changed = [("k0", "new", None, 7), ("k1", "bad", None, -1)]
    found = deliver(destination, Rows(shape, changed).batch("replace", run_id="run-2"))
    assert [one.code for one in found] == [None, "23514"]
    assert target.contents() == as_contents(shape, [changed[0], sample(2)[1]])
    assert target.execute("SELECT theirs FROM people ORDER BY id") == [("nobody",), ("a note",)]


# what the table says


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("amount FLOAT, name TEXT", "amount is float"),
        ("amount DECIMAL(12,1), name TEXT", "amount is decimal"),
        ("amount DECIMAL(12,2), name CHAR(9)", "name is char"),
        ("amount DECIMAL(12,2), name TEXT CHARACTER SET sjis", "name is text"),
        ("name TEXT", "amount is missing"),
        ("name TEXT, amount DECIMAL(12,2), due DATE NOT NULL", "due is NOT NULL"),
        ("name TEXT, base DECIMAL(12,2), amount DECIMAL(12,2) AS (base) STORED", "generates column amount"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_reason(
    target: MySQLTarget, column: str, words: str
) -> None:
    target.execute(f"CREATE TABLE people (id VARCHAR(9) PRIMARY KEY, visits BIGINT, {column})")
    with pytest.raises(Mismatch, match=words):
        MySQL(target.options(), SHAPE).check(VISIT)


@pytest.mark.parametrize("table", ["people", "retl_applied"])
def test_a_table_without_transactions_is_refused(target: MySQLTarget, table: str) -> None:
    target.execute(f"CREATE TABLE {table} (id INT) ENGINE = MyISAM")
    with pytest.raises(
        Mismatch, match=f"{table}`? is a table of MyISAM, which has no transactions"
    ) as caught:
        target.make(SHAPE).check(VISIT)
    target.execute(str(caught.value.hint))
    assert target.execute(f"SHOW CREATE TABLE {table}")[0][1].count("InnoDB") == 1


def test_a_view_and_a_table_without_a_key_are_refused(target: MySQLTarget) -> None:
    target.execute("CREATE TABLE t (id VARCHAR(9), name TEXT, amount DECIMAL(12,2), visits BIGINT)")
    with pytest.raises(Mismatch, match="no unique index") as caught:
        MySQL(target.options(table="t"), SHAPE).check(VISIT)
    target.execute(str(caught.value.hint).removesuffix(";"))
    MySQL(target.options(table="t"), SHAPE).check(VISIT)
    target.execute("CREATE VIEW people AS SELECT * FROM t")
    with pytest.raises(Mismatch, match="is a view"):
        MySQL(target.options(), SHAPE).check(VISIT)


def test_deletes_that_would_cascade_need_a_word(target: MySQLTarget) -> None:
    shape = replace(SHAPE, deletes="delete")
    target.make(shape)
    target.execute(
        "CREATE TABLE orders (p VARCHAR(255) COLLATE utf8mb4_bin, FOREIGN KEY (p) REFERENCES people (id) ON DELETE SET NULL)"
    )
    with pytest.raises(Mismatch, match=r"orders \(ON DELETE SET NULL\)"):
        MySQL(target.options(), shape).check(VISIT)
    MySQL(target.options(), replace(shape, cascade=True)).check(VISIT)


def test_keys_that_a_collation_takes_for_one_collide_and_a_new_spelling_is_a_change(
    target: MySQLTarget,
) -> None:
    target.execute(
        "CREATE TABLE people (id VARCHAR(9) PRIMARY KEY, name TEXT, amount DECIMAL(12,2), visits BIGINT)"
        " COLLATE utf8mb4_general_ci"
    )
    destination = ready(target)
    assert destination.folds == (("accents", "case", "trailing"),)
    rows = Rows(SHAPE, [("É", "one", None, 1), ("e ", "two", None, 2), ("b", "three", None, 3)])
    codes = [one.code for one in deliver(destination, rows.batch())]
    assert codes == ["KEY_COLLIDES", "KEY_COLLIDES", None]
    deliver(destination, Rows(SHAPE, [("b", "THREE ", None, 3)]).batch(run_id="run-2"))
    assert target.contents()["b",]["name"] == "THREE "


@pytest.mark.usefixtures("new")
def test_values_that_a_column_would_change_in_silence_are_rejects(target: MySQLTarget) -> None:
    shape = replace(
        SHAPE,
        fields=(
            Field("name", STRING),
            Field("kind", STRING),
            Field("score", Type("float")),
            Field("at", Type("timestamptz")),
        ),
    )
    target.execute(
        "CREATE TABLE people (id VARCHAR(9) PRIMARY KEY, name VARCHAR(3), kind ENUM('a', 'it''s'), score DOUBLE,"
        " at TIMESTAMP(6) NOT NULL)"
    )
    good = (None, None, None, datetime(2026, 1, 1, tzinfo=UTC))
    bad = {0: "abc ", 1: "A", 2: -0.0, 3: None}
    rows = [("k", "abc", "it's", 0.0, good[3])]
    rows += [(f"k{n}", *(bad[n] if n == at else one for at, one in enumerate(good))) for n in bad]
    rows.append(("late", None, None, None, datetime(2040, 1, 1, tzinfo=UTC)))
    found = deliver(ready(target, shape), Rows(shape, rows).batch())
    assert [one.code for one in found] == [None, *["NOT_EXACT"] * 4, "22000"]
    assert target.contents() == as_contents(shape, rows[:1])


def test_a_zero_is_no_request_for_the_next_number(target: MySQLTarget) -> None:
    shape = replace(SHAPE, key=(Field("id", Type("integer")),))
    target.execute(
        "CREATE TABLE people (id INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, name TEXT, amount DECIMAL(12,2),"
        " visits BIGINT UNSIGNED)"
    )
    rows = [(0, "zero", None, 2**64 - 1), (1, "one", None, -1), (2**32, "wide", None, 1), (2, "two", None, 1)]
    found = deliver(ready(target, shape), Rows(shape, rows).batch())
    assert [one.code for one in found] == [None, "22000", "22000", None]
    assert target.contents() == as_contents(shape, [rows[0], rows[3]])


def test_a_trigger_that_keeps_moves_or_refuses_a_row_is_noticed(target: MySQLTarget) -> None:
    target.make(SHAPE)
    target.execute(
        "CREATE TRIGGER moved BEFORE INSERT ON people FOR EACH ROW SET NEW.id = IF(NEW.id = 'k2', 'elsewhere', NEW.id)",
        "CREATE TRIGGER kept BEFORE UPDATE ON people FOR EACH ROW BEGIN IF NEW.name = 'no' THEN SET NEW.name = OLD.name;"
        " ELSEIF NEW.name = 'stop' THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'k1', MYSQL_ERRNO = 1690; END IF; END",
    )
    destination = ready(target)
    found = deliver(destination, Rows(SHAPE, sample(4)).batch())
    assert [one.code for one in found] == [None, None, "KEY_CHANGED", None]
    changed = [("k0", "no", Decimal(0), 0), ("k1", "stop", None, 1), ("k3", "yes", None, 3)]
    found = deliver(destination, Rows(SHAPE, changed).batch(run_id="run-2"))
    assert [one.code for one in found] == ["SWALLOWED", "P0001", None]
    assert target.contents() == as_contents(SHAPE, [*sample(2), changed[2]])


def test_without_the_right_to_see_triggers_rows_are_compared(target: MySQLTarget) -> None:
    target.make(SHAPE)
    target.execute(
        "CREATE TRIGGER moved BEFORE INSERT ON people FOR EACH ROW SET NEW.id = CONCAT(NEW.id, '!')",
        f"REVOKE TRIGGER ON {target.database.dbname}.* FROM {target.user}",
    )
    found = deliver(ready(target), Rows(SHAPE, sample(1)).batch())
    assert [one.code for one in found] == ["KEY_CHANGED"]


def test_a_row_that_another_table_needs_and_a_partition_that_is_missing_are_judged(
    target: MySQLTarget,
) -> None:
    target.execute(
        "CREATE TABLE people (id VARCHAR(9) PRIMARY KEY, name TEXT, amount DECIMAL(12,2), visits BIGINT)"
        " PARTITION BY RANGE COLUMNS (id) (PARTITION p VALUES LESS THAN ('m'))",
        "CREATE TABLE others (id VARCHAR(9) PRIMARY KEY, name VARCHAR(9), amount DECIMAL(12,2), visits BIGINT,"
        " FOREIGN KEY (name) REFERENCES others (id))",
    )
    found = deliver(ready(target), Rows(SHAPE, [("z", None, None, 1), ("a", None, None, 1)]).batch())
    assert [one.code for one in found] == ["23514", None]
    destination = MySQL(target.options(table="others"), SHAPE)
    destination.check(VISIT)
    destination.prepare(VISIT)
    rows = Rows(SHAPE, [("a", "a", None, 1), ("b", "nobody", None, 1)])
    found = deliver(destination, rows.batch(run_id="run-2"))
    assert [one.code for one in found] == [None, "23503"]


# the session


def test_what_the_server_has_set_otherwise_changes_nothing(target: MySQLTarget) -> None:
    former = target.execute("SELECT @@GLOBAL.sql_mode, @@GLOBAL.time_zone")[0]
    target.execute("SET GLOBAL sql_mode = 'ANSI_QUOTES'", "SET GLOBAL time_zone = '+05:00'")
    shape = replace(SHAPE, fields=(Field("name", STRING), Field("at", Type("timestamptz"))))
    target.execute("CREATE TABLE people (id VARCHAR(3) PRIMARY KEY, name TEXT, at TIMESTAMP(6) NULL)")
    rows = [("a", "it's \\' \" `", datetime(2026, 1, 1, 12, tzinfo=UTC)), ("long", "x", None)]
    try:
        found = deliver(ready(target, shape), Rows(shape, rows).batch())
    finally:
        target.execute(
            f"SET GLOBAL sql_mode = '{former[0]}'",
            f"SET GLOBAL time_zone = '{former[1]}'",
            "SET time_zone = '+00:00'",
        )
    assert [one.code for one in found] == [None, "22000"]
    query = "SELECT name, UNIX_TIMESTAMP(at) FROM people"
    assert target.execute(query) == [(rows[0][1], Decimal("1767268800.000000"))]


def test_a_row_larger_than_a_packet_is_a_reject_and_the_others_arrive(target: MySQLTarget) -> None:
    destination = ready(target)
    destination.write(Rows(SHAPE, sample(1)).batch())
    lane, packet = destination._lane, 100_000
    assert isinstance(lane, MySQLSession)
    assert [(lane._largest + 1024,)] == target.execute("SELECT @@max_allowed_packet")
    lane._largest = packet
    rows = [("a", "x" * (packet - 1000), None, 1), ("b", "x" * packet, None, 1), ("c", "small", None, 1)]
    found = deliver(destination, Rows(SHAPE, rows).batch(run_id="run-2"))
    assert [one.code for one in found] == [None, "54000", None]


def test_a_lock_that_somebody_holds_is_waited_for_and_no_deadlock_is_an_end(target: MySQLTarget) -> None:
    import MySQLdb

    destination = ready(target)
    deliver(destination, Rows(SHAPE, sample(2)).batch())
    database = target.database
    other = MySQLdb.connect(
        host=database.host, port=database.port, user=database.user, password=database.password, database=database.dbname
    )  # fmt: skip
    try:
        other.query("UPDATE people SET theirs = 'mine' WHERE id = 'k1'")
        with pytest.raises(Unavailable):
            destination.write(Rows(SHAPE, sample(2, "new")).batch(run_id="run-2"))
        other.query("ROLLBACK")
    finally:
        other.close()
    assert destination.write(Rows(SHAPE, sample(2, "new")).batch(run_id="run-3")).default.kind is Kind.WRITTEN


def test_batches_of_several_syncs_do_not_wait_for_each_other(target: MySQLTarget) -> None:
    first = ready(target)
    target.execute("CREATE TABLE others LIKE people")
    shape = replace(SHAPE, sync="others")
    second = MySQL(target.options(table="others"), shape)
    second.check(VISIT)
    second.prepare(VISIT)
    session, batch = first._open(), Rows(SHAPE, sample(1)).batch()
    with session.transaction(write=True):
        assert session.change(first._sql.mark(batch, 0, "")) == 1
        for run_id in ("run-0", "run-2"):  # before and behind it in the table of marks
            others = Rows(shape, sample(2)).batch(run_id=run_id)
            assert second.write(others).default.kind is Kind.WRITTEN
    second.close()


def test_a_name_has_one_place_however_it_is_spelled(target: MySQLTarget) -> None:
    with pytest.raises(ValueError, match="64 characters"):
        target.options(table="a" * 65)
    with pytest.raises(DefinitionError, match="64 characters"):
        MySQL(target.options(), replace(SHAPE, fields=(Field("a ", STRING),)))
    assert MySQL.place(target.options(table="PEOPLE", connection={"host": "localhost"}), "upsert") == (
        MySQL.place(target.options(), "upsert")
    )


@pytest.mark.parametrize("host", ["db.example.com", "127.0.0.1"])
def test_tls_is_verified_off_the_loopback(host: str, target: MySQLTarget) -> None:
    mode = target.options(connection={"host": host}).connection.keywords()["ssl_mode"]
    assert mode == ("VERIFY_IDENTITY" if "example" in host else "PREFERRED")


# one ledger at a time


def test_another_ledger_is_kept_out_until_the_first_has_ended(target: MySQLTarget) -> None:
    first = ready(target, visit=HELD)
    other = target.make(replace(SHAPE, state_id="state-2"))
    with pytest.raises(Later, match="another ledger"):
        other.check(HELD)
    lane = MySQL(first.options, SHAPE)
    lane.write(replace(Rows(SHAPE, sample(1)).batch(), exclusive=True))
    first.close()
    with pytest.raises(Systemic, match="kept other ledgers away"):
        lane.write(replace(Rows(SHAPE, sample(2)).batch(run_id="run-2"), exclusive=True))
    other.check(HELD)
    with pytest.raises(Systemic, match="kept other ledgers away"):
        lane.write(replace(Rows(SHAPE, sample(2)).batch(run_id="run-3"), exclusive=True))
    other.close()
    assert target.contents() == as_contents(SHAPE, sample(1))


def test_a_session_without_a_client_does_not_keep_its_own_ledger_out(target: MySQLTarget) -> None:
    gone = ready(target, visit=HELD)
    assert gone._guard is not None
    successor = target.make(SHAPE)
    successor.check(HELD)
    successor.write(replace(Rows(SHAPE, sample(1)).batch(), exclusive=True))
    successor.close()


# marks


def test_a_table_that_was_made_anew_and_a_strange_ledger_are_seen(target: MySQLTarget) -> None:
    ready(target).write(Rows(SHAPE, sample(1)).batch())
    assert target.make(replace(SHAPE, state_id="state-2")).check(VISIT).strangers  # type: ignore[union-attr]
    assert not target.make(SHAPE).check(VISIT).replaced  # type: ignore[union-attr]
    target.execute("DROP TABLE people", "DO SLEEP(1.1)")  # its age is known to the second
    trace = target.make(SHAPE).check(VISIT)
    assert trace is not None
    assert trace.replaced == trace.batches != frozenset()


def test_no_error_tells_a_value_that_the_server_repeats(target: MySQLTarget) -> None:
    target.make(SHAPE)
    target.execute("ALTER TABLE people ADD UNIQUE (name(50))")
    destination = ready(target)
    deliver(destination, Rows(SHAPE, [("a", CANARY, None, 1)]).batch())
    (found,) = deliver(destination, Rows(SHAPE, [("b", CANARY, None, 1)]).batch(run_id="run-2"))
    assert (found.kind, found.code) == (Kind.REJECTED, "23505")
    assert CANARY not in str(found)


# values


TYPES = (
    *("TINYINT", "TINYINT UNSIGNED", "SMALLINT", "MEDIUMINT", "INT", "INT UNSIGNED", "BIGINT", "BIGINT UNSIGNED", "BIT(1)"),
    *("BIT(9)", "BOOLEAN", "YEAR", "FLOAT", "DOUBLE", "DOUBLE(12,2)", "DECIMAL(12,2)", "DECIMAL(12,1)", "DECIMAL(38,10)"),
    *("DECIMAL(5,0)", "DATE", "TIME", "DATETIME", "DATETIME(6)", "TIMESTAMP NULL", "TIMESTAMP(6) NULL", "CHAR(3)", "CHAR(36)"),
    *("VARCHAR(3)", "VARCHAR(400)", "VARCHAR(40) CHARACTER SET latin1", "VARBINARY(40)", "TINYTEXT", "TEXT", "LONGTEXT"),
    *("LONGTEXT CHARACTER SET utf8mb3", "BLOB", "JSON", "UUID", "INET6", "ENUM('abc', '')", "SET('abc', ' ')"),
)  # fmt: skip


NARROW = ("VARCHAR(3)", "JSON", "ENUM('abc', '')")  # a type may have no value here that they take


@pytest.fixture(scope="module")
def pairs(session_mysql: MySQLDatabase) -> Iterator[MySQLSession]:
    """A session with a table that has a column of every type."""
    with fresh(session_mysql) as database:
        listed = ", ".join(f"v{n} {declared}" for n, declared in enumerate(TYPES))
        database.execute(f"CREATE TABLE pair (n INT, {listed})")
        keys = {name: getattr(database, name) for name in ("host", "port", "user", "password", "dbname")}
        session = MySQLSession(MySQLConnection(**keys), write=True)
        yield session
        session.close()


@pytest.mark.parametrize("type", VALUES, ids=str)
def test_no_value_of_a_pair_that_is_accepted_is_altered(pairs: MySQLSession, type: Type) -> None:
    table = pairs.table(DIALECT.relation("pair"))
    assert table is not None
    field = Field("v", type)
    columns = [
        one for one in table.columns.values() if one.name != "n" and DIALECT.holds(one, field, key=False)
    ]
    assert DIALECT.ddl(type, key=False).partition(" CHAR")[0] in {
        re.sub(r"^(bigint|tinyint)\(\d+\)", r"\1", one.type).replace("tinyint", "boolean") for one in columns
    } or type.name == "decimal"  # fmt: skip
    (form,) = {DIALECT.cell(field, column) for column in columns}
    with duckdb.connect() as duck:
        duck.execute("SET timezone = 'UTC'")
        given = [f"CAST({sql} AS {storage_type(type)})" for sql in VALUES[type]]
        made = [duck.execute(f"SELECT {literal_sql(type, form, one)}").fetchall()[0][0] for one in given]
        sources = [told(duck, type, sql) for sql in VALUES[type]]
        bends = [bent(duck, DIALECT.bends(field, column), given) for column in columns]
    for column, altered in zip(columns, bends, strict=True):
        sent = [n for n in range(len(made)) if n not in altered]
        arrived = {n for n in sent if stored(pairs, column.name, n, made[n])}
        shown = f"{column.name} + 0" if column.type == "bit(1)" else column.name
        shown = f"CONCAT({shown}, '+00:00')" if type.name == "timestamptz" else shown
        held = dict(pairs.rows(f"SELECT n, {shown} FROM pair"))
        pairs.change("DELETE FROM pair")
        assert held.keys() == arrived
        for n, value in held.items():
            assert is_same(type, sources[n], value), (column.type, VALUES[type][n], value)
        assert arrived or TYPES[int(column.name[1:])] in NARROW, column.type


def stored(pairs: MySQLSession, column: str, number: int, made: str) -> bool:
    """Whether the column takes the value; it may refuse it, by an error that is about the row."""
    try:
        pairs.change(f"INSERT INTO pair (n, {column}) VALUES ({number}, {made})")
    except pairs.errors as error:
        if pairs.refusal(error) is None:
            raise
        return False
    return True


@pytest.mark.parametrize(
    ("type", "column", "literal", "kept"),
    [
        ("decimal", "DECIMAL(12,1)", "1.05", "1.1"),
        ("string", "CHAR(3)", "'a '", "a"),
        ("string", "VARCHAR(3)", "'abc  '", "abc"),
        ("string", "ENUM('abc', '')", "'ABC'", "abc"),
        ("timestamp", "DATETIME", "'2026-01-01 00:00:00.5'", "2026-01-01 00:00:00"),
        ("float", "DOUBLE", "-0.0e0", 0.0),
    ],
)
def test_what_is_not_accepted_would_be_altered(
    pairs: MySQLSession, type: str, column: str, literal: str, kept: Any
) -> None:
    name = f"v{TYPES.index(column)}"
    pairs.change(f"INSERT INTO pair (n, {name}) VALUES (1, {literal})")
    found = pairs.rows(f"SELECT {name} FROM pair")
    pairs.change("DELETE FROM pair")
    assert found == [(kept,)]


def test_a_server_cannot_ask_for_a_file_of_this_machine(target: MySQLTarget, tmp_path: Path) -> None:
    """LOAD DATA LOCAL stands for a server that asks: it is its answer that names the file."""
    destination = ready(target)
    destination.write(Rows(SHAPE, sample(1)).batch())
    lane = destination._lane
    assert isinstance(lane, MySQLSession)
    (tmp_path / "secret").write_text("secret\n")
    with pytest.raises(lane.errors):
        lane.change(f"LOAD DATA LOCAL INFILE '{tmp_path}/secret' INTO TABLE people (id)")
    assert target.contents() == as_contents(SHAPE, sample(1))
