"""One session of SQL Server, with a deadline for each transaction.

Its settings are its own: whatever the server's defaults are, values are judged strictly and texts of times
mean the same. A transaction that writes is SERIALIZABLE. An error is caught on the server, where it has its
number, and where it is known whether the transaction can go on.
"""

from __future__ import annotations

import math
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from retl.destinations.batch import Kind, RowResult
from retl.destinations.mssql.dialect import column, object_id, sized
from retl.destinations.sql.dialect import Column, Relation, Row, Session, Table
from retl.errors import Ambiguous, Poisoned, Systemic, TargetError, Unavailable
from retl.net.mssql import SqlServer, connected, state

T = TypeVar("T")

LOCK_WAIT = 30  # seconds
_GRACE = 2.0  # seconds that the driver may take longer to stop than it was given
_LEAST_LEVEL = 130  # of compatibility: OPENJSON
_WITHOUT_KEYS = {6: "Azure Synapse", 11: "a Fabric warehouse or serverless pool"}  # by EngineEdition
_ON = ("ANSI_NULLS", "ANSI_PADDING", "ANSI_WARNINGS", "ARITHABORT", "CONCAT_NULL_YIELDS_NULL", "NOCOUNT")
_OFF = ("NUMERIC_ROUNDABORT", "IMPLICIT_TRANSACTIONS", "XACT_ABORT", "CURSOR_CLOSE_ON_COMMIT")
SETTINGS = (
    "SET QUOTED_IDENTIFIER ON",
    *(f"SET {one} ON" for one in _ON),
    *(f"SET {one} OFF" for one in _OFF),
    "SET LANGUAGE us_english",
    "SET DATEFORMAT ymd",
    "SET DEADLOCK_PRIORITY LOW",
    f"SET LOCK_TIMEOUT {LOCK_WAIT * 1000}",
    "SET ROWCOUNT 0",
)
_ENDED = 59_999
_TRY = "BEGIN TRY\n"
_INSIDE = f"IF @@TRANCOUNT <> 1 THROW {_ENDED}, N'there is no transaction', 1;\n"
_CATCH = """;
SELECT @@ROWCOUNT, 0, 1, N'';
END TRY
BEGIN CATCH
SELECT -1, ERROR_NUMBER(), XACT_STATE(), ERROR_MESSAGE();
IF XACT_STATE() = -1 ROLLBACK TRANSACTION;
END CATCH"""  # a transaction that cannot be committed is an error of its own at the end of a text
_UNIQUE, _LACKS = ("23505", "another row has the same value"), ("23502", "it must have a value")
_REFERS = ("23503", "the row it refers to, or that refers to it, forbids it")
_CHECK, _VALUE = ("23514", "the check refuses it"), ("22000", "the value does not fit its column")
_LARGE = ("54000", "the row, or its key, is larger than the table can take")
_TRIGGER = ("P0001", "a trigger of the table refuses the row")
_REFUSED = {
    2601: _UNIQUE, 2627: _UNIQUE, 515: _LACKS, 547: _REFERS, 511: _LARGE, 1946: _LARGE, 3609: _TRIGGER,
    3616: _TRIGGER, 550: ("44000", "the view's check refuses it"),
    33504: ("44000", "a security policy of the table refuses it"),
    **dict.fromkeys((220, 232, 241, 242, 244, 245, 248, 295, 296, 517), _VALUE),
    **dict.fromkeys((1007, 2628, 8114, 8115, 8152, 8169), _VALUE),
}  # fmt: skip
_USERS = 50_000  # errors from here on are those of RAISERROR and THROW
_NAMED = {
    2627: r"constraint '([^']*)'",
    2601: r"unique index '([^']*)'",
    515: r"column '([^']*)'",
    547: r'constraint "([^"]*)"',
    2628: r"column '([^']*)'",
}
_BUSY = ("57P03", "the database is moving, busy or not ready")
_AGAIN = {
    1205: ("40001", "another session and ours waited for each other"),
    1222: ("55P03", "another session holds a lock that we need"),
    3960: ("40001", "another session changed a row that we had read"),
    2714: ("40001", "somebody else has just made the same table"),
    _ENDED: ("25P01", "something ended our transaction without an error"),
    **dict.fromkeys((615, 4221, 9002, 10928, 10929, 40143, 40166, 40197, 40501, 40540, 40613), _BUSY),
    **dict.fromkeys((49918, 49919, 49920, 41301, 41302, 41305, 41325, 41839, 8645, 8651, 701), _BUSY),
}
_STOPS = {
    208: ("42P01", "there is no such table", None),
    207: ("42703", "there is no such column", None),
    3906: ("25006", "it is read-only", "connect to the primary"),
    1105: ("53100", "there is no room for the rows", "make room, then run again"),
    40544: ("53100", "the database has reached its size", "make room, then run again"),
}
_DENIED = {229, 230, 262, 297, 300, 916, 1088, 2760, 3701, 4902, 15247, 15151}
_RIGHTS = "GRANT SELECT, INSERT, UPDATE, DELETE on its table and on retl_applied, or CREATE TABLE and ALTER"
_WORDS = {"Base table or view not found": 208, "Column not found": 207}


