"""MySQL 8 and MariaDB: rows of a mart in a table, by key.

Each batch is one transaction with a mark of it in the table `retl_applied` of the same database. So a batch
is applied as a whole or not at all, an unanswered COMMIT can be resolved, append is exactly once, and a run
that lost its lock cannot commit. Only columns of the sync are written; a row that already has its values is
not touched. Constraints, foreign keys and triggers of the table hold: rows that they refuse are rejects, the
rest of their batch is delivered. Rows that swap unique values are refused, as are rows that come before the
row they refer to; both are tried once more at the end of the run. Transactions are SERIALIZABLE: others who
insert neighbouring keys wait until a batch is committed.

The table must be one of InnoDB, because other engines have no transactions; a view is refused. `create:
true` makes BIGINT, DECIMAL(p,s), DOUBLE, BOOLEAN, DATE, DATETIME(6), CHAR(36) for uuid, LONGTEXT for texts,
json and lists, and VARCHAR(255) for texts of a key, with the collation utf8mb4_bin. A timestamptz is a time
in UTC in DATETIME(6); in a TIMESTAMP(6) a time before 1970 or after 2038 makes its row a reject. Columns that
would round or cut values are refused: FLOAT, CHAR, DATETIME without six places, DECIMAL with fewer places,
and MySQL's own JSON, which changes numbers. Values that a column changes in silence are rejects with
`NOT_EXACT`: -0.0, blanks at the end of a text that is too long, another spelling of a value of an ENUM, NULL
in a TIMESTAMP that is NOT NULL.

Keys that the table's collation takes for one (case, accents, blanks at the end) are rejects with
`KEY_COLLIDES`. utf8mb4_bin ignores only blanks at the end.

Rows are sent as INSERTs of up to 1 MB. LOAD DATA LOCAL is never used, and the client refuses it: with it, a
server could ask for any file of this machine.

The account needs SELECT, INSERT, UPDATE (DELETE for `deletes: delete`) on the table, CREATE TEMPORARY TABLES
on the database, and once CREATE for `retl_applied`. With the right TRIGGER it sees whether the table has
triggers; without it each batch is compared with the table before COMMIT, which takes longer. During a run one
more session holds a named lock (GET_LOCK) that keeps other ledgers away from the table. Connect directly, not
through a pooler that shares sessions, and to one node of a cluster: a named lock is known to its node alone.

Sessions set what a server may have set otherwise: strict values, UTC, quoting, isolation, utf8mb4. They do
not set durability: a server with `innodb_flush_log_at_trx_commit` other than 1 may lose commits when it
crashes, which the next run notices by its marks. TRUNCATE leaves no trace but missing rows.

Except on the loopback interface, TLS is fully verified, by `tls_ca_file` or the system's authorities, unless
`allow_plaintext` is set. The client is in the extra `mysql`. All of this was run against MariaDB 10.11,
nothing of it against MySQL. The type of both is `mysql`.
"""

from __future__ import annotations

from hashlib import sha256

from pydantic import field_validator

from retl.destinations.api import needs
from retl.destinations.batch import Batch, SoftDelete, Tuples, Visit
from retl.destinations.mysql.dialect import MySQLDialect
from retl.destinations.mysql.session import PACKET, SETTINGS, MySQLSession
from retl.destinations.sql.dialect import Session
from retl.destinations.sql.guarded import GuardedTable
from retl.errors import Later
from retl.model import Definition
from retl.net.mysql import MySQLConnection


class MySQLOptions(Definition):
    """The table, in the connection's database. `create` makes table and key, and later adds missing
    columns."""

    connection: MySQLConnection
    table: str
    create: bool = False

    @field_validator("table")
    @classmethod
    def _one_table(cls, text: str) -> str:
        MySQLDialect().relation(text)
        return text


class MySQL(GuardedTable[MySQLOptions]):
    """A table of MySQL or MariaDB."""

    Connection = MySQLConnection
    Options = MySQLOptions
    dialect = MySQLDialect()
    form = "literals"

    @staticmethod
    def _named(options: MySQLOptions) -> str:
        return options.table

    @classmethod
    def _server(cls, options: MySQLOptions) -> str:
        return f"mysql://{options.connection.address}"

    def _connect(self, *, write: bool, create: bool = False) -> MySQLSession:
        with needs("mysql"):
            return MySQLSession(self.options.connection, write=write)

    def _may_write(self, session: Session, visit: Visit) -> None:
        """EXPLAIN asks for the rights of the statement that it explains. `create` makes columns that are
        missing later."""
        if self._sql.missing:
            return
        fields = (one for one in (*self.shape.key, *self.shape.fields) if not self._lacks(one))
        names = [self.dialect.quoted(one.name) for one in fields]
        table, first = self._sql.relation.sql, names[0]
        asked = [f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(['NULL'] * len(names))})"]
        if self.shape.write in ("upsert", "update_only") or isinstance(self.shape.deletes, SoftDelete):
            asked.append(f"UPDATE {table} SET {first} = {first} WHERE 1 = 0")
        if self.shape.deletes == "delete" or self.shape.write == "replace":
            asked.append(f"DELETE FROM {table} WHERE 1 = 0")
        with session.transaction(write=False):
            for statement in asked:
                session.rows(f"EXPLAIN {statement}")
            for statement in self._sql.make_stage():
                session.change(statement)

    # --- one ledger at a time: a lock of the table, and one that says which ledger has it

    def _take(self, session: Session) -> None:
        lock = self._lock()
        ((got, holder),) = session.rows(f"SELECT GET_LOCK({lock}, 0), IS_USED_LOCK({lock})")
        if not got and self._is_ours(session):  # a session without a client: we have its ledger
            session.change(f"KILL CONNECTION {holder}")
            ((got,),) = session.rows(f"SELECT GET_LOCK({lock}, 10)")
        if not got:
            raise Later(
                "TARGET_HELD",
                f"another ledger is delivering to {self._relation}: session {holder} of its server",
                hint="run it again when that run has ended",
            )
        session.rows(f"SELECT GET_LOCK({self._lock(self.shape.state_id)}, 10)")

    def _lock(self, ledger: str = "") -> str:
        text = f"{self.capabilities.object} {ledger}"
        return self.dialect.literal(f"retl {sha256(text.encode()).hexdigest()[:40]}")

    def _is_ours(self, session: Session) -> bool:
        both = f"IS_USED_LOCK({self._lock()}) = IS_USED_LOCK({self._lock(self.shape.state_id)})"
        return session.rows(f"SELECT coalesce({both}, 0)") == [(1,)]

    def _load(self, session: Session, batch: Batch, *, staged: bool) -> None:
        """INSERTs of many rows, which DuckDB writes as text."""
        assert isinstance(session, MySQLSession)
        tuples = Tuples(self._cells(batch), numbered=staged)
        head = self._sql.fill(batch, staged=staged)
        self._bytes += session.fill(head, lambda most: batch.literals(tuples, most))

    def _values(self, batch: Batch) -> str:
        tuples = Tuples(self._cells(batch), numbered=True)
        return ",\n".join(piece.decode(errors="surrogatepass") for piece in batch.literals(tuples, PACKET))

    def preview(self, batch: Batch) -> bytes:
        """With the settings, without which a shell reads a backslash in another way."""
        return "".join(f"{one};\n" for one in SETTINGS).encode() + super().preview(batch)
