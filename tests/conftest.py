"""Real servers for the tests: one of each per session and process, an empty database per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import dbt_project, servers
from tests.chromium import CHROMIUM

VERSIONS = servers.postgres_versions()
# Needs a browser, which no wheel carries: without one it is not part of the suite, rather than skipped.
collect_ignore = [] if CHROMIUM else ["test_report_browser.py"]
if not os.environ.get("RETL_TEST_ALL"):  # what `make test-all` adds: it needs a package index
    collect_ignore.append("test_extras.py")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Database]:
    """The session's PostgreSQL as its superuser sees it; tests take `postgres`."""
    with servers.postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: servers.Database) -> Iterator[servers.Database]:
    """An empty database."""
    with servers.fresh_database(postgres_server) as database:
        yield database


@pytest.fixture(scope="session", params=list(VERSIONS.values()), ids=list(VERSIONS))
def every_postgres_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Database]:
    """Each PostgreSQL at hand in turn; tests take `every_postgres`."""
    binaries: Path | None = request.param
    if binaries is None:
        yield request.getfixturevalue("postgres_server")
        return
    with servers.postgres_server(tmp_path_factory.mktemp("postgres"), binaries) as server:
        yield server


@pytest.fixture
def every_postgres(every_postgres_server: servers.Database) -> Iterator[servers.Database]:
    """An empty database; the test runs once per PostgreSQL at hand."""
    with servers.fresh_database(every_postgres_server) as database:
        yield database


@pytest.fixture(scope="session")
def session_redis(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[servers.RedisServer]:
    """The session's Redis; each process of pytest-xdist has a database number of its own."""
    number = int(worker_id.removeprefix("gw")) % 16 if worker_id != "master" else 0
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield replace(server, db=number)


@pytest.fixture
def redis_server(session_redis: servers.RedisServer) -> servers.RedisServer:
    """An empty database of a Redis-compatible server."""
    with session_redis.client() as client:
        client.flushdb()
    return session_redis


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the presets proved, one line each."""
    from tests.presets.proof import table

    reports = terminalreporter.getreports("passed")
    proofs = [value for one in reports for name, value in one.user_properties if name == "proof"]
    if proofs:
        terminalreporter.section("presets")
        for line in table(proofs):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def analytics(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The dbt project after every command of tests/dbt_project.py; nobody writes to it."""
    own = tmp_path_factory.getbasetemp()
    return dbt_project.built(own if worker_id == "master" else own.parent)