class ServerError(Exception):
    """An error of the server, by its number. `alive`: the transaction can go on."""

    def __init__(self, number: int, said: str, *, alive: bool) -> None:
        super().__init__(number)
        self.number, self.said, self.alive = number, said, alive


class Unanswered(Exception):
    """A statement has no answer in time, or somebody has stopped the wait for it."""


class Unstorable(Exception):
    """A text has U+0000, where the driver would end the statement."""


class Hand(threading.Thread):
    """A thread that alone uses a connection. If a network is silent, the driver waits minutes longer than it
    is allowed to, and it cannot be interrupted; who asks this thread waits only until a deadline. Then the
    socket is shut down, so that the driver returns."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._answer: Future[Any] | None = None
        self.wire: socket.socket | None = None
        self.lost = False
        self.start()

    def run(self) -> None:
        while (asked := self._asked.get()) is not None:
            work, answer = asked
            with suppress(InvalidStateError):  # nobody waits any more
                try:
                    answer.set_result(work())
                except BaseException as error:  # noqa: BLE001 - it belongs to the one who asked
                    answer.set_exception(error)

    def ask(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns or raises. Unanswered after so many seconds, and from then on."""
        if self.lost:
            raise Unanswered
        answer: Future[T] = Future()
        self._answer = answer
        self._asked.put((work, answer))
        try:
            return answer.result(seconds)
        except TimeoutError:
            self.hang_up()
            raise Unanswered from None

    def hang_up(self) -> None:
        """From any thread: who waits for an answer gets Unanswered, and the server undoes what is open."""
        self.lost = True
        if self._answer is not None:
            with suppress(InvalidStateError):
                self._answer.set_exception(Unanswered())
        if self.wire is not None:
            with suppress(OSError):
                self.wire.shutdown(socket.SHUT_RDWR)

    def finish(self, work: Callable[[], object], seconds: float) -> None:
        """Do this as the last thing, and wait for it; not for long if the driver does not return."""
        self._asked.put((work, Future()))
        self._asked.put(None)
        self.join(seconds)
        if self.wire is not None:
            self.wire.close()


