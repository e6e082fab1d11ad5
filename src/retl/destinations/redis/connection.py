"""A connection of retl.yml: a server, the Sentinels that name it, or nodes of a cluster; the account, and how
it is encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec.structs import replace
from pydantic import BeforeValidator, Field, SecretStr, model_validator

from retl.destinations.redis.cluster import Cluster
from retl.destinations.redis.resp import Account, Wire
from retl.destinations.redis.sentinel import Sentinels
from retl.model import Definition, Duration, needs_tls


def _listed(given: object) -> object:
    return tuple(one.strip() for one in given.split(",")) if isinstance(given, str) else given


def _nodes(given: object) -> object:
    if isinstance(given, bool):
        raise ValueError("`cluster` lists nodes: [redis-1:6379, redis-2:6379]")
    return _listed(given)


class RedisConnection(Definition):
    """A server, the account, and timeouts."""

    host: str = "localhost"
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    sentinels: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="Instead of `host` and `port`: Sentinels, `host:port`, that name the primary."
    )
    service: str | None = Field(None, description="The name that the Sentinels have for the primary.")
    cluster: Annotated[tuple[str, ...], BeforeValidator(_nodes)] = Field(
        (), description="Instead of `host` and `port`: some nodes of a Redis Cluster, `host:port`."
    )
    sentinel_password: SecretStr | None = Field(None, description="The password of the Sentinels.")
    db: Annotated[int, Field(ge=0)] = 0
    user: str | None = None
    password: SecretStr | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_cert_file: str | None = Field(None, description="Our own certificate, if the server asks for one.")
    tls_key_file: str | None = Field(None, description="The key of `tls_cert_file`.")
    allow_plaintext: bool = False
    connect_timeout: Duration = 5.0
    timeout: Duration = 30.0

    @model_validator(mode="after")
    def _fits(self) -> RedisConnection:
        hosts = [host for host, _ in self.addresses] or [self.host]
        if not self.tls and any(needs_tls(one, allow_plaintext=self.allow_plaintext) for one in hosts):
            raise ValueError("a server on another machine needs `tls: true` (or `allow_plaintext: true`)")
        if self.user is not None and self.password is None:
            raise ValueError("a `user` needs a `password`")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("`tls_cert_file` and `tls_key_file` belong together")
        if not self.tls and (self.tls_ca_file or self.tls_cert_file):
            raise ValueError("`tls_ca_file` and `tls_cert_file` need `tls: true`")
        if bool(self.sentinels) != (self.service is not None):
            raise ValueError("`sentinels` and `service` belong together")
        if self.sentinel_password is not None and not self.sentinels:
            raise ValueError("`sentinel_password` is for `sentinels`")
        if self.sentinels and {"host", "port"} & self.model_fields_set:
            raise ValueError("`sentinels` name the primary, so `host` and `port` have no effect")
        if self.cluster and {"host", "port", "sentinels"} & self.model_fields_set:
            raise ValueError("a `cluster` has no `host`, `port` or `sentinels`: it lists nodes")
        if self.cluster and self.db:
            raise ValueError("a cluster has one database, `db: 0`")
        return self

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Of the Sentinels, or of nodes of the cluster; ValueError if one is no `host:port`."""
        found = []
        for one in self.sentinels or self.cluster:
            host, _, port = one.rpartition(":")
            if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
                what = "Sentinel is `host:port`, such as sentinel-1:26379"
                what = what if self.sentinels else "node is `host:port`, such as redis-1:6379"
                raise ValueError(f"a {what}; {one!r} is not")
            found.append((host.strip("[]"), int(port)))
        return found

    def placed_in(self, folder: Path) -> RedisConnection:
        names = ("tls_ca_file", "tls_cert_file", "tls_key_file")
        paths = {name: str(folder / path) for name in names if (path := getattr(self, name)) is not None}
        return self.model_copy(update=paths)


def wire(to: RedisConnection) -> Wire | Cluster:
    """The connection of one lane."""
    password, sentinels = to.password, to.sentinel_password
    account = Account(
        login=(*filter(None, [to.user]), password.get_secret_value()) if password else None,
        tls=to.tls,
        ca_file=to.tls_ca_file,
        own=(to.tls_cert_file, to.tls_key_file) if to.tls_cert_file and to.tls_key_file else None,
        connect_timeout=to.connect_timeout,
        timeout=to.timeout,
    )
    if to.cluster:
        host, port = to.addresses[0]
        name = f"redis://{host}:{port}/0"
        return Cluster(name, to.addresses, account, allow_plaintext=to.allow_plaintext)
    if not to.service:
        return Wire(f"redis://{to.host}:{to.port}/{to.db}", lambda: (to.host, to.port), account, to.db)
    theirs = replace(account, login=(sentinels.get_secret_value(),) if sentinels else None)
    asked = Sentinels(to.addresses, to.service, theirs, allow_plaintext=to.allow_plaintext)
    return Wire(f"redis://{to.service}/{to.db}", asked.primary, account, to.db, follows=True)
