"""SQL Server connections for targets and sources: options, logins, and what a failed login means.

TLS is verified, except on this machine or with `allow_plaintext`. It knows no rows.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from stat import S_ISSOCK
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, model_validator

from retl.errors import Systemic, TargetError, Unavailable
from retl.model import Definition, is_loopback, needs_tls

if TYPE_CHECKING:
    import mssql_python

_LOGINS = {
    "service_principal": "ActiveDirectoryServicePrincipal",
    "managed_identity": "ActiveDirectoryMsi",
    "default": "ActiveDirectoryDefault",
}
# What Azure SQL says while a database moves, sleeps or is busy: the driver gives no number of an error.
_LATER = (
    r"is not currently available|service is currently busy|encountered an error processing your request"
    r"|Resource ID ?:|Cannot process (?:create or update )?request|has reached the limit|is in transition"
    r"|being (?:restored|recovered)|in recovery"
)
_FIREWALL = r"Cannot open server .* requested by the login"
_DATABASE = r"Cannot open database"
_LOGIN = r"Login failed|access token"
_TLS = r"SSL Provider|certificate"
_DESCRIPTORS = "/dev/fd"
_REDIRECTED = range(11000, 12000)
connecting = threading.Lock()  # held while a connection is opened
_REACH = {
    "Client unable to establish connection",
    "Communication link failure",
    "Timeout expired",
    "Connection timeout expired",
    "Server rejected the connection",
}


class SqlServer(Definition):
    """A database of a server, and who logs in."""

    host: str = Field(min_length=1)
    port: int = Field(1433, ge=1, le=65535)
    dbname: str
    login: Literal["sql", "service_principal", "managed_identity", "default"] = "sql"
    user: str | None = None
    password: SecretStr | None = None
    allow_plaintext: bool = False

    @model_validator(mode="after")
    def _fits(self) -> SqlServer:
        named = self.login in ("sql", "service_principal")
        if named and (self.user is None or self.password is None):
            raise ValueError(f"`login: {self.login}` needs `user` and `password`")
        if not named and self.password is not None:
            raise ValueError(f"`login: {self.login}` has no password")
        return self

    @property
    def address(self) -> str:
        """host:port/dbname, equal for all names of the loopback interface."""
        host = "localhost" if is_loopback(self.host) else self.host.lower()
        return f"{quote(host)}:{self.port}/{quote(self.dbname.lower(), safe='')}"

    def text(self, **more: str) -> str:
        """The connection string. A value in braces ends at the first brace that is not doubled."""
        parts = {
            "Server": f"tcp:{self.host},{self.port}",
            "Database": self.dbname,
            "Encrypt": "yes" if needs_tls(self.host, allow_plaintext=self.allow_plaintext) else "optional",
            "TrustServerCertificate": "no",
            **more,
        }
        if self.login != "sql":
            parts["Authentication"] = _LOGINS[self.login]
        if self.user is not None:
            parts["UID"] = self.user
        if self.password is not None:
            parts["PWD"] = self.password.get_secret_value()
        return ";".join(f"{name}={{{value.replace('}', '}}')}}}" for name, value in parts.items())


def connected(server: SqlServer, seconds: float) -> tuple[mssql_python.Connection, socket.socket | None]:
    """A session of its own that commits each statement unless it begins a transaction, and that the driver
    never replaces by another one in silence; and its socket, if that can be told. Systemic or Unavailable;
    ImportError without the client."""
    import mssql_python

    mssql_python.pooling(enabled=False)  # a session in a pool keeps its locks
    attributes = {mssql_python.SQL_ATTR_LOGIN_TIMEOUT: max(1, round(seconds))}
    try:
        with connecting:
            before = _sockets()
            made = mssql_python.connect(
                server.text(ConnectRetryCount="0"), autocommit=True, attrs_before=attributes
            )
            return made, _wire(before, server.port)
    except (
        mssql_python.Error,
        mssql_python.ConnectionStringParseError,
        RuntimeError,
        ValueError,
    ) as problem:
        raise _unconnected(problem, server) from None


def _sockets() -> dict[int, int]:
    """The sockets of this process: inode → descriptor."""
    found = dict[int, int]()
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else ():
        with suppress(OSError):  # that of the folder itself is gone
            about = os.stat(int(name))
            if S_ISSOCK(about.st_mode):
                found[about.st_ino] = int(name)
    return found


def _wire(before: Mapping[int, int], port: int) -> socket.socket | None:
    """The one new socket to a port of SQL Server: the driver does not tell which is its own. A gateway of
    Azure sends clients on to other ports."""
    found = list[socket.socket]()
    for descriptor in (one for inode, one in _sockets().items() if inode not in before):
        with suppress(OSError):
            wire = socket.socket(fileno=os.dup(descriptor))
            if wire.getpeername()[1] in (port, *_REDIRECTED):
                found.append(wire)
            else:
                wire.close()
    return found[0] if len(found) == 1 else None


def state(problem: BaseException) -> str:
    """The driver's words for the SQLSTATE of an error; they contain no values."""
    return str(getattr(problem, "driver_error", ""))


def _unconnected(problem: Any, server: SqlServer) -> TargetError:
    where, words, said = f"SQL Server at {server.address}", state(problem), str(problem)
    if re.search(_LATER, said):
        return Unavailable("57P03", f"{where}: the database is not ready now")
    if re.search(_FIREWALL, said):
        hint = "let the address of this machine through the server's firewall"
        return Systemic("28000", f"{where}: it does not let this machine in", hint=hint)
    if re.search(_DATABASE, said):
        hint = "check dbname, and that the login has a user in it"
        return Systemic("3D000", f"{where}: the login cannot open the database", hint=hint)
    if words == "Invalid authorization specification" or re.search(_LOGIN, said):
        hint = "check `login`, `user` and `password`"
        return Systemic("28000", f"{where}: it does not accept the login", hint=hint)
    if re.search(_TLS, said):
        hint = "check the server's certificate and its name"
        return Systemic("TLS", f"{where}: there was no verified TLS connection", hint=hint)
    if "load the driver" in said:
        hint = "install what Microsoft's driver needs, on Debian `apt-get install libltdl7 libkrb5-3`"
        return Systemic("CLIENT_MISSING", "Microsoft's driver cannot be loaded", hint=hint)
    if words in _REACH:
        hint = "check host and port, and that the server runs; then run again"
        return Unavailable("UNREACHABLE", f"{where} cannot be reached now", hint=hint)
    return Systemic("08004", f"{where}: it refuses the connection", hint="check `login` and the connection")
