"""PostgreSQL connections for targets, sources and the ledger: options, session settings, and transactions
with a deadline.

Parameters are passed as keywords, never in a DSN, because an error in a DSN prints the password. Except on
the loopback interface, TLS is fully verified. It knows no rows.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from retl.errors import Systemic
from retl.model import Duration, is_loopback, needs_tls
from retl.net import sqlstate
from retl.net.deadline import hang_up_after
from retl.net.pooler import SESSION_MODE, SHARED, Shared, require_own_process

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

Session: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

LOCK_WAIT = 30.0  # seconds to wait for a lock
IDLE = 60.0  # seconds that a transaction may be idle
OPENING = 300.0  # seconds to open a session, at most
_AT_ONCE = 256 << 10  # bytes of a COPY, at least, except of the last ones
CLIENT = {
    "client_encoding": "UTF8",
    "gssencmode": "disable",  # it would replace the verified TLS
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
# Every setting that changes the text of a value or the meaning of our statements, and synchronous_commit,
# without which a server may lose a commit. Roles and databases have defaults of their own. Not here:
# default_transaction_read_only and session_replication_role, with which an administrator protects a server.
SETTINGS = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "xmloption": "content",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "default_transaction_isolation": "read committed",
    "exit_on_error": "off",
    "synchronous_commit": "on",
}
# A session waits for the mart and for other lanes, and its transactions have a deadline. By version.
ENDLESS = {"idle_session_timeout": 140000, "transaction_timeout": 170000}


def ssl_keywords(
    hosts: Sequence[str], sslmode: str | None, sslrootcert: str | None, *, allow_plaintext: bool
) -> dict[str, str]:
    """libpq's keywords for TLS. ValueError for a mode that does not verify."""
    far = next((host for host in hosts if needs_tls(host, allow_plaintext=allow_plaintext)), None)
    if far is not None and sslmode not in (None, "verify-full"):
        raise ValueError(f"sslmode {sslmode} does not verify {far}: remove it, or set allow_plaintext: true")
    mode = sslmode or ("verify-full" if far is not None else os.environ.get("PGSSLMODE", "prefer"))
    if mode.startswith("verify"):
        import ssl  # takes 10 ms, and a ledger in a file does not need it

        root = sslrootcert or ssl.get_default_verify_paths().cafile or "system"
        return {"sslmode": mode, "sslrootcert": root}
    return {"sslmode": mode}


def open_session(keywords: Mapping[str, Any], seconds: float, settings: Mapping[str, Any]) -> Session:
    """A session in autocommit with SETTINGS and `settings`. psycopg.Error if it cannot be opened in time,
    Shared if a pooler changes its server process: then nothing was set."""
    import psycopg  # a tenth of our start time; at this point the mart is being read in parallel

    session = psycopg.connect(**keywords, autocommit=True)
    try:
        with hang_up_after(seconds, session.fileno()):
            found = session.execute(_FIRST).fetchone()
            assert found is not None
            require_own_process(session, found[0], keywords)
            endless = {name: 0 for name, since in ENDLESS.items() if session.info.server_version >= since}
            values = {**SETTINGS, **endless, **settings}.items()
            path = f"SET search_path = {_searched(found[1])}"
            session.execute("; ".join([path, *(f"SET {name} = '{value}'" for name, value in values)]))
    except BaseException:
        session.close()
        raise
    return session


_FIRST = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('search_path')"


def _searched(path: str) -> str:
    """The search path, in which no schema stands before PostgreSQL's own: that is first unless it is named.
    The rest stays, because triggers and defaults of a table may need it."""
    parts = re.findall(r'(?:"(?:[^"]|"")*"|[^,"])+', path)
    kept = [part.strip() for part in parts if part.strip().strip('"') not in ("", "pg_catalog")]
    return ", ".join(kept) or "''"


_LOGIN = (
    "check user and password in retl.yml, those of the default connection in POSTGRES_USER and"
    " POSTGRES_PASSWORD, and the server's pg_hba.conf; then `retl check`"
)


