"""An emulator of SQL Server for Microsoft's own driver: TDS on a socket, T-SQL turned into SQLite's SQL.

It was written from Microsoft's documentation, and is not SQL Server. It keeps what the target relies on:
types that round or refuse, collations, errors with their numbers, transactions that an error ends, locks of
sessions, and rights. It reads T-SQL with a grammar, and refuses what that cannot read.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlglot
from sqlglot import exp

from tests.tds import Engine, Failure, Handler, Result

GUARDED = re.compile(r"BEGIN TRY\n(?:IF @@TRANCOUNT[^;]*;\n)?(.*);\nSELECT @@ROWCOUNT.*END CATCH", re.DOTALL)
_RENAMED = re.compile(r"EXEC sys.sp_rename N'([^']*)', N'([^']*)', 'COLUMN'")
_APPLOCK = re.compile(r"sp_getapplock @Resource = N'([^']*)'")
_UNCAUGHT = (102, 207, 208)  # by a TRY of the same text: it is not compiled
_RANGES = {"tinyint": (0, 255), "smallint": (-(2**15), 2**15 - 1), "int": (-(2**31), 2**31 - 1)}
_RANGES["bigint"] = (-(2**63), 2**63 - 1)
_CATALOG = """
CREATE TABLE sys_databases (database_id, compatibility_level, is_read_committed_snapshot_on);
INSERT INTO sys_databases VALUES (5, 160, 1);
CREATE TABLE sys_objects (object_id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE NOCASE, type);
CREATE VIEW sys_tables AS SELECT object_id, name, 0 AS is_memory_optimized, 0 AS temporal_type,
 0 AS is_external, object_id AS create_date FROM sys_objects WHERE type = 'U ';
CREATE TABLE sys_columns (object_id, column_id, name, system_type_id, user_type_id, max_length, precision, scale,
 collation_name, is_nullable, default_object_id, is_identity, is_computed, generated_always_type);
CREATE TABLE sys_indexes (object_id, index_id, is_unique, has_filter, is_disabled, is_hypothetical, ignore_dup_key);
CREATE TABLE sys_index_columns (object_id, index_id, column_id, key_ordinal);
CREATE TABLE sys_foreign_keys (parent_object_id, referenced_object_id, delete_referential_action,
 delete_referential_action_desc);
"""


class ServerError(Exception):
    def __init__(self, number: int, words: str, *, dooms: bool = False) -> None:
        super().__init__(words)
        self.number, self.words, self.dooms = number, words, dooms


class Sql(socketserver.ThreadingTCPServer):
    """The server. `users`: password and whether it may write. `script`: for a piece of SQL the error that
    comes in its place, once."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.host, self.port = "127.0.0.1", self.server_address[1]
        self.file = folder / "mssql.sqlite"
        self.users: dict[str, tuple[str, bool]] = {}
        self.script: list[tuple[str, int]] = []
        self.statements: list[str] = []
        self.locks: dict[str, object] = {}
        self.edition = 3
        self.refuses: Failure | None = None  # every login, with this
        self.ends = ""  # a statement with this piece ends its transaction, and says nothing
        self.heard: Callable[[str, bool], object] = lambda _sql, _served: None  # before and after a batch
        self.guard = threading.RLock()
        self.sockets: set[socket.socket] = set()
        self.sessions: set[Session] = set()  # of clients
        with sqlite3.connect(self.file) as made:
            made.executescript(f"PRAGMA journal_mode = WAL; {_CATALOG}")
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def engine(self) -> Session:
        made = Session(self)
        self.sessions.add(made)
        return made

    def get_request(self) -> tuple[socket.socket, Any]:
        found = super().get_request()
        self.sockets.add(found[0])
        return found

    def hang_up(self) -> None:
        """Every session ends, as when the server fails over."""
        while self.sockets:
            with suppress(OSError):
                self.sockets.pop().shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + 10
        while self.sessions:
            assert time.monotonic() < end, "a session does not end"
            time.sleep(0.01)

    def backup(self) -> bytes:
        """Everything that is committed."""
        with closing(sqlite3.connect(self.file)) as held:
            file = bytearray(held.serialize())
        file[18:20] = b"\1\1"  # as if it had no write-ahead log, which memory has not
        return bytes(file)

    def restore(self, kept: bytes) -> None:
        """The database is what it was; nobody stays connected."""
        self.hang_up()
        with closing(sqlite3.connect(":memory:")) as former, closing(sqlite3.connect(self.file)) as held:
            former.deserialize(kept)
            former.backup(held)

    def trigger(self, rest: str) -> None:
        """In SQLite's own words."""
        with sqlite3.connect(self.file) as made:
            made.execute(f"CREATE TRIGGER t {rest}")

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """As an administrator; the rows of the last."""
        session, found = Session(self), list[tuple[Any, ...]]()
        try:
            session.writes = True
            for statement in statements:
                found = session.rows(statement)
        finally:
            session.end()
        return found


