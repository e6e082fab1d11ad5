"""ClickHouse passes the suite on its engine, and keeps the promises that are its alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from decimal import Decimal
from struct import pack, unpack
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import Batch, Field, Kind, Mode, RowResult, Shape, Trace, Visit, WriteMode
from retl.destinations.clickhouse.adapter import ClickHouse, ClickHouseOptions
from retl.destinations.clickhouse.connection import ClickHouseConnection, Requests
from retl.errors import Ambiguous, DefinitionError, Mismatch, Poisoned, Systemic, TargetError, Unavailable
from retl.net.clickhouse import quoted
from retl.net.gate import Gate
from retl.testing.server import FakeApi
from retl.values.types import Type
from tests.clickhouse_server import READER, WRITER, Server
from tests.destinations.rows import Row, Rows
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
    sample,
    told,
)
from tests.proxy import Proxy

SHAPE = Shape("suite", "state-1", (Field("id", STRING),), FIELDS, "upsert", "delete")
POISON = "no such name "


def held(server: Server, table: str, shape: Shape, final: str = "FINAL") -> Contents:
    """What readers see, each value as JSON says it."""
    names = [one.name for one in (*shape.key, *shape.fields)]
    listed = ", ".join(
        f"{_shown(quoted(one.name), one.type)} AS {quoted(one.name)}" for one in (*shape.key, *shape.fields)
    )
    if not server.rows(f"SELECT 1 AS n FROM system.tables WHERE concat(database, '.', name) = '{table}'"):
        return {}
    found: Contents = {}
    for row in server.rows(f"SELECT {listed} FROM {table} {final}"):
        plain = {one.name: _plain(row[one.name], one.type) for one in (*shape.key, *shape.fields)}
        key = tuple(plain.pop(name) for name in names[: len(shape.key)])
        assert key not in found
        found[key] = plain
    return found


def _shown(at: str, type_: Type) -> str:
    """SQL of a value in the form of JSON; a float as its bits."""
    if type_.name in ("timestamp", "timestamptz"):
        return f"toString(CAST({at}, 'Nullable(DateTime64(6, \\'UTC\\'))'), 'UTC')"
    if type_ == Type("list", items="timestamp"):
        return f"arrayMap(e -> {_shown('e', type_.item)}, {at})"
    return {"decimal": f"toString({at})", "float": f"reinterpretAsUInt64({at})"}.get(type_.name, at)


def _plain(value: Any, type_: Type) -> Any:
    match type_.name:
        case _ if value is None:
            return None
        case "list":
            return [_plain(one, type_.item) for one in value]
        case "json":
            return json.loads(value, parse_float=Decimal)
        case "timestamp" | "timestamptz":
            day, _, time = value.partition(" ")
            return f"{day}T{time.removesuffix('.000000')}Z"
        case "float":
            (number,) = unpack("<d", pack("<Q", value))
            return json.loads(json.dumps(number), parse_float=Decimal)
        case "decimal":
            return Decimal(value)
        case _:
            return value


class ClickHouseTarget(Target):
    """A table of its own, reached through a proxy."""

    type = "clickhouse"
    commit = b"FORMAT%20Parquet"

    def __init__(self, server: Server, proxy: Proxy) -> None:
        self.server, self.proxy, self.account = server, proxy, WRITER
        self.shape, self.table = SHAPE, f"crm_{secrets.token_hex(6)}.users"

    def make(self, shape: Shape, *, secret: str | None = None, **options: Any) -> ClickHouse:
        self.shape = shape
        user, password = self.account
        connection = {
            "base_url": f"http://{self.proxy.host}:{self.proxy.port}",
            "user": user,
            "password": secret or password,
            "timeout": 1.5,
            "connect_timeout": 1,
        }
        made = {"connection": connection, "table": self.table, "create": True}
        return ClickHouse(ClickHouseOptions.model_validate(made | options), shape)

    def contents(self) -> Contents:
        return held(self.server, self.table, self.shape)

    def poison(self, row: Row) -> Row:
        add = f"ALTER TABLE {self.table} ADD CONSTRAINT IF NOT EXISTS fit CHECK name NOT LIKE '{POISON}%'"
        self.server.do(add)
        return (row[0], f"{POISON}{row[1]}", *row[2:])

    def forbid(self) -> None:
        self.account = READER

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        return None  # a row is one value: a table with columns of others is refused


@pytest.fixture
def proxy(clickhouse: Server) -> Iterator[Proxy]:
    with Proxy(clickhouse.host, clickhouse.port) as proxy:
        yield proxy


class TestUpsert(Suite):
    @pytest.fixture
    def target(self, clickhouse: Server, proxy: Proxy) -> Iterator[ClickHouseTarget]:
        made = ClickHouseTarget(clickhouse, proxy)
        yield made
        clickhouse.do(f"DROP DATABASE IF EXISTS {made.table.partition('.')[0]}")


# what no suite asks for


class Table:
    """A table of the test, reached directly."""

    def __init__(self, server: Server) -> None:
        self.server, self.database = server, f"crm_{secrets.token_hex(6)}"
        self.name = f"{self.database}.users"

    def make(self, shape: Shape = SHAPE, **options: Any) -> ClickHouse:
        connection = {"base_url": self.server.url, "user": WRITER[0], "password": WRITER[1]}
        made = {"connection": connection, "table": self.name, "create": True} | options
        return ClickHouse(ClickHouseOptions.model_validate(made), shape)

    def ready(self, epoch: int = 1, shape: Shape = SHAPE, *keep: str) -> ClickHouse:
        made = self.make(shape)
        visit = Visit(f"run-{epoch}", epoch, frozenset(keep))
        made.check(visit)
        made.prepare(visit)
        return made

    def by_others(self, made: str) -> None:
        """Somebody else makes it, with what stands behind its name."""
        self.server.do(f"CREATE DATABASE IF NOT EXISTS {self.database} ENGINE = Atomic")
        self.server.do(f"DROP TABLE IF EXISTS {self.name}")
        self.server.do(f"CREATE TABLE {self.name} {made}")

    def contents(self, shape: Shape = SHAPE) -> Contents:
        return held(self.server, self.name, shape)

    def count(self) -> int:
        """Rows on disk, those that were replaced among them, as far as nothing was merged yet."""
        return int(self.server.rows(f"SELECT count() AS n FROM {self.name}")[0]["n"])

    def versions(self) -> list[int]:
        return [
            one["n"]
            for one in self.server.rows(f"SELECT DISTINCT retl_version AS n FROM {self.name} ORDER BY n")
        ]

    def trace(self, epoch: int = 2, shape: Shape = SHAPE) -> Trace:
        found = self.make(shape).check(Visit(f"run-{epoch}", epoch, frozenset({"run-1"})))
        assert found is not None
        return found


@pytest.fixture
def table(clickhouse: Server) -> Iterator[Table]:
    made = Table(clickhouse)
    yield made
    clickhouse.do(f"DROP DATABASE IF EXISTS {made.database}")


def batch(run: int = 1, count: int = 3, first: int = 0, mode: Mode = "upsert", shape: Shape = SHAPE) -> Batch:
    rows = Rows(shape, sample(first + count))
    return replace(rows.batch(mode, first=first, run_id=f"run-{run}"), epoch=run)


def send(destination: ClickHouse, rows: list[Row], run: int = 1, mode: Mode = "upsert") -> list[RowResult]:
    made = Rows(destination.shape, rows).batch(mode, run_id=f"run-{run}")
    return deliver(destination, replace(made, epoch=run))


def test_a_batch_that_is_sent_again_is_the_same_rows_by_whatever_lane(table: Table) -> None:
    for one in (table.ready(), table.make(), table.make()):
        assert kinds(deliver(one, batch())) == [Kind.WRITTEN] * 3
        assert table.contents() == as_contents(SHAPE, sample(3))
    assert table.versions() == [1]
    table.server.do(f"OPTIMIZE TABLE {table.name} FINAL")
    assert table.count() == 3


def test_versions_rise_with_each_run_whatever_ledger_and_epoch_it_has(table: Table) -> None:
    for state, epoch in (("state-1", 7), ("state-1", 8), ("state-2", 3), ("state-1", 9)):
        send(table.ready(epoch, replace(SHAPE, state_id=state)), [("a", f"{state} {epoch}", None, 1)], epoch)
        assert table.contents()["a",]["name"] == f"{state} {epoch}"
    assert table.versions()[-1] == 4
    table.server.do(f"INSERT INTO {table.name} (id, name, retl_version) VALUES ('a', 'theirs', 900)")
    send(table.ready(10), [("a", "ours", None, 1)], 10)
    assert (table.contents()["a",]["name"], table.versions()[-1]) == ("ours", 901)
    table.server.do(f"TRUNCATE TABLE {table.name}")
    send(table.ready(11), [("a", "again", None, 1)], 11)
    assert table.versions() == [902]  # the marks still have the highest


def test_a_row_of_an_older_run_that_arrives_late_loses(table: Table) -> None:
    old = table.ready(1)
    send(old, [("a", "old", None, 1), ("b", "old", None, 1)])
    late = old._marks.began(batch(1), old._known())
    send(table.ready(2), [("a", "new", None, 2)], 2)
    send(table.ready(2), [("b",)], 2, "delete")
    for key in "ab":  # what was on its way when the older run died
        insert = f"INSERT INTO {table.name} (id, name, retl_version) VALUES ('{key}', 'late', {late.version})"
        table.server.do(insert)
    assert {key: row["name"] for (key,), row in table.contents().items()} == {"a": "new"}
    for one in (old, table.make()):  # the marks of its run are gone meanwhile
        with pytest.raises(Systemic) as fenced:
            one.write(batch(1))
        assert fenced.value.code == "VOIDED"
    with pytest.raises(Systemic, match="newer run"):
        table.make().prepare(Visit("run-1", 1))
    assert {key: row["name"] for (key,), row in table.contents().items()} == {"a": "new"}


def test_a_deleted_key_is_a_row_that_says_so_and_may_come_back(table: Table) -> None:
    send(table.ready(), sample(2))
    assert kinds(send(table.ready(2), [("k0",)], 2, "delete")) == [Kind.WRITTEN]
    assert list(table.contents()) == [("k1",)]
    gone = table.server.rows(f"SELECT id, name FROM {table.name} WHERE retl_deleted = 1")
    assert gone == [{"id": "k0", "name": None}]
    send(table.ready(3), [("k0", "back", None, 5)], 3)
    assert table.contents() == as_contents(SHAPE, [("k0", "back", None, 5), *sample(2)[1:]])
    table.server.do(f"OPTIMIZE TABLE {table.name} FINAL")
    assert table.contents() == as_contents(SHAPE, [("k0", "back", None, 5), *sample(2)[1:]])


def test_ledgers_that_begin_at_the_same_moment_have_versions_of_their_own(table: Table) -> None:
    table.ready()
    shapes = [replace(SHAPE, state_id=f"state-{n}") for n in range(4)]

    def begun(shape: Shape) -> int:
        for _ in range(20):
            try:
                one = table.make(shape)
                return one._marks.begin("run-9", 9, one._known()).version
            except Unavailable:
                continue
        raise AssertionError("it never began")

    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(begun, shapes))
    assert len(set(versions)) == 4
    assert min(versions) > 1


def test_what_others_did_to_the_table_is_noticed(table: Table) -> None:
    send(table.ready(), sample(3))
    deliver(table.make(), batch(first=3))
    mine = frozenset({("run-1", batch().id), ("run-1", batch(first=3).id)})
    assert table.trace() == Trace(batches=mine, epoch=1)
    assert table.trace(shape=replace(SHAPE, sync="other")).foreign == {"run-1"}
    assert table.trace(shape=replace(SHAPE, state_id="state-2")).strangers
    table.server.do(f"OPTIMIZE TABLE {table.name} FINAL")
    table.server.do(f"ALTER TABLE {table.name} UPDATE name = 'x' WHERE 1 SETTINGS mutations_sync = 2")
    assert table.trace().replaced == frozenset()  # the parts are others, and all rows are there
    table.server.do(f"TRUNCATE TABLE {table.name}")
    assert table.trace().replaced == mine
    deliver(table.make(), batch(first=6))
    assert table.trace().replaced == mine
    table.server.do(f"DROP TABLE {table.name}")
    assert table.trace().batches == frozenset()
    table.ready(2, SHAPE, "run-1")
    assert table.trace().replaced >= mine
    send(table.ready(3, replace(SHAPE, state_id="state-2")), sample(1), 3)
    assert table.trace().taken
    table.ready(4)
    assert (table.trace().batches, table.trace().epoch) == (frozenset(), 4)  # nobody looks for them any more


def test_a_table_in_the_place_of_another_is_noticed(table: Table) -> None:
    send(table.ready(), sample(3))
    table.server.do(f"CREATE TABLE {table.database}.copy AS {table.name}")
    table.server.do(f"INSERT INTO {table.database}.copy SELECT * FROM {table.name}")
    table.server.do(f"EXCHANGE TABLES {table.database}.copy AND {table.name}")
    assert table.trace().replaced == table.trace().batches != frozenset()


def test_a_server_that_dies_between_the_rows_and_their_mark_costs_nothing(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = table.ready()
    insert = destination._marks._insert

    def dies(**values: Any) -> None:
        table.server.kill()
        monkeypatch.undo()
        try:
            insert(**values)
        finally:
            table.server.start()

    monkeypatch.setattr(destination._marks, "_insert", dies)
    with pytest.raises(Ambiguous):
        destination.write(batch())
    assert table.contents() == as_contents(SHAPE, sample(3))
    assert table.trace().batches == frozenset()
    assert kinds(deliver(destination, batch())) == [Kind.WRITTEN] * 3
    assert table.contents() == as_contents(SHAPE, sample(3))
    assert len(table.trace().batches) == 1


ROWS = "(id String, name Nullable(String), amount Nullable(Decimal(12, 2)), visits Nullable(Int64)"
BY = "ENGINE = ReplacingMergeTree(v, gone) ORDER BY id"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (f"{ROWS}) ENGINE = MergeTree ORDER BY id", "is no ReplacingMergeTree with a version: MergeTree"),
        (f"{ROWS}) ENGINE = ReplacingMergeTree ORDER BY id", "is no ReplacingMergeTree with a version"),
        (f"{ROWS}, v DateTime) ENGINE = ReplacingMergeTree(v) ORDER BY id", "must be UInt64"),
        (f"{ROWS}, v UInt64) ENGINE = ReplacingMergeTree(v) ORDER BY id", "no column that says"),
        (
            f"{ROWS}, v UInt64, gone UInt8) {BY.replace('BY id', 'BY (id, lower(id))')}",
            "is sorted by id, lower",
        ),
        (f"{ROWS}, v UInt64, gone UInt8) {BY.replace('BY id', 'BY tuple()')}", "is sorted by nothing"),
        (
            f"{ROWS}, v UInt64, gone UInt8) {BY} PARTITION BY visits SETTINGS allow_nullable_key = 1",
            "is partitioned by visits",
        ),
        (f"{ROWS}, v UInt64, gone UInt8, score Int64) {BY}", "has a column score"),
        (f"{ROWS}, v UInt64, gone UInt8, at DateTime DEFAULT now()) {BY}", "has a column at"),
        (f"{ROWS.replace('Int64', 'Float64')}, v UInt64, gone UInt8) {BY}", "does not keep every integer"),
        (
            f"{ROWS.replace('Nullable(Int64)', 'Int64 MATERIALIZED 1')}, v UInt64, gone UInt8) {BY}",
            "visits of .* is MATERIALIZED",
        ),
        (
            f"{ROWS.replace(', visits Nullable(Int64)', '')}, visits UInt64, gone UInt8)"
            " ENGINE = ReplacingMergeTree(visits, gone) ORDER BY id",
            "sends visits, which is a column of the engine",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_a_mismatch(table: Table, made: str, words: str) -> None:
    table.by_others(made)
    with pytest.raises(Mismatch, match=words) as caught:
        table.make().check(VISIT)
    assert caught.value.code == "TARGET_DRIFT"
    assert caught.value.hint


def test_a_missing_table_or_column_is_refused_with_its_statement(table: Table) -> None:
    table.server.do(f"CREATE DATABASE {table.database} ENGINE = Atomic")
    with pytest.raises(Mismatch, match="there is no table") as caught:
        table.make(create=False).check(VISIT)
    table.server.do(str(caught.value.hint).partition(" or: ")[2])
    table.make(create=False).check(VISIT)
    wider = replace(SHAPE, fields=(*FIELDS, Field("more", Type("list", items="date"))))
    with pytest.raises(Mismatch, match="no column more") as caught:
        table.make(wider, create=False).check(VISIT)
    statement, _, then = str(caught.value.hint).partition("; ")
    assert "--full" in then
    table.server.do(statement)
    table.make(wider, create=False).check(VISIT)


def test_tables_of_others_with_computed_columns_partitions_and_odd_names_fit(table: Table) -> None:
    odd = "odd ` 'name"
    shape = replace(
        SHAPE, key=(Field("id", STRING), Field("day", Type("date"))), fields=(Field(odd, STRING),)
    )
    table.by_others(
        f"(id LowCardinality(String), day Date, {quoted(odd)} String, up String MATERIALIZED upper(id), v UInt64,"
        " gone UInt8, CONSTRAINT fit CHECK id != '') ENGINE = ReplacingMergeTree(v, gone) ORDER BY (day, id)"
        " PARTITION BY toYYYYMM(day)"
    )
    destination = table.ready(shape=shape)
    months = [date(2000 + n // 12, n % 12 + 1, 1) for n in range(150)]
    rows: list[Row] = [(f"k{n}", day, f"'{n}\\") for n, day in enumerate(months)]
    assert set(kinds(send(destination, rows))) == {Kind.WRITTEN}  # of so many partitions at once
    names = {(key, date.fromisoformat(day)): held for (key, day), held in table.contents(shape).items()}
    assert names == as_contents(shape, rows)
    assert list(destination.differing(Rows(shape, rows).batch())) == [()] * 150
    assert [
        one is not None
        for one in destination.read(Rows(shape, [*rows, ("k0", date(1999, 1, 1), "")]).batch())
    ] == [True] * 150 + [False]
    more: list[Row] = [
        ("a", date(1969, 12, 31), "x"),
        ("a", date(1970, 1, 1), None),
        ("", date(1970, 1, 1), "x"),
        ("a", date(1970, 1, 2), CANARY),
    ]
    found = send(destination, more, 1)
    assert [one.code for one in found] == ["NOT_EXACT", "NOT_EXACT", "23514", None]
    assert CANARY not in str(found)
    assert kinds(send(destination, [row[:2] for row in rows], 1, "delete")) == [Kind.WRITTEN] * 150
    assert set(table.contents(shape)) == {("a", "1970-01-02")}


def test_create_makes_the_table_and_later_its_columns(table: Table) -> None:
    send(table.ready(), sample(2))
    wider = replace(SHAPE, fields=(*FIELDS, Field("more", Type("timestamptz"))))
    assert list(table.make(wider).differing(Rows(wider, [(*sample(1)[0], None)]).batch())) == [()]
    destination = table.ready(2, wider)
    columns = destination.columns()
    assert columns is not None
    assert columns["more"] == "Nullable(DateTime64(6, 'UTC'))"
    assert (columns["retl_version"], columns["retl_deleted"]) == ("UInt64", "UInt8")
    for to in (Field("extra", STRING), "renamed", None):
        statement = destination.ddl("renamed" if to is None else "extra", to)
        assert statement is not None
        table.server.do(statement)
    assert destination.columns() == columns


def test_a_preview_is_the_statement_that_is_sent_and_its_rows(table: Table, clickhouse: Server) -> None:
    sent: list[str] = []
    destination = table.ready()
    asked = destination._requests.insert
    destination._requests.insert = lambda sql, body, **more: sent.append(sql) or asked(sql, body, **more)  # type: ignore[method-assign,func-returns-value]
    for one in (batch(), batch(mode="delete")):
        destination.write(one)
        statement, *lines = destination.preview(one).decode().splitlines()
        assert statement in sent
        assert [json.loads(line)["id"] for line in lines] == ["k0", "k1", "k2"]
    assert statement == table.make().preview(batch(mode="delete")).decode().splitlines()[0]


def test_a_run_that_was_asked_to_stop_sends_no_other_batch(table: Table) -> None:
    destination = table.ready()
    destination.interrupt()
    with pytest.raises(Unavailable):
        destination.write(batch())
    assert table.contents() == {}


@pytest.mark.parametrize("write", ["append", "insert_only", "update_only", "replace"])
def test_modes_that_cannot_be_exact_are_refused_with_a_way_out(table: Table, write: WriteMode) -> None:
    with pytest.raises(DefinitionError, match=f"cannot {write} exactly") as caught:
        table.make(replace(SHAPE, write=write, deletes="keep"))
    assert "write: upsert" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table": "a.b.c"}, "database.table"),
        ({"connection": {"base_url": "http://db.internal:8123"}}, "must be https"),
        ({"connection": {"base_url": "https://db", "user": "é"}}, "printable ASCII"),
        ({"version": "v"}, "Extra inputs"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ClickHouseOptions.model_validate(
            {"connection": {"base_url": "https://db"}, "table": "users"} | options
        )


def test_a_place_is_server_and_table_and_never_a_secret() -> None:
    connection = {"base_url": "https://DB.internal:8443/x/", "password": CANARY, "database": "crm"}
    places = {
        ClickHouse.place(ClickHouseOptions.model_validate({"connection": connection, "table": one}), "upsert")
        for one in ("users", "crm.users", '"crm"."users"')
    }
    assert places == {"clickhouse:https://db.internal:8443/x/crm.users"}


ANSWERS = {
    "516": Systemic, "497": Systemic, "164": Systemic, "60": Systemic, "62": Systemic, "243": Systemic,
    "252": Unavailable, "202": Unavailable, "242": Unavailable,
    "319": Ambiguous, "159": Ambiguous, "241": Ambiguous, "33": Ambiguous, "999": Ambiguous,
    "469": Poisoned, "321": Poisoned, "349": Poisoned,
}  # fmt: skip
STATUSES = {429: Unavailable, 503: Unavailable, 502: Ambiguous, 500: Ambiguous, 404: Systemic, 302: Systemic}


class Refusing(FakeApi):
    """Answers every request with one status and code."""

    status, code = 500, ""

    def serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        said = {"X-ClickHouse-Exception-Code": self.code} if self.code else {}
        text = f"Code: {self.code}. DB::Exception: {CANARY}. (SOME_NAME) (version 26.5.1)"
        return self.status, (text.encode(), {**said, "Content-Type": "text/plain"})


@pytest.mark.parametrize(("answer", "kind"), [*ANSWERS.items(), *STATUSES.items()])
def test_errors_are_what_they_are_and_quote_nothing(answer: str | int, kind: type[TargetError]) -> None:
    with Refusing() as api:
        api.status, api.code = (answer, "") if isinstance(answer, int) else (500, answer)
        connection = ClickHouseConnection.model_validate({"base_url": api.url})
        requests = Requests(connection, Gate())
        with pytest.raises(kind) as caught:
            requests.insert("INSERT INTO x FORMAT Parquet", b"rows")
        assert CANARY not in told(caught.value)
        with pytest.raises((Systemic, Unavailable, Poisoned)):  # who only reads is never in doubt
            requests.ask("SELECT 1")
        requests.close()
