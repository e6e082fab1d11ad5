"""Amazon Redshift: a table, a view, or one SELECT in Redshift's own SQL.

It speaks PostgreSQL's protocol, so no further package is needed. One query is one state of its tables, in a
transaction that only reads. The rows come through a cursor, as the server's own texts, so numbers, times and
texts arrive exactly. The leader node keeps the whole result of a cursor until the last row is read, and each
type of node has a limit for it; where that is too small, UNLOAD to Parquet and read source `files`. Only the
columns that the sync uses are read. In `sql` and `file`, `$name` is a variable, which becomes a quoted value.
The account needs only SELECT. The version of a snapshot is its time on the server's clock.

SUPER arrives as JSON. Types that no contract has arrive as the server's text: time, timetz, intervals,
varbyte, geometry, geography, hllsketch. A value that its type has no room for (a year before Christ) makes
its row a reject.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import SourceError
from retl.net import sqlstate
from retl.net.deadline import hang_up_after
from retl.net.postgres import OPENING, PostgresConnection, Session
from retl.sources import postgres, sql
from retl.sources.api import Since, Snapshot
from retl.sources.texts import Column, Texts, line
from retl.values.sql import literal, quoted

_AT_ONCE = 1000  # rows: a cluster of one node gives no more
_SUPER = 4000  # the type's number in Amazon's own client
# What changes the text of a value; of PostgreSQL's settings, those that Redshift has too.
_SETTINGS = {"timezone": "UTC", "datestyle": "ISO, YMD", "extra_float_digits": "2"}


class Cluster(postgres.Database):
    """A cluster or a workgroup. Except on the loopback interface, TLS is fully verified unless
    `allow_plaintext` is set. `timeout` limits the whole read; `timezone` applies to naive timestamps."""

    type: Literal["redshift"] = "redshift"  # type: ignore[assignment]
    port: int = Field(default=5439, ge=1, le=65535)

    def session(self) -> Session:
        """A session that only reads. SourceError if it cannot be opened."""
        import psycopg

        settings = {**_SETTINGS, "statement_timeout": str(max(1, round(self.timeout * 1000)))}
        try:
            opened = psycopg.connect(**self.keywords("retl source"), autocommit=True)
            try:
                opened.prepare_threshold = None  # what psycopg prepares, Redshift cannot deallocate
                with hang_up_after(min(self.timeout, OPENING), opened.fileno()):
                    for name, value in settings.items():
                        opened.execute(f"SET {name} = {literal(value)}")
            except BaseException:
                opened.close()
                raise
        except psycopg.Error as error:
            problem = sqlstate.unconnected(error, f"Redshift at {self.address}", self.user)
            raise SourceError(problem.code, problem.message, hint=problem.hint) from None
        opened.read_only = True
        opened.autocommit = False
        return opened


class Redshift(postgres.Postgres):
    """A table or a SELECT of Amazon Redshift."""

    Connection = Cluster
    evidence = "unproved: a PostgreSQL stood in for it; no cluster to try it on"

    @property
    def identity(self) -> dict[str, str]:
        return {**super().identity, "type": "redshift"}

    @property
    def announces(self) -> tuple[PostgresConnection, ...]:
        return ()  # it has no NOTIFY

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.REDSHIFT, written, quoted)
        session = self.connection.session()
        try:
            return Transaction(self, workspace, session, relation)
        except BaseException:
            session.close()
            raise


class Transaction(postgres.Transaction):
    """A transaction, whose rows come through a cursor."""

    server: ClassVar[str] = "Redshift"

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        return self._rows(columns, _since(since))

    def _rows(self, columns: Sequence[str], where: str) -> Query:
        listed = ", ".join(map(self._written, columns))
        self._texts = Texts(self._workspace, [self._columns[name] for name in columns])
        with self._reading(), self._session.cursor() as cursor:
            cursor.execute(f"DECLARE retl CURSOR FOR SELECT {listed} FROM {self._relation}{where}")
            while True:
                cursor.execute(f"FETCH FORWARD {_AT_ONCE} FROM retl")
                found, width = cursor.pgresult, range(len(columns))
                if found is None or not found.ntuples:
                    break
                self._texts.write(
                    line([found.get_value(row, at) for at in width]) for row in range(found.ntuples)
                )
        self._session.close()
        return self._texts.query(self._origin, misfit=self.description.misfit is not None)

    def _version(self) -> str:
        ((clock,),) = self._session.execute("SELECT CAST(getdate() AS varchar)").fetchall()
        return f"{self._connection.address}:{clock}"

    def _column(self, name: str, oid: int, modifier: int) -> Column:
        if oid == _SUPER:
            return Column(name, "JSON", "TRUE")
        found = super()._column(name, oid, modifier)
        return Column(name, "VARCHAR") if found.type.endswith("[]") else found  # only its catalog has arrays

    def _written(self, name: str) -> str:
        """SQL of a column's text. A real has more digits than the server writes, so it is widened."""
        wide = self._columns[name].type == "FLOAT"
        return f"CAST({quoted(name)} AS double precision)" if wide else quoted(name)


def _since(since: Since | None) -> str:
    if since is None:
        return ""
    column = quoted(since.column)
    return f" WHERE {column} >= {written(since.least)} OR {column} IS NULL"


def written(value: Any) -> str:
    """A variable as SQL. It has no backslash, which Redshift reads as an escape and PostgreSQL does not."""
    if isinstance(value, str) and "\\" in value:
        return f"({' || chr(92) || '.join(map(literal, value.split(chr(92))))})"
    return postgres.written(value)
