"""Snowflake: a table, a view, or one SELECT in Snowflake's own SQL.

One query is one state of its tables. Columns have the names that Snowflake shows, usually in upper case. In
`sql` and `file`, `$name` is a variable of the project, which becomes
a quoted value: for a variable of a Snowflake session write `getvariable('NAME')`.

The login is a password, a key pair (`private_key`, PEM, with `private_key_password` if it has one), or a
`token` (OAuth, or a programmatic access token as `password`). The account needs USAGE of the warehouse and
SELECT on what is read. A stream of Snowflake is read like a table, and is not used up. It has only changes:
select the rows with METADATA$ACTION = 'INSERT', and leave `deletes` off.

There is no `changes: cdf`. The clause CHANGES … AT … END gives the net difference of a table with change
tracking between two times. It is exact only if a time that was read names the same transactions for ever. The
documentation does not promise that no later commit gets an earlier time, and there was no account to see it
on. A missed update would show in no number of rows. `changes: hash` does not depend on it.

Numbers keep all their digits; texts, booleans, dates, and times up to microseconds are exact, finer ones are
refused when the row is read. TIMESTAMP_TZ and TIMESTAMP_LTZ are read in UTC. VARIANT, OBJECT and ARRAY arrive
as JSON; BINARY (hex), TIME, GEOGRAPHY, GEOMETRY and VECTOR as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator

from retl.engine.workspace import Workspace
from retl.model import Definition, Duration
from retl.sources import sql
from retl.sources.api import Snapshot, needs
from retl.sources.columnar import Column, connect
from retl.values.sql import literal, quoted

_AUTH = "adbc.snowflake.sql."
_OPTION = "adbc.snowflake.sql.client_option."
_JSON = {"VARIANT", "OBJECT", "ARRAY"}
_SAME = {"BOOLEAN": "BOOLEAN", "DATE": "DATE", "TEXT": "VARCHAR", "VARCHAR": "VARCHAR", "FLOAT": "DOUBLE"}
_FIXED = re.compile(r"(?:NUMBER|FIXED)\((\d+),(\d+)\)")
_NANO = "'YYYY-MM-DD\"T\"HH24:MI:SS.FF9'"


class Account(Definition):
    """An account, and where in it. `timeout` limits each request; `timezone` applies to timestamps without
    one."""

    type: Literal["snowflake"] = "snowflake"
    account: str
    user: str
    password: SecretStr | None = None
    private_key: SecretStr | None = None
    private_key_file: str | None = None
    private_key_password: SecretStr | None = None
    token: SecretStr | None = None
    warehouse: str
    database: str
    db_schema: str | None = Field(default=None, alias="schema")
    role: str | None = None
    timeout: Duration = Field(default=3600.0, gt=0)
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _one_login(self) -> Account:
        ways = (self.password, self.private_key, self.private_key_file, self.token)
        if sum(way is not None for way in ways) != 1:
            raise ValueError(
                "an account has exactly one of password, private_key, private_key_file and token"
            )
        if (
            self.private_key_password is not None
            and self.private_key is None
            and self.private_key_file is None
        ):
            raise ValueError("`private_key_password` needs `private_key` or `private_key_file`")
        return self

    def options(self, folder: Path) -> dict[str, str]:
        """What the driver is given."""
        seconds = f"{self.timeout:g}s"
        given = {
            "username": self.user,
            f"{_AUTH}account": self.account,
            f"{_AUTH}warehouse": self.warehouse,
            f"{_AUTH}db": self.database,
            f"{_OPTION}use_high_precision": "true",
            f"{_OPTION}max_timestamp_precision": "nanoseconds_error_on_overflow",
            f"{_OPTION}request_timeout": seconds,
            f"{_OPTION}login_timeout": "30s",
            f"{_OPTION}disable_telemetry": "true",
            f"{_OPTION}app_name": "retl",
        }
        if self.db_schema is not None:
            given[f"{_AUTH}schema"] = self.db_schema
        if self.role is not None:
            given[f"{_AUTH}role"] = self.role
        if self.password is not None:
            given["password"] = self.password.get_secret_value()
        elif self.token is not None:
            given |= {
                f"{_AUTH}auth_type": "auth_oauth",
                f"{_OPTION}auth_token": self.token.get_secret_value(),
            }
        else:
            key = self.private_key.get_secret_value() if self.private_key else ""
            if self.private_key_file is not None:
                key = (folder / self.private_key_file).read_text(encoding="ascii")
            given |= {f"{_AUTH}auth_type": "auth_jwt", f"{_OPTION}jwt_private_key_pkcs8_value": key}
            if self.private_key_password is not None:
                secret = self.private_key_password.get_secret_value()
                given[f"{_OPTION}jwt_private_key_pkcs8_password"] = secret
        return given


class Snowflake(sql.Selecting):
    """A table or a SELECT of Snowflake."""

    Connection = Account
    evidence = "unproved: written from the vendor's and the driver's documentation; no account to try it on"

    @property
    def identity(self) -> dict[str, str]:
        one = self.connection
        return {
            "type": "snowflake",
            "account": one.account,
            "database": one.database,
            **self.options.identity,
        }

    def open(self, workspace: Workspace, *, wait: bool = True) -> Snapshot:
        relation = sql.relation(self.options, self.invocation, sql.SNOWFLAKE, written, folded)
        given = self.connection.options(self.invocation.folder)
        return connect(lambda: _Session(given, relation), workspace, self.options.origin)


class _Session:
    def __init__(self, options: dict[str, str], relation: str) -> None:
        with needs("snowflake"):
            from adbc_driver_snowflake import dbapi
        self._relation = relation
        self._connection: Any = dbapi.connect(db_kwargs=options)
        self._cursor: Any = self._connection.cursor()
        self._ask("ALTER SESSION SET TIMEZONE = 'UTC'")
        self.version = str(self._ask("SELECT to_varchar(sysdate(), 'YYYY-MM-DD HH24:MI:SS.FF9')")[0][0])

    def columns(self) -> Sequence[Column]:
        self._cursor.execute(f"SELECT * FROM {self._relation} LIMIT 0")
        self._cursor.fetchall()
        described = self._ask("DESCRIBE RESULT LAST_QUERY_ID()")
        return [column(str(name), str(kind)) for name, kind, *_ in described]

    def stream(self, select: str) -> object:
        self._cursor.execute(f"SELECT {select} FROM {self._relation}")
        return self._cursor.fetch_record_batch()

    def close(self) -> None:
        self._cursor.close()
        self._connection.close()

    def _ask(self, query: str) -> Any:
        self._cursor.execute(query)
        return self._cursor.fetchall()


def column(name: str, kind: str) -> Column:
    """A column of a type as DESCRIBE writes it, such as NUMBER(38,0) or TIMESTAMP_NTZ(9)."""
    base, read = kind.partition("(")[0], quoted(name)
    if number := _FIXED.fullmatch(kind):
        return Column(name, f"DECIMAL({number[1]},{number[2]})", f"{read} AS {read}")
    if base in _SAME:
        return Column(name, _SAME[base], f"{read} AS {read}")
    if base in _JSON:
        return Column(name, "JSON", f"to_json({read}) AS {read}")
    if base == "TIMESTAMP_NTZ":
        return Column(name, "TIMESTAMP_NS", f"to_varchar({read}, {_NANO}) AS {read}")
    if base in ("TIMESTAMP_LTZ", "TIMESTAMP_TZ"):
        utc = f"convert_timezone('UTC', {read})"
        return Column(name, "TIMESTAMP WITH TIME ZONE", f"to_varchar({utc}, {_NANO}) || 'Z' AS {read}")
    if base in ("GEOGRAPHY", "GEOMETRY"):
        return Column(name, "VARCHAR", f"st_aswkt({read}) AS {read}")
    return Column(name, "VARCHAR", f"to_varchar({read}) AS {read}")


def folded(name: str) -> str:
    """A part of a table's name: a plain one is not quoted, so Snowflake folds its case as everywhere."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", name) else quoted(name)


def written(value: Any) -> str:
    """A variable as Snowflake's SQL, in which a backslash escapes."""
    return sql.constant(value, lambda text: literal(text.replace("\\", "\\\\")))
