"""A PostgreSQL server, how to reach it, and transactions that end in time and say how.

Parameters go by keyword, never in a DSN: an error in one prints the password. Off the loopback
interface TLS is verified in full. What a lost connection means is said here once.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from retl.model import Duration
from retl.net import sqlstate

if TYPE_CHECKING:
    import psycopg

Session: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

LOCK_WAIT = 30.0  # seconds for somebody else's lock
IDLE = 60.0  # seconds a transaction may stand still because its client does
_SESSION = """
SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET standard_conforming_strings = on;
SET synchronous_commit = on; SET lock_timeout = {lock}; SET statement_timeout = {statement};
SET idle_in_transaction_session_timeout = {idle}
"""


class PostgresConnection(BaseModel):
    """A database. Off the loopback interface TLS is verified in full; `allow_plaintext` is the only way
    round. `timeout` bounds one batch's transaction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int = Field(default=5432, ge=1, le=65535)
    dbname: str
    user: str
    password: SecretStr | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    sslrootcert: str | None = None  # a file of certificates; default: those the system trusts
    allow_plaintext: bool = False
    connect_timeout: Duration = Field(default=10.0, gt=0)
    timeout: Duration = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _verified(self) -> Self:
        if not self.host or "," in self.host:
            raise ValueError("a connection has exactly one host")
        if self.sslmode not in (None, "verify-full") and not self._local and not self.allow_plaintext:
            raise ValueError(
                f"sslmode {self.sslmode} does not verify {self.host}: leave it out, or say"
                " allow_plaintext: true"
            )
        return self

    @property
    def _local(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost" or self.host.startswith("/")

    @property
    def address(self) -> str:
        """host:port/dbname, the same for every spelling of the loopback interface."""
        host = "localhost" if self._local and not self.host.startswith("/") else self.host.lower()
        return f"{quote(host)}:{self.port}/{quote(self.dbname, safe='')}"

    def keywords(self, name: str) -> dict[str, Any]:
        """What psycopg.connect takes. Never a DSN: an error in one prints the password."""
        given: dict[str, Any] = {of: getattr(self, of) for of in ("host", "port", "dbname", "user")}
        if self.password is not None:
            given["password"] = self.password.get_secret_value()
        mode = self.sslmode or ("prefer" if self._local or self.allow_plaintext else "verify-full")
        if mode.startswith("verify"):
            given["sslrootcert"] = self.sslrootcert or ssl.get_default_verify_paths().cafile or "system"
        return given | {
            "sslmode": mode,
            "gssencmode": "disable",  # it would take the place of the verified TLS
            "connect_timeout": max(2, round(self.connect_timeout)),
            "client_encoding": "UTF8",
            "application_name": name,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }

    def connect(self, name: str, *, read_only: bool = False) -> Session:
        """A session in UTC, of the given application name. Systemic or Unavailable if there is none."""
        import psycopg  # a tenth of our start, and now the mart is being read beside it

        try:
            session = psycopg.connect(**self.keywords(name), autocommit=True)
        except psycopg.Error as error:
            raise sqlstate.unconnected(error, self.address) from None
        session.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        session.read_only = read_only or None
        waits = {"lock": min(LOCK_WAIT, self.timeout), "statement": self.timeout, "idle": IDLE}
        with transaction(session, self.timeout):
            session.execute(_SESSION.format(**{of: max(1, round(s * 1000)) for of, s in waits.items()}))
        session.autocommit = False
        return session


@contextmanager
def transaction(session: Session, seconds: float, *, write: bool = False) -> Iterator[Session]:
    """Commits at the end; after so many seconds it hangs up, for a silent network outlives every timeout
    the server keeps. An error closes the session and leaves as a TargetError; a lost answer to COMMIT is
    Ambiguous where it matters: for a `write`."""
    import psycopg

    try:
        with _deadline(session, seconds):
            try:
                yield session
            except psycopg.Error as error:
                raise sqlstate.failure(error, lost=session.broken) from None
            try:
                session.commit()
            except psycopg.Error as error:
                if write and session.broken:
                    raise sqlstate.doubt() from None
                raise sqlstate.failure(error, lost=session.broken) from None
    except BaseException:
        session.close()
        raise


@contextmanager
def _deadline(session: Session, seconds: float) -> Iterator[None]:
    with socket.socket(fileno=os.dup(session.fileno())) as wire:
        timer = threading.Timer(seconds, _hang_up, [wire])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _hang_up(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)
