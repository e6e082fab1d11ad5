"""MySQL and MariaDB connections for targets and sources: options, TLS, and what a failed login means.

Except on the loopback interface, TLS is fully verified. It knows no rows.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import Field, SecretStr

from retl.errors import Systemic, TargetError, Unavailable
from retl.model import Definition, Duration, is_loopback, needs_tls

if TYPE_CHECKING:
    import MySQLdb

_LOGIN = (1044, 1045, 1130, 1698, 1251, 2059, 1524)


class MySQLConnection(Definition):
    """A database. Except on the loopback interface, TLS is fully verified unless `allow_plaintext` is set.
    `timeout` limits one batch's transaction."""

    host: str = Field(min_length=1)
    port: int = Field(default=3306, ge=1, le=65535)
    dbname: str
    user: str
    password: SecretStr | None = None
    tls_ca_file: str | None = None
    allow_plaintext: bool = False
    connect_timeout: Duration = Field(default=10.0, gt=0)
    timeout: Duration = Field(default=300.0, gt=0)

    @property
    def address(self) -> str:
        """host:port/dbname, equal for all names of the loopback interface."""
        host = "localhost" if is_loopback(self.host) else self.host.lower()
        return f"{quote(host)}:{self.port}/{quote(self.dbname, safe='')}"

    def keywords(self) -> dict[str, Any]:
        """The keywords for MySQLdb.connect."""
        found: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "database": self.dbname,
            "user": self.user,
        }
        if self.host == "localhost":
            found["host"] = "127.0.0.1"  # the client would take a socket file
        if self.password is not None:
            found["password"] = self.password.get_secret_value()
        if needs_tls(self.host, allow_plaintext=self.allow_plaintext) or self.tls_ca_file:
            authorities = self.tls_ca_file or ssl.get_default_verify_paths().cafile
            found |= {"ssl_mode": "VERIFY_IDENTITY", "ssl": {"ca": authorities}}
        else:
            found["ssl_mode"] = "PREFERRED"
        seconds = max(1, round(self.connect_timeout))
        found |= {
            "connect_timeout": seconds,
            "read_timeout": max(1, round(self.timeout)),
            "write_timeout": 60,
        }
        found["local_infile"] = 0  # else the server may ask for any file of this machine
        return found | {"charset": "utf8mb4", "use_unicode": False, "conv": {}, "multi_statements": False}

    def connect(self, **keywords: Any) -> MySQLdb.Connection:
        """A connection with `keywords` over those of `keywords()`. Systemic or Unavailable if it cannot be
        opened; ImportError without the client."""
        import MySQLdb

        try:
            return MySQLdb.connect(**self.keywords() | keywords)
        except MySQLdb.Error as problem:
            raise _unconnected(problem, self) from None


def parts(problem: Exception) -> tuple[int, str]:
    """The number and the text of an error; the text may contain values."""
    code, message = (*problem.args, 0, "")[:2]
    return (code if isinstance(code, int) else 0), str(message)


def _unconnected(problem: Exception, server: MySQLConnection) -> TargetError:
    code, message = parts(problem)
    where = f"MySQL at {server.address}"
    if code == 2026 or "TLS" in message or "SSL" in message:
        hint = "tls_ca_file, the server's certificate and its name"
        return Systemic("TLS", f"{where}: there was no verified TLS connection", hint=f"check {hint}")
    if code in _LOGIN:
        hint = "check user and password, and from where the account may connect"
        return Systemic("28000", f"{where}: it does not accept the login of {server.user}", hint=hint)
    if code == 1049:
        return Systemic("3D000", f"{where}: it has no such database", hint="check dbname")
    return Unavailable(
        "UNREACHABLE",
        f"{where} cannot be reached now (error {code})",
        hint="check host and port, and that the server runs; then run again",
    )
