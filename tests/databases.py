"""Databases of the tests beside PostgreSQL, and what runs deliver into them: one table, `users`."""

from __future__ import annotations

import json
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests import duckdb_files
from tests.clickhouse_server import WRITER, Server
from tests.crashes import COLUMNS, SECOND, Scene
from tests.mssql import Sql
from tests.mysql_server import AVAILABLE, MySQLDatabase

Row = tuple[str | None, ...]


class Shell(ABC):
    """A database as somebody else sees it. `connection`: its keys in retl.yml."""

    text = "TEXT"
    serves = True  # it is a server, at an address

    @property
    @abstractmethod
    def connection(self) -> str: ...

    @property
    def address(self) -> tuple[str, int]:
        raise NotImplementedError

    def made(self, key: str) -> str:
        """The statement that makes the table."""
        return (
            f"CREATE TABLE users (user_id {self.text} NOT NULL {key}, segment {self.text}, searches BIGINT,"
            " lifetime_value DECIMAL(12,2))"
        )

    def empty(self) -> None:
        """Somebody removes every row."""
        self.execute("DELETE FROM users")

    @abstractmethod
    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """The rows of the last."""

    @abstractmethod
    def clear(self) -> None:
        """Nothing is there any more, not even our marks."""

    @abstractmethod
    def keep(self) -> object:
        """A backup of everything."""

    @abstractmethod
    def restore(self, kept: object) -> None: ...


class SQLiteShell(Shell):
    serves = False

    def __init__(self, folder: Path) -> None:
        self.file = folder / "crm.db"

    @property
    def connection(self) -> str:
        return "{type: sqlite, path: crm.db}"

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.file, isolation_level=None, timeout=20)) as connection:
            for statement in statements:
                found = connection.execute(statement).fetchall()
            return found

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)
        self.file.with_name("crm.db-journal").unlink(missing_ok=True)

    def keep(self) -> object:
        return self.file.read_bytes()

    def restore(self, kept: object) -> None:
        assert isinstance(kept, bytes)
        self.clear()
        self.file.write_bytes(kept)


class DuckDBShell(SQLiteShell):
    def __init__(self, folder: Path) -> None:
        self.file = folder / "crm.duckdb"

    @property
    def connection(self) -> str:
        return "{type: duckdb, path: crm.duckdb}"

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        with duckdb_files.opened(self.file) as connection:
            for statement in statements:
                found = connection.execute(statement).fetchall()
            return found

    def clear(self) -> None:
        self.file.unlink(missing_ok=True)
        self.file.with_name("crm.duckdb.wal").unlink(missing_ok=True)


class MySQLShell(Shell):
    text = "VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"

    def __init__(self, database: MySQLDatabase) -> None:
        self.database = database

    @property
    def connection(self) -> str:
        to = self.database
        server = f"host: {to.host}, port: {to.port}, dbname: {to.dbname}"
        return f"{{type: mysql, {server}, user: {to.user}, password: '{to.password}'}}"

    @property
    def address(self) -> tuple[str, int]:
        return self.database.host, self.database.port

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        return self.database.execute(*statements)

    def clear(self) -> None:
        self.execute("DROP TABLE IF EXISTS users, retl_applied")

    def keep(self) -> object:
        tables = self.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
        )
        return {
            name: (self.execute(f"SHOW CREATE TABLE {name}")[0][1], self.execute(f"SELECT * FROM {name}"))
            for (name,) in tables
        }

    def restore(self, kept: object) -> None:
        assert isinstance(kept, dict)
        self.clear()
        for name, (made, rows) in kept.items():
            values = (", ".join(map(_literal, row)) for row in rows)
            self.execute(made, *(f"INSERT INTO {name} VALUES ({row})" for row in values))


