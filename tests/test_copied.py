"""What a COPY sends is read many rows at a time: it is byte for byte what psycopg hands over row by row, an error halfway
is raised, and the session is good afterwards. COPY writes a value as a cast to text does, where no cast is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from retl.destinations.postgres.types import WRITTEN_AS_TEXT
from retl.net.postgres import PostgresConnection, Session, copied
from retl.values.sql import literal
from tests.servers import Database

WHOLE = ("0", "-1", "32767")
TIMES = ("2026-01-01 00:00:00", "1999-12-31 23:59:59.999999", "infinity", "-infinity", "4713-01-01 BC")
VALUES = {
    "text": ("", "a,b", '"', "\\.", "line\nbreak\r", " blank ", "é漢", "\\N"),
    "character varying": ("", "'", "{}", "\t"),
    "smallint": WHOLE,
    "integer": (*WHOLE, "-2147483648"),
    "bigint": (*WHOLE, "9223372036854775807"),
    "numeric": ("0", "1.10", "-0.000000000000000000001", "NaN", "Infinity", "1e40"),
    "real": ("0", "-0", "0.1", "1e-40", "NaN", "-Infinity", "16777217"),
    "double precision": ("0", "-0", "0.1", "5e-324", "NaN", "Infinity", "1e22"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",),
    "date": ("2026-01-01", "infinity", "4713-01-01 BC"),
    "timestamp without time zone": TIMES,
    "timestamp with time zone": (*TIMES, "2026-06-01 12:00:00+05:30"),
    "json": ('{ "a" : [1.10, null] }', '"\\u00e9"'),
    "jsonb": ('{ "b": 1.10, "a": [1e3] }', "null"),
    "bytea": ("\\x", "\\x00ff5c22"),
}


@pytest.fixture
def session(every_postgres: Database) -> Iterator[Session]:
    given = {name: getattr(every_postgres, name) for name in ("host", "port", "dbname", "user", "password")}
    with closing(PostgresConnection.model_validate(given).connect("test")) as session:
        yield session


def test_rows_are_those_that_psycopg_hands_over_and_are_counted(session: Session) -> None:
    wide = "CASE WHEN n % 1000 = 0 THEN repeat('long ', 100000) END"
    statement = (
        f"COPY (SELECT n, E'line\\n' || n, {wide} FROM generate_series(1, 20000) AS n) TO STDOUT (FORMAT csv)"
    )
    with session.cursor() as cursor, cursor.copy(statement) as copy:
        expected = b"".join(map(bytes, copy))
    chunks, count = list[bytes](), 0

    def taken() -> Iterator[bytes]:
        nonlocal count
        count = yield from copied(session, statement)

    chunks += taken()
    assert b"".join(chunks) == expected
    assert count == 20000
    assert 1 < len(chunks) < 200, "many rows at a time, and not all of them"


def test_nothing_is_no_row(session: Session) -> None:
    assert list(copied(session, "COPY (SELECT 1 WHERE false) TO STDOUT")) == []


def test_an_error_halfway_is_raised_and_the_session_goes_on(session: Session) -> None:
    halfway = "COPY (SELECT 1 / (15000 - n) FROM generate_series(1, 20000) AS n) TO STDOUT"
    with pytest.raises(psycopg.errors.DivisionByZero) as raised:
        list(copied(session, halfway))
    assert raised.value.sqlstate == "22012"
    session.rollback()
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_reader_that_stops_early_leaves_a_good_session(session: Session) -> None:
    rows = copied(session, "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT")
    assert next(rows)
    rows.close()
    session.rollback()
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_lost_connection_is_an_error(session: Session, every_postgres: Database) -> None:
    rows = copied(session, "COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT")
    assert next(rows)
    with every_postgres.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s)", [session.info.backend_pid])
    with pytest.raises(psycopg.OperationalError):
        list(rows)
    assert session.closed


@pytest.mark.parametrize("kind", sorted(WRITTEN_AS_TEXT))
def test_copy_writes_what_a_cast_to_text_gives(session: Session, kind: str) -> None:
    values = ", ".join(f"(({literal(one)})::{kind})" for one in VALUES[kind])
    texts = [
        b"".join(
            copied(session, f"COPY (SELECT {column} FROM (VALUES {values}) AS t(v)) TO STDOUT (FORMAT csv)")
        )
        for column in ("v", "v::text")
    ]
    assert texts[0] == texts[1] != b""
