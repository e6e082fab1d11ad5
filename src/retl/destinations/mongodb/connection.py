"""The servers and the account of MongoDB, by a URL or by parts, and their encryption. It sends nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from retl.model import Definition, Duration, is_loopback, needs_tls

_URL = re.compile(r"(mongodb(?:\+srv)?)://(?:[^@/]*@)?([^@/?]+)(?:/([^?]*))?(?:\?(.*))?")
_TAKEN = frozenset({"authsource", "authmechanism", "replicaset", "directconnection", "appname"})
_OURS = frozenset({"w", "journal", "retrywrites", "retryreads", "tls", "ssl"})  # set by us, whatever it says
_PORT = 27017


def _listed(given: object) -> object:
    return tuple(one.strip() for one in given.split(",")) if isinstance(given, str) else given


class _Parts(NamedTuple):
    srv: bool
    hosts: tuple[str, ...]
    database: str
    options: dict[str, str]


class MongoDBConnection(Definition):
    """A database, by `url` or by `hosts` and an account. Except on the loopback interface, TLS is fully
    verified unless `allow_plaintext` is set. `timeout` limits one answer."""

    url: SecretStr | None = Field(None, description="mongodb:// or mongodb+srv://, instead of `hosts`.")
    hosts: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="Members of the replica set, `host:port`, or one server."
    )
    replica_set: str | None = Field(None, description="The name of the replica set, to find its members.")
    database: str = Field("", description="The database, unless `url` names it.")
    user: str | None = None
    password: SecretStr | None = None
    auth_source: str = Field("admin", description="The database that knows `user`.")
    tls_ca_file: str | None = Field(None, description="The authorities of the server, if not the system's.")
    allow_plaintext: bool = False
    connect_timeout: Duration = Field(default=10.0, gt=0)
    timeout: Duration = Field(default=90.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> MongoDBConnection:
        written = self.url.get_secret_value() if self.url else None
        if (written is None) == (not self.hosts):
            raise ValueError("a connection has either a `url` or `hosts`")
        if (self.user is None) != (self.password is None):
            raise ValueError("`user` and `password` belong together")
        if written is None:
            if not self.database:
                raise ValueError("`database` is missing")
            return self
        if self.user or self.replica_set or self.model_fields_set & {"auth_source"}:
            raise ValueError("a `url` holds the account and the replica set itself")
        if "${" in written:  # an unset variable is reported later
            return self
        if not _URL.fullmatch(written):
            raise ValueError("`url` must look like mongodb://user:password@host:port/database")
        if unknown := self._parts.options.keys() - _TAKEN - _OURS:
            raise ValueError(f"`url` has options that are not taken: {', '.join(sorted(unknown))}")
        if not (self.database or self._parts.database):
            raise ValueError("name the `database`, here or in the path of `url`")
        return self

    @property
    def _parts(self) -> _Parts:
        if self.url is None:
            return _Parts(False, self.hosts, self.database, {})
        found = _URL.fullmatch(self.url.get_secret_value())
        assert found is not None
        scheme, hosts, database, options = found.groups(default="")
        named = {name.lower(): value for name, value in parse_qsl(options)}
        return _Parts(scheme.endswith("srv"), tuple(hosts.split(",")), unquote(database), named)

    @property
    def name(self) -> str:
        """The database: that of `database` wins."""
        return self.database or self._parts.database

    @property
    def servers(self) -> str:
        """The members that are named, however they are ordered; equal for all names of the loopback
        interface."""
        return ",".join(sorted(map(_normal, self._parts.hosts)))

    def placed_in(self, folder: Path) -> MongoDBConnection:
        if self.tls_ca_file is None:
            return self
        return self.model_copy(update={"tls_ca_file": str(folder / self.tls_ca_file)})

    def keywords(self) -> dict[str, Any]:
        """The keywords for MongoClient. Each request goes once: delivery decides what is sent again."""
        parts, waits = self._parts, int(self.connect_timeout * 1000)
        found: dict[str, Any] = {
            "host": self.url.get_secret_value() if self.url else list(self.hosts),
            "tls": parts.srv or bool(self.tls_ca_file) or any(map(self._needs_tls, parts.hosts)),
            "w": "majority",
            "journal": True,
            "wTimeoutMS": int(self.timeout * 900),  # it answers before the answer is given up
            "retryWrites": False,
            "retryReads": False,
            "connectTimeoutMS": waits,
            "serverSelectionTimeoutMS": waits,
            "socketTimeoutMS": int(self.timeout * 1000),
            "serverMonitoringMode": "poll",
        }
        if self.tls_ca_file:
            found["tlsCAFile"] = self.tls_ca_file
        if self.user and self.password:
            account = {"username": self.user, "password": self.password.get_secret_value()}
            found |= account | {"authSource": self.auth_source}
        if self.replica_set:
            found["replicaSet"] = self.replica_set
        return found

    def _needs_tls(self, server: str) -> bool:
        return needs_tls(_split(server)[0], allow_plaintext=self.allow_plaintext)


def _split(server: str) -> tuple[str, str]:
    found = re.fullmatch(r"\[?([^\]]*?)\]?(?::(\d+))?", server)
    host, port = found.groups(default="") if found else (server, "")
    return host, port or str(_PORT)


def _normal(server: str) -> str:
    host, port = _split(server)
    return f"{'localhost' if is_loopback(host) else host.lower()}:{port}"
