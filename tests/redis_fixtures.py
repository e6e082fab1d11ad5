"""Fixtures of the tests of Redis: the administrator's client, a proxy before the server, a project that writes to it.

A module that wants them imports them by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.commands import Workshop
from tests.proxy import Proxy
from tests.servers import RedisServer

USERS = "retl-json", "retl-hash", "retl-set", "retl-zset"  # of ACLs, made by tests


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    """The administrator's, past the proxy. What tests set is set back."""
    with redis_server.client() as client:
        limit = client.config_get("proto-max-bulk-len")["proto-max-bulk-len"]
        yield client
        client.config_set("proto-max-bulk-len", limit)
        client.execute_command("ACL", "DELUSER", *USERS)


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.host, redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(redis_server: RedisServer, proxy: Proxy) -> RedisServer:
    """The server as one reaches it through the proxy."""
    return replace(redis_server, host=proxy.host, port=proxy.port)


@pytest.fixture
def workshop(tmp_path: Path, redis_server: RedisServer) -> Workshop:
    made = Workshop(tmp_path / "project")
    made.use(redis=redis_server)
    return made
