"""A real MariaDB for the tests: the address in RETL_TEST_MYSQL_URL, or a server of Debian's package
mariadb-server-core on a free port of the loopback interface. No wheel carries one: where neither exists the
tests that need it are not collected.

RETL_TEST_MYSQL_URL (mysql://root:password@host:port) names an expendable server: each test makes a database.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from retl_demo.process import ENVIRONMENT, LOOPBACK, Server
from retl_demo.servers import _unprivileged

URL = os.environ.get("RETL_TEST_MYSQL_URL")
_FOUND = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_TABLES = Path("/usr/share/mysql")  # where the package has the SQL of the system's tables
AVAILABLE = bool(URL or (_FOUND and _TABLES.is_dir()))


class MySQLDatabase(Struct, frozen=True):
    """A database of its own, for one test."""

    host: str
    port: int
    user: str
    password: str
    dbname: str

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last statement, through a connection apart from any the code under test has."""
        import MySQLdb

        with contextlib.closing(
            MySQLdb.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                password=self.password,
                database=self.dbname,
                charset="utf8mb4",
                autocommit=True,
                ssl_mode="DISABLED",
            )
        ) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())


class MariaDB(Server):
    """A server with the superuser `root`, without any protection of its data against a crash."""

    name = "mariadb"
    user = "root"
    ending = (signal.SIGKILL,)
    orphaned = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"mysql://{self.user}:{self.password}@{self.host}:{self.port}"

    def _prepare(self) -> None:
        self._identity = _unprivileged()
        self._home = Path(tempfile.mkdtemp(prefix="retl-mariadb-"))
        if self._identity:
            os.chown(self._home, self._identity["user"], self._identity["group"])
        (self._home / "data").mkdir()
        if self._identity:
            os.chown(self._home / "data", self._identity["user"], self._identity["group"])
        first = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\nSET @skip_auth_anonymous = 1;\n"
        files = [_TABLES / f"mysql_system_tables{part}.sql" for part in ("", "_data")]
        subprocess.run(
            [*self._command(), "--bootstrap", "--skip-networking"],
            input=first + "".join(file.read_text() for file in files),
            text=True,
            env=ENVIRONMENT,
            capture_output=True,
            check=True,
            timeout=240,
            cwd=self._home,
            **self._identity,
        )
        setup = self._home / "setup.sql"
        setup.write_text(
            f"SET PASSWORD FOR root@localhost = PASSWORD('{self.password}');\n"
            f"CREATE OR REPLACE USER root@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
        )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [
            *self._command(),
            f"--port={port}",
            f"--bind-address={LOOPBACK}",
            f"--socket={self._home}/s",
            f"--init-file={self._home}/setup.sql",
            "--max-allowed-packet=64M",
        ]
        return self._popen(command, self._home, identity=self._identity)

    def _command(self) -> list[str]:
        assert _FOUND is not None
        return [
            _FOUND,
            "--no-defaults",
            f"--datadir={self._home}/data",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--skip-name-resolve",
        ]

    def _answers(self, port: int) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, port), timeout=1) as connection,
        ):
            return bool(connection.recv(1))
        return False

    def stop(self) -> None:
        super().stop()
        if hasattr(self, "_home"):
            shutil.rmtree(self._home, ignore_errors=True)


@contextlib.contextmanager
def mysql_server(directory: Path) -> Iterator[MySQLDatabase]:
    """The session's server, as its superuser sees it."""
    if URL:
        parts = urlsplit(URL)
        yield MySQLDatabase(
            parts.hostname or LOOPBACK,
            parts.port or 3306,
            unquote(parts.username or "root"),
            unquote(parts.password or ""),
            "mysql",
        )
        return
    with MariaDB(directory).start() as server:
        yield MySQLDatabase(server.host, server.port, server.user, server.password, "mysql")


@contextlib.contextmanager
def fresh(server: MySQLDatabase) -> Iterator[MySQLDatabase]:
    """An empty database."""
    made = replace(server, dbname=f"test_{secrets.token_hex(6)}")
    server.execute(f"CREATE DATABASE {made.dbname} CHARACTER SET utf8mb4")
    try:
        yield made
    finally:
        left = f"SELECT id FROM information_schema.processlist WHERE db = '{made.dbname}'"
        for (number,) in server.execute(left):  # a query whose client is gone runs on
            with contextlib.suppress(Exception):
                server.execute(f"KILL {number}")
        server.execute(f"DROP DATABASE {made.dbname}")
