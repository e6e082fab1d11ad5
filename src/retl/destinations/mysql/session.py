"""One connection to MySQL or MariaDB, with a deadline for each transaction.

Its settings are its own: whatever the server's defaults are, values are judged strictly, times are in UTC, a
backslash is a backslash, and constraints hold. A transaction that writes is SERIALIZABLE, so nobody else can
add or remove a key between our statements: they wait, or one of both fails and begins again.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from retl.destinations.batch import Kind, RowResult, Unshown
from retl.destinations.mysql.dialect import MySQLDialect, column, named
from retl.destinations.sql.dialect import Relation, Row, Session, Table
from retl.errors import Ambiguous, Systemic, TargetError, Unavailable
from retl.net.mysql import MySQLConnection, parts
from retl.observe.signals import Insistent

PACKET = 1 << 20  # bytes of an INSERT: larger ones are no faster
_AT_ONCE = 1000  # rows of a dump
_LONGEST = (
    16384  # bytes of a text in it: to double the quotes of one takes the server the square of its length
)
_ROOM = 1024  # bytes of a packet beside the statement
_FOREVER = 31536000  # seconds: the longest that a session may be idle
LOCK_WAIT = 30  # seconds
_MODE = (
    "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES,NO_AUTO_VALUE_ON_ZERO,NO_ZERO_DATE,NO_ZERO_IN_DATE,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
)
SETTINGS = (
    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
    f"SET SESSION sql_mode = '{_MODE}', time_zone = '+00:00', autocommit = 1, completion_type = 0,"
    " foreign_key_checks = 1, unique_checks = 1, sql_safe_updates = 0, sql_auto_is_null = 0,"
    " sql_select_limit = 18446744073709551615, default_storage_engine = InnoDB,"
    f" innodb_lock_wait_timeout = {LOCK_WAIT}, lock_wait_timeout = {LOCK_WAIT}, wait_timeout = {_FOREVER},"
    f" interactive_timeout = {_FOREVER}, net_write_timeout = 600",
)
_SETTINGS_OF_SOME = (
    "SET SESSION check_constraint_checks = 1",  # MariaDB
    "SET SESSION max_statement_time = 0",
    "SET SESSION idle_transaction_timeout = 0, idle_write_transaction_timeout = 0",
)
_UNKNOWN_VARIABLE, _SIGNAL = 1193, "45000"
_UNIQUE, _LACKS = ("23505", "another row has the same value"), ("23502", "it must have a value")
_REFERS = ("23503", "the row it refers to, or that refers to it, forbids it")
_CHECK, _VALUE = ("23514", "the check refuses it"), ("22000", "the value does not fit its column")
_REFUSED = {
    1062: _UNIQUE, 1586: _UNIQUE, 1859: _UNIQUE,
    1216: _REFERS, 1217: _REFERS, 1451: _REFERS, 1452: _REFERS, 1761: _UNIQUE, 1762: _UNIQUE,
    1048: _LACKS, 1364: _LACKS, 1263: _LACKS,
    3819: _CHECK, 4025: _CHECK, 1369: ("44000", "the view's check refuses it"),
    1264: _VALUE, 1265: _VALUE, 1292: _VALUE, 1366: _VALUE, 1367: _VALUE, 1406: _VALUE, 1411: _VALUE,
    1426: _VALUE, 1690: _VALUE, 3140: _VALUE, 3141: _VALUE, 3854: _VALUE, 4038: _VALUE,
    1526: ("23514", "the table has no partition for it"),
    1118: ("54000", "the row is larger than the table can take"),
}  # fmt: skip
_TRIGGER = ("P0001", "a trigger of the table refuses the row")
_NAMED = {
    1062: r"for key '([^']*)'$",
    1048: r"^Column '([^']*)' cannot be null$",
    1364: r"^Field '([^']*)' doesn't",
    4025: r"^CONSTRAINT `([^`]*)`",
    3819: r"^Check constraint '([^']*)'",
}
_LOST = {2006, 2013, 2055, 1053, 1077, 1159, 1160, 1161, 1184, 1152, 1927, 4031, 3169}
_AGAIN = {
    1213: ("40001", "another session and ours waited for each other"),
    1205: ("55P03", "another session holds a lock that we need"),
    1317: ("57014", "a statement was ended"),
    1969: ("57014", "a statement was ended"),
    3024: ("57014", "a statement was ended"),
    1040: ("53300", "it has no room for another session"),
    1203: ("53300", "it has no room for another session"),
    1226: ("53300", "it has no room for another session"),
    1020: ("40001", "another session changed a row that we had read"),
    1047: ("57P03", "this node of the cluster is not ready"),
    1412: ("40001", "the definition of the table has just changed"),
}
_RIGHTS = "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER, CREATE, CREATE TEMPORARY TABLES on its database"
_DENIED = {1044, 1045, 1142, 1143, 1227, 1370, 1410, 1419, 1698}
_STOPS = {
    1049: ("3D000", "it has no such database", None),
    1146: ("42P01", "there is no such table", None),
    1054: ("42703", "there is no such column", None),
    1290: ("25006", "it is read-only", "connect to the server that may be written"),
    1792: ("25006", "it is read-only", "connect to the server that may be written"),
    1836: ("25006", "it is read-only", "connect to the server that may be written"),
    1114: ("53100", "there is no room for the rows", "make room, then run again"),
    1021: ("53100", "there is no room for the rows", "make room, then run again"),
    1041: ("53200", "it is out of memory", None),
}


class TooLarge(Exception):
    """A row is larger than the server's max_allowed_packet."""