class PostgresConnection(BaseModel):
    """A database. Except on the loopback interface, TLS is fully verified unless `allow_plaintext` is set.
    `timeout` limits one batch's transaction."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    host: str
    port: int = Field(default=5432, ge=1, le=65535)
    dbname: str
    user: str
    password: SecretStr | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    sslrootcert: str | None = None  # a file of certificates; default: the system's
    allow_plaintext: bool = False
    connect_timeout: Duration = Field(default=10.0, gt=0)
    timeout: Duration = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _verified(self) -> Self:
        if not self.host or "," in self.host:
            raise ValueError("a connection has exactly one host")
        self._ssl()
        return self

    def _ssl(self) -> dict[str, str]:
        return ssl_keywords([self.host], self.sslmode, self.sslrootcert, allow_plaintext=self.allow_plaintext)

    @property
    def address(self) -> str:
        """host:port/dbname, equal for all names of the loopback interface."""
        local = is_loopback(self.host) and not self.host.startswith("/")
        host = "localhost" if local else self.host.lower()
        return f"{quote(host)}:{self.port}/{quote(self.dbname, safe='')}"

    def keywords(self, name: str) -> dict[str, Any]:
        """The keywords for psycopg.connect."""
        given: dict[str, Any] = {of: getattr(self, of) for of in ("host", "port", "dbname", "user")}
        if self.password is not None:
            given["password"] = self.password.get_secret_value()
        own = {"connect_timeout": max(2, round(self.connect_timeout)), "application_name": name}
        return CLIENT | given | own | self._ssl()

    def connect(self, name: str, *, read_only: bool = False, idle: float = IDLE) -> Session:
        """A session with `name` as its application_name, whose transactions may be `idle` for so many
        seconds. Systemic or Unavailable if it cannot be opened."""
        import psycopg

        waits = {
            "lock_timeout": min(LOCK_WAIT, self.timeout),
            "statement_timeout": self.timeout,
            "idle_in_transaction_session_timeout": idle,
        }
        settings = {of: max(1, round(seconds * 1000)) for of, seconds in waits.items()}
        try:
            session = open_session(self.keywords(name), min(self.timeout, OPENING), settings)
        except psycopg.Error as error:
            server = f"PostgreSQL at {self.address}"
            raise sqlstate.unconnected(error, server, self.user, _LOGIN) from None
        except Shared:
            raise Systemic("POOLER_MODE", f"{self.address} {SHARED}", hint=SESSION_MODE) from None
        session.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        session.read_only = read_only or None
        session.autocommit = False
        return session


def usable(session: Session) -> bool:
    """Whether an idle session is open, and its server has neither ended it nor sent anything else since."""
    if session.closed:
        return False
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    return not poll.poll(0)


@contextmanager
def transaction(session: Session, seconds: float, *, write: bool = False) -> Iterator[Session]:
    """Commits at the end. After `seconds` it closes the connection, because the server's timeouts do not
    help if the network is silent. An error closes the session and is raised as a TargetError; for a `write`
    a lost answer to COMMIT is Ambiguous."""
    import psycopg

    try:
        with hang_up_after(seconds, session.fileno()):
            try:
                yield session
            except psycopg.Error as error:
                raise sqlstate.failure(error, lost=sqlstate.is_lost(error, session)) from None
            try:
                session.commit()
            except psycopg.Error as error:
                lost = sqlstate.is_lost(error, session)
                raise (sqlstate.doubt() if write and lost else sqlstate.failure(error, lost=lost)) from None
    except BaseException:
        session.close()
        raise


def copied(session: Session, statement: str) -> Generator[bytes, None, int]:
    """What a COPY TO STDOUT sends, many rows at a time; returns the server's number of rows. psycopg's own
    loop hands over one row at a time, and takes longer than all the rest (decision 0092)."""
    with session.cursor() as cursor, cursor.copy(statement):
        count = None
        while count is None:
            rows, count = session.wait(_received(session.pgconn))
            if rows:
                yield rows
    return count


def _received(pgconn: PGconn) -> PQGen[tuple[bytes, int | None]]:
    """The next rows, and the number of all rows if these are the last ones. psycopg.Error as psycopg raises
    it."""
    from psycopg import errors, generators, pq, waiting

    rows, size = list[memoryview](), 0
    while size < _AT_ONCE:
        length, row = pgconn.get_copy_data(1)
        if length > 0:
            rows.append(row)
            size += length
        elif length == 0:
            while not (yield waiting.Wait.R):
                continue
            pgconn.consume_input()
        else:
            (result,) = yield from generators.fetch_many(pgconn)
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result)
            return b"".join(rows), result.command_tuples or 0
    return b"".join(rows), None
