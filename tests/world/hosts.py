"""The servers of the suite, each started when a scene first asks for it: those of the wheels and those that
are installed, standbys and replicas that can be promoted, and PgBouncer.

A server that is not here is told by its absence from `KINDS`, never by a test that passes without it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import psycopg
import redis

from retl_demo.process import ENVIRONMENT, LOOPBACK, Server
from retl_demo.servers import Postgres, Valkey
from tests.servers import EXPENDABLE, Database, RedisServer

T = TypeVar("T")
DEBIAN_POSTGRES = Path("/usr/lib/postgresql/15/bin")
REDIS = shutil.which("redis-server")
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)

POSTGRES = {"PostgreSQL 18": None} | (
    {"PostgreSQL 15": DEBIAN_POSTGRES} if (DEBIAN_POSTGRES / "postgres").exists() else {}
)
CACHES = {"Valkey 9": None} | ({"Redis 7": Path(REDIS)} if REDIS else {})
WANTED = ("PostgreSQL 18", "PostgreSQL 15", "Valkey 9", "Redis 7")


def absent() -> set[str]:
    """What the suite would use and is not installed here, or not allowed."""
    tools = {"PgBouncer": PGBOUNCER, "libfaketime": FAKETIME, "mount": os.geteuid() == 0}
    return {name for name in WANTED if name not in POSTGRES | CACHES} | {n for n in tools if not tools[n]}


class Cache(Valkey):
    """A Redis-compatible server that keeps on disk only what SAVE was told to."""

    def __init__(self, directory: Path, binary: Path | None = None) -> None:
        super().__init__(directory)
        self._given = binary

    @property
    def address(self) -> RedisServer:
        return RedisServer(self.host, self.port, self.password)

    def client(self) -> redis.Redis:
        return self.address.client()

    def lose_memory(self) -> None:
        """Start again with what the last SAVE wrote, or with nothing."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
        self.restart()

    def forget_disk(self) -> None:
        (self.directory / "dump.rdb").unlink(missing_ok=True)

    def _prepare(self) -> None:
        if self._given is None:
            super()._prepare()
        else:
            self._binary = self._given


class Replica(Cache):
    """Follows `primary`, which has its password too, until the link is cut; `promote` ends it."""

    def follow(self, primary: Cache, port: int) -> None:
        """`port`: where it reaches the primary, which may be a proxy's."""
        with self.client() as client:
            client.config_set("masterauth", primary.password)
            client.execute_command("REPLICAOF", LOOPBACK, port)
            _until(lambda: client.info("replication")["master_link_status"] == "up")

    def caught_up(self, primary: Cache) -> None:
        with primary.client() as first, self.client() as second:
            offset = first.info("replication")["master_repl_offset"]
            _until(lambda: second.info("replication").get("slave_repl_offset", -1) >= offset)

    def promote(self, password: str) -> None:
        """The primary, under the password clients know."""
        with self.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")
            client.config_set("requirepass", password)
        self.password = password


class Cluster(Postgres):
    """A PostgreSQL that one scene may stop, restart and copy."""

    def __init__(self, directory: Path, binaries: Path | None = None) -> None:
        super().__init__(directory, binaries, EXPENDABLE)

    def address(self, dbname: str = "postgres") -> Database:
        return Database(self.host, self.port, self.user, self.password, dbname)

    def binary(self, name: str) -> str:
        return str(self._binaries / name)


class Standby(Cluster):
    """A hot standby of `primary`, which it reaches at `port` (a proxy's)."""

    def __init__(self, directory: Path, primary: Cluster, port: int) -> None:
        super().__init__(directory, primary._given)
        self.primary, self.through = primary, port
        self.password = primary.password

    def caught_up(self) -> None:
        with self.primary.address().connect() as first, self.address().connect() as second:
            (at,) = first.execute("SELECT pg_current_wal_lsn()").fetchall()[0]
            _until(
                lambda: second.execute("SELECT pg_last_wal_replay_lsn() >= %s", [at]).fetchall() == [(True,)]
            )

    def promote(self) -> None:
        with self.address().connect() as connection:
            connection.execute("SELECT pg_promote()")

    def _initialise(self) -> None:
        self._data.mkdir(mode=0o700)
        self._give(self._data)
        command = [self.binary("pg_basebackup"), "-D", str(self._data), "-R", "-c", "fast", "--no-sync"]
        command += ["-d", f"host={LOOPBACK} port={self.through} user={self.user}"]
        subprocess.run(
            command,
            cwd=self._home,
            env={**ENVIRONMENT, "PGPASSWORD": self.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=120,
            **self._identity,
        )

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            asked = Database(self.host, port, self.user, self.password, "postgres")
            asked.connect().close()
            return True
        return False


class PgBouncer(Server):
    """A pooler before `database`'s server, with the same user and password."""

    name = "pgbouncer"
    user = "postgres"
    ending = Valkey.ending
    orphaned = Valkey.orphaned

    def __init__(self, directory: Path, database: Database, mode: str) -> None:
        super().__init__(directory)
        self.database, self.mode = database, mode
        self.password = database.password

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}"

    def _prepare(self) -> None:
        """Its settings are written for each port that is tried."""

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        to = self.database
        users, settings = self.directory / "users.txt", self.directory / "pgbouncer.ini"
        users.write_text(f'"{to.user}" "{to.password}"\n')
        settings.write_text(
            f"[databases]\n* = host={to.host} port={to.port}\n[pgbouncer]\nlisten_addr = {LOOPBACK}\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = {self.mode}\nignore_startup_parameters = extra_float_digits,options\n"
        )
        identity = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            for path in (self.directory, users, settings):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        assert PGBOUNCER
        return self._popen([PGBOUNCER, str(settings)], self.directory, identity=identity)  # type: ignore[arg-type]

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return True
        return False


class Hosts:
    """Servers that scenes share, by name, and those of one scene, which end with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shared: dict[str, Server] = {}
        self._stack = contextlib.ExitStack()
        self._thread = self._stack.enter_context(ThreadPoolExecutor(1))
        self._number = 0
        self._lasting: dict[str, Any] = {}

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def beside(self, act: Callable[[], object]) -> None:
        """Done in a thread that stays: a server ends with the thread that started it."""
        self._thread.submit(act).result()

    def postgres(self, name: str) -> Cluster:
        """The shared server of this name in POSTGRES."""
        found = self._shared.get(name)
        if found is None:
            made = Cluster(self.folder(), POSTGRES[name])
            found = self._shared[name] = self._stack.enter_context(made.start())
        assert isinstance(found, Cluster)
        return found

    def lasting(self, name: str, made: Callable[[Path], AbstractContextManager[T]]) -> T:
        """The shared server of this name, which `made` starts in a folder of its own."""
        if name not in self._lasting:
            self._lasting[name] = self._stack.enter_context(made(self.folder()))
        return cast(T, self._lasting[name])

    def own_postgres(self, name: str) -> Cluster:
        return Cluster(self.folder(), POSTGRES[name]).start()

    def own_cache(self, name: str) -> Cache:
        return Cache(self.folder(), CACHES[name]).start()

    def own_replica(self, name: str) -> Replica:
        made = Replica(self.folder(), CACHES[name])
        made.start()
        return made

    def folder(self) -> Path:
        self._number += 1
        made = self.directory / f"server-{self._number}"
        made.mkdir(mode=0o755)
        return made


def _until(true: object, seconds: float = 30) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
