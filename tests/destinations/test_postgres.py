"""PostgreSQL passes the suite in each write mode, and keeps the promises that are its alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    WRITTEN,
    Field,
    Kind,
    Outcome,
    Shape,
    SoftDelete,
    Visit,
    WriteMode,
)
from retl.destinations.postgres import catalog
from retl.destinations.postgres.adapter import Postgres, PostgresOptions
from retl.destinations.postgres.exclusion import Exclusion
from retl.destinations.postgres.judged import fit
from retl.destinations.postgres.relation import Relation
from retl.destinations.postgres.statements import Statements
from retl.destinations.postgres.transfer import KEY_CHANGED, SWALLOWED
from retl.destinations.postgres.types import ddl
from retl.errors import Ambiguous, DefinitionError, InvariantBroken, Later, Mismatch, Systemic, Unavailable
from retl.net.postgres import ENDLESS, SETTINGS, PostgresConnection, transaction
from retl.values.sql import quoted
from retl.values.types import Type
from tests.destinations.rows import Row, Rows, plain
from tests.destinations.suite import (
    CANARY,
    EVERY_TYPE,
    FIELDS,
    STRING,
    VALUES,
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
from tests.servers import Database

ID = Field("id", STRING)
SHAPE = Shape("suite", "state-1", (ID,), FIELDS)
ROLE, SECRET = "writer", "its-own-secret"


@pytest.fixture(params=[False, True], ids=["known", "new"], autouse=True)
def _new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test twice: what a batch says of its rows being new changes nothing but the way they take."""
    monkeypatch.setattr(Rows, "new", request.param)