class Signalled(Exception):
    """A trigger refused a row by SIGNAL, with a number of its own choice."""


class MySQLSession(Session):
    """A session of its own: a pooler that changes sessions between transactions cannot be used."""

    def __init__(self, server: MySQLConnection, *, write: bool) -> None:
        import MySQLdb
        from MySQLdb.constants import FIELD_TYPE as F

        self.errors = (MySQLdb.Error, MySQLdb.Warning, UnicodeError, TooLarge, Signalled)
        self._shown, self._timeout = f"MySQL at {server.address}", server.timeout
        whole = (F.TINY, F.SHORT, F.LONG, F.LONGLONG, F.INT24, F.YEAR)
        conv = {**dict.fromkeys(whole, int), F.DOUBLE: float, F.FLOAT: float}
        self._con = server.connect(conv=conv, use_unicode=True)
        self._wire = socket.socket(fileno=os.dup(self._con.fileno()))
        self._timer: Insistent | None = None
        level = "SERIALIZABLE" if write else "REPEATABLE READ"
        try:
            self._start()
            self._set(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}")
            self._end()
        except MySQLdb.Error as error:
            self.close()
            raise self.failure(error, committing=False) from None

    def _set(self, isolation: str) -> None:
        for statement in (*SETTINGS, isolation):
            self.change(statement)
        for statement in _SETTINGS_OF_SOME:
            try:
                self.change(statement)
            except self.errors as error:
                if parts(error)[0] != _UNKNOWN_VARIABLE:
                    raise
        ((self.number, packet),) = self.rows("SELECT CONNECTION_ID(), @@max_allowed_packet")
        self._largest = int(packet) - _ROOM

    def _query(self, sql: bytes) -> None:
        try:
            self._con.query(sql)
        except self.errors:
            if self._con.sqlstate() == _SIGNAL:
                raise Signalled from None
            raise

    def rows(self, sql: str) -> list[Row]:
        self._query(sql.encode())
        return [tuple(map(_read, row)) for row in self._con.store_result().fetch_row(0)]

    def change(self, sql: str) -> int:
        self._query(sql.encode())
        return int(self._con.affected_rows())

    def fill(self, head: str, pieces: Callable[[int], Iterable[bytes]]) -> int:
        """An INSERT for each piece of rows, which are asked for with their size. The number of bytes."""
        first, sent = head.encode(), 0
        largest = self._largest - len(first)
        for piece in pieces(min(largest, PACKET)):
            if len(piece) > largest:
                raise TooLarge
            self._query(first + piece)
            sent += len(piece)
        return sent

    def csv(self, texts: Sequence[tuple[str, str]], rows: str) -> Iterator[bytes]:
        """The server makes each line. A text that is too long is NULL, and so is its line."""
        quoted = [
            f"IF({value} IS NULL, '', IF(OCTET_LENGTH({text}) > {_LONGEST} AND LOCATE('\"', {text}), NULL,"
            f""" CONCAT('"', REPLACE({text}, '"', '""'), '"')))"""
            for value, text in texts
        ]
        line = ", ',', ".join(quoted)
        self._query(f"SELECT CAST(CONCAT({line}) AS BINARY) FROM {rows}".encode())
        result = self._con.use_result()
        try:
            while found := result.fetch_row(_AT_ONCE):
                lines = [line for (line,) in found if line is not None]
                if len(lines) < len(found):
                    raise Unshown
                yield b"\n".join([*lines, b""])
        finally:  # no other statement is possible before the last row is read
            while result.fetch_row(_AT_ONCE):
                pass

    def begin(self, *, write: bool) -> None:
        self._start()
        self._ending = "COMMIT" if write else "ROLLBACK"
        self.change("START TRANSACTION")

    def commit(self) -> None:
        self.change(self._ending)
        self._end()

    def rollback(self) -> None:
        try:
            self.change("ROLLBACK")
        finally:
            self._end()

    def only_read(self) -> None:
        self.change("SET SESSION TRANSACTION READ ONLY")

    def _start(self) -> None:
        self._timer = Insistent(self._timeout, self.interrupt)
        self._timer.start()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def table(self, relation: Relation) -> Table | None:
        found = self.rows(
            f"SELECT table_type, engine, table_name FROM information_schema.tables WHERE {named(relation)}"
        )
        if not found:
            return None
        ((kind, engine, _),) = found
        if kind != "BASE TABLE":
            return Table({}, kind=f"a {kind.lower()}")
        if engine != "InnoDB":
            advice = f"ALTER TABLE {relation.sql} ENGINE = InnoDB"
            return Table({}, kind=f"a table of {engine}, which has no transactions", advice=advice)
        described = self.rows(
            "SELECT column_name, column_type, is_nullable, column_default, extra, generation_expression,"
            f" character_set_name, collation_name FROM information_schema.columns WHERE {named(relation)}"
            " ORDER BY ordinal_position"
        )
        columns = {
            name.lower(): column(name, type, nullable == "YES", default, extra, *rest)
            for name, type, nullable, default, extra, *rest in described
        }
        keys, triggers = self._keys(relation), self._triggers(relation)
        return Table(columns, keys, None, triggers, self._dependents(relation))

    def _keys(self, relation: Relation) -> tuple[frozenset[str], ...]:
        """The columns of each unique index over whole columns."""
        found = self.rows(
            "SELECT index_name, column_name, sub_part FROM information_schema.statistics"
            f" WHERE {named(relation)} AND non_unique = 0"
        )
        keys, partial = dict[str, set[str]](), set[str]()
        for index, name, part in found:
            if name is None or part is not None:
                partial.add(index)
            else:
                keys.setdefault(index, set()).add(name.lower())
        return tuple(frozenset(columns) for index, columns in keys.items() if index not in partial)

    def _triggers(self, relation: Relation) -> bool:
        """Whether the table has triggers, or may have some: without the right TRIGGER nobody sees them."""
        name = MySQLDialect().literal(relation.name)
        here = f"event_object_schema = DATABASE() AND event_object_table = {name}"
        if self.rows(f"SELECT 1 FROM information_schema.triggers WHERE {here} LIMIT 1"):
            return True
        account = """CONCAT("'", REPLACE(CURRENT_USER(), '@', "'@'"), "'")"""
        rights = {"user": "1 = 1", "schema": "table_schema = DATABASE()", "table": named(relation)}
        asked = (
            f"SELECT 1 FROM information_schema.{of}_privileges"
            f" WHERE privilege_type = 'TRIGGER' AND grantee = {account} AND {where}"
            for of, where in rights.items()
        )
        return not self.rows(" UNION ALL ".join(asked))

    def _dependents(self, relation: Relation) -> tuple[str, ...]:
        name = MySQLDialect().literal(relation.name)
        found = self.rows(
            "SELECT table_name, delete_rule FROM information_schema.referential_constraints"
            f" WHERE unique_constraint_schema = DATABASE() AND referenced_table_name = {name}"
            " AND delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT') ORDER BY 1"
        )
        return tuple(f"{table} (ON DELETE {action})" for table, action in found)

    def refusal(self, error: Exception) -> RowResult | None:
        if isinstance(error, UnicodeError):
            return RowResult(Kind.REJECTED, "22000", "MySQL cannot store a value of the row")
        if isinstance(error, TooLarge):
            return RowResult(Kind.REJECTED, "54000", "the row is larger than max_allowed_packet")
        if isinstance(error, Signalled):
            return RowResult(Kind.REJECTED, *_TRIGGER)
        number, said = parts(error)
        code, reason = _REFUSED.get(number, ("", ""))
        if not code:
            return None
        found = re.search(_NAMED[number], said) if number in _NAMED else None
        return RowResult(Kind.REJECTED, code, f"{found[1]}: {reason}" if found else reason)

    def failure(self, error: Exception, *, committing: bool) -> TargetError:
        number, _ = parts(error)
        where = self._shown
        if number in _AGAIN:
            code, why = _AGAIN[number]
            return Unavailable(code, f"{where}: {why}; nothing of the batch was applied")
        if number in _LOST and committing:
            return Ambiguous("COMMIT_UNANSWERED", f"{where} did not answer COMMIT")
        if number in _LOST:
            words = f"{where} closed the connection or stopped answering; nothing of the batch was applied"
            return Unavailable("08006", words)
        if number in _DENIED:
            return Systemic("42501", f"{where}: this account lacks a right that is needed", hint=_RIGHTS)
        if number in _STOPS:
            code, why, advice = _STOPS[number]
            return Systemic(code, f"{where}: {why}", hint=advice or "run `retl check`")
        if committing:
            return Ambiguous("COMMIT_UNANSWERED", f"{where} does not say whether the batch was applied")
        return Systemic(
            f"MYSQL_{number}", f"{where} refuses to write (error {number})", hint="run `retl check`"
        )

    def interrupt(self) -> None:
        """Hang up: what is not committed is undone by the server."""
        with suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end()
        with suppress(*self.errors):
            self._con.close()
        self._wire.close()


def _read(value: Any) -> Any:
    """The server's text of what has no type of Python's here: decimals, times, uuid."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