class ClickHouseShell(Shell):
    """A database of a server; its readers get `FINAL` by a setting. A backup is all of the server."""

    def __init__(self, server: Server, database: str = "crm") -> None:
        self.server, self.database = server, database

    @property
    def connection(self) -> str:
        account = f"user: {WRITER[0]}, password: {WRITER[1]}, database: {self.database}"
        return f"{{type: clickhouse, base_url: '{self.server.url}', {account}}}"

    @property
    def address(self) -> tuple[str, int]:
        to = urlsplit(self.server.url)
        return str(to.hostname), to.port or 0

    def made(self, key: str) -> str:
        return (
            "CREATE TABLE users (user_id String, segment Nullable(String), searches Nullable(Int64),"
            " lifetime_value Nullable(Decimal(12, 2)), version UInt64, gone UInt8)"
            " ENGINE = ReplacingMergeTree(version, gone) ORDER BY user_id"
        )

    def empty(self) -> None:
        self.execute("TRUNCATE TABLE users")

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        rows = b""
        for statement in statements:
            read = (
                " SETTINGS final = 1, output_format_json_quote_64bit_integers = 0 FORMAT JSONCompactEachRow"
            )
            rows = self.server.do(statement + read * statement.startswith("SELECT"), self.database)
        return [tuple(json.loads(line, parse_float=Decimal)) for line in rows.splitlines()]

    def clear(self) -> None:
        self.server.do(f"DROP DATABASE IF EXISTS {self.database}")
        self.server.do(f"CREATE DATABASE {self.database} ENGINE = Atomic")

    def keep(self) -> object:
        copy = self.server.folder.with_name(f"{self.server.folder.name}-kept")
        shutil.rmtree(copy, ignore_errors=True)
        self.server.stop()
        shutil.copytree(self.server.folder, copy, symlinks=True)
        self.server.start()
        return copy

    def restore(self, kept: object) -> None:
        assert isinstance(kept, Path)
        self.server.stop()
        shutil.rmtree(self.server.folder)
        shutil.copytree(kept, self.server.folder, symlinks=True)
        self.server.start()


class MsSqlShell(Shell):
    """A database of the emulator; a backup is the whole file."""

    text = "nvarchar(40)"

    def __init__(self, server: Sql) -> None:
        self.server = server
        server.users["w"] = ("p", True)

    @property
    def connection(self) -> str:
        return f"{{type: mssql, host: 127.0.0.1, port: {self.server.port}, dbname: d, user: w, password: p}}"

    @property
    def address(self) -> tuple[str, int]:
        return self.server.host, self.server.port

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        found = self.server.execute(*statements)
        return [tuple(Decimal(one) if _is_money(one) else one for one in row) for row in found]

    def clear(self) -> None:
        self.execute("DROP TABLE IF EXISTS users", "DROP TABLE IF EXISTS retl_applied")

    def keep(self) -> object:
        return self.server.backup()

    def restore(self, kept: object) -> None:
        assert isinstance(kept, bytes)
        self.server.restore(kept)


def _is_money(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("-").replace(".", "", 1).isdigit()


def _literal(value: Any) -> str:
    return "NULL" if value is None else "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


SHELLS: dict[str, type[SQLiteShell]] = {"sqlite": SQLiteShell, "duckdb": DuckDBShell}


class TableScene(Scene):
    """Upsert and delete by key."""

    sync = "destination: {connection: sql, table: users, create: true}\ndeletes: delete\n"
    before = (SECOND,)
    key = "PRIMARY KEY"

    def __init__(self, folder: Path, shell: Shell) -> None:
        super().__init__(folder)
        self.shell = shell
        self.connections = f"  sql: {shell.connection}\n"

    def environ(self) -> dict[str, str]:
        return {}

    @property
    def table(self) -> str:
        return self.shell.made(self.key)

    def empty(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shell.clear()

    def content(self) -> list[Row]:
        try:
            found = self.shell.execute(f"SELECT {', '.join(COLUMNS)} FROM users")
        except Exception as problem:
            if "users" not in str(problem):
                raise
            return []
        return sorted(
            (key, segment, None if n is None else str(n), None if value is None else f"{value:.2f}")
            for key, segment, n, value in found
        )

    def doubled(self) -> list[str]:
        return [str(key) for key, n in Counter(row[0] for row in self.content()).items() if n > 1]


class TableAppend(TableScene):
    """A table without a key: nothing but retl keeps a row from coming twice."""

    sync = "destination: {connection: sql, table: users}\nwrite: append\nfirst_run: send\n"
    before = ()
    key = ""

    def empty(self) -> None:
        super().empty()
        self.shell.execute(self.table)


class Replaced(TableScene):
    """Whole rows by versions, in ClickHouse."""

    def __init__(self, folder: Path, server: Server) -> None:
        super().__init__(folder, ClickHouseShell(server))


TABLES: dict[str, type[TableScene]] = {"deletes": TableScene, "append": TableAppend}


def shell_of(kind: str, folder: Path, mysql: MySQLDatabase | None = None) -> Shell:
    """`kind`: the name of a database, and behind a blank what is delivered how."""
    name = kind.partition(" ")[0]
    if name == "mysql":
        assert mysql is not None
        return MySQLShell(mysql)
    return SHELLS[name](folder)


def scene_of(kind: str, folder: Path, mysql: MySQLDatabase | None = None) -> TableScene:
    return TABLES[kind.partition(" ")[2]](folder, shell_of(kind, folder, mysql))


MYSQL = tuple(f"mysql {kind}" for kind in TABLES) if AVAILABLE else ()
KINDS = (*(f"{name} {kind}" for name in SHELLS for kind in TABLES), *MYSQL)