class PostgresTarget(Target):
    """A role with the documented rights and no other, beside a table of somebody else's."""

    counts_all = False
    type = "postgres"
    commit = b"COMMIT\0"

    def __init__(self, database: Database, proxy: Proxy, write: WriteMode) -> None:
        self.database, self.proxy, self.write = database, proxy, write
        self.admin = database.connect()
        self.shape = SHAPE
        self.admin.execute(
            f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{SECRET}';"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        self.admin.execute(f"CREATE SCHEMA crm; GRANT USAGE, CREATE ON SCHEMA crm TO {ROLE}")

    def options(self, **changes: Any) -> PostgresOptions:
        account = {"user": ROLE, "password": SECRET, "dbname": self.database.dbname}
        server = {"host": self.proxy.host, "port": self.proxy.port, "timeout": 2, "connect_timeout": 2}
        given = {"connection": server | account | changes.pop("connection", {}), "table": "crm.people"}
        return PostgresOptions.model_validate(given | changes)

    def make(self, shape: Shape, *, secret: str | None = None, **changes: Any) -> Postgres:
        self.shape = shape
        columns = [f"{quoted(f.name)} {ddl(f.type)}" for f in (*shape.key, *shape.fields)]
        key = ", ".join(quoted(f.name) for f in shape.key)
        self.admin.execute(
            f"CREATE TABLE IF NOT EXISTS crm.people ({', '.join(columns)},"
            f" theirs text DEFAULT 'nobody', PRIMARY KEY ({key}))"
        )
        if not self.admin.execute(
            "SELECT has_table_privilege(%s, 'crm.people', 'SELECT')", [ROLE]
        ).fetchone()[0]:  # type: ignore[index]
            self.admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON crm.people TO {ROLE}")
        given = {"password": secret or SECRET} | changes.pop("connection", {})
        return Postgres(self.options(connection=given, **changes), shape)

    def contents(self) -> Contents:
        fields = (*self.shape.key, *self.shape.fields)
        listed = ", ".join(f"{quoted(f.name)}{'::text' if f.type.name == 'json' else ''}" for f in fields)
        found: Contents = {}
        for row in self.admin.execute(f"SELECT {listed} FROM crm.people").fetchall():
            pairs = zip(fields[1:], row[1:], strict=True)
            found[(row[0],)] = {f.name: plain(value, f.type) for f, value in pairs}
        return found

    def poison(self, row: Row) -> Row:
        self.admin.execute(
            "ALTER TABLE crm.people DROP CONSTRAINT IF EXISTS polite,"
            " ADD CONSTRAINT polite CHECK (visits >= 0)"
        )
        return (*row[:-1], -1)

    def forbid(self) -> None:
        self.admin.execute(f"REVOKE INSERT, UPDATE ON crm.people FROM {ROLE}")

    def annotate(self, key: Row) -> Callable[[], bool] | None:
        self.admin.execute("UPDATE crm.people SET theirs = 'a note' WHERE id = %s", key)
        query = "SELECT theirs = 'a note' FROM crm.people WHERE id = %s"
        return lambda: self.admin.execute(query, key).fetchone() == (True,)


def target_of(
    database: Database, write: WriteMode, kind: type[PostgresTarget] = PostgresTarget
) -> Iterator[PostgresTarget]:
    with Proxy(database.host, database.port) as proxy:
        target = kind(database, proxy, write)
        yield target
        target.admin.close()


class TestUpsert(Suite):
    @pytest.fixture
    def target(self, every_postgres: Database) -> Iterator[PostgresTarget]:
        yield from target_of(every_postgres, "upsert")


class TestAppend(Suite):
    @pytest.fixture
    def target(self, postgres: Database) -> Iterator[PostgresTarget]:
        yield from target_of(postgres, "append")


class TestInsertOnly(Suite):
    @pytest.fixture
    def target(self, postgres: Database) -> Iterator[PostgresTarget]:
        yield from target_of(postgres, "insert_only")


@pytest.fixture
def target(every_postgres: Database) -> Iterator[PostgresTarget]:
    yield from target_of(every_postgres, "upsert")


def ready(target: PostgresTarget, shape: Shape = SHAPE, visit: Visit = VISIT, **options: Any) -> Postgres:
    destination = target.make(shape, **options)
    destination.check(visit)
    destination.prepare(visit)
    return destination


def one(target: PostgresTarget, query: str) -> Any:
    row = target.admin.execute(query).fetchone()
    assert row
    return row[0]


# the connection


@pytest.mark.parametrize(
    ("host", "given", "mode"),
    [
        ("127.0.0.1", {}, "prefer"),
        ("localhost", {}, "prefer"),
        ("/var/run/postgresql", {}, "prefer"),
        ("db.example.com", {}, "verify-full"),
        ("db.example.com", {"allow_plaintext": True}, "prefer"),
        ("db.example.com", {"allow_plaintext": True, "sslmode": "require"}, "require"),
    ],
)
def test_tls_is_verified_off_the_loopback(host: str, given: dict[str, Any], mode: str) -> None:
    connection = PostgresConnection(host=host, dbname="d", user="u", **given)
    keywords = connection.keywords("retl:s")
    assert keywords["sslmode"] == mode
    assert ("sslrootcert" in keywords) == (mode == "verify-full")


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_plaintext_must_be_asked_for(mode: str) -> None:
    with pytest.raises(ValidationError, match="allow_plaintext"):
        PostgresConnection.model_validate(
            {"host": "db.example.com", "dbname": "d", "user": "u", "sslmode": mode}
        )


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(target: PostgresTarget) -> None:
    destination = target.make(SHAPE, connection={"sslmode": "verify-full"})
    with pytest.raises(Systemic) as caught:
        destination.check(VISIT)
    assert caught.value.code == "TLS"


CHANGED = {
    "timezone": "Asia/Kolkata",
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "xmloption": "document",
    "lc_monetary": "POSIX",
    "quote_all_identifiers": "on",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "exit_on_error": "on",
    "synchronous_commit": "off",
}
HASTY = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", *ENDLESS)


def test_what_a_role_sets_for_itself_changes_no_value(target: PostgresTarget) -> None:
    assert SETTINGS.keys() == CHANGED.keys()
    hasty = {name: "900ms" for name in HASTY if ENDLESS.get(name, 0) <= target.admin.info.server_version}
    for name, value in {**CHANGED, **hasty}.items():
        target.admin.execute(f"ALTER ROLE {ROLE} IN DATABASE {target.database.dbname} SET {name} = '{value}'")
    shape = replace(SHAPE, fields=(*EVERY_TYPE, Field("codes", Type("list", items="integer"))))
    rows = [(*row, [1, None, 3]) for row in VALUES]
    rows.append(("gaps", *[None] * (len(EVERY_TYPE) - 1), ["a", None, "NULL"], [None]))
    destination = ready(target, shape)
    assert kinds(deliver(destination, Rows(shape, rows).batch())) == [Kind.WRITTEN] * len(rows)
    assert target.contents() == as_contents(shape, rows)
    session = destination._connect()
    assert [session.execute(f"SHOW {name}").fetchone() for name in SETTINGS] == [
        (value,) for value in SETTINGS.values()
    ]
    assert ("900ms",) not in [session.execute(f"SHOW {name}").fetchone() for name in hasty]
    session.close()
    destination.close()


def test_a_schema_on_the_search_path_does_not_change_what_is_equal(target: PostgresTarget) -> None:
    """To the operators there, everything is equal and every row is old."""
    target.admin.execute(
        f"CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO {ROLE};"
        "CREATE FUNCTION evil.lies(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        "CREATE FUNCTION evil.lies(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        "CREATE FUNCTION evil.age(xid) RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        "CREATE OPERATOR evil.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = evil.lies);"
        "CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.lies);"
        "CREATE TABLE crm.people (id varchar(9) PRIMARY KEY, name text, amount numeric(12,2), visits bigint);"
        f"GRANT ALL ON crm.people TO {ROLE};"
        f'ALTER ROLE {ROLE} IN DATABASE {target.database.dbname} SET search_path = evil, pg_catalog, "$user"'
    )
    shape = replace(SHAPE, key=(replace(ID, max_length=9),), deletes="delete")
    destination = Postgres(target.options(), shape)
    destination.check(VISIT)
    destination.prepare(VISIT)
    rows = Rows(shape, sample(4))
    assert deliver(destination, rows.batch(run_id="run-1")) == [WRITTEN] * 4
    assert [row and row["visits"] for row in destination.read(rows.batch())] == [0, 1, 2, 3]
    changed = Rows(shape, sample(4, "new"))
    assert deliver(destination, changed.batch("update_only", last=0, run_id="run-2")) == [WRITTEN]
    assert deliver(destination, rows.batch("delete", first=3, run_id="run-3")) == [WRITTEN]
    target.shape = shape
    assert target.contents() == as_contents(shape, [changed.rows[0], *rows.rows[1:3]])
    path = destination._connect().execute("SHOW search_path").fetchone()
    assert path == ('evil, "$user"',)


def test_a_refused_login_names_the_user_and_no_password(target: PostgresTarget) -> None:
    with pytest.raises(Systemic) as caught:
        target.make(SHAPE, secret=CANARY).check(VISIT)
    assert caught.value.code == "28000"
    assert caught.value.message.endswith(f"it does not accept the login of {ROLE}")
    assert CANARY not in told(caught.value)


def test_one_table_is_one_place() -> None:
    def place(host: str, table: str) -> str:
        given = {"connection": {"host": host, "dbname": "d", "user": "u"}, "table": table}
        return Postgres.place(PostgresOptions.model_validate(given), "upsert")

    assert place("localhost", "people") == place("127.0.0.1", '"public"."people"')
    assert place("DB.example.com", "people") == place("db.example.com", "people")
    assert place("localhost", '"a.b".c') != place("localhost", 'a."b.c"')


@pytest.mark.parametrize("table", ["", "a.b.c", '"a', "x" * 64, "é" * 32, "a.", ".a", "a\0b"])
def test_a_name_postgresql_would_not_keep_is_refused(table: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        Relation.parse(table)


@pytest.mark.parametrize("name", ["x" * 64, "retl_row", "a\0b"])
def test_a_field_that_cannot_be_a_column_is_refused(target: PostgresTarget, name: str) -> None:
    with pytest.raises(DefinitionError):
        Postgres(target.options(), replace(SHAPE, fields=(Field(name, STRING),)))


# bytes


def test_the_bytes_of_a_copy_are_those_of_its_rows(target: PostgresTarget) -> None:
    destination = ready(target)
    batch = Rows(SHAPE, sample(5)).batch()
    deliver(destination, batch)
    assert destination.sent == len(b"".join(batch.csv(numbered=not batch.new)))


# other ledgers


def test_another_ledger_is_kept_out_until_the_first_lets_go(target: PostgresTarget) -> None:
    first = ready(target, visit=Visit("run-1", 1, exclusive=True))
    heir = ready(target, visit=Visit("run-2", 2, exclusive=True))  # its own ledger tells them apart
    stranger = Postgres(target.options(), replace(SHAPE, state_id="state-2"))
    visit = Visit("run-3", 1, exclusive=True)
    for holder in (first, heir):
        with pytest.raises(Later) as caught:
            stranger.check(visit)
        assert caught.value.code == "TARGET_HELD"
        assert f"role {ROLE}" in caught.value.message
        assert f"retl:suite pid {os.getpid()}" in caught.value.message
        batch = replace(Rows(SHAPE, sample(2)).batch(run_id="run-2"), epoch=2, exclusive=True)
        assert kinds(deliver(heir, batch)) == [Kind.WRITTEN] * 2
        holder.close()
    trace = stranger.check(visit)
    assert trace is not None
    assert trace.strangers
    with pytest.raises(Later):  # refused or not, it is there now
        first.check(Visit("run-1", 1, exclusive=True))
    stranger.close()
    first.check(Visit("run-1", 1, exclusive=True))
    first.close()


def test_the_session_that_keeps_others_out_outlives_idleness_but_not_its_machine(postgres: Database) -> None:
    with postgres.connect() as session:
        session.autocommit = False
        session.execute("SET idle_session_timeout = '1h'")
        Exclusion(Relation.parse("people"), "state-1").take(session, "run-1")
        session.commit()
        names = ("idle_session_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval")
        shown = [session.execute(f"SHOW {name}").fetchone() for name in names]
    assert shown == [("0",), ("30",), ("10",)]


@pytest.mark.parametrize(("write", "expected"), [(True, Ambiguous), (False, Unavailable)])
def test_an_error_of_the_socket_alone_is_a_lost_connection(
    postgres: Database, write: bool, expected: type[Exception]
) -> None:
    """poll reports such an error at the moment a reset arrives, and psycopg's status stays as it was."""
    session = postgres.connect()
    session.autocommit = False
    session.execute("SELECT 1")
    reader, writer = os.pipe()
    os.close(reader)  # nothing but POLLERR comes from the other end now
    with pytest.raises(expected), transaction(session, 10, write=write):
        os.dup2(writer, session.fileno())
    os.close(writer)
    assert session.closed


def sessions(target: PostgresTarget) -> list[int]:
    """The processes of the server that serve the role in this database."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE usename = %s AND datname = current_database() ORDER BY pid"
    )
    found = target.admin.execute(query, [ROLE])
    return [pid for (pid,) in found.fetchall()]


def test_one_session_serves_from_the_look_to_the_first_batch(target: PostgresTarget) -> None:
    destination = ready(target)
    (looked,) = sessions(target)
    batch = Rows(SHAPE, sample(2)).batch()
    list(destination.read(batch))
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2
    assert sessions(target) == [looked]
    destination.close()
    waiting = time.monotonic() + 10
    while sessions(target):  # a server takes a moment to end its process
        assert time.monotonic() < waiting


def test_a_session_that_the_server_ended_in_the_meantime_is_replaced(target: PostgresTarget) -> None:
    server = {"host": target.database.host, "port": target.database.port}  # a proxy tells of the end later
    destination = ready(target, connection=server)
    (ended,) = sessions(target)
    target.admin.execute("SELECT pg_terminate_backend(%s, 10000)", [ended])
    assert kinds(deliver(destination, Rows(SHAPE, sample(2)).batch())) == [Kind.WRITTEN] * 2
    assert ended not in sessions(target)
    destination.close()


# check


def refusal(target: PostgresTarget, shape: Shape = SHAPE, **options: Any) -> Mismatch:
    with pytest.raises(Mismatch) as caught:
        Postgres(target.options(**options), shape).check(VISIT)
    return caught.value


@pytest.mark.parametrize(
    ("table", "says", "hint"),
    [
        ("", "there is no table", "CREATE TABLE"),
        ("(id text PRIMARY KEY, name text, amount numeric(12,2))", "visits is missing", "ADD COLUMN"),
        ("(id text PRIMARY KEY, name date, amount numeric, visits bigint)", "name is", "TYPE text"),
        ("(id text PRIMARY KEY, name text, amount boolean, visits bigint)", "amount is", "numeric(12,2)"),
        ("(id text, name text, amount numeric, visits bigint)", "no unique", "ADD UNIQUE"),
        ("(id text, name text, amount numeric, visits bigint, UNIQUE (id, name))", "no unique", "ADD UNIQUE"),
        (
            "(id text, name text, amount numeric, visits bigint, UNIQUE (id) DEFERRABLE)",
            "no unique",
            "ADD UNIQUE",
        ),
        (
            "(id text PRIMARY KEY, name text, amount numeric, visits bigint, boss int NOT NULL)",
            "boss is NOT NULL",
            None,
        ),
        (
            "(id text PRIMARY KEY, name text GENERATED ALWAYS AS ('x') STORED, amount numeric, visits bigint)",
            "generates column name",
            None,
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_ddl(
    target: PostgresTarget, table: str, says: str, hint: str | None
) -> None:
    if table:
        target.admin.execute(f"CREATE TABLE crm.people {table}; GRANT ALL ON crm.people TO {ROLE}")
    error = refusal(target)
    assert error.code == "TARGET_DRIFT"
    assert says in error.message
    assert (hint or "") in (error.hint or "")


def test_a_sized_column_is_judged_unless_the_contract_stays_inside(target: PostgresTarget) -> None:
    target.admin.execute("CREATE TABLE crm.people (id text PRIMARY KEY, name varchar(9))")
    table = catalog.table(target.admin, Relation.parse("crm.people"))
    assert table
    for length, trusted in ((9, True), (10, False), (None, False)):
        shape = replace(SHAPE, fields=(Field("name", STRING, max_length=length),))
        assert (not fit(table, shape).judged) is trusted


def test_the_ddl_of_a_refusal_mends_it(target: PostgresTarget) -> None:
    shape = replace(SHAPE, fields=tuple(replace(f, name=f'The "{f.name}" %s') for f in FIELDS))
    target.admin.execute(refusal(target, shape).hint or "")
    target.admin.execute(f"GRANT SELECT, INSERT, UPDATE ON crm.people TO {ROLE}")
    destination = Postgres(target.options(), shape)
    destination.check(VISIT)
    destination.prepare(VISIT)
    batch = Rows(shape, sample(2)).batch()
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2
    assert [row is not None for row in destination.read(batch)] == [True, True]


@pytest.mark.parametrize("what", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_is_refused(target: PostgresTarget, what: str) -> None:
    target.admin.execute(f"CREATE {what} crm.people AS SELECT 'a' AS id")
    assert "view" in refusal(target).message


def test_a_right_that_is_missing_is_named_with_its_grant(target: PostgresTarget) -> None:
    destination = target.make(replace(SHAPE, deletes="delete"))
    target.admin.execute(f"REVOKE UPDATE, DELETE ON crm.people FROM {ROLE}")
    with pytest.raises(Systemic) as caught:
        destination.check(VISIT)
    assert caught.value.hint == f'GRANT UPDATE, DELETE ON "crm"."people" TO "{ROLE}";'
    target.admin.execute(caught.value.hint)
    destination.check(VISIT)


def test_deletes_never_cascade(target: PostgresTarget) -> None:
    target.make(SHAPE)
    target.admin.execute("CREATE TABLE crm.notes (person text REFERENCES crm.people ON DELETE CASCADE)")
    error = refusal(target, replace(SHAPE, deletes="delete"))
    assert error.code == "CASCADE"
    assert "crm.notes" in error.message
    Postgres(target.options(), SHAPE).check(VISIT)


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT", "RESTRICT", "NO ACTION"])
def test_a_delete_that_would_change_another_table_is_refused_by_its_constraint_unless_asked_for(
    target: PostgresTarget, action: str
) -> None:
    target.make(SHAPE)
    target.admin.execute(
        "CREATE TABLE crm.notes (n int, person text DEFAULT NULL,"
        f" CONSTRAINT of_whom FOREIGN KEY (person) REFERENCES crm.people ON DELETE {action})"
    )
    deleting = replace(SHAPE, deletes="delete")
    if action in ("RESTRICT", "NO ACTION"):
        Postgres(target.options(), deleting).check(VISIT)
    else:
        error = refusal(target, deleting)
        assert error.code == "CASCADE"
        assert f"crm.notes (of_whom: ON DELETE {action})" in error.message
        assert "cascade: true" in str(error.hint)
        Postgres(target.options(), replace(deleting, cascade=True)).check(VISIT)


def test_a_partition_is_refused_for_what_references_its_parent(target: PostgresTarget) -> None:
    target.admin.execute("CREATE TABLE crm.everybody (id text PRIMARY KEY) PARTITION BY LIST (id)")
    target.admin.execute("CREATE TABLE crm.some PARTITION OF crm.everybody DEFAULT")
    target.admin.execute(
        "CREATE TABLE crm.notes (person text, CONSTRAINT of_whom FOREIGN KEY (person)"
        " REFERENCES crm.everybody ON DELETE CASCADE) PARTITION BY LIST (person)"
    )
    target.admin.execute("CREATE TABLE crm.all_notes PARTITION OF crm.notes DEFAULT")
    whole = catalog.table(target.admin, Relation.parse("crm.everybody"))
    part = catalog.table(target.admin, Relation.parse("crm.some"))
    assert whole.dependents == ("crm.notes (of_whom: ON DELETE CASCADE)",)
    assert any("crm.notes" in one for one in part.dependents)


def test_row_security_and_deletes_do_not_go_together(target: PostgresTarget) -> None:
    target.make(SHAPE)
    target.admin.execute("ALTER TABLE crm.people ENABLE ROW LEVEL SECURITY")
    for deletes in ("delete", SoftDelete({"name": "gone"})):
        assert refusal(target, replace(SHAPE, deletes=deletes)).code == "ROW_SECURITY"


def test_a_read_only_server_is_refused(target: PostgresTarget) -> None:
    destination = target.make(SHAPE)
    target.admin.execute(f"ALTER DATABASE {target.database.dbname} SET default_transaction_read_only = on")
    with pytest.raises(Systemic) as caught:
        destination.check(VISIT)
    assert caught.value.code == "READ_ONLY"


STRANGERS = {  # values of the table's own that Python cannot have
    "date": ["infinity", "0044-03-15 BC"],
    "time": ["24:00:00"],
    "timestamp": ["infinity", "294276-01-01 00:00:00"],
    "timestamptz": ["-infinity"],
    "json": ["[" * 3000 + "]" * 3000],
    "jsonb": ["9" * 5000],
}


def test_a_row_whose_value_python_cannot_have_is_there(target: PostgresTarget) -> None:
    """It may be somebody else's value in a column of the sync; `retl erase` asks whether rows are gone."""
    columns = ", ".join(f"c_{kind} {kind}" for kind in STRANGERS)
    target.admin.execute(f"CREATE TABLE crm.people (id text PRIMARY KEY, {columns})")
    target.admin.execute(f"GRANT ALL ON crm.people TO {ROLE}")
    shape = replace(SHAPE, fields=tuple(Field(f"c_{kind}", STRING) for kind in STRANGERS))
    rows = list[Row]()
    for kind, values in STRANGERS.items():
        for value in values:
            rows.append((f"row {len(rows)}", *[None] * len(STRANGERS)))
            statement = f"INSERT INTO crm.people (id, c_{kind}) VALUES (%s, '{value}')"
            target.admin.execute(statement, [rows[-1][0]])
    destination = Postgres(target.options(), shape)
    held = list(destination.read(Rows(shape, [*rows, ("gone", *rows[0][1:])]).batch("delete")))
    assert held.pop() is None
    assert [str(value) for row in held for value in (row or {}).values() if value is not None] == [
        value for values in STRANGERS.values() for value in values
    ]


# create


def test_create_makes_schema_table_and_key_and_adds_columns(target: PostgresTarget) -> None:
    target.admin.execute(f"GRANT CREATE ON DATABASE {target.database.dbname} TO {ROLE}")
    fields = (Field("name", STRING), Field("tags", Type("list", items="string")), Field("data", Type("json")))
    shape = replace(SHAPE, fields=fields[:2])
    options = target.options(table='"New %s".People', create=True)
    for grown in (shape, replace(shape, fields=fields)):
        destination = Postgres(options, grown)
        destination.check(VISIT)
        destination.prepare(VISIT)
        rows = [("a", "b", ["c"], "{}")[: 1 + len(grown.fields)]]
        assert kinds(deliver(destination, Rows(grown, rows).batch(run_id=str(grown)))) == [Kind.WRITTEN]
        destination.close()
    assert target.admin.execute('SELECT * FROM "New %s"."People"').fetchall() == [("a", "b", ["c"], {})]


def test_two_processes_may_prepare_at_once(target: PostgresTarget) -> None:
    options = target.options(table="crm.fresh", create=True)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: Postgres(options, SHAPE).prepare(VISIT), range(6)))
    assert one(target, "SELECT count(*) FROM crm.fresh") == 0


