"""Warehouses whose clients answer with Arrow: one query is one state, and its batches are a relation.

The server is asked for the columns first. A column of a type that Arrow or DuckDB would alter is read as the
server's own text; what has no exact text either is refused by name. Errors of a client are shown in its own
words only while nothing but the query's columns was asked for: later ones may quote a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Protocol

from msgspec import Struct

from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, RetlError, SourceError
from retl.observe.redact import redact
from retl.sources.api import Description, Since, Snapshot
from retl.values.sql import quoted

_LONGEST = 300  # characters of a client's own words
_numbers = count(1)  # of relations: a run may read several


class Column(Struct, frozen=True):
    """`read`: what the server selects for the column, in its own SQL; `type`: DuckDB's type of it."""

    name: str
    type: str
    read: str


class Session(Protocol):
    """An open connection to a warehouse, which cannot write."""

    def columns(self) -> Sequence[Column]:
        """The columns of the relation; no row is read."""

    def stream(self, select: str) -> object:
        """Run the query that selects this list from the relation, and return its rows as an Arrow stream."""

    @property
    def version(self) -> str:
        """What tells the state that was read from another, such as the query's id."""

    def close(self) -> None:
        """Close the connection."""


def connect(open: Callable[[], Session], workspace: Workspace, origin: str) -> Result:
    """Open a session and describe its relation. SourceError."""
    session = None
    try:
        session = open()
        return Result(session, session.columns(), workspace, origin)
    except RetlError:
        _close(session)
        raise
    except Exception as problem:  # noqa: BLE001 - the clients have no common base
        _close(session)
        words = redact(" ".join(str(problem).split()))[:_LONGEST]
        raise SourceError(
            "MART_UNREADABLE",
            f"{origin} cannot be read ({type(problem).__name__}): {words}",
            hint="check the address, the account's rights, and the SQL",
        ) from None


class Result(Snapshot):
    """The rows of one query."""

    def __init__(
        self, session: Session, columns: Sequence[Column], workspace: Workspace, origin: str
    ) -> None:
        self._session, self._workspace, self._origin = session, workspace, origin
        self._columns: dict[str, Column] = {}
        for one in columns:
            if one.name.lower() in (name.lower() for name in self._columns):
                raise DefinitionError(
                    "COLUMN_NAME",
                    f"{origin} has two columns {one.name!r}: upper and lower case make no difference here",
                    hint="use `sql`, and give one of them another name",
                )
            self._columns[one.name] = one
        self._relation = f"retl warehouse {next(_numbers)}"
        types = {one.name: one.type for one in columns}
        self.description = Description(types, session.version)

    def rows(self, columns: Sequence[str], since: Since | None = None) -> Query:
        chosen = [self._columns[name] for name in columns]
        try:
            stream = self._session.stream(", ".join(one.read for one in chosen))
        except RetlError:
            raise
        except Exception as problem:  # noqa: BLE001
            raise self._failed(problem) from None
        self._workspace.register(self._relation, stream)
        casts = (f"CAST({quoted(one.name)} AS {one.type}) AS {quoted(one.name)}" for one in chosen)
        sql = f"SELECT {', '.join(casts)} FROM {quoted(self._relation)}"
        return Query(sql, {}, self._origin, meaning=self._failed)

    def close(self) -> None:
        with suppress(Exception):  # it may never have been registered
            self._workspace.con.unregister(self._relation)
        _close(self._session)

    def _failed(self, problem: Exception) -> SourceError:
        return SourceError(
            "MART_UNREADABLE",
            f"{self._origin} could not be read to its end ({type(problem).__name__}); nothing was delivered",
            hint="run again; if it happens again, look at the query's history in the warehouse",
        )


def _close(session: Session | None) -> None:
    if session is not None:
        with suppress(Exception):
            session.close()
