"""Real servers for the tests: one of each per session and process, an empty database per test."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from msgspec.structs import replace

from tests import clickhouse_server, dbt_project, kafka, mssql_driver, mysql_server, servers
from tests import dynamodb as aws
from tests import mongo as mongos
from tests.chromium import CHROMIUM

# With how many examples a property is tried; `make test-all` asks for the second.
settings.register_profile("some", max_examples=60, deadline=None)
settings.register_profile("many", max_examples=1000, deadline=None)
settings.load_profile("many" if os.environ.get("RETL_TEST_ALL") else "some")

VERSIONS = servers.postgres_versions()
# Needs a browser, which no wheel carries: without one it is not part of the suite, rather than skipped.
collect_ignore = (
    [] if CHROMIUM else ["test_report_browser.py", "test_pages_browser.py", "test_dashboard_browser.py"]
)
# Needs MariaDB, which no wheel carries either.
collect_ignore += [] if mysql_server.AVAILABLE else ["test_source_mysql.py", "destinations/test_mysql.py"]
# Needs a library of the system, which Microsoft's driver does not carry: `apt-get install libltdl7`.
collect_ignore += [] if mssql_driver.AVAILABLE else ["destinations/test_mssql.py", "test_crash_mssql.py"]
# Needs ssh-keygen, which no wheel carries either.
collect_ignore += [] if shutil.which("ssh-keygen") else ["test_approval.py"]
# Needs Spark, which is half a gigabyte, and Java: `make test-spark` installs the one and asks for the other.
collect_ignore += [] if find_spec("pyspark") and shutil.which("java") else ["test_spark.py"]
if not os.environ.get("RETL_TEST_ALL"):  # what `make test-all` adds: a package index, or minutes
    collect_ignore += ["test_extras.py", "test_iceberg_foreign.py", "test_source_world.py"]
    collect_ignore += ["test_recipes_delivered.py"]  # its files are validated in CI


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Database]:
    """The session's PostgreSQL as its superuser sees it; tests take `postgres`."""
    with servers.postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: servers.Database) -> Iterator[servers.Databases]:
    with contextlib.closing(servers.Databases(postgres_server)) as databases:
        yield databases


@pytest.fixture
def postgres(postgres_databases: servers.Databases) -> Iterator[servers.Database]:
    """An empty database."""
    with postgres_databases.lend() as database:
        yield database


@pytest.fixture(scope="session")
def databases_of(
    postgres_databases: servers.Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path | None], servers.Databases]]:
    """Those of each PostgreSQL at hand, started when it is asked for and kept, whatever the tests' order."""
    started: dict[Path | None, servers.Databases] = {None: postgres_databases}
    with contextlib.ExitStack() as stack:

        def databases(binaries: Path | None) -> servers.Databases:
            if binaries not in started:
                folder = tmp_path_factory.mktemp("postgres")
                server = stack.enter_context(servers.postgres_server(folder, binaries))
                started[binaries] = stack.enter_context(contextlib.closing(servers.Databases(server)))
            return started[binaries]

        yield databases


@pytest.fixture(params=list(VERSIONS.values()), ids=list(VERSIONS))
def every_postgres(
    request: pytest.FixtureRequest, databases_of: Callable[[Path | None], servers.Databases]
) -> Iterator[servers.Database]:
    """An empty database; the test runs once per PostgreSQL at hand."""
    with databases_of(request.param).lend() as database:
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


@pytest.fixture(scope="session")
def session_mysql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mysql_server.MySQLDatabase]:
    with mysql_server.mysql_server(tmp_path_factory.mktemp("mysql")) as server:
        yield server


@pytest.fixture
def mysql(session_mysql: mysql_server.MySQLDatabase) -> Iterator[mysql_server.MySQLDatabase]:
    """An empty database of MariaDB."""
    with mysql_server.fresh(session_mysql) as database:
        yield database


@pytest.fixture(scope="session")
def objectstore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.ObjectStore]:
    """The session's S3 (bucket `plain`) and Iceberg REST catalog (warehouse `s3://lake`)."""
    with servers.ObjectStore(tmp_path_factory.mktemp("objectstore")).start() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.Broker]:
    """The session's broker; tests use topics of their own."""
    with kafka.broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def dynamodb() -> Iterator[aws.Aws]:
    """The session's DynamoDB; tests use tables of their own."""
    with aws.aws() as server:
        yield server


@pytest.fixture(scope="session")
def mongodb() -> Iterator[mongos.Mongo]:
    """The session's MongoDB, which is an emulator; tests use collections of their own."""
    with mongos.server() as server:
        yield server


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clickhouse_server.Server]:
    """The session's ClickHouse; tests use tables of their own."""
    with clickhouse_server.server(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What waits for minutes comes first, so that at the end no process works alone. Rows that are said to be
    new take another way than known ones; on an older PostgreSQL one of the two is enough, but for `test-all`."""
    if not os.environ.get("RETL_TEST_ALL"):
        twins = [item for item in items if _is_twin(item)]
        config.hook.pytest_deselected(items=twins)
        items[:] = [item for item in items if not _is_twin(item)]
    slow = {"analytics", "outcomes"}  # dbt is installed; every value goes to every target
    items.sort(key=lambda item: slow.isdisjoint(getattr(item, "fixturenames", ())))


def pytest_collection_finish() -> None:
    """What collecting made lives until the end: no collection of garbage needs to look at it again."""
    gc.collect()
    gc.freeze()


def _is_twin(item: pytest.Item) -> bool:
    chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return chosen.get("every_postgres") is not None and chosen.get("_new") is False


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the presets proved, one line each, and the sources side by side; with RETL_TEST_ALL also what became
    of edits by others."""
    from tests import truth_table
    from tests.presets.proof import table

    reports = terminalreporter.getreports("passed")
    cells = [value for one in reports for name, value in one.user_properties if name == truth_table.PROPERTY]
    if cells and os.environ.get("RETL_TEST_ALL"):
        terminalreporter.section("edits by others: phone, score, note")
        for line in truth_table.lines(cells):
            terminalreporter.write_line(line)
    proofs = [value for one in reports for name, value in one.user_properties if name == "proof"]
    if proofs:
        terminalreporter.section("presets")
        for line in table(proofs):
            terminalreporter.write_line(line)
    for value in [value for one in reports for name, value in one.user_properties if name == "sources"]:
        terminalreporter.section("sources")
        terminalreporter.write_line(value)


@pytest.fixture(scope="session")
def analytics(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The dbt project after every command of tests/dbt_project.py; nobody writes to it."""
    own = tmp_path_factory.getbasetemp()
    return dbt_project.built(own if worker_id == "master" else own.parent)