# what is written


def test_unchanged_rows_are_left_untouched(target: PostgresTarget) -> None:
    fields = (*FIELDS, Field("synced", STRING, compared=False), Field("data", Type("json")))
    shape = replace(SHAPE, fields=fields)
    destination = ready(target, shape)
    rows = [("a", "x", Decimal("1.00"), 1, "first", '{"b": 1}'), ("b", "y", None, 2, "first", None)]
    deliver(destination, Rows(shape, rows).batch())
    again = [(*rows[0][:4], "second", '{"b":1}'), ("b", "z", None, 2, "second", None)]
    assert kinds(deliver(destination, Rows(shape, again).batch(run_id="run-2"))) == [Kind.WRITTEN] * 2
    assert target.admin.execute("SELECT id, synced FROM crm.people ORDER BY id").fetchall() == [
        ("a", "first"),
        ("b", "second"),
    ]


def test_only_empty_fields_are_filled(target: PostgresTarget) -> None:
    shape = replace(SHAPE, fields=(Field("name", STRING, only_if_empty=True), *FIELDS[1:]))
    destination = ready(target, shape)
    deliver(destination, Rows(shape, [("a", "theirs", None, 1), ("b", None, None, 1)]).batch())
    new = [("a", "ours", None, 2), ("b", "ours", None, 2)]
    deliver(destination, Rows(shape, new).batch(run_id="run-2"))
    held = {key[0]: (row["name"], row["visits"]) for key, row in target.contents().items()}
    assert held == {"a": ("theirs", 2), "b": ("ours", 2)}