class MsSqlSession(Session):
    """A session of its own."""

    def __init__(self, server: SqlServer, timeout: float, wait: float, *, write: bool) -> None:
        import mssql_python

        self.errors = (
            ServerError,
            Unanswered,
            Unstorable,
            UnicodeError,
            mssql_python.Error,
            mssql_python.Warning,
        )
        self._shown, self._timeout, self._ending = f"SQL Server at {server.address}", timeout, "COMMIT"
        self._only_reads = self._inside = False
        self._hand, self._con = Hand(), None
        self._end = time.monotonic() + wait
        try:
            self._con, self._hand.wire = self._hand.ask(lambda: connected(server, wait), wait + _GRACE)
            self._renew()
            self._set(write=write)
        except self.errors as error:
            self.close()
            raise self.failure(error, committing=False) from None
        except BaseException:
            self.close()
            raise

    def _set(self, *, write: bool) -> None:
        self._sets(";\n".join(SETTINGS))
        ((edition, level, versioned),) = self.rows(
            "SELECT CAST(SERVERPROPERTY('EngineEdition') AS int), compatibility_level,"
            " CAST(is_read_committed_snapshot_on AS int) FROM sys.databases WHERE database_id = DB_ID()"
        )
        if edition in _WITHOUT_KEYS:
            words = f"{self._shown} is {_WITHOUT_KEYS[edition]}, which has no unique keys"
            raise Systemic(
                "TARGET_UNSUPPORTED",
                words,
                hint="deliver to SQL Server, Azure SQL or a SQL database in Fabric",
            )
        if level < _LEAST_LEVEL:
            words = f"{self._shown}: its compatibility level {level} has no OPENJSON"
            raise Systemic(
                "TARGET_UNSUPPORTED", words, hint=f"ALTER DATABASE … SET COMPATIBILITY_LEVEL = {_LEAST_LEVEL}"
            )
        isolation = "READ COMMITTED" if versioned and not write else "SERIALIZABLE"
        self._sets(f"SET TRANSACTION ISOLATION LEVEL {isolation}")

    def _sets(self, sql: str) -> list[list[Row]]:
        """Every result of a text, to its end: an error may come behind a result."""
        if "\0" in sql:
            raise Unstorable
        left = max(0.0, self._end - time.monotonic())
        return self._hand.ask(lambda: self._executed(sql, max(1, math.ceil(left))), left + _GRACE)

    def _executed(self, sql: str, seconds: int) -> list[list[Row]]:
        assert self._con is not None
        self._con.timeout = seconds
        cursor, found = self._con.cursor(), list[list[Row]]()
        try:
            cursor.execute(sql)
            while True:
                if cursor.description:
                    found.append([tuple(row) for row in cursor.fetchall()])
                if not cursor.nextset():
                    return found
        except RuntimeError:  # the driver's own code gives up
            raise Unanswered from None
        finally:
            cursor.close()

    def _guarded(self, sql: str) -> tuple[int, list[list[Row]]]:
        """The number of changed rows, and the results. Inside a transaction nothing is done if it has ended:
        it would be done at once, and without a mark."""
        results = self._sets(_TRY + _INSIDE * self._inside + sql + _CATCH)
        if not results:
            raise Unanswered
        *found, ((changed, number, alive, said),) = results
        if number:
            raise ServerError(number, said or "", alive=alive == 1)
        return changed, found

    def rows(self, sql: str) -> list[Row]:
        _, found = self._guarded(sql)
        return found[0]

    def change(self, sql: str) -> int:
        return self._guarded(sql)[0]

    def _renew(self) -> None:
        self._end = time.monotonic() + self._timeout

    def begin(self, *, write: bool) -> None:
        self._renew()
        self._ending = "COMMIT" if write or not self._only_reads else "ROLLBACK"
        self.change("BEGIN TRANSACTION")
        self._inside = True

    def commit(self) -> None:
        durable = " WITH (DELAYED_DURABILITY = OFF)" if self._ending == "COMMIT" else ""
        self.change(f"{self._ending} TRANSACTION{durable}")
        self._inside = False

    def rollback(self) -> None:
        self._inside = False
        self.change("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")

    def only_read(self) -> None:
        """What it writes all the same is undone: SQL Server has no transaction that only reads."""
        self._only_reads = True

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """An error that ends the transaction makes the batch Poisoned: then delivery halves it."""
        self.change("SAVE TRANSACTION retl")
        try:
            yield
        except ServerError as error:
            refused = self.refusal(error)
            if not error.alive and refused is not None:
                raise Poisoned(refused.code or "REFUSED", refused.reason or "the row is refused") from None
            if error.alive:
                self.change("ROLLBACK TRANSACTION retl")
            raise
        except BaseException:
            with suppress(*self.errors):
                self.change("ROLLBACK TRANSACTION retl")
            raise

    def table(self, relation: Relation) -> Table | None:
        this = object_id(relation)
        found = self.rows(f"SELECT type FROM sys.objects WHERE object_id = {this}")
        if not found:
            return None
        ((kind,),) = found
        if kind.strip() != "U":
            named = {"V": "a view", "SN": "a synonym"}
            return Table({}, kind=named.get(kind.strip(), "no table"))
        ((memory, temporal, outside),) = self.rows(
            "SELECT CAST(is_memory_optimized AS int), CAST(temporal_type AS int), CAST(is_external AS int)"
            f" FROM sys.tables WHERE object_id = {this}"
        )
        kinds = {
            "a memory-optimized table": memory,
            "an external table": outside,
            "a history table": temporal == 1,
        }
        for unfit in (name for name, true in kinds.items() if true):
            return Table({}, kind=unfit, advice="deliver to an ordinary table")
        keys, swallows = self._keys(this)
        triggers = swallows or self._triggers(this)
        return Table(self._columns(this), keys, None, triggers, self._dependents(this))

    def _columns(self, this: str) -> dict[str, Column]:
        described = self.rows(
            "SELECT name, coalesce(TYPE_NAME(system_type_id), TYPE_NAME(user_type_id)), max_length,"
            " CAST(precision AS int), CAST(scale AS int), collation_name, CAST(is_nullable AS int),"
            " CASE WHEN default_object_id <> 0 THEN 1 ELSE 0 END,"
            " CASE WHEN is_identity = 1 OR is_computed = 1 OR generated_always_type <> 0"
            " OR TYPE_NAME(system_type_id) = N'timestamp' THEN 1 ELSE 0 END"
            f" FROM sys.columns WHERE object_id = {this} ORDER BY column_id"
        )
        return {
            name.lower(): column(
                name,
                sized(kind or "", length, precision, scale),
                collation,
                nullable=bool(nullable),
                default=bool(default),
                generated=bool(generated),
            )
            for name, kind, length, precision, scale, collation, nullable, default, generated in described
        }

    def _keys(self, this: str) -> tuple[tuple[frozenset[str], ...], bool]:
        """The columns of each unique index over all rows, and whether one of them drops rows in silence."""
        found = self.rows(
            "SELECT i.index_id, c.name, CAST(i.ignore_dup_key AS int) FROM sys.indexes AS i"
            " JOIN sys.index_columns AS x ON x.object_id = i.object_id AND x.index_id = i.index_id"
            " JOIN sys.columns AS c ON c.object_id = x.object_id AND c.column_id = x.column_id"
            f" WHERE i.object_id = {this} AND i.is_unique = 1 AND i.has_filter = 0 AND i.is_disabled = 0"
            " AND i.is_hypothetical = 0 AND x.key_ordinal > 0"
        )
        keys = dict[int, set[str]]()
        for index, name, _ in found:
            keys.setdefault(index, set()).add(name.lower())
        return tuple(map(frozenset, keys.values())), any(ignores for _, _, ignores in found)

    def _triggers(self, this: str) -> bool:
        """Whether the table has triggers, or may have some that this account cannot see."""
        kinds = ("Insert", "Update", "Delete")
        asked = " + ".join(f"coalesce(OBJECTPROPERTY({this}, 'TableHas{one}Trigger'), 1)" for one in kinds)
        return bool(self.rows(f"SELECT {asked}")[0][0])

    def _dependents(self, this: str) -> tuple[str, ...]:
        found = self.rows(
            "SELECT OBJECT_NAME(parent_object_id), REPLACE(delete_referential_action_desc, N'_', N' ')"
            f" FROM sys.foreign_keys WHERE referenced_object_id = {this} AND delete_referential_action <> 0"
            " ORDER BY 1"
        )
        return tuple(f"{table} (ON DELETE {action})" for table, action in found)

    def refusal(self, error: Exception) -> RowResult | None:
        if isinstance(error, UnicodeError | Unstorable):
            return RowResult(Kind.REJECTED, "22000", "a text of the row cannot be sent to SQL Server")
        if not isinstance(error, ServerError):
            return None
        code, reason = _REFUSED.get(error.number, _TRIGGER if error.number >= _USERS else ("", ""))
        if not code or error.number in _AGAIN:
            return None
        if error.number == 547 and " CHECK constraint" in error.said:
            code, reason = _CHECK
        found = re.search(_NAMED[error.number], error.said) if error.number in _NAMED else None
        return RowResult(Kind.REJECTED, code, f"{found[1]}: {reason}" if found else reason)

    def failure(self, error: Exception, *, committing: bool) -> TargetError:
        where = self._shown
        number = error.number if isinstance(error, ServerError) else _WORDS.get(state(error), 0)
        if number in _AGAIN:
            code, why = _AGAIN[number]
            return Unavailable(code, f"{where}: {why}; nothing of the batch was applied")
        if committing and number != 3930:
            return Ambiguous("COMMIT_UNANSWERED", f"{where} does not say whether the batch was applied")
        if number in _DENIED:
            return Systemic("42501", f"{where}: this account lacks a right that is needed", hint=_RIGHTS)
        if number in _STOPS:
            code, why, advice = _STOPS[number]
            return Systemic(code, f"{where}: {why}", hint=advice or "run `retl check`")
        if number or state(error) == "Syntax error or access violation":
            words = f"{where} refuses to write (error {number or 'of syntax or rights'})"
            return Systemic(f"MSSQL_{number}", words, hint="run `retl check`")
        self._hand.hang_up()  # what the session still holds, nobody knows
        words = f"{where} closed the connection or stopped answering; nothing of the batch was applied"
        return Unavailable("08006", words)

    def interrupt(self) -> None:
        """Hang up: what is not committed is undone by the server."""
        self._hand.hang_up()

    def close(self) -> None:
        connection, self._con = self._con, None

        def ended() -> None:
            if connection is not None:
                with suppress(Exception):  # it is gone in any case
                    connection.close()

        if self._hand.is_alive():
            self._hand.finish(ended, _GRACE)
