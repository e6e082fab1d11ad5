"""Tables that an application made: columns, keys and triggers that retl would never have chosen.

A value arrives as it is, or its row is refused alone; the table stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from retl.destinations.batch import ABSENT, PRESENT, WRITTEN, Field, Kind, RowResult, Shape, WriteMode
from retl.destinations.postgres.adapter import MOST_COLUMNS, Postgres
from retl.destinations.postgres.catalog import Column, Table
from retl.destinations.postgres.judged import fit
from retl.destinations.postgres.transfer import KEY_COLLIDES
from retl.destinations.postgres.types import comparison, lossless, spoken
from retl.errors import DefinitionError, Mismatch, Systemic
from retl.project import contracts
from retl.values.types import Type
from tests.destinations.rows import Row, Rows
from tests.destinations.suite import CANARY, STRING, VISIT, deliver, told
from tests.destinations.test_postgres import ROLE, PostgresTarget, target_of
from tests.servers import Database

TEXTS = Type("list", items="string")
FLOATS = Type("list", items="float")
ID = Field("id", STRING, column="id")
NOT_EXACT = "NOT_EXACT"
EXTENSIONS = """
CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; GRANT USAGE ON SCHEMA ext TO writer;
CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS varchar(5); CREATE DOMAIN address AS short CHECK (VALUE LIKE '%@%')
"""


@pytest.fixture
def target(postgres: Database) -> Iterator[PostgresTarget]:
    yield from target_of(postgres, "upsert")


def table(target: PostgresTarget, columns: str, after: str = "") -> None:
    target.admin.execute(f"CREATE TABLE crm.people ({columns}); {after}")
    target.admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA crm TO {ROLE}")


def shape_of(*fields: Field, key: Field = ID, **rest: Any) -> Shape:
    return Shape("suite", "state-1", (key,), fields, **rest)


def opened(target: PostgresTarget, shape: Shape) -> Postgres:
    destination = Postgres(target.options(connection={"timeout": 30}), shape)
    destination.check(VISIT)
    destination.prepare(VISIT)
    return destination


def sent(target: PostgresTarget, shape: Shape, rows: Sequence[Row]) -> list[RowResult]:
    """By a run of its own: the marker of another would answer for it."""
    destination = opened(target, shape)
    try:
        return deliver(destination, Rows(shape, rows).batch(shape.write, run_id=uuid4().hex))
    finally:
        destination.close()


def refused(target: PostgresTarget, shape: Shape) -> Mismatch:
    with pytest.raises(Mismatch) as caught:
        Postgres(target.options(), shape).check(VISIT)
    assert caught.value.code == "TARGET_DRIFT"
    return caught.value


OUTCOMES: list[tuple[str, Type, dict[Any, str | None]]] = [
    ("time", STRING, {"09:30:00": "09:30:00", "09:30": NOT_EXACT, "25:00:00": "22008", None: None}),
    ("time(0)", STRING, {"09:30:00": "09:30:00", "09:30:00.6": NOT_EXACT}),
    ("timetz", STRING, {"09:30:00+02": "09:30:00+02"}),
    ("interval", STRING, {"1 year 2 months": "1 year 2 mons", "-1 month": "-1 mons", "26 hours": NOT_EXACT}),
    ("interval hour to minute", STRING, {"1 day 02:00:00": "1 day 02:00:00", "00:00:30": NOT_EXACT}),
    ("inet", STRING, {"10.0.0.1": "10.0.0.1", "10.0.0.1/32": NOT_EXACT, CANARY: "22P02", "FE80::1": "fe80::1"}),
    ("cidr", STRING, {"10.0.0.0/8": "10.0.0.0/8", "10.0.0.1/8": "22P02"}),
    ("macaddr", STRING, {"08:00:2B:01:02:03": "08:00:2b:01:02:03", "0800-2b01-0203": NOT_EXACT}),
    ("int4range", STRING, {"[1,5)": "[1,5)", "[1,4]": NOT_EXACT, "empty": "empty"}),
    ("bytea", STRING, {r"\x0A": r"\x0a", "abc": NOT_EXACT}),
    ("char(3)", STRING, {"ab": "ab", "abc": "abc", "ab ": NOT_EXACT, "abcd": "22001", "": "", None: None}),
    ("varchar(3)", STRING, {"ab ": "ab ", "abc ": NOT_EXACT, "abcd": "22001"}),
    ("name", STRING, {"ab": "ab", "x" * 64: NOT_EXACT}),
    ("bit(3)", STRING, {"101": "101", "1": "22026"}),
    ("varbit(3)", STRING, {"1": "1", "1010": "22001"}),
    ("tsvector", STRING, {"'a' 'b'": "'a' 'b'", "b a": NOT_EXACT}),
    ("jsonpath", STRING, {'$."a"': '$."a"', "x y": "42601"}),
    ("point", STRING, {"(1,2)": "(1,2)", "1,2": NOT_EXACT}),
    ("pair", STRING, {"(1,x)": "(1,x)", "(x,1)": "22P02"}),
    ("address", STRING, {"a@b": "a@b", "ab": "23514", "long@b": "22001"}),
    ("ext.citext", STRING, {"A": "A"}),
    ("uuid", STRING, {"A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
    ("money", STRING, {"$1.05": "$1.05", "1.05": NOT_EXACT}),
    ("money", Type("decimal", 5, 3), {Decimal("1.050"): "$1.05", Decimal("1.005"): NOT_EXACT}),
    ("real", Type("float"), {1.5: "1.5", 0.1: "0.1", 10.989999771118164: "10.99", 1.0000000001: NOT_EXACT, 1e300: "22003", -0.0: "-0"}),
    ("real", Type("decimal", 12, 2), {Decimal("9.80"): "9.8", Decimal("9999999999.99"): NOT_EXACT}),
    ("real", Type("integer"), {16777216: "1.6777216e+07", 16777217: NOT_EXACT}),
    ("double precision", Type("integer"), {1000: "1000", 2**53 + 1: NOT_EXACT}),
    ("numeric(12,2)", Type("float"), {1.5: "1.50", 1.005: NOT_EXACT, -0.0: NOT_EXACT}),
    ("numeric(12,1)", Type("decimal", 12, 2), {Decimal("1.50"): "1.5", Decimal("1.05"): NOT_EXACT}),
    ("numeric(3,-2)", Type("integer"), {1200: "1200", 1234: NOT_EXACT}),
    ("char(5)", Type("integer"), {12345: "12345", 123456: "22001"}),
    ("timestamp", Type("date"), {date(2026, 1, 2): "2026-01-02 00:00:00"}),
    ("timestamp(0)", Type("timestamp"), {
        datetime(2026, 1, 2): "2026-01-02 00:00:00", datetime(2026, 1, 2, 0, 0, 0, 600000): NOT_EXACT,
    }),
    ("timestamptz(3)", Type("timestamptz"), {datetime(2026, 1, 2, 0, 0, 0, 1, tzinfo=UTC): NOT_EXACT}),
    ("varchar(8)", Type("json"), {'{"a": 1}': '{"a": 1}', '{"a": 12}': "22001"}),
    ("varchar(3)[]", TEXTS, {("abc", None): "{abc,NULL}", ("abc ",): NOT_EXACT, ("abcd",): "22001", (): "{}"}),
    ("char(3)[]", TEXTS, {("ab", None): '{"ab ",NULL}', ("ab ",): NOT_EXACT}),
    ("mood[]", TEXTS, {("ok", None): "{ok,NULL}", ("bad",): "22P02"}),
    ("short[]", TEXTS, {("a ", "b"): '{"a ",b}', ("abcde ",): NOT_EXACT}),
    ("numeric(5,1)[]", FLOATS, {(1.5, None): "{1.5,NULL}", (1.05,): NOT_EXACT}),
    ("real[]", FLOATS, {(0.5, None): "{0.5,NULL}", (10.989999771118164,): "{10.99}", (1.0000000001,): NOT_EXACT}),
]  # fmt: skip


def test_a_value_is_kept_as_it_is_or_its_row_is_refused(target: PostgresTarget) -> None:
    target.admin.execute(EXTENSIONS)
    target.admin.prepare_threshold = None  # the table changes under the same text
    for column, type, outcomes in OUTCOMES:
        table(target, f"id text PRIMARY KEY, v {column}")
        rows = [(f"k{n}", list(v) if isinstance(v, tuple) else v) for n, v in enumerate(outcomes)]
        shape = shape_of(Field("v", type, column="v"))
        results = sent(target, shape, rows)
        texts = "SELECT id, format('%s', v) FROM crm.people WHERE v IS NOT NULL"
        held = dict(target.admin.execute(texts).fetchall())
        found = [result.code or held.get(row[0]) for result, row in zip(results, rows, strict=True)]
        padded = [one and (one.rstrip() if column == "char(3)" else one) for one in found]
        assert padded == list(outcomes.values()), column
        assert CANARY not in str(results)
        reasons = [result.reason for result in results if result.reason and result.code != "23514"]
        assert all(reason.startswith("v: ") for reason in reasons), reasons
        versions = "SELECT array_agg(xmin::text ORDER BY id) FROM crm.people"
        before = target.admin.execute(versions).fetchone()
        assert sent(target, shape, rows) == results
        assert target.admin.execute(versions).fetchone() == before, column
        target.admin.execute("DROP TABLE crm.people")


def test_what_a_judged_column_holds_is_read_in_the_type_that_was_sent(target: PostgresTarget) -> None:
    target.admin.execute(EXTENSIONS)
    table(target, "id char(5) PRIMARY KEY, price money, rate real, at inet, moods mood[]")
    shape = shape_of(
        Field("price", Type("decimal", 8, 2)), Field("rate", Type("float")), Field("at", STRING), Field("moods", TEXTS)
    )  # fmt: skip
    row = ("a", Decimal("1234.50"), 0.1, "10.0.0.1", ["ok"])
    assert sent(target, shape, [row]) == [WRITTEN]
    rows = Rows(shape, [("too long", *row[1:]), row, ("a ", *row[1:])])
    found = list(opened(target, shape).read(rows.batch()))
    assert found[:2] == [None, dict(zip(("price", "rate", "at", "moods"), row[1:], strict=True))]


def test_a_key_that_its_column_cannot_be_is_not_in_the_table(target: PostgresTarget) -> None:
    table(target, "id uuid PRIMARY KEY, v text")
    shape = shape_of(Field("v", STRING), write="update_only")
    known = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    target.admin.execute("INSERT INTO crm.people VALUES (%s, 'old')", [known])
    keys = ["no uuid", known, known.upper(), "a0eebc99"]
    rows = Rows(shape, [(key, "new") for key in keys])
    destination = opened(target, shape)
    assert [one and one["v"] for one in destination.read(rows.batch())] == [None, "old", "old", None]
    codes = [result.code for result in deliver(destination, rows.batch("update_only"))]
    assert codes == ["22P02", None, NOT_EXACT, "22P02"]
    deliver(destination, Rows(shape, [(known, "")]).batch("delete"))
    assert target.admin.execute("SELECT count(*) FROM crm.people").fetchone() == (0,)
    destination.close()


@pytest.mark.parametrize("write", ["upsert", "insert_only", "update_only"])
@pytest.mark.parametrize(
    ("column", "after"),
    [
        ("id ext.citext PRIMARY KEY", ""),
        ("id varchar(20) NOT NULL", "CREATE UNIQUE INDEX ON crm.people (lower(id))"),
    ],
    ids=["citext", "lower"],
)
def test_keys_that_the_table_folds_meet_its_rows_and_not_each_other(
    target: PostgresTarget, column: str, after: str, write: WriteMode
) -> None:
    target.admin.execute(EXTENSIONS)
    table(target, f"{column}, v text", after)
    target.admin.execute("INSERT INTO crm.people VALUES ('Bob@x', 'old')")
    shape = shape_of(Field("v", STRING), write=write, deletes="delete")
    rows = [("bob@x", "new"), ("a@x", "1"), ("A@x", "2"), ("c@x", "3")]
    bob, other = {
        "upsert": (WRITTEN, WRITTEN),
        "insert_only": (PRESENT, WRITTEN),
        "update_only": (WRITTEN, ABSENT),
    }[write]
    assert sent(target, shape, rows) == [bob, KEY_COLLIDES, KEY_COLLIDES, other]
    held = dict(target.admin.execute("SELECT id, v FROM crm.people").fetchall())
    assert held == {"Bob@x": "old" if write == "insert_only" else "new"} | (
        {} if write == "update_only" else {"c@x": "3"}
    )
    destination = opened(target, shape)
    assert [one is not None for one in destination.read(Rows(shape, [("BOB@x", ""), ("d", "")]).batch())] == [
        True,
        False,
    ]
    deliver(destination, Rows(shape, [("BOB@X", "")]).batch("delete"))
    assert "Bob@x" not in dict(target.admin.execute("SELECT id, v FROM crm.people").fetchall())
    destination.close()


def test_a_collation_that_folds_has_its_keys_compared_in_each_batch() -> None:
    rights = ["SELECT", "INSERT", "UPDATE"]
    column = Column("id", "text", "text", "pg_catalog.text", False, False, False, True, "=", rights)
    whole = ((frozenset({"id"}), frozenset[str]()),)
    facts = Table("r", True, True, False, False, 0, False, False, {"id": column}, whole, ())
    assert fit(facts, shape_of()).folding == {"id"}


@pytest.mark.parametrize(
    ("column", "type", "contract"),
    [
        ("integer", STRING, "`v: {type: integer}`"),
        ("jsonb", STRING, "`v: {type: json}`"),
        ("numeric(9,2)", STRING, "`v: {type: decimal, max_digits: …, decimal_places: …}`"),
        ("timestamptz", Type("timestamp"), "`v: {type: timestamptz}`"),
        ("date", Type("timestamp"), "`v: {type: date}`"),
        ("integer", Type("decimal", 5, 2), "`v: {type: integer}`"),
        ("text[]", Type("integer"), "`v: {type: list, items: string}`"),
    ],
)
def test_what_the_sync_can_say_is_named_before_any_ddl(
    target: PostgresTarget, column: str, type: Type, contract: str
) -> None:
    table(target, f"id text PRIMARY KEY, v {column}")
    hint = refused(target, shape_of(Field("v", type, column="v"))).hint or ""
    assert 0 < hint.index(contract) < hint.index("ALTER TABLE")


@pytest.mark.parametrize("column", ["interval", "numrange", "pair"])
def test_a_key_type_with_an_equality_of_its_own_is_refused(target: PostgresTarget, column: str) -> None:
    target.admin.execute(EXTENSIONS)
    table(target, f"id {column} PRIMARY KEY, v text")
    assert "tell all string keys apart" in refused(target, shape_of(Field("v", STRING))).message


@pytest.mark.parametrize(
    "id_column", ["bigint GENERATED ALWAYS AS IDENTITY", "bigint GENERATED ALWAYS AS (n * 2) STORED"]
)
def test_a_key_that_the_database_makes_can_be_compared_but_not_written(
    target: PostgresTarget, id_column: str
) -> None:
    table(
        target,
        f"n bigint DEFAULT 1, id {id_column} PRIMARY KEY, v text",
        "INSERT INTO crm.people DEFAULT VALUES",
    )
    key = Field("id", Type("integer"))
    ((number,),) = target.admin.execute("SELECT id FROM crm.people").fetchall()
    assert "generates column id" in refused(target, shape_of(Field("v", STRING), key=key)).message
    shape = shape_of(Field("v", STRING), key=key, write="update_only")
    assert sent(target, shape, [(number, "x"), (77, "y")]) == [WRITTEN, ABSENT]
    assert target.admin.execute("SELECT id, v FROM crm.people").fetchall() == [(number, "x")]


FILL = "CREATE FUNCTION crm.fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.f := 'x'; RETURN NEW; END $$;"


@pytest.mark.parametrize(
    ("trigger", "fits"),
    [
        ("BEFORE INSERT ON crm.people FOR EACH ROW", True),
        ("BEFORE INSERT OR UPDATE ON crm.people FOR EACH ROW", True),
        ("BEFORE UPDATE ON crm.people FOR EACH ROW", False),
        ("AFTER INSERT ON crm.people FOR EACH ROW", False),
        ("BEFORE INSERT ON crm.people FOR EACH STATEMENT", False),
        ("", False),
    ],
)
def test_a_column_that_a_trigger_fills_is_not_missed(
    target: PostgresTarget, trigger: str, fits: bool
) -> None:
    table(target, "id text PRIMARY KEY, v text, f text NOT NULL", FILL)
    if trigger:
        target.admin.execute(f"CREATE TRIGGER fill {trigger} EXECUTE FUNCTION crm.fill()")
    shape = shape_of(Field("v", STRING))
    if not fits:
        assert "every row would be refused" in refused(target, shape).message
        return
    assert sent(target, shape, [("a", "1")]) == [WRITTEN]
    target.admin.execute("ALTER TABLE crm.people DISABLE TRIGGER fill")
    assert "every row would be refused" in refused(target, shape).message


def test_a_trigger_of_a_partition_fills_too(target: PostgresTarget) -> None:
    table(
        target,
        "id text PRIMARY KEY, v text, f text NOT NULL) PARTITION BY LIST (id",
        f"CREATE TABLE crm.part PARTITION OF crm.people DEFAULT; {FILL}"
        " CREATE TRIGGER fill BEFORE INSERT ON crm.part FOR EACH ROW EXECUTE FUNCTION crm.fill()",
    )
    assert sent(target, shape_of(Field("v", STRING)), [("a", "1")]) == [WRITTEN]


def test_a_published_table_needs_an_identity_before_its_rows_can_change(target: PostgresTarget) -> None:
    table(target, "id text NOT NULL UNIQUE, v text", "CREATE PUBLICATION everything FOR TABLE crm.people")
    shape = shape_of(Field("v", STRING))
    error = refused(target, shape)
    assert "replica identity" in error.message
    Postgres(target.options(), replace(shape, write="insert_only")).check(VISIT)
    target.admin.execute(error.hint or "")
    assert sent(target, shape, [("a", "1")]) == sent(target, shape, [("a", "2")]) == [WRITTEN]


@pytest.mark.parametrize("name", ["xmin", "ctid", "tableoid", "cmax"])
def test_a_name_that_every_table_has_is_refused_before_the_run(target: PostgresTarget, name: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Postgres(target.options(), shape_of(Field(name, STRING)))
    assert (caught.value.code, name in (caught.value.hint or "")) == ("IDENTIFIER", True)
    Postgres(target.options(), shape_of(Field(name.upper(), STRING)))


def test_more_columns_than_a_table_can_have_are_refused_and_wide_rows_are_told(
    target: PostgresTarget,
) -> None:
    fields = [Field(f"c{n}", Type("integer")) for n in range(MOST_COLUMNS)]
    with pytest.raises(DefinitionError) as caught:
        Postgres(target.options(), shape_of(*fields))
    assert caught.value.code == "TOO_MANY_COLUMNS"
    shape = shape_of(*fields[:-1])
    destination = Postgres(target.options(create=True, connection={"timeout": 60}), shape)
    destination.check(VISIT)
    destination.prepare(VISIT)
    (wide, narrow) = deliver(
        destination,
        Rows(shape, [("a", *[1] * len(shape.fields)), ("b", *[None] * len(shape.fields))]).batch(),
    )
    destination.close()
    assert (wide.code, narrow) == ("54000", WRITTEN)
    assert "page" in (wide.reason or "")


def test_what_is_too_long_for_an_index_names_the_index(target: PostgresTarget) -> None:
    import random

    table(target, "id text PRIMARY KEY, v text", "CREATE INDEX words ON crm.people (v)")
    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=20_000))
    (result,) = sent(target, shape_of(Field("v", STRING)), [("a", noise)])
    assert (result.kind, result.code) == (Kind.REJECTED, "54000")
    assert result.reason == "the value is too long for an index"


@pytest.mark.parametrize("user", ["nobody_here", "asleep"])
def test_a_login_that_is_refused_names_user_and_server(target: PostgresTarget, user: str) -> None:
    target.admin.execute("DROP ROLE IF EXISTS asleep; CREATE ROLE asleep NOLOGIN")
    account = {"user": user, "password": CANARY}
    with pytest.raises(Systemic) as caught:
        Postgres(target.options(connection=account), shape_of()).check(VISIT)
    server = f"localhost:{target.proxy.port}/{target.database.dbname}"
    assert caught.value.code == "28000"
    assert f"PostgreSQL at {server}" in caught.value.message
    assert user in caught.value.message
    assert CANARY not in told(caught.value)


def test_a_database_that_may_not_be_entered_names_the_user(target: PostgresTarget) -> None:
    target.admin.execute(f"REVOKE CONNECT ON DATABASE {target.database.dbname} FROM PUBLIC")
    with pytest.raises(Systemic) as caught:
        Postgres(target.options(), shape_of()).check(VISIT)
    target.admin.execute(f"GRANT CONNECT ON DATABASE {target.database.dbname} TO PUBLIC")
    assert (caught.value.code, ROLE in caught.value.message) == ("42501", True)


@pytest.mark.parametrize(
    "item", ["numeric", "jsonb", "json", "money", "bigint", "text", "date", "boolean", "interval"]
)
def test_the_contract_that_a_refusal_of_an_array_names_can_be_written_and_fits(item: str) -> None:
    name, items = str(spoken(f"{item}[]")).split(", items: ")
    column = contracts.Column.model_validate({"type": name, "items": items})
    of = Type("list", items=column.items)
    assert lossless(of, f"{item}[]") or comparison(of, f"{item}[]")
