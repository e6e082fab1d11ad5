"""SQL Server and Azure SQL: rows of a mart in a table, by key.

**Not run against a server.** It was written from Microsoft's documentation. The tests run it with Microsoft's
own driver against an emulator of the protocol, written by the same hand: statements are read by a grammar of
T-SQL, refused rows, lost answers and killed runs are played, and nothing of it proves what SQL Server itself
does. Try it with a table that you can lose.

Each batch is one transaction with a mark of it in the table `retl_applied` of the same schema. So a batch is
applied as a whole or not at all, an unanswered COMMIT can be resolved, append is exactly once, and a run that
lost its lock cannot commit. Only columns of the sync are written; a row that already has its values is not
touched. Constraints, foreign keys and triggers of the table hold: rows that they refuse are rejects, the rest
of their batch is delivered. A unique index takes one NULL only: the second is such a reject. Rows that swap
unique values are refused, as are rows that come before the row they refer to; both are tried once more at the
end of the run. Transactions are SERIALIZABLE, with UPDATE and INSERT instead of MERGE: others who insert
neighbouring keys wait until a batch is committed, and in a deadlock it is retl that gives way. A batch of
many thousand rows may lock the whole table (lock escalation): fewer `rows` per batch lock less.

It needs SQL Server 2016 or newer with a compatibility level of 130, Azure SQL Database, a Managed Instance,
or a SQL database in Fabric. Azure Synapse and Fabric warehouses are refused, because they have no unique
keys; so are views, synonyms, memory-optimized, external and history tables. `create: true` makes bigint,
decimal(p,s), float, bit, date, datetime2(6), datetimeoffset(6), uniqueidentifier, nvarchar(max) for texts,
json and lists, and nvarchar(255) for texts of a key, with the collation Latin1_General_100_BIN2. A
timestamptz is a time in UTC. Columns that would round or cut values are refused: real, money, datetime,
smalldatetime, char, nchar, datetime2 with fewer than six places, decimal with fewer places; so are identity,
computed, rowversion and period columns, which the database writes itself.

Values that a column changes in silence are rejects with `NOT_EXACT`: a text that is not ASCII in a varchar
without a UTF-8 collation, blanks at the end of a text that is too long, -0.0, and floats below 2.3e-308.
Texts with U+0000 are rejects too. Keys that the table's collation takes for one are `KEY_COLLIDES` rejects;
every collation ignores blanks at the end, and the usual ones ignore case. Some take more texts for one (`ss`
and `ß`, wide and narrow letters). That is noticed inside a batch only, so give key columns a BIN2 collation.

The account needs SELECT, INSERT, UPDATE (DELETE for `deletes: delete`) on the table and all four on
`retl_applied`; to make the latter, once CREATE TABLE on the database and ALTER on the schema. `retl check`
names what is missing as GRANT. It sees triggers and foreign keys only as far as the account may: those of
tables that it cannot see are not known here. During a run one more session holds an application lock
(sp_getapplock) that keeps other ledgers away from the table. Connect to the primary, and not through a pooler
that shares sessions. Marks are committed durably, also where the database allows delayed durability.

Rows are sent as JSON in the text of an INSERT (OPENJSON), up to 1 MB at a time. The driver's bulk copy is not
used: it has a connection of its own, which can be in no transaction of ours. `conflicts` and rollback are not
supported.

`login` is `sql` (user and password), `service_principal` (the application's id as `user`, its secret as
`password`), `managed_identity` or `default` (what the Azure SDK finds). TLS is verified, except on this
machine or with `allow_plaintext`. The client is in the extra `mssql`; on Debian it also needs
`apt-get install libltdl7 libkrb5-3 libgssapi-krb5-2`. It turns off the connection pool of that client in the
process, because a session in a pool keeps its locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from hashlib import sha256
from typing import Literal

import msgspec
from pydantic import Field as Option
from pydantic import field_validator

from retl.destinations.api import About, needs
from retl.destinations.batch import Batch, SoftDelete, Visit
from retl.destinations.mssql.dialect import MsSqlDialect
from retl.destinations.mssql.session import SETTINGS, MsSqlSession, Unstorable
from retl.destinations.sql.dialect import Session
from retl.destinations.sql.guarded import GuardedTable
from retl.errors import Later, Systemic
from retl.model import Definition, Duration
from retl.net.mssql import SqlServer

PIECE = 1 << 20  # bytes of rows in one statement
_LOCK_WAIT = 1000  # milliseconds: so long the session of a killed run may take to end


EXAMPLE = """\
source: {table: user_segments}
contract: user_segments
destination: {connection: crm, table: dbo.users, create: true}
key: user_id
deletes: delete
"""


class Server(SqlServer):
    """A database. TLS is verified, except on this machine or with `allow_plaintext`. `timeout` limits one
    batch's transaction."""

    type: Literal["mssql"] = "mssql"
    connect_timeout: Duration = Option(default=15.0, gt=0)
    timeout: Duration = Option(default=300.0, gt=0)


class MsSqlOptions(Definition):
    """The table, as `schema.table` or a table of schema `dbo`. `create` makes schema, table and key, and
    later adds missing columns."""

    connection: Server
    table: str
    create: bool = False

    @field_validator("table")
    @classmethod
    def _one_table(cls, text: str) -> str:
        MsSqlDialect().relation(text)
        return text


