"""Between retl and PostgreSQL stands a pooler: in session mode nothing changes, in transaction mode nothing
is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.commands import ROWS, Workshop
from tests.pooler import Pooler
from tests.servers import Database

LEFT = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' UNION ALL SELECT count(*) FROM pg_class WHERE relname LIKE 'retl%'"


@pytest.fixture(params=["session", "transaction"])
def pooled(request: pytest.FixtureRequest, postgres: Database) -> Iterator[tuple[Database, str]]:
    """A database behind a pooler, and the pooler's mode."""
    with Pooler(postgres.host, postgres.port, request.param) as pooler:
        yield replace(postgres, host="127.0.0.1", port=pooler.port), request.param


@pytest.fixture
def users(tmp_path: Path) -> Workshop:
    workshop = Workshop(tmp_path / "project")
    workshop.sync("users", destination="{type: postgres, table: users, create: true}")
    return workshop


def test_a_pooler_that_changes_processes_is_refused_before_anything_is_written(
    users: Workshop, postgres: Database, pooled: tuple[Database, str]
) -> None:
    database, mode = pooled
    users.use(postgres=database)
    if mode == "transaction":
        for words in (("check",), ("sync",), ("sync",)):
            said = users.retl(*words)
            assert (said.code, "[POOLER_MODE]" in said.err + said.out) == (1, True), said
        with database.connect() as client, postgres.connect() as admin:
            assert admin.execute(LEFT).fetchall() == [(0,), (0,)]
            assert {client.execute("SHOW lock_timeout").fetchone() for _ in range(9)} == {("0",)}
        users.use(postgres=postgres)
    (done,) = users.json("sync")["syncs"]
    assert (done["status"], done["inserted"]) == ("SUCCESS", ROWS)


def test_a_ledger_behind_a_pooler_that_changes_processes_is_refused(
    users: Workshop, postgres: Database, pooled: tuple[Database, str]
) -> None:
    database, mode = pooled
    users.use(postgres=postgres)
    said = users.retl("sync", "--output", "json", RETL_STATE_URL=database.url)
    assert said.code == (0 if mode == "session" else 1), said
    if mode == "transaction":
        assert "POOLER_MODE" in said.err + said.out
        with postgres.connect() as admin:
            assert admin.execute(LEFT).fetchall() == [(0,), (0,)]