def test_insert_only_tells_what_was_there_before(target: PostgresTarget) -> None:
    destination = ready(target, replace(SHAPE, write="insert_only"))
    target.admin.execute("INSERT INTO crm.people (id, name) VALUES ('k1', 'theirs')")
    assert deliver(destination, Rows(SHAPE, sample(3)).batch("insert_only")) == [WRITTEN, PRESENT, WRITTEN]
    assert target.contents()["k1",]["name"] == "theirs"


def test_update_only_tells_what_is_not_there(target: PostgresTarget) -> None:
    destination = ready(target, replace(SHAPE, write="update_only"))
    target.admin.execute(
        "INSERT INTO crm.people (id, name, amount, visits) VALUES ('k1', '', 0, 0), ('k2', 'name 2', 0.02, 2)"
    )
    assert deliver(destination, Rows(SHAPE, sample(3)).batch("update_only")) == [ABSENT, WRITTEN, WRITTEN]
    assert target.contents() == as_contents(SHAPE, sample(3)[1:])


def test_a_soft_delete_sets_its_fields_and_keeps_the_row(target: PostgresTarget) -> None:
    destination = ready(
        target, replace(SHAPE, deletes=SoftDelete({"name": "it's 100% gone", "visits": None}))
    )
    rows = Rows(SHAPE, sample(3))
    deliver(destination, rows.batch())
    assert kinds(deliver(destination, rows.batch("delete", first=1, last=2))) == [Kind.WRITTEN] * 2
    gone = [(key, "it's 100% gone", amount, None) for key, _, amount, _ in rows.rows[1:]]
    assert target.contents() == as_contents(SHAPE, [rows.rows[0], *gone])