class Session(Engine):
    """One session, on a connection of SQLite that begins a transaction at the first use of a table."""

    def __init__(self, server: Sql) -> None:
        self.server, self.writes, self.state, self.changed = server, False, 0, 0
        self.serializable = False
        self.file = sqlite3.connect(server.file, isolation_level=None, check_same_thread=False, timeout=30)
        self.file.execute("PRAGMA foreign_keys = ON")
        self.types: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}  # of temporary tables
        for name, key in (("EXACT", str), ("CI", str.lower)):
            self.file.create_collation(name, _ordered(key))
        functions = {
            "OBJECT_ID": (1, self._object_id), "TYPE_NAME": (1, lambda kind: kind), "DB_ID": (0, lambda: 5),
            "DB_NAME": (0, lambda: "d"), "SCHEMA_ID": (1, lambda name: 1 if name.lower() == "dbo" else None),
            "SERVERPROPERTY": (1, lambda _: server.edition), "OBJECTPROPERTY": (2, self._has_trigger), "APPLOCK_TEST": (4, self._is_free),
            "HAS_PERMS_BY_NAME": (3, self._may), "NCHAR": (1, chr),
            "CONCAT": (-1, lambda *parts: "".join(map(str, parts))),
            "SYSUTCDATETIME": (0, lambda: datetime.now(UTC).isoformat(" ")), "OBJECT_NAME": (1, self._object_name),
        }  # fmt: skip
        for name, (count, function) in functions.items():
            self.file.create_function(name, count, function)

    def login(self, user: str, password: str, database: str) -> Failure | None:
        if self.server.refuses is not None:
            return self.server.refuses
        known, self.writes = self.server.users.get(user, ("", False))
        if known and known == password:
            return None
        return Failure(18456, f"Login failed for user '{user}'.", 14)

    def end(self) -> None:
        self.file.close()
        self.server.sessions.discard(self)
        with self.server.guard:
            self.server.locks = {k: v for k, v in self.server.locks.items() if v is not self}

    # --- batches

    def batch(self, sql: str) -> Sequence[Result | Failure]:
        self.server.statements.append(sql)
        self.server.heard(sql, False)
        results = self._answer(sql)
        self.server.heard(sql, True)
        if self.server.ends and self.server.ends in sql:
            self.server.ends = ""
            self._over("ROLLBACK")
        return results

    def _answer(self, sql: str) -> Sequence[Result | Failure]:
        guarded = GUARDED.fullmatch(sql)
        for number, (piece, error) in enumerate(self.server.script):
            if piece in sql:
                del self.server.script[number]
                return self._failed(sql, ServerError(error, "scripted", dooms=error == 1205))
        try:
            if "IF @@TRANCOUNT <> 1 THROW 59999" in sql and not self.state:
                raise ServerError(59999, "there is no transaction")
            results = self._run(guarded[1] if guarded else sql)
        except ServerError as error:
            caught = guarded and error.number not in _UNCAUGHT
            return self._failed(sql, error) if caught else [Failure(error.number, error.words)]
        return [*results, _status(self.changed, 0, 1, "")] if guarded else results

    def _failed(self, sql: str, error: ServerError) -> list[Result | Failure]:
        """What CATCH answers. A transaction that cannot be committed ends with the text of the batch."""
        if not error.dooms or not self.state:
            return [_status(-1, error.number, self.state, error.words)]
        self._over("ROLLBACK")
        found: list[Result | Failure] = [_status(-1, error.number, -1, error.words)]
        if "IF XACT_STATE() = -1 ROLLBACK" not in sql:
            found.append(Failure(3998, "Uncommittable transaction is detected at the end of the batch."))
        return found

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        found = self._run(sql)
        return [tuple(row) for row in found[0].rows] if found else []

    def _run(self, sql: str) -> list[Result]:
        self.changed = 0
        if sql.startswith("SET "):
            self.serializable |= "SERIALIZABLE" in sql
            return []
        if applock := _APPLOCK.search(sql):
            return [Result([""], [[self._lock(applock[1])]])]
        if self._transaction(sql):
            return []
        try:
            return self._statement(sql)
        except sqlite3.Error as error:
            raise _named(error) from None

    def _transaction(self, sql: str) -> bool:
        if sql == "BEGIN TRANSACTION":
            self.state = 1
        elif sql.startswith("SAVE TRANSACTION "):
            self._begun()
            self.file.execute("SAVEPOINT retl")
        elif sql == "ROLLBACK TRANSACTION retl":
            if not self.state:
                raise ServerError(3903, "The ROLLBACK TRANSACTION request has no BEGIN TRANSACTION.")
            self.file.execute("ROLLBACK TO retl")
        elif sql.startswith("COMMIT"):
            if self.state != 1:
                raise ServerError(3902, "The COMMIT TRANSACTION request has no BEGIN TRANSACTION.")
            self._over("COMMIT")
        elif sql in ("ROLLBACK TRANSACTION", "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"):
            self._over("ROLLBACK")
        else:
            return False
        return True

    def _over(self, how: str) -> None:
        self.state = 0
        if self.file.in_transaction:
            self.file.execute(how)

    def _begun(self) -> None:
        if self.state and not self.file.in_transaction:
            self.file.execute("BEGIN IMMEDIATE" if self.serializable else "BEGIN")

    # --- statements

    def _statement(self, sql: str) -> list[Result]:
        if renamed := _RENAMED.fullmatch(sql):
            self._rename(*renamed.groups())
            return []
        tree = read(sql)
        if isinstance(tree, exp.Select | exp.SetOperation):
            if " FROM " in sql and "sys." not in sql:
                self._begun()
            cursor = self.file.execute(_sqlite(tree))
            rows = cursor.fetchall()
            self.changed = len(rows)
            named = [one[0] if one[0].isidentifier() else "" for one in cursor.description]
            return [Result(named, rows)]
        mine = "#retl_stage" in sql.partition("(")[0] and not sql.startswith("UPDATE")
        if not self.writes and not mine:
            raise ServerError(229, "The permission was denied on the object")
        self._begun()
        if isinstance(tree, exp.Create):
            self._create(tree)
        elif isinstance(tree, exp.Insert):
            self._insert(tree)
        elif isinstance(tree, exp.Update):
            self._change(_update(tree))
        elif isinstance(tree, exp.Delete):
            self._change(_delete(tree))
        elif isinstance(tree, exp.Drop):
            self.file.execute("DROP TABLE IF EXISTS temp.retl_stage" if mine else _sqlite(tree))
            if not mine:
                self.file.execute("DELETE FROM sys_objects WHERE name = ?", [tree.args["tables"][0].name])
        elif isinstance(tree, exp.Alter):
            for one in tree.args["actions"]:
                self._alter(tree.this.name, one)
        else:
            raise ServerError(102, f"Incorrect syntax: {sql[:80]}")
        return []

    def _change(self, sql: str) -> None:
        self.changed = self.file.execute(sql).rowcount

    def _create(self, tree: exp.Create) -> None:
        name, temporary = tree.this.this.name, "#" in tree.sql("tsql").partition("(")[0]
        if not temporary and self._object_id(name):
            raise ServerError(2714, "There is already an object named like that in the database.")
        columns = [one for one in tree.this.expressions if isinstance(one, exp.ColumnDef)]
        listed = [self._declared(one) for one in columns]
        keys = [one for one in tree.this.expressions if not isinstance(one, exp.ColumnDef)]
        ignores = "IGNORE_DUP_KEY" in tree.sql("tsql").upper()
        for one in keys:
            text = re.sub(r" WITH \(.*", "", one.sql("sqlite"))
            listed.append(text + (" ON CONFLICT IGNORE" if ignores else ""))
        kind = "TEMP TABLE" if temporary else "TABLE"
        self.file.execute(f'CREATE {kind} "{name}" ({", ".join(listed)})')
        types = [(one.name, *_type(one)) for one in columns]
        if temporary:
            self.types[name] = types
            return
        this = self.file.execute("INSERT INTO sys_objects (name, type) VALUES (?, 'U ')", [name]).lastrowid
        for one in columns:
            self._catalogued(this, one)
        parts = [
            [part.name for part in one.find_all(exp.Identifier)]
            for one in keys
            if isinstance(one, exp.PrimaryKey)
        ]
        parts += [[one.name] for one in columns if one.find(exp.PrimaryKeyColumnConstraint)]
        for index, names in enumerate(parts, 1):
            self.file.execute("INSERT INTO sys_indexes VALUES (?, ?, 1, 0, 0, 0, 0)", [this, index])
            for ordinal, part in enumerate(names, 1):
                at = [n for n, (column, *_) in enumerate(types, 1) if column.lower() == part.lower()]
                self.file.execute(
                    "INSERT INTO sys_index_columns VALUES (?, ?, ?, ?)", [this, index, *at, ordinal]
                )

    def _declared(self, of: exp.ColumnDef) -> str:
        kind, _ = _type(of)
        parts = [f'"{of.name}"']
        if kind in ("char", "nchar", "varchar", "nvarchar"):
            parts.append(f"COLLATE {'EXACT' if 'BIN2' in of.sql('tsql') else 'CI'}")
        parts += [_sqlite(one) for one in of.constraints if not _is(one, exp.CollateColumnConstraint)]
        return re.sub(
            r"DEFAULT SYSUTCDATETIME\(\)", "DEFAULT (strftime('%Y-%m-%d %H:%M:%f'))", " ".join(parts)
        )

    def _catalogued(self, this: int | None, of: exp.ColumnDef) -> None:
        kind, sizes = _type(of)
        first, second = (*sizes, 0, 0)[:2]
        length = (first * (2 if kind[0] == "n" else 1) or -1) if kind.endswith("char") else first
        scale = first if kind.startswith("datetime") else second
        collation = "Latin1_General_100_BIN2" if "BIN2" in of.sql("tsql") else "SQL_Latin1_General_CP1_CI_AS"
        (at,) = self.file.execute(
            "SELECT coalesce(max(column_id), 0) + 1 FROM sys_columns WHERE object_id = ?", [this]
        ).fetchone()
        constraints = [type(one.kind) for one in of.constraints]
        needed = exp.NotNullColumnConstraint in constraints or exp.PrimaryKeyColumnConstraint in constraints
        allows = any(one.kind.args.get("allow_null") for one in of.constraints)
        values = [this, at, of.name, kind, kind, length, first, scale]
        values += [collation if kind.endswith("char") else None, not needed or allows]
        values += [
            exp.DefaultColumnConstraint in constraints,
            0,
            exp.ComputedColumnConstraint in constraints,
            0,
        ]
        self.file.execute(f"INSERT INTO sys_columns VALUES ({', '.join('?' * 14)})", values)

    def _alter(self, table: str, of: exp.Expression) -> None:
        """SQLite keeps no sizes, so another type is one of the catalog."""
        this = self._object_id(table)
        if isinstance(of, exp.Drop):
            (named,) = {one.name for one in of.find_all(exp.Identifier)}
            self.file.execute(f'ALTER TABLE "{table}" DROP COLUMN "{named}"')
            self.file.execute("DELETE FROM sys_columns WHERE object_id = ? AND name = ?", [this, named])
        elif isinstance(of, exp.AlterColumn):
            self.file.execute(
                "UPDATE sys_columns SET system_type_id = ?, user_type_id = ? WHERE object_id = ? AND name = ?",
                [of.args["dtype"].sql("tsql").lower()] * 2 + [this, of.this.name],
            )
        elif isinstance(of, exp.ColumnDef):
            self._add(table, of)
        else:
            raise ServerError(102, f"Incorrect syntax: {of}")

    def _rename(self, column: str, to: str) -> None:
        """sp_rename."""
        table, name = column.split(".")[-2:]
        self.file.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{name}" TO "{to}"')
        self.file.execute(
            "UPDATE sys_columns SET name = ? WHERE object_id = ? AND name = ?",
            [to, self._object_id(table), name],
        )

    def _add(self, table: str, of: exp.ColumnDef) -> None:
        self.file.execute(f'ALTER TABLE "{table}" ADD COLUMN {self._declared(of)}')
        self._catalogued(self._object_id(table), of)

    def _insert(self, tree: exp.Insert) -> None:
        opened = tree.find(exp.OpenJSON)
        if opened is None:
            self._change(_sqlite(tree))
            return
        table, columns = tree.this.this, [one.name for one in tree.this.expressions]
        kinds = self.types.get(table.name) or self._kinds(table.name)
        of = {name.lower(): kind for name, *kind in kinds}
        rows = [
            [stored(*of[name.lower()], one[f"v{n}"]) for n, name in enumerate(columns)]
            for one in json.loads(opened.this.name)
        ]
        names, marks = ", ".join(f'"{name}"' for name in columns), ", ".join("?" * len(columns))
        for row in rows:
            self.file.execute(f'INSERT INTO "{table.name}" ({names}) VALUES ({marks})', row)
        self.changed = len(rows)

    def _kinds(self, table: str) -> list[tuple[str, str, tuple[int, ...]]]:
        found = self.file.execute(
            "SELECT name, system_type_id, max_length, precision, scale FROM sys_columns WHERE object_id = ?",
            [self._object_id(table)],
        )
        made = list[tuple[str, str, tuple[int, ...]]]()
        for name, kind, length, precision, scale in found.fetchall():
            chars = () if length < 0 else (length // (2 if kind[0] == "n" else 1),)
            made.append((name, kind, chars if kind.endswith("char") else (precision, scale)))
        return made

    # --- functions

    def _object_id(self, name: str) -> int | None:
        last = name.rpartition("].[")[2].removeprefix("[").removesuffix("]").replace("]]", "]")
        found = self.file.execute("SELECT object_id FROM sys_objects WHERE name = ?", [last]).fetchone()
        return found[0] if found else None

    def _object_name(self, this: int) -> str | None:
        found = self.file.execute("SELECT name FROM sys_objects WHERE object_id = ?", [this]).fetchone()
        return found[0] if found else None

    def _has_trigger(self, this: int, _: str) -> int:
        asked = "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?"
        return int(self.file.execute(asked, [self._object_name(this)]).fetchone()[0] > 0)

    def _lock(self, name: str) -> int:
        with self.server.guard:
            return 0 if self.server.locks.setdefault(name, self) is self else -1

    def _is_free(self, _: str, name: str, __: str, ___: str) -> int:
        return int(self.server.locks.get(name, self) is self)

    def _may(self, securable: str, _: str, right: str) -> int:
        return int(right == "SELECT" or self.writes)


def read(sql: str) -> exp.Expression:
    """T-SQL as a tree; ServerError 102 if a grammar does not know all of it."""
    try:
        (tree,) = sqlglot.parse(sql, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    except (sqlglot.ParseError, ValueError) as error:
        raise ServerError(102, f"Incorrect syntax: {error}") from None
    if tree is None or isinstance(tree, exp.Command):
        raise ServerError(102, f"Incorrect syntax: {sql[:80]}")
    return tree


def _sqlite(tree: exp.Expression) -> str:
    def plain(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Table):
            node.set("hints", None)
            schema = node.text("db").lower()
            if schema == "sys":
                node.set("this", exp.to_identifier(f"sys_{node.name}"))
            node.set("db", None)
        if isinstance(node, exp.Cast) and node.to.is_type("varbinary"):
            node.set("to", exp.DataType.build("BLOB", dialect="sqlite"))
        elif isinstance(node, exp.Cast | exp.Convert):
            return node.this if isinstance(node, exp.Cast) else node.expression
        if isinstance(node, exp.National):
            return exp.Literal.string(node.name)
        return node

    return tree.copy().transform(plain).sql("sqlite")


def _update(tree: exp.Update) -> str:
    if tree.args.get("from_") is None:
        return _sqlite(tree)
    joined = tree.args["from_"].this
    (join,) = joined.args.pop("joins")
    sets = ", ".join(_sqlite(one) for one in tree.expressions)
    return f"UPDATE {_sqlite(join.this)} SET {sets} FROM {_sqlite(joined)} WHERE {_sqlite(join.args['on'])}"


def _delete(tree: exp.Delete) -> str:
    if not tree.args.get("tables"):
        return _sqlite(tree)
    joined = tree.this
    (join,) = joined.args.pop("joins")
    where = f"{_sqlite(join.args['on'])} AND {_sqlite(tree.args['where'].this)}"
    return f"DELETE FROM {_sqlite(join.this)} WHERE EXISTS (SELECT 1 FROM {_sqlite(joined)} WHERE {where})"


def _is(constraint: exp.Expression, kind: type[exp.Expression]) -> bool:
    return isinstance(constraint.args.get("kind"), kind)


def _type(of: exp.ColumnDef) -> tuple[str, tuple[int, ...]]:
    if of.kind is None:  # computed
        return "int", ()
    kind, _, sizes = of.kind.sql("tsql").lower().partition("(")
    known = {"numeric": "decimal", "integer": "int", "text": "varchar"}
    return known.get(kind, kind), tuple(map(int, re.findall(r"\d+", sizes)))


def stored(kind: str, sizes: tuple[int, ...], value: Any) -> Any:
    """What a column keeps of a text; ServerError if it cannot."""
    if value is None:
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        return _kept(kind, sizes, text)
    except (ValueError, InvalidOperation):
        raise ServerError(8114, f"Error converting data type nvarchar to {kind}.", dooms=True) from None


def _kept(kind: str, sizes: tuple[int, ...], text: str) -> Any:
    if kind in _RANGES:
        least, most = _RANGES[kind]
        if not least <= int(text) <= most:
            raise ServerError(8115, f"Arithmetic overflow error converting expression to {kind}.", dooms=True)
        return int(text)
    if kind == "bit":
        return {"true": 1, "false": 0, "1": 1, "0": 0}[text]
    if kind == "float":
        if not re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text.lower()):
            raise ValueError
        return float(text)
    if kind == "decimal":
        number = Decimal(text)
        if len(str(abs(int(number)))) > sizes[0] - sizes[1] and int(number):
            raise ServerError(8115, "Arithmetic overflow error converting nvarchar to numeric.", dooms=True)
        return format(number, f".{sizes[1]}f") if sizes[1] else str(int(number))
    if kind == "uniqueidentifier":
        return str(UUID(text)).upper()
    if kind == "date":
        return date.fromisoformat(text).isoformat()
    if kind in ("datetime2", "datetimeoffset"):
        found = datetime.fromisoformat(text)
        if kind == "datetimeoffset":
            found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return found.isoformat(" ", "microseconds")
    room = sizes[0] if sizes else None
    units = len(text.encode("utf-16le")) // 2
    if room is not None and units > room:
        if len(text.rstrip(" ").encode("utf-16le")) // 2 > room:
            raise ServerError(2628, "String or binary data would be truncated in table 't', column 'c'.")
        text = text[: room - units]
    return text.encode("ascii", "replace").decode() if kind in ("varchar", "char") else text


def _status(changed: int, number: int, state: int, words: str) -> Result:
    return Result(["", "", "", ""], [[changed, number, state, words]])


def _ordered(key: Any) -> Any:
    def compare(one: str, other: str) -> int:
        one, other = key(one.rstrip(" ")), key(other.rstrip(" "))
        return (one > other) - (one < other)

    return compare


def _named(error: sqlite3.Error) -> ServerError:
    words, place = str(error), str(error).partition(": ")[2]
    if "UNIQUE" in words:
        return ServerError(
            2627, f"Violation of UNIQUE KEY constraint '{place}'. The duplicate key value is (canary)."
        )
    if "NOT NULL" in words:
        return ServerError(515, f"Cannot insert the value NULL into column '{place}', table 't'.")
    if "CHECK" in words:
        return ServerError(547, 'The INSERT statement conflicted with the CHECK constraint "ck".')
    if "FOREIGN KEY" in words:
        return ServerError(547, 'The INSERT statement conflicted with the FOREIGN KEY constraint "fk".')
    if "locked" in words:
        return ServerError(1222, "Lock request time out period exceeded.")
    if "no such table" in words:
        return ServerError(208, f"Invalid object name '{place}'.")
    return ServerError(50000 - 1, words)
