"""SQLite as a source: one state of the file, values of any type in any column, and a file that is only read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retl.engine.workspace import Workspace
from retl.errors import RetlError
from retl.observe.signals import Stop
from retl.project.marts import Selected
from retl.sources import texts
from retl.sources.api import Invocation, Since
from retl.sources.sqlite import File, SQLite
from retl.sources.texts import MISFIT
from retl.values.sql import quoted
from tests.commands import Workshop
from tests.servers import RedisServer

# The declared type, a literal, DuckDB's type, and the text DuckDB has; None: the row is a reject.
VALUES: list[tuple[str, str, str, str | None]] = [
    ("INTEGER", "9223372036854775807", "BIGINT", "9223372036854775807"),
    ("INTEGER", "'abc'", "BIGINT", None),
    ("INTEGER", "1.5", "BIGINT", None),
    ("UNSIGNED BIG INT", "-1", "BIGINT", "-1"),
    ("REAL", "0.30000000000000004", "DOUBLE", "0.30000000000000004"),
    ("REAL", "9e999", "DOUBLE", "inf"),
    ("REAL", "'x'", "DOUBLE", None),
    ("DECIMAL(12,2)", "12.30", "DECIMAL(12,2)", "12.30"),
    ("DECIMAL(12,2)", "1.005", "DECIMAL(12,2)", None),
    ("DECIMAL(12,2)", "7", "DECIMAL(12,2)", "7.00"),
    ("DECIMAL(12,2)", "'abc'", "DECIMAL(12,2)", None),
    ("NUMERIC", "9007199254740993", "DOUBLE", None),
    ("TEXT", "''", "VARCHAR", ""),
    ("TEXT", "'a\"b,' || char(13, 10) || 'é'", "VARCHAR", 'a"b,\r\né'),
    ("TEXT", "'a' || char(0) || 'b'", "VARCHAR", "a\0b"),
    ("TEXT", "x'41'", "VARCHAR", None),
    ("TEXT", "CAST(x'ff41' AS TEXT)", "VARCHAR", None),
    ("VARCHAR(3)", "1", "VARCHAR", "1"),
    ("BOOLEAN", "1", "BOOLEAN", "true"),
    ("BOOLEAN", "2", "BOOLEAN", None),
    ("BOOLEAN", "'true'", "BOOLEAN", None),
    ("DATE", "'2026-11-28'", "DATE", "2026-11-28"),
    ("DATE", "'2026-02-30'", "DATE", None),
    ("DATE", "1764288000", "DATE", None),
    ("DATE", "'2026-11-28 06:00:00'", "DATE", None),
    ("DATETIME", "'2026-11-28 06:00:00.123456'", "TIMESTAMP", "2026-11-28 06:00:00.123456"),
    ("TIMESTAMP", "'2026-11-28T06:00:00'", "TIMESTAMP", "2026-11-28 06:00:00"),
    ("DATETIME", "'2026-11-28 06:00:00+02:00'", "TIMESTAMP", None),
    ("JSON", "'{\"a\": 1.10}'", "JSON", '{"a": 1.10}'),
    ("JSON", "'{a: 1}'", "JSON", None),
    ("BLOB", "x'00ff'", "VARCHAR", "\\x00ff"),
    ("", "5", "BIGINT", "5"),
    ("", "'5'", "VARCHAR", "5"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "run").mkdir()
    with Workspace(tmp_path / "run", Stop()) as made:
        yield made


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    yield connection
    connection.close()


def source(
    folder: Path, variables: dict[str, Any] | None = None, lock_wait: str = "0s", **options: str
) -> SQLite:
    return SQLite(
        File(path="shop.db", lock_wait=lock_wait), Selected(**options), Invocation(folder, variables or {})
    )


def read(
    made: SQLite, workspace: Workspace, *columns: str, since: Since | None = None
) -> list[tuple[Any, ...]]:
    with made.open(workspace) as snapshot:
        names = columns or tuple(snapshot.description.columns)
        return workspace.run(
            f"SELECT {', '.join(map(quoted, names))} FROM ({snapshot.rows(names, since).sql})"
        )


def refusal(made: SQLite, workspace: Workspace) -> RetlError:
    with pytest.raises(RetlError) as caught:
        read(made, workspace)
    return caught.value


def test_every_value_is_exact_or_a_reject(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace
) -> None:
    columns = {f"c{at}": one for at, one in enumerate(VALUES)}
    shop.execute(f"CREATE TABLE v ({', '.join(f'{name} {one[0]}' for name, one in columns.items())})")
    shop.execute(f"INSERT INTO v VALUES ({', '.join(one[1] for one in VALUES)})")
    shop.execute("INSERT INTO v DEFAULT VALUES")
    before = (tmp_path / "shop.db").read_bytes()
    with source(tmp_path, table="v").open(workspace) as snapshot:
        assert dict(snapshot.description.columns) == {name: one[2] for name, one in columns.items()}
    for name, (kind, value, _, expected) in columns.items():
        with source(tmp_path, table="v").open(workspace) as snapshot:
            query = snapshot.rows([name])
            found = workspace.run(f'SELECT CAST({name} AS VARCHAR), "{MISFIT}" FROM ({query.sql})')
        assert found == [(expected, None if expected is not None else name), (None, None)], (kind, value)
    assert (tmp_path / "shop.db").read_bytes() == before


def test_a_large_table_is_read_from_several_files(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute("CREATE TABLE t (n INTEGER, x TEXT)")
    rows = [(n, f'line "{n}"\n' * (n % 3)) for n in range(100)]
    shop.executemany("INSERT INTO t VALUES (?, ?)", rows)
    monkeypatch.setattr(texts, "_PART", 500)  # bytes
    with source(tmp_path, table="t").open(workspace) as snapshot:
        query = snapshot.rows(["n", "x"])
        files = [path.stat().st_size for path in workspace.directory.glob("source-*.csv")]
        assert sorted(workspace.run(f"SELECT n, x FROM ({query.sql})")) == rows
    assert len(files) >= 5
    assert max(files) < 600
    assert list(workspace.directory.glob("source-*.csv")) == []


def test_a_mixture_without_a_type_is_text(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace
) -> None:
    shop.execute("CREATE TABLE t (x)")
    shop.executemany("INSERT INTO t VALUES (?)", [(1,), ("a",), (0.5,), (None,)])
    made = source(
        tmp_path, {"n": 2, "t": "it's $n"}, sql="SELECT x, $n * 2 AS n, $t AS t, '$t' AS u FROM t -- $zz"
    )
    assert read(made, workspace) == [(x, 4, "it's $n", "$t") for x in ("1", "a", "0.5", None)]


def test_one_state_is_read_and_only_what_is_needed(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace
) -> None:
    shop.execute("PRAGMA journal_mode = wal")
    shop.execute("CREATE TABLE t (id INTEGER, at DATETIME)")
    shop.executemany("INSERT INTO t VALUES (?, '2026-11-28')", [(1,), (2,), (None,)])
    with source(tmp_path, table="t").open(workspace) as first:
        shop.execute("DELETE FROM t WHERE id = 1")
        assert len(workspace.run(first.rows(["id"]).sql)) == 3
    with source(tmp_path, table="t").open(workspace) as second:
        assert second.description.version != first.description.version
    assert read(source(tmp_path, table="t"), workspace, "id", since=Since("id", "BIGINT", "3")) == [(None,)]
    assert (
        len(read(source(tmp_path, table="t"), workspace, since=Since("at", "TIMESTAMP", "2027-01-01"))) == 2
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("DELETE FROM t", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1; DELETE FROM t", "SQL_NOT_ONE_SELECT"),
        ("ATTACH 'other.db' AS other", "SQL_NOT_ONE_SELECT"),
        ("PRAGMA user_version = 7", "SQL_NOT_ONE_SELECT"),
        ("SELECT 1) AS x; CREATE TABLE u (a); SELECT * FROM (SELECT 2", "SQL_NOT_ONE_SELECT"),
        ("SELECT load_extension('x')", "MART_UNREADABLE"),
        ("SELECT 1 FROM", "SQL_SYNTAX"),
        ("SELECT nobody FROM t", "SOURCE_DRIFT"),
        ("SELECT * FROM nowhere", "SOURCE_DRIFT"),
        ("SELECT $b", "VAR_MISSING"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_changes_nothing(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace, text: str, code: str
) -> None:
    shop.execute("CREATE TABLE t (id INTEGER)")
    before = (tmp_path / "shop.db").read_bytes()
    assert refusal(source(tmp_path, sql=text), workspace).code == code
    assert (tmp_path / "shop.db").read_bytes() == before


def test_a_file_that_is_missing_or_no_database_or_locked(
    tmp_path: Path, shop: sqlite3.Connection, workspace: Workspace
) -> None:
    shop.execute("CREATE TABLE t (id INTEGER)")
    shop.execute("BEGIN EXCLUSIVE")
    assert refusal(source(tmp_path, table="t"), workspace).code == "MART_LOCKED"
    shop.execute("ROLLBACK")
    assert read(source(tmp_path, table="t"), workspace) == []
    shop.close()
    (tmp_path / "shop.db").write_bytes(b"no database" * 1000)
    assert refusal(source(tmp_path, table="t"), workspace).code == "MART_UNREADABLE"
    (tmp_path / "shop.db").unlink()
    assert refusal(source(tmp_path, table="t"), workspace).code == "MART_MISSING"
    assert not (tmp_path / "shop.db").exists()


def test_a_table_is_synced_and_a_value_of_another_type_is_a_reject(
    tmp_path: Path, shop: sqlite3.Connection, redis_server: RedisServer
) -> None:
    workshop = Workshop(tmp_path / "project")
    workshop.use(redis=redis_server)
    workshop.write("retl.yml", f"sources:\n  shop: {{type: sqlite, path: {tmp_path}/shop.db}}\n")
    workshop.sync(
        "people",
        source="{from: shop, table: people}",
        key="[id]",
        destination='{type: redis, key: "p:{id}", value: json, ttl: none}',
    )
    shop.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, spend DECIMAL(12,2))")
    shop.executemany("INSERT INTO people VALUES (?, ?)", [(i, i / 4) for i in range(1, 41)])
    shop.execute("UPDATE people SET spend = 'much' WHERE id = 7")
    (run,) = workshop.json("sync")["syncs"]
    assert (run["read"], run["inserted"], [one["code"] for one in run["rejects"]]) == (
        40,
        39,
        ["UNREPRESENTABLE"],
    )
    assert redis_server.client().get("p:1") == b'{"spend":0.25}'
    shop.execute("UPDATE people SET spend = 1 WHERE id = 7")
    (run,) = workshop.json("sync")["syncs"]
    assert (run["inserted"], run["unchanged"]) == (1, 39)
