"""What users get wrong with each source that runs here: one sentence with a code, no traceback, nothing written to the
target, and no secret in what is said or kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tenacity import wait_none

from retl.pace import limiter
from tests.crashes import Ended
from tests.mysql_server import AVAILABLE
from tests.servers import Database
from tests.sourced import BUCKETS, FromSource, Servers, Sourced, mart_in, refusal

SECRET = "canary-7f3a91"


@dataclass(frozen=True)
class Mistake:
    """`old` is replaced by `new` in the project or the sync, or something is done; the run says one of `codes`."""

    kind: str
    name: str
    codes: tuple[str, ...]
    old: str = ""
    new: str = ""
    act: Callable[[Sourced, Database], object] | None = None
    absent: str = ""  # a client that is not installed

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def no_right(project: Sourced, database: Database) -> None:
    """The account of the source may not read the table."""
    with database.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_here")
        connection.execute(f"CREATE ROLE nobody_here LOGIN PASSWORD '{SECRET}'")
    edit(
        project,
        f"user: {database.user}, password: '${{PG_PASSWORD}}'",
        f"user: nobody_here, password: {SECRET}",
    )


def edit(project: Sourced, old: str, new: str) -> None:
    """Replace a text where it stands: in retl.yml or in the sync."""
    files = [project.folder / "retl.yml", project.folder / "syncs/users.yml"]
    found = [file for file in files if old in file.read_text()]
    assert found, old
    for file in found[-1:]:
        file.write_text(file.read_text().replace(old, new))


def gone(project: Sourced, pattern: str) -> None:
    """Files of a lake that somebody removed."""
    found = list((project.folder / "lake").rglob(pattern))
    assert found
    for path in found:
        path.unlink()


MISSING, DRIFT, SELECT = ("MART_MISSING", "MART_UNREADABLE"), ("SOURCE_DRIFT",), ("SQL_NOT_ONE_SELECT",)
DEFINED = ("DEFINITION",)  # no run began
SQLS = {
    "duckdb": ("{table: mart}", '{sql: "%s"}'),
    "sqlite": ("{from: lake, table: mart}", '{from: lake, sql: "%s"}'),
    "postgres": ("{from: lake, table: marts.users}", '{from: lake, sql: "%s"}'),
    "mysql": ("{from: lake, table: mart}", '{from: lake, sql: "%s"}'),
}
NOT_READ = ("DELETE FROM mart", "SELECT 1; DROP TABLE mart", "UPDATE mart SET searches = 0")
TABLES = {
    "duckdb": ("table: mart", MISSING + DRIFT),
    "sqlite": ("table: mart", DRIFT),
    "postgres": ("table: marts.users", DRIFT),
    "mysql": ("table: mart", DRIFT),
    "delta": ("table: mart", MISSING),
    "iceberg": ("mart}", MISSING),
    "clickhouse": ("table: mart", DRIFT),
    "parquet": ("state=*", MISSING),
    "csv": ("state=*", MISSING),
    "ndjson": ("state=*", MISSING),
    "parquet in a bucket": ("state=*", MISSING),
    "delta in a bucket": ("table: mart", MISSING),
    "iceberg over REST": ("mart}", MISSING),
}
CONTRACT = "  segment: {type: string}"
MISTAKES = [
    *(
        Mistake(kind, f"no SELECT: {text}", SELECT, SQLS[kind][0], SQLS[kind][1] % text)
        for kind in SQLS
        for text in NOT_READ
    ),
    *(
        Mistake(kind, "no SQL", ("SQL_SYNTAX",), SQLS[kind][0], SQLS[kind][1] % "SELECT FROM WHERE")
        for kind in SQLS
    ),
    *(
        Mistake(kind, "no such table", codes, old, old.replace("mart", "nothing").replace("state", "nothing").replace("users", "nothing"))
        for kind, (old, codes) in TABLES.items()
    ),
    *(
        Mistake(kind, "a column that is not there", DRIFT, CONTRACT, f"{CONTRACT}\n  nothing: {{type: string}}")
        for kind in (*TABLES, "rest")
    ),
    Mistake("sqlite", "no such file", MISSING, "path: mart.sqlite", "path: nothing.sqlite"),
    Mistake("postgres", "no such database", ("3D000",), "dbname: test_", "dbname: no_"),
    Mistake("postgres", "a wrong password", ("28000", "28P01"), "'${PG_PASSWORD}'", SECRET),
    Mistake("postgres", "no right to read", ("MART_UNREADABLE",), act=no_right),
    Mistake("mysql", "no such database", ("3D000",), "dbname: test_", "dbname: no_"),
    Mistake("mysql", "a wrong password", ("28000",), "password: '", f"password: '{SECRET}"),
    Mistake("clickhouse", "a wrong password", ("MART_UNREADABLE", "516"), "password: pass-of-the-tests", f"password: {SECRET}"),
    Mistake("clickhouse", "a secret in the address", DEFINED, "http://127", f"http://me:{SECRET}@127"),
    Mistake("rest", "a wrong token", ("HTTP_401",), "token-of-the-tests", SECRET),
    Mistake("rest", "a secret in the address", DEFINED, "http://127", f"http://me:{SECRET}@127"),
    Mistake("rest", "no list", ("MART_UNREADABLE",), "items: data", "items: nothing"),
    Mistake("parquet", "a secret in the address", DEFINED, '"root": "', f'"root": "s3://me:{SECRET}@bucket/'),
    Mistake("parquet in a bucket", "wrong keys", MISSING, '"secret_access_key": "', f'"secret_access_key": "{SECRET}'),
    Mistake("delta in a bucket", "wrong keys", MISSING, '"secret_access_key": "', f'"secret_access_key": "{SECRET}'),
    Mistake("iceberg over REST", "wrong keys", MISSING, '"secret_access_key": "', f'"secret_access_key": "{SECRET}'),
    Mistake("iceberg over REST", "a wrong credential", MISSING, '"credential": "tests:', f'"credential": "tests:{SECRET}'),
    Mistake("delta", "no such version", MISSING, "table: mart", "table: mart, at: 99"),
    Mistake("delta", "a log that is gone", MISSING, act=lambda project, _: gone(project, "*.json")),
    Mistake("delta", "a secret in the address", DEFINED, "root: lake", f"root: 's3://me:{SECRET}@b/x'"),
    Mistake("iceberg", "no such snapshot", MISSING, "mart}", "mart, at: 99}"),
    Mistake("iceberg", "no such catalog", MISSING, "lake/catalog.db", "lake/nothing.db"),
    Mistake("iceberg", "metadata that is gone", MISSING, act=lambda project, _: gone(project, "*.metadata.json")),
    Mistake("delta", "no client", ("CLIENT_MISSING",), absent="deltalake"),
    Mistake("iceberg", "no client", ("CLIENT_MISSING",), absent="pyiceberg.io.pyarrow"),
    Mistake("mysql", "no client", ("CLIENT_MISSING",), absent="MySQLdb"),
    Mistake("parquet in a bucket", "no client", ("CLIENT_MISSING",), absent="obstore.store"),
]  # fmt: skip
EVERYTHING = bool(os.environ.get("RETL_TEST_ALL"))
# In CI those with a secret and a few of the others: the sources' own tests have most of them.
TRIED = [
    one
    for number, one in enumerate(MISTAKES)
    if (AVAILABLE or one.kind != "mysql") and (EVERYTHING or number % 4 == 0 or SECRET in one.new)
]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter, "_PAUSES", wait_none())


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database) -> Iterator[FromSource]:
    kind = request.getfixturevalue("mistake").kind
    servers = Servers(postgres)
    if kind in BUCKETS:
        servers.objectstore = request.getfixturevalue("objectstore")
    if kind == "mysql":
        servers.mysql = request.getfixturevalue("mysql")
    with mart_in(kind, servers) as made:
        found = FromSource(tmp_path / "project", postgres, made)
        found.empty()
        found.start_over()
        yield found


def said(ended: Ended) -> str:
    """The code, of a run or of a definition that no run began with."""
    if "syncs" in (json.loads(ended.stdout) if ended.stdout.startswith("{") else {}):
        return refusal(ended)
    assert ended.code, ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout
    return "DEFINITION"


@pytest.mark.parametrize("mistake", TRIED, ids=str)
def test_a_mistake_is_one_sentence_and_nothing_is_written_or_leaked(
    mistake: Mistake, scene: FromSource, postgres: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = scene.project
    if mistake.old:
        edit(project, mistake.old, mistake.new)
    if mistake.act is not None:
        mistake.act(project, postgres)
    with monkeypatch.context() as machine:
        if mistake.absent:
            machine.setitem(sys.modules, mistake.absent, None)
        ended = project.sync()
    code = said(ended)
    assert code in mistake.codes, ended.stdout + ended.stderr[-2000:]
    assert scene.content() == []
    texts = [ended.stdout, ended.stderr]
    for words in (("check",), ("validate",), ("plan", "--sync", "users"), ("show", "users"))[
        : None if EVERYTHING else 1
    ]:
        other = project.answered(*words)
        texts += [other.stdout, other.stderr]
    assert all("Traceback" not in text for text in texts)
    assert all(SECRET not in text for text in texts), [text for text in texts if SECRET in text]
    kept = [path for path in (scene.folder / ".retl").rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in kept)