class MsSql(GuardedTable[MsSqlOptions]):
    """A table of SQL Server or Azure SQL."""

    Connection = Server
    Options = MsSqlOptions
    about = About(
        evidence=("docs",),
        source="https://learn.microsoft.com/sql/t-sql/language-reference",
        checked_on=date(2026, 11, 30),
        example=EXAMPLE,
    )
    dialect = MsSqlDialect()
    form = "cells"

    @staticmethod
    def _named(options: MsSqlOptions) -> str:
        return options.table

    @classmethod
    def _server(cls, options: MsSqlOptions) -> str:
        return f"mssql://{options.connection.address}"

    def _connect(self, *, write: bool, create: bool = False) -> MsSqlSession:
        server = self.options.connection
        with needs("mssql"):
            return MsSqlSession(server, server.timeout, server.connect_timeout, write=write)

    def _may_write(self, session: Session, visit: Visit) -> None:
        with session.transaction(write=False):
            marked = self._has_marks(session)
            lacks = [right for right, sql in self._rights(marked) if session.rows(f"SELECT {sql}") != [(1,)]]
            for statement in () if lacks else self._sql.make_stage():
                session.change(statement)
        if lacks:
            raise Systemic(
                "42501",
                f"this account lacks {', '.join(lacks)}",
                hint="; ".join(f"GRANT {right} TO its user" for right in lacks),
            )

    def _rights(self, marked: bool) -> Iterator[tuple[str, str]]:
        """What has to be granted, and SQL that is 1 if it is, or if the server does not say."""
        changes = self.shape.write in ("upsert", "update_only") or isinstance(self.shape.deletes, SoftDelete)
        deletes = self.shape.deletes == "delete" or self.shape.write == "replace"
        wanted = {
            "SELECT": True,
            "INSERT": self.shape.write != "update_only",
            "UPDATE": changes,
            "DELETE": deletes,
        }
        on = {} if self._sql.missing else {self._relation.sql: wanted}
        if marked:
            on[self._sql.marker] = dict.fromkeys(wanted, True)
        literal = self.dialect.literal
        for table, rights in on.items():
            for right in (one for one, needed in rights.items() if needed):
                asked = f"HAS_PERMS_BY_NAME({literal(table)}, 'OBJECT', '{right}')"
                yield f"{right} ON {table}", f"coalesce({asked}, 1)"
        if not marked or self._sql.missing:
            schema = self.dialect.quoted(self._relation.schema)
            yield "CREATE TABLE", "coalesce(HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'CREATE TABLE'), 1)"
            there = f"SCHEMA_ID({literal(self._relation.schema)}) IS NULL"
            asked = f"coalesce(HAS_PERMS_BY_NAME({literal(schema)}, 'SCHEMA', 'ALTER'), 1)"
            yield f"ALTER ON SCHEMA::{schema}", f"CASE WHEN {there} THEN 1 ELSE {asked} END"

    # --- one ledger at a time: a lock of the table, and behind it one that says which ledger has it

    def _take(self, session: Session) -> None:
        if not all(self._got(session, lock) for lock in self._locks):
            raise Later(
                "TARGET_HELD",
                f"another run is delivering to {self._relation}",
                hint="run it again when that run has ended",
            )

    @property
    def _locks(self) -> tuple[str, str]:
        texts = (self.capabilities.object, f"{self.capabilities.object} {self.shape.state_id}")
        named = (f"retl {sha256(text.encode()).hexdigest()[:40]}" for text in texts)
        table, ledger = map(self.dialect.literal, named)
        return table, ledger

    @staticmethod
    def _got(session: Session, lock: str) -> bool:
        ((got,),) = session.rows(
            f"DECLARE @got int; EXEC @got = sys.sp_getapplock @Resource = {lock},"
            f" @LockMode = 'Exclusive', @LockOwner = 'Session', @LockTimeout = {_LOCK_WAIT}; SELECT @got"
        )
        return bool(got >= 0)

    def _is_ours(self, session: Session) -> bool:
        _, ledger = self._locks
        return session.rows(f"SELECT APPLOCK_TEST('public', {ledger}, 'Exclusive', 'Session')") == [(0,)]

    # --- rows

    def _load(self, session: Session, batch: Batch, *, staged: bool) -> None:
        for document in self._documents(batch, numbered=staged):
            session.change(self._insert(batch, document, staged=staged))
            self._bytes += len(document.encode())

    def _insert(self, batch: Batch, document: str, *, staged: bool) -> str:
        count = len(self.shape.key) + (0 if batch.operation == "delete" else len(self.shape.fields))
        columns = ["int"] * staged + ["nvarchar(max)"] * count
        return self.dialect.unpacked(self._sql.into(batch, staged=staged), document, columns)

    def _documents(self, batch: Batch, *, numbered: bool) -> Iterator[str]:
        """JSON arrays of an object for each row, of about so many bytes as a statement may have."""
        names = [f"v{n}" for n in range(1 + len(self.shape.key) + len(self.shape.fields))]
        pieces, size = list[bytes](), 0
        for number, row in enumerate(self._rows(batch), 1):
            texts = [str(one + 0) if isinstance(one, int) else one for one in row]  # a boolean is 1 or 0
            values = [number, *texts] if numbered else texts
            piece = msgspec.json.encode(dict(zip(names, values, strict=False)))
            if b"\\u0000" in piece and any("\0" in one for one in row if isinstance(one, str)):
                raise Unstorable
            if size + len(piece) > PIECE and pieces:
                yield _array(pieces)
                pieces, size = [], 0
            pieces.append(piece)
            size += len(piece)
        if pieces:
            yield _array(pieces)

    def _staging(self, batch: Batch) -> Sequence[str]:
        return [self._insert(batch, one, staged=True) for one in self._documents(batch, numbered=True)]

    def preview(self, batch: Batch) -> bytes:
        """With the settings, without which a shell reads values in another way."""
        return "".join(f"{one};\n" for one in SETTINGS).encode() + super().preview(batch)


def _array(pieces: Sequence[bytes]) -> str:
    return f"[{b','.join(pieces).decode()}]"
