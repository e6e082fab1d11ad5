"""Redis shows its own certificate to a server that asks for one: behind a real TLS end, and a Redis with TLS."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from retl.destinations.batch import Kind
from retl.destinations.redis.adapter import Redis, RedisConnection
from retl.errors import Systemic
from tests.destinations.suite import VISIT, Rows, deliver, kinds, sample
from tests.destinations.test_redis import SHAPE, options, signed, tls_before
from tests.servers import RedisServer, free_ports
from tests.world.hosts import REDIS, Cache


class TlsRedis(Cache):
    """A Redis whose second port speaks TLS, and only with clients that have this certificate."""

    def __init__(self, directory: Path, certificate: Path, client: Path) -> None:
        assert REDIS
        super().__init__(directory, Path(REDIS))
        self.certificate, self.client_certificate = certificate, client
        (self.tls_port,) = free_ports(1)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        pem = str(self.certificate)
        command = [str(self._binary), "-", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "yes"]
        command += ["--tls-cert-file", pem, "--tls-key-file", pem]
        command += ["--tls-ca-cert-file", str(self.client_certificate)]
        return self._popen(command, self.directory, given=f"requirepass {self.password}\n")


@contextlib.contextmanager
def before_a_server(server: RedisServer, pem: Path, client: Path, folder: Path) -> Iterator[tuple[int, Any]]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pem)
    with tls_before(server, context) as port:
        yield port, server


@contextlib.contextmanager
def of_the_server(server: RedisServer, pem: Path, client: Path, folder: Path) -> Iterator[tuple[int, Any]]:
    with TlsRedis(folder / "redis", pem, client).start() as own:
        yield own.tls_port, own.address


@pytest.mark.parametrize("end", [before_a_server, *([of_the_server] if REDIS else [])])
def test_a_server_that_asks_for_a_certificate_gets_ours_and_takes_no_other(
    redis_server: RedisServer, tmp_path: Path, end: Any
) -> None:
    pem, ours, other = (signed(tmp_path / f"{name}.pem") for name in ("server", "ours", "other"))
    batch = Rows(SHAPE, sample(3)).batch()
    (tmp_path / "redis").mkdir()
    with end(redis_server, pem, ours, tmp_path) as (port, server), server.client() as client:
        client.execute_command("ACL", "SETUSER", "retl-tls", "reset", "on", ">secret", "~*", "+@all")

        def connect(shown: Path | None) -> Redis:
            files = {"tls_cert_file": str(shown), "tls_key_file": str(shown)} if shown else {}
            connection = {
                "host": "localhost",
                "port": port,
                "tls": True,
                "tls_ca_file": str(pem),
                "db": server.db,
            }
            account = {"user": "retl-tls", "password": "secret", "timeout": 5, "connect_timeout": 5}
            return Redis(options(key="tls:{id}", connection=connection | account | files), SHAPE)

        try:
            for refused in (None, other):
                with pytest.raises(Systemic) as caught:
                    connect(refused).write(batch)
                assert caught.value.code == "TLS"
                assert client.keys("tls:*") == []
            destination = connect(ours)
            destination.check(VISIT)
            assert kinds(deliver(destination, batch)) == [Kind.WRITTEN] * 3
            assert len(client.keys("tls:*")) == 3
            destination.close()
        finally:
            client.execute_command("ACL", "DELUSER", "retl-tls")


def test_files_of_a_certificate_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    encrypted, pem = tmp_path / "encrypted.pem", signed(tmp_path / "pem")
    command = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-in",
        str(pem),
        "-out",
        str(encrypted),
        "-passout",
        "pass:secret",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for cert, key, why in ((tmp_path / "none", pem, "No such file"), (pem, encrypted, "password")):
        files = {"tls_cert_file": str(cert), "tls_key_file": str(key)}
        with pytest.raises(Systemic, match=why) as caught:
            Redis(options(connection={"tls": True, **files}), SHAPE).check(VISIT)
        assert caught.value.code == "TLS"


@pytest.mark.parametrize(
    "given",
    [
        {"tls": True, "tls_cert_file": "a.pem"},
        {"tls": True, "tls_key_file": "a.pem"},
        {"tls_ca_file": "a.pem"},
        {"tls_cert_file": "a.pem", "tls_key_file": "a.pem"},
    ],
)
def test_a_file_without_effect_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RedisConnection.model_validate(given)


def test_files_are_found_from_the_folder_of_the_project() -> None:
    given = RedisConnection(tls=True, tls_ca_file="ca.pem", tls_cert_file="a.pem", tls_key_file="/k.pem")
    placed = given.placed_in(Path("/project"))
    assert (placed.tls_ca_file, placed.tls_cert_file, placed.tls_key_file) == (
        "/project/ca.pem",
        "/project/a.pem",
        "/k.pem",
    )