def test_a_partitioned_table_is_written_like_any_other(target: PostgresTarget) -> None:
    target.admin.execute(
        "CREATE TABLE crm.people (id text PRIMARY KEY, name text, amount numeric(12,2), visits bigint)"
        " PARTITION BY HASH (id); CREATE TABLE crm.p0 PARTITION OF crm.people FOR VALUES WITH (MODULUS 2,"
        " REMAINDER 0); CREATE TABLE crm.p1 PARTITION OF crm.people FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    )
    for write in ("upsert", "insert_only", "update_only"):
        destination = ready(target, replace(SHAPE, write=write))
        results = deliver(destination, Rows(SHAPE, sample(20, write)).batch(write, run_id=write))
        assert set(kinds(results)) == {Kind.SKIPPED if write == "insert_only" else Kind.WRITTEN}
    assert target.contents() == as_contents(SHAPE, sample(20, "update_only"))


# rows the table refuses


@pytest.mark.parametrize(
    ("rule", "bad", "code", "place"),
    [
        ("CHECK (visits < 900)", ("k1", "x", None, 900), "23514", "rule"),
        ("UNIQUE (name)", ("k1", "name 2", None, 1), "23505", "rule"),
        ("UNIQUE (name) DEFERRABLE INITIALLY DEFERRED", ("k1", "name 0", None, 1), "23505", "rule"),
        ("FOREIGN KEY (visits) REFERENCES crm.known DEFERRABLE INITIALLY DEFERRED", ("k1", "x", None, 900), "23503", "rule"),
    ],
)  # fmt: skip
def test_a_refused_row_is_named_by_code_and_constraint(
    target: PostgresTarget, rule: str, bad: Row, code: str, place: str
) -> None:
    destination = ready(target)
    target.admin.execute("CREATE TABLE crm.known AS SELECT n::bigint AS n FROM generate_series(0, 800) AS n")
    target.admin.execute("ALTER TABLE crm.known ADD PRIMARY KEY (n)")
    target.admin.execute(f"GRANT SELECT ON crm.known TO {ROLE}")
    target.admin.execute(f"ALTER TABLE crm.people ADD CONSTRAINT rule {rule}")
    rows = sample(8)
    rows[1] = bad
    results = deliver(destination, Rows(SHAPE, rows).batch())
    refused = {n: result for n, result in enumerate(results) if result.kind is Kind.REJECTED}
    assert len(refused) == 1
    (result,) = refused.values()
    assert (result.code, (result.reason or "").partition(":")[0]) == (code, place)
    assert len(target.contents()) == 7


def test_many_bad_rows_among_many_cost_only_themselves(target: PostgresTarget) -> None:
    destination = ready(target, connection={"timeout": 30})
    rows = [target.poison(row) if n in range(0, 5000, 250) else row for n, row in enumerate(sample(5000))]
    results = deliver(destination, Rows(SHAPE, rows).batch())
    assert [n for n, r in enumerate(results) if r.kind is Kind.REJECTED] == list(range(0, 5000, 250))
    assert len(target.contents()) == 4980


def test_what_copy_cannot_read_costs_only_its_row(target: PostgresTarget) -> None:
    target.admin.execute(
        "CREATE TYPE crm.mood AS ENUM ('fine'); CREATE DOMAIN crm.few AS bigint CHECK (VALUE < 5)"
    )
    target.admin.execute(
        "CREATE TABLE crm.people (id text PRIMARY KEY, name crm.mood, amount numeric(4,2), visits crm.few)"
    )
    target.admin.execute(f"GRANT ALL ON crm.people TO {ROLE}")
    destination = Postgres(target.options(), SHAPE)
    destination.check(VISIT)
    rows = [("a", "fine", None, 1), ("b", CANARY, None, 1), ("c", "fine", Decimal("123.45"), 1),
            ("d", "fine", None, 7), ("e\0", "fine", None, 1), ("f", "fine", None, 2)]  # fmt: skip
    results = deliver(destination, Rows(SHAPE, rows).batch())
    assert [result.code for result in results] == [None, "22P02", "22003", "23514", "22021", None]
    assert results[1].reason == "name: the value does not fit its column"
    assert CANARY not in str(results)
    assert target.contents() == as_contents(SHAPE, [rows[0], rows[5]])


def test_keys_the_table_takes_for_one_are_all_rejected(target: PostgresTarget) -> None:
    destination = ready(target)
    rows = [*sample(6), ("k2", "again", None, 1)]
    rows[4] = target.poison(rows[4])
    codes = [result.code for result in deliver(destination, Rows(SHAPE, rows).batch())]
    assert codes == [None, None, "KEY_COLLIDES", None, "23514", None, "KEY_COLLIDES"]


@pytest.mark.parametrize("write", ["upsert", "insert_only", "update_only", "append"])
def test_a_row_a_trigger_swallows_is_no_success(target: PostgresTarget, write: WriteMode) -> None:
    destination = ready(target, replace(SHAPE, write=write))
    target.admin.execute(
        "INSERT INTO crm.people (id) SELECT 'k' || n FROM generate_series(0, 3) AS n"
        if write == "update_only"
        else "SELECT 1"
    )
    target.admin.execute(
        "CREATE FUNCTION crm.swallow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.visits = 2 THEN RETURN NULL; END IF; NEW.name = upper(NEW.name); RETURN NEW; END $$;"
        " CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON crm.people FOR EACH ROW EXECUTE FUNCTION crm.swallow()"
    )
    results = deliver(destination, Rows(SHAPE, sample(4)).batch(write))
    assert results == [WRITTEN, WRITTEN, SWALLOWED, WRITTEN]
    assert target.contents()["k1",]["name"] == "NAME 1"


def test_what_others_do_between_two_statements_of_a_batch_is_no_fault_of_its_rows(
    target: PostgresTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction older than the batch changes a row that had its values already."""
    destination = ready(target, replace(SHAPE, write="update_only"))
    target.admin.execute(
        "INSERT INTO crm.people (id, name, amount, visits) VALUES ('k1', 'name 1', 0.01, 1), ('k2', '', 0, 0)"
    )
    left = Statements.left
    with target.database.connect() as other, other.transaction():
        other.execute("INSERT INTO crm.people (id) VALUES ('theirs')")

        def late(self: Statements, *given: Any) -> str:
            if other.info.transaction_status:
                other.execute("UPDATE crm.people SET name = 'theirs' WHERE id = 'k1'; COMMIT")
            return left(self, *given)

        monkeypatch.setattr(Statements, "left", late)
        results = deliver(destination, Rows(SHAPE, sample(3)).batch("update_only", first=1))
    assert results == [WRITTEN] * 2
    assert one(target, "SELECT name FROM crm.people WHERE id = 'k1'") == "name 1"


def test_a_row_that_an_application_keeps_locked_is_tried_again_later(target: PostgresTarget) -> None:
    destination = ready(target, connection={"timeout": 0.5})
    batch = Rows(SHAPE, sample(3)).batch()
    target.admin.execute("INSERT INTO crm.people (id) VALUES ('k1')")
    with target.database.connect() as other, other.transaction():
        other.execute("SELECT FROM crm.people WHERE id = 'k1' FOR UPDATE")
        with pytest.raises(Unavailable) as caught:
            destination.write(batch)
    assert caught.value.code in ("55P03", "57014", "CONNECTION_LOST")  # whichever ends first
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 3


def test_a_stage_that_a_pooler_kept_is_replaced(target: PostgresTarget) -> None:
    class Kept(Postgres):
        def _connect(self, *names: str, read_only: bool = False) -> Any:
            session = super()._connect(*names, read_only=read_only)
            if not read_only:
                session.execute("CREATE TEMP TABLE retl_stage (other integer)")
                session.commit()
            return session

    ready(target)
    destination = Kept(target.options(), SHAPE)
    assert kinds(deliver(destination, Rows(SHAPE, sample(2)).batch())) == [Kind.WRITTEN] * 2


def test_a_delete_a_trigger_swallows_is_no_success(target: PostgresTarget) -> None:
    destination = ready(target, replace(SHAPE, deletes="delete"))
    rows = Rows(SHAPE, sample(3))
    deliver(destination, rows.batch())
    target.admin.execute(
        "CREATE FUNCTION crm.keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF OLD.visits = 1 THEN RETURN NULL; END IF; RETURN OLD; END $$;"
        " CREATE TRIGGER keep BEFORE DELETE ON crm.people FOR EACH ROW EXECUTE FUNCTION crm.keep()"
    )
    assert deliver(destination, rows.batch("delete")) == [WRITTEN, SWALLOWED, WRITTEN]


@pytest.mark.parametrize(
    "deletes", ["keep", "delete", SoftDelete({"name": "gone"})], ids=["update", "delete", "soft"]
)
def test_rows_are_counted_by_key_where_the_tables_key_is_not_unique(
    target: PostgresTarget, deletes: Any
) -> None:
    """Two rows of the table have the key of the first row, none has that of the second."""
    shape = replace(SHAPE, write="update_only", deletes=deletes)
    destination = ready(target, shape)
    target.admin.execute(
        "ALTER TABLE crm.people DROP CONSTRAINT people_pkey;"
        "INSERT INTO crm.people (id, name) VALUES ('k0', 'old'), ('k0', 'old'), ('k2', 'old')"
    )
    rows = Rows(shape, sample(3))
    if deletes == "keep":
        assert deliver(destination, rows.batch("update_only")) == [WRITTEN, ABSENT, WRITTEN]
        assert one(target, "SELECT count(*) FROM crm.people WHERE name = 'old'") == 0
        return
    target.admin.execute(
        "CREATE FUNCTION crm.keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF OLD.id = 'k2' THEN RETURN NULL; END IF; RETURN coalesce(NEW, OLD); END $$;"
        " CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON crm.people FOR EACH ROW EXECUTE FUNCTION crm.keep()"
    )
    batch = rows.batch("delete")
    assert deliver(destination, batch) == [WRITTEN, WRITTEN, SWALLOWED]


@pytest.mark.parametrize("write", ["insert_only", "update_only"])
def test_rows_the_table_takes_for_one_are_rejected_in_each_write_mode(
    target: PostgresTarget, write: WriteMode
) -> None:
    destination = ready(target, replace(SHAPE, write=write))
    if write == "update_only":
        target.admin.execute("INSERT INTO crm.people (id) VALUES ('k0'), ('k1')")
    rows = [("k0", "first", None, 1), ("k1", "alone", None, 1), ("k0", "second", None, 1)]
    results = deliver(destination, Rows(SHAPE, rows).batch(write))
    assert [result.code for result in results] == ["KEY_COLLIDES", None, "KEY_COLLIDES"]
    assert one(target, "SELECT count(*) FROM crm.people WHERE visits = 1") == 1


def test_rows_of_tables_that_inherit_belong_to_others(target: PostgresTarget) -> None:
    """The child has a row with each key that the sync has, and nothing of it is read, changed or deleted."""
    shape = replace(SHAPE, deletes="delete")
    destination = ready(target, shape)
    target.admin.execute(
        f"CREATE TABLE crm.children () INHERITS (crm.people); GRANT ALL ON crm.children TO {ROLE};"
        "INSERT INTO crm.children (id, name) SELECT 'k' || n, 'theirs' FROM generate_series(0, 3) AS n"
    )
    rows = Rows(shape, sample(3))
    assert list(destination.read(rows.batch())) == [None] * 3
    assert deliver(destination, rows.batch("update_only", run_id="run-0")) == [ABSENT] * 3
    assert deliver(destination, rows.batch(run_id="run-1")) == [WRITTEN] * 3
    again = rows.batch(run_id="run-2")
    assert deliver(destination, again) == [WRITTEN] * 3
    assert [row and row["name"] for row in destination.read(again)] == ["name 0", "name 1", "name 2"]
    assert deliver(destination, rows.batch("delete", run_id="run-3")) == [WRITTEN] * 3
    assert one(target, "SELECT count(*) FROM ONLY crm.people") == 0
    assert one(target, "SELECT count(*) FROM crm.children WHERE name = 'theirs'") == 4


REKEY = (
    "CREATE FUNCTION crm.rekey() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN {body} RETURN NEW; END $$;"
    " CREATE TRIGGER rekey BEFORE INSERT OR UPDATE ON crm.people FOR EACH ROW EXECUTE FUNCTION crm.rekey()"
)


@pytest.mark.parametrize("write", ["upsert", "insert_only", "update_only", "append"])
def test_a_row_whose_key_a_trigger_changes_is_no_success(target: PostgresTarget, write: WriteMode) -> None:
    destination = ready(target, replace(SHAPE, write=write))
    if write == "update_only":
        target.admin.execute("INSERT INTO crm.people (id) VALUES ('k0'), ('K1'), ('k2')")
    target.admin.execute(REKEY.format(body="NEW.id = lower(NEW.id);"))
    rows = [("k0", "a", None, 1), ("K1", "b", None, 1), ("k2", "c", None, 1), ("K3", "d", None, 1)]
    results = deliver(destination, Rows(SHAPE, rows).batch(write))
    assert results == [WRITTEN, KEY_CHANGED, WRITTEN, ABSENT if write == "update_only" else KEY_CHANGED]
    assert one(target, "SELECT count(*) FROM crm.people WHERE visits = 1") == 2


def test_keys_that_a_trigger_makes_one_cost_only_the_row_that_it_changes(target: PostgresTarget) -> None:
    destination = ready(target)
    target.admin.execute(REKEY.format(body="NEW.id = lower(NEW.id);"))
    rows = [("K0", "first", None, 1), ("k0", "second", None, 2), ("k1", "third", None, 3)]
    results = deliver(destination, Rows(SHAPE, rows).batch())
    assert results == [KEY_CHANGED, WRITTEN, WRITTEN]
    assert target.contents() == as_contents(SHAPE, rows[1:])


def test_a_row_that_a_trigger_moves_away_afterwards_is_no_success(target: PostgresTarget) -> None:
    destination = ready(target)
    target.admin.execute(
        "CREATE FUNCTION crm.move() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM crm.people WHERE id = NEW.id; RETURN NULL; END $$;"
        " CREATE TRIGGER move AFTER INSERT ON crm.people FOR EACH ROW WHEN (NEW.visits = 1)"
        " EXECUTE FUNCTION crm.move()"
    )
    kinds_found = kinds(deliver(destination, Rows(SHAPE, sample(3)).batch()))
    assert kinds_found == [Kind.WRITTEN, Kind.REJECTED, Kind.WRITTEN]


def test_a_trigger_of_a_partition_is_watched_too(target: PostgresTarget) -> None:
    target.admin.execute(
        "CREATE TABLE crm.people (id text PRIMARY KEY, name text, amount numeric(12,2), visits bigint)"
        " PARTITION BY RANGE (id); CREATE TABLE crm.p0 PARTITION OF crm.people FOR VALUES FROM ('a') TO ('z')"
    )
    destination = ready(target)
    target.admin.execute(REKEY.format(body="NEW.id = 'k' || NEW.id;").replace("ON crm.people", "ON crm.p0"))
    assert deliver(destination, Rows(SHAPE, sample(2)).batch()) == [KEY_CHANGED] * 2
    assert target.contents() == {}


def test_rows_that_get_lost_on_the_way_are_noticed(target: PostgresTarget) -> None:
    class Short(Rows):
        def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]:
            return super().csv(first, last - 1, delete=delete, numbered=numbered)

    destination = ready(target)
    with pytest.raises(InvariantBroken):
        destination.write(Short(SHAPE, sample(3)).batch())
    assert target.contents() == {}
    assert kinds(deliver(destination, Rows(SHAPE, sample(3)).batch())) == [Kind.WRITTEN] * 3


def test_new_rows_go_straight_into_the_table_until_it_objects(target: PostgresTarget) -> None:
    """One row of the third batch is there already: from then on rows are staged."""
    destination = ready(target)
    target.admin.execute(
        "ALTER TABLE crm.people ADD COLUMN way text DEFAULT split_part(current_query(), ' ', 1);"
        "INSERT INTO crm.people (id, way) VALUES ('k7', 'theirs')"
    )
    rows = Rows(SHAPE, sample(12))
    for first in range(0, 12, 3):
        assert kinds(deliver(destination, rows.batch(first=first, last=first + 2))) == [Kind.WRITTEN] * 3
    ways = target.admin.execute("SELECT way FROM crm.people ORDER BY length(id), id").fetchall()
    straight = ["COPY"] * 6 if Rows.new else ["INSERT"] * 6
    assert [way for (way,) in ways] == [*straight, "INSERT", "theirs", *["INSERT"] * 4]
    assert target.contents() == as_contents(SHAPE, rows.rows)


def test_a_table_that_copy_cannot_fill_is_filled_all_the_same(target: PostgresTarget) -> None:
    """COPY FROM refuses a table whose row-level security binds the account."""
    destination = ready(target)
    target.admin.execute(
        "ALTER TABLE crm.people ENABLE ROW LEVEL SECURITY;"
        f" CREATE POLICY everything ON crm.people TO {ROLE} USING (true)"
    )
    rows = Rows(SHAPE, sample(4))
    assert kinds(deliver(destination, rows.batch(last=1))) == [Kind.WRITTEN] * 2
    assert kinds(deliver(destination, rows.batch(first=2))) == [Kind.WRITTEN] * 2
    assert target.contents() == as_contents(SHAPE, rows.rows)


def test_a_row_that_a_policy_refuses_costs_only_itself(target: PostgresTarget) -> None:
    """One row is hidden from the account, one may not be written by it."""
    destination = ready(target)
    target.admin.execute("INSERT INTO crm.people (id, visits) VALUES ('k0', 9)")
    target.admin.execute(
        "ALTER TABLE crm.people ENABLE ROW LEVEL SECURITY;"
        f" CREATE POLICY ours ON crm.people TO {ROLE} USING (visits < 9) WITH CHECK (visits <> 2)"
    )
    results = deliver(destination, Rows(SHAPE, sample(4)).batch())
    assert [result.code for result in results] == ["42501", None, "42501", None]
    assert results[2].reason == "a row-level security policy refuses the row"
    assert one(target, "SELECT count(*) FROM crm.people WHERE visits < 9") == 2


# the marker


def test_append_is_exactly_once_however_often_it_is_tried(target: PostgresTarget) -> None:
    shape = replace(SHAPE, write="append")
    destination = ready(target, shape)
    target.admin.execute("ALTER TABLE crm.people DROP CONSTRAINT people_pkey")
    batch = Rows(shape, sample(3)).batch("append")
    for attempt in range(4):
        target.proxy.drop_reply(target.commit)
        try:
            destination.write(batch)
        except Ambiguous:
            if attempt % 2:
                assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 3
            else:
                assert destination.resolve(batch, None) == Outcome(WRITTEN)
        except Unavailable:
            pass
        target.proxy.heal()
    assert kinds(deliver(ready(target, shape), batch)) == [Kind.WRITTEN] * 3
    assert one(target, "SELECT count(*) FROM crm.people") == 3


def test_an_unanswered_commit_is_ambiguous_and_an_unsent_one_is_not(target: PostgresTarget) -> None:
    destination = ready(target)
    target.proxy.drop_reply(target.commit)
    with pytest.raises(Ambiguous):
        destination.write(Rows(SHAPE, sample(2)).batch())
    target.proxy.drop_reply(b"INSERT INTO")
    with pytest.raises(Unavailable):
        destination.write(Rows(SHAPE, sample(4)).batch(first=2))
    target.proxy.heal()
    assert target.contents() == as_contents(SHAPE, sample(2))


def test_a_resolved_batch_can_be_sent_again_here_but_not_by_the_one_that_lost_it(
    target: PostgresTarget,
) -> None:
    shape = replace(SHAPE, write="append")
    ours, zombie = ready(target, shape), ready(target, shape)
    batch = Rows(shape, sample(3)).batch("append")
    assert kinds([ours.resolve(batch, None).default]) == [Kind.RETRY]
    with pytest.raises(Systemic) as caught:
        zombie.write(batch)
    assert caught.value.code == "VOIDED"
    assert target.contents() == {}
    with pytest.raises(Systemic):
        zombie.resolve(batch, None)
    assert kinds([ours.resolve(batch, None).default]) == [Kind.RETRY]
    assert kinds(deliver(ours, batch)) == [Kind.WRITTEN] * 3
    assert ours.resolve(batch, None) == Outcome(WRITTEN)


def test_resolving_waits_for_a_commit_that_is_under_way(target: PostgresTarget) -> None:
    destination = ready(target)
    batch = Rows(SHAPE, sample(3)).batch()
    sql = Statements(Relation("crm", "people"), SHAPE)
    with ThreadPoolExecutor(1) as pool:
        with target.admin.transaction():
            target.admin.execute(sql.markers.mark(batch, 0, "somebody", 3, []))
            answer = pool.submit(destination.resolve, batch, None)
            wait_for_a_lock(target, answer)
        assert answer.result() == Outcome(WRITTEN)


def test_resolving_waits_for_a_second_try_under_the_same_name(target: PostgresTarget) -> None:
    destination = ready(target)
    batch = Rows(SHAPE, [target.poison(row) for row in sample(2)]).batch()
    deliver(destination, batch)
    sql = Statements(Relation("crm", "people"), SHAPE)
    with ThreadPoolExecutor(1) as pool:
        with target.admin.transaction():
            target.admin.execute(sql.markers.mark(batch, 0, "somebody", 2, []))
            answer = pool.submit(destination.resolve, batch, None)
            wait_for_a_lock(target, answer)
        assert answer.result() == Outcome(WRITTEN)


def wait_for_a_lock(target: PostgresTarget, answer: Future[Any]) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = %s"
    with target.database.connect() as observer:
        while observer.execute(waiting, [ROLE]).fetchone() == (0,):
            assert not answer.done()


def test_the_marker_remembers_every_rejected_row(target: PostgresTarget) -> None:
    destination = ready(target, replace(SHAPE, write="insert_only"))
    rows = sample(5)
    target.admin.execute("INSERT INTO crm.people (id) VALUES ('k1')")
    rows[3] = target.poison(rows[3])
    batch = Rows(SHAPE, rows).batch("insert_only")
    outcome = destination.write(batch)
    assert outcome.exceptions.keys() == {1, 3}
    assert ready(target).resolve(batch, None) == outcome


def test_a_batch_of_which_nothing_was_written_may_be_tried_again(target: PostgresTarget) -> None:
    destination = ready(target)
    batch = Rows(SHAPE, [target.poison(row) for row in sample(2)]).batch()
    assert kinds(deliver(destination, batch)) == [Kind.REJECTED] * 2
    target.admin.execute("ALTER TABLE crm.people DROP CONSTRAINT polite")
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2
    assert len(target.contents()) == 2


def test_an_older_run_is_fenced_off(target: PostgresTarget) -> None:
    zombie = ready(target)
    deliver(zombie, Rows(SHAPE, sample(1, "old")).batch())
    ready(target, visit=Visit("run-2", 2))
    with pytest.raises(Systemic) as caught:
        zombie.write(Rows(SHAPE, sample(3, "stale")).batch(run_id="run-0"))
    assert caught.value.code == "VOIDED"
    with pytest.raises(Systemic):
        target.make(SHAPE).prepare(VISIT)
    assert target.contents() == as_contents(SHAPE, sample(1, "old"))


def test_old_markers_go_but_for_those_the_ledger_will_ask_for(target: PostgresTarget) -> None:
    batches = [replace(Rows(SHAPE, sample(1)).batch(run_id=f"run-{n}"), epoch=n) for n in (1, 2, 3)]
    destination = ready(target)
    for batch in batches:
        deliver(destination, batch)
    ready(target, visit=Visit("run-4", 4, keep=frozenset({"run-2"})))
    runs = target.admin.execute("SELECT run_id FROM crm.retl_applied ORDER BY run_id").fetchall()
    assert runs == [("",), ("run-2",)]


@pytest.mark.parametrize("harm", ["TABLE crm.retl_applied", "TABLE crm.people", "marker", "again"])
def test_a_lost_target_has_no_trace_of_the_batch(target: PostgresTarget, harm: str) -> None:
    batch = Rows(SHAPE, sample(1)).batch()
    deliver(ready(target), batch)
    mark = ("run-1", batch.id)
    trace = ready(target).check(VISIT)
    assert trace is not None
    assert (mark in trace.batches, trace.replaced, trace.epoch) == (True, set(), 1)
    if harm == "marker":
        target.admin.execute("DELETE FROM crm.retl_applied WHERE state = 'applied'")
    else:
        target.admin.execute(f"DROP {harm.replace('again', 'TABLE crm.people')}")
    destination = target.make(SHAPE) if harm == "again" else Postgres(target.options(create=True), SHAPE)
    trace = destination.check(VISIT)
    assert trace is not None
    assert mark not in trace.batches - trace.replaced


@pytest.mark.parametrize("harm", ["TRUNCATE crm.people", "VACUUM FULL crm.people"])
def test_rows_that_are_stored_anew_are_no_longer_proved_by_their_marks(
    target: PostgresTarget, harm: str
) -> None:
    batch = Rows(SHAPE, sample(1)).batch()
    deliver(ready(target), batch)
    target.admin.execute(harm)
    trace = ready(target).check(VISIT)
    assert trace is not None
    assert trace.replaced == {("run-1", batch.id)}


def test_a_trace_tells_the_runs_of_other_syncs_apart(target: PostgresTarget) -> None:
    deliver(ready(target), Rows(SHAPE, sample(1)).batch())
    trace = ready(target, replace(SHAPE, sync="another")).check(VISIT)
    assert trace is not None
    assert trace.foreign == {"run-1"}
    assert not trace.strangers


def test_a_table_delivered_from_another_state_has_strangers_until_we_are_there(
    target: PostgresTarget,
) -> None:
    ready(target)
    other = replace(SHAPE, state_id="state-2")
    trace = Postgres(target.options(), other).check(VISIT)
    assert trace is not None
    assert trace.strangers
    Postgres(target.options(), other).prepare(VISIT)
    for shape in (other, SHAPE):
        trace = Postgres(target.options(), shape).check(VISIT)
        assert trace is not None
        assert not trace.strangers


def test_without_the_right_to_keep_markers_upserts_go_on_and_append_is_refused(
    target: PostgresTarget,
) -> None:
    target.admin.execute(f"REVOKE CREATE ON SCHEMA crm FROM {ROLE}")
    destination = ready(target)
    assert destination.check(VISIT) is None
    batch = Rows(SHAPE, sample(2)).batch()
    assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 2
    assert destination.resolve(batch, None) == Outcome(UNKNOWN)
    append = target.make(replace(SHAPE, write="append"))
    with pytest.raises(Systemic) as caught:
        append.check(VISIT)
    assert caught.value.code == "NO_MARKER"
    with pytest.raises(Systemic):
        append.write(Rows(SHAPE, sample(2)).batch("append"))
    target.admin.execute(caught.value.hint or "")
    append.check(VISIT)


# what a human is shown


def test_a_request_is_what_psql_would_run(target: PostgresTarget) -> None:
    destination = ready(target)
    shown = destination.preview(Rows(SHAPE, sample(2)).batch()).decode()
    head, _, rest = shown.partition("FROM STDIN (FORMAT csv, NULL '', ENCODING 'UTF8');\n")
    rows, _, tail = rest.partition("\\.\n")
    copy = head[head.rindex("COPY") :] + "FROM STDIN (FORMAT csv)"
    with target.database.connect() as psql:
        psql.execute(head[: head.rindex("COPY")])
        with psql.cursor().copy(copy) as copying:
            copying.write(rows)
        psql.execute(tail)
    assert target.contents() == as_contents(SHAPE, sample(2))


def test_transience_is_told_by_code(target: PostgresTarget) -> None:
    destination = ready(target)
    deliver(destination, Rows(SHAPE, sample(1)).batch())
    with target.admin.transaction():
        target.admin.execute("LOCK TABLE crm.people")
        with pytest.raises(Unavailable) as caught:
            destination.write(Rows(SHAPE, sample(2)).batch(run_id="run-2"))
    assert caught.value.code in ("55P03", "57014", "CONNECTION_LOST")
    target.admin.execute("DROP TABLE crm.people")
    with pytest.raises(Systemic) as stopped:
        destination.write(Rows(SHAPE, sample(2, CANARY)).batch(run_id="run-3"))
    assert stopped.value.code == "42P01"
    assert CANARY not in told(stopped.value)
