"""One table of a database, written batch by batch: a batch is staged, applied and marked in one transaction.

So it is applied as a whole or not at all, an unanswered COMMIT can be resolved by its mark, and a run that
lost its lock cannot commit. It knows no database: an adapter gives it a dialect and sessions.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from msgspec.structs import replace
from pydantic import BaseModel

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Batch,
    Capabilities,
    Cell,
    Field,
    Folds,
    Form,
    Outcome,
    Shape,
    Trace,
    Visit,
    WriteMode,
    lacking,
)
from retl.destinations.marks import Attempts, Mark, noted, peek
from retl.destinations.sql import fitness
from retl.destinations.sql.apply import Found, apply, inexact, insert_new, stage
from retl.destinations.sql.dialect import Dialect, Relation, Row, Session, Table
from retl.destinations.sql.statements import MARKER, Statements
from retl.errors import Mismatch, Poisoned, Systemic, TargetError
from retl.net.gate import Gate

SQL = TypeVar("SQL", bound=BaseModel)


class SqlTable(Destination[SQL], Generic[SQL]):
    """The common way of a database. `dialect` and the abstract methods are all that an adapter adds."""

    dialect: ClassVar[Dialect]
    keeps_marks = True
    form: ClassVar[Form]
    lanes: ClassVar[int] = 1

    def __init__(self, options: SQL, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        self._relation: Relation = self.dialect.relation(self._named(options))
        fitness.check_names(self.dialect, shape)
        self._sql = Statements(self.dialect, self._relation, shape, None)
        self._lane: Session | None = None
        self._marked = False  # whether the marker table is there: known once the lane is open
        self._straight = True  # INSERT into the table itself, until it refuses a row
        self._attempts = Attempts(str(self._relation))
        changes = shape.write in ("upsert", "update_only")  # the others never change existing rows
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"upsert", "insert_only", "update_only", "append", "replace", "delete"}),
            idempotent=shape.write != "append",
            form=self.form,
            readable=True,
            repeats=True,
            nulls_keep=changes,
            only_if_empty=changes,
            cascades=True,
            soft_deletes=True,
            resolves=True,
            lanes=self.lanes,
        )

    @staticmethod
    @abstractmethod
    def _named(options: SQL) -> str:
        """The table as the sync names it."""

    @abstractmethod
    def _connect(self, *, write: bool, create: bool = False) -> Session:
        """A new session, which need not be able to write. With `create` a database that is a file is made."""

    def _exists(self) -> bool:
        """Whether there is a database. One that is a file may be missing, and `create` makes it."""
        return True

    @abstractmethod
    def _may_write(self, session: Session, visit: Visit) -> None:
        """Systemic 42501 if this account cannot write."""

    def _may_make(self) -> None:
        """Systemic if this account cannot make the missing file of a database."""

    @classmethod
    @abstractmethod
    def _server(cls, options: SQL) -> str:
        """The identity of the database, without secrets."""

    @classmethod
    def place(cls, options: SQL, write: WriteMode) -> str:
        return f"{cls._server(options)}/{cls.dialect.relation(cls._named(options)).identity}"

    @property
    def folds(self) -> tuple[Folds, ...]:
        """By the columns of the table that `check` found. Keys of append are not compared."""
        keys = [self._sql.table.columns.get(self.dialect.folded(one.name)) for one in self.shape.key]
        found = tuple(
            column.folds if column and field.type.name == "string" else ()
            for field, column in zip(self.shape.key, keys, strict=True)
        )
        return found if any(found) and self.shape.write != "append" else ()

    # --- check and prepare

    def check(self, visit: Visit) -> Trace | None:
        if self._creates and not self._exists():
            self._may_make()
            return Trace()
        with self._session() as session:
            with session.transaction(write=False):
                table = self._look(session)
                fitness.judge(table, self._sql, create=self._creates)
                trace = self._trace(session, table)
            self._may_write(session, visit)
        lacks = lacking(self.shape, table.columns, self.dialect.folded) if table is not None else frozenset()
        return replace(trace, lacks=lacks)

    def columns(self) -> Mapping[str, str] | None:
        if self._creates and not self._exists():
            return None
        with self._session() as session, session.transaction(write=False):
            table = self._look(session)
        return None if table is None else {one.name: one.type for one in table.columns.values()}

    def ddl(self, name: str, to: Field | str | None) -> str:
        return self._sql.add_column(to) if isinstance(to, Field) else self._sql.change_column(name, to)

    @property
    def _creates(self) -> bool:
        return bool(getattr(self.options, "create", False))

    def _look(self, session: Session) -> Table | None:
        """The table as it is now; the statements fit it from now on."""
        table = session.table(self._relation)
        self._sql = Statements(self.dialect, session.placed(self._relation), self.shape, table)
        return table

    def _trace(self, session: Session, table: Table | None) -> Trace:
        if not self._has_marks(session):
            return Trace()
        epoch, batches, replaced, foreign = 0, set[tuple[str, str]](), set[tuple[str, str]](), set[str]()
        ((ledgers, ours, taken),) = session.rows(self._sql.strangers())
        for sync, run_id, batch, its_epoch, gone in session.rows(self._sql.trace()):
            if not run_id:
                epoch = its_epoch
                continue
            if table is not None:
                batches.add((run_id, batch))
            if gone:
                replaced.add((run_id, batch))
            if sync != self.shape.sync:
                foreign.add(run_id)
        strangers = bool(ledgers) and not ours
        return Trace(
            frozenset(batches), frozenset(replaced), frozenset(foreign), epoch, strangers, bool(taken)
        )

    @property
    def _marker(self) -> Relation:
        return Relation(self._relation.schema, MARKER, self._sql.marker, MARKER)

    def _has_marks(self, session: Session) -> bool:
        """Whether the table of marks is there. Mismatch TARGET_DRIFT if it cannot be what it is for."""
        found = session.table(self._marker)
        if found is not None and found.kind is not None:
            raise Mismatch("TARGET_DRIFT", f"{MARKER} is {found.kind}", hint=found.advice)
        return found is not None

    def prepare(self, visit: Visit) -> None:
        """Creates what `create` asks for and the marker table, and fences off runs of an older epoch."""
        with self._session(write=True, create=self._creates) as session:
            with session.transaction(write=True):  # some databases commit at every CREATE
                table = self._look(session)
                if self._creates:
                    self._create(session, table)
                if not self._has_marks(session):
                    session.change(self._sql.create_marker())
            with session.transaction(write=True):
                if not any(session.change(one) for one in self._sql.move_fence(visit.epoch)):
                    raise self._attempts.voided()
                session.change(self._sql.prune(visit))

    def _create(self, session: Session, table: Table | None) -> None:
        if table is None:
            if self._relation.schema != self.dialect.schema:
                session.change(self._sql.create_schema())
            session.change(self._sql.create_table())
            return
        missing = [field for field in self.shape.fields if self._lacks(field)]
        if not missing:
            return
        ((storage,),) = session.rows(f"SELECT {self.dialect.storage(self._relation)}")
        for field in missing:
            session.change(self._sql.add_column(field))
        if self._has_marks(session):
            session.change(self._sql.carry(storage))

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """One transaction. A batch that already has a mark is not written again: the mark has its outcome."""
        attempt = self._attempts.number(batch)
        try:
            session = self._open()
            if batch.operation == "append" and not self._marked:
                raise Systemic("NO_MARKER", f"append needs the table {MARKER}", hint="run `retl check`")
            with session.transaction(write=True):
                mark = self._sql.mark(batch, attempt, self._attempts.author)
                if self._marked and not session.change(mark):
                    return self._attempts.met(batch, self._mark(session, batch, attempt))
                self._confirm(session, batch)
                found = self._apply(session, batch)
                if self._marked and found:
                    written = len(batch) - len(found)
                    session.change(self._sql.note(batch, attempt, written, noted(found)))
        except Poisoned:
            raise
        except TargetError:
            self._close_lane()  # the table may be another now
            raise
        self._attempts.answered(batch)
        return Outcome(WRITTEN, found)

    def _confirm(self, session: Session, batch: Batch) -> None:
        """Systemic TARGET_LOCK_LOST if a lock at the target says that this run may no longer write."""

    def _apply(self, session: Session, batch: Batch) -> Found:
        refused = inexact(self._sql, batch)
        new = batch.new and self._straight and not (refused or self._sql.table.triggers)
        if new and batch.mode in ("upsert", "insert_only", "append", "replace"):
            self._straight = insert_new(session, lambda: self._load(session, batch, staged=False))
            if self._straight:
                return {}
        stage(session, self._sql, batch, lambda: self._load(session, batch, staged=True))
        return apply(session, self._sql, batch, refused)

    @abstractmethod
    def _load(self, session: Session, batch: Batch, *, staged: bool) -> None:
        """Bring the rows of a batch into the stage, or into the table itself."""

    def _rows(self, batch: Batch) -> Sequence[Row]:
        return batch.cells(self._cells(batch))

    def _cells(self, batch: Batch) -> tuple[Cell, ...]:
        cells = self._sql.cells
        return cells[: len(self.shape.key)] if batch.operation == "delete" else cells

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """Write an abort marker: then the unanswered transaction cannot commit, nothing was applied and every
        row is RETRY. If the batch has a mark, that has the outcome. Without `act` the marks are only read."""
        if not self._exists():
            return Outcome(UNKNOWN)
        with self._session(write=act) as session, session.transaction(write=act):
            if not self._has_marks(session):
                return Outcome(UNKNOWN)
            if not act:
                return peek(lambda attempt: self._mark(session, batch, attempt, wait=False))

            def void(attempt: int) -> bool:
                return bool(session.change(self._sql.void(batch, attempt, self._attempts.author)))

            return self._attempts.resolve(batch, void, lambda attempt: self._mark(session, batch, attempt))

    def _mark(self, session: Session, batch: Batch, attempt: int, *, wait: bool = True) -> Mark | None:
        for state, author, not_written in session.rows(self._sql.marked(batch, attempt, wait=wait)):
            return Mark(state, author, json.loads(not_written))
        return None

    # --- read, preview, close

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        with self._staged(batch) as session:
            fields = [one for one in self.shape.fields if not self._lacks(one)]
            rows = session.rows(self._sql.read(fields)) if session is not None else []
        names = [one.name for one in fields]
        found = {row: dict(zip(names, values, strict=True)) for row, *values in rows}
        return iter([found.get(row) for row in range(len(batch))])

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """The table or columns may be missing if `create` will make them."""
        names = [one.name for one in self.shape.fields if one.compared]
        with self._staged(batch) as session:
            lacking = any(map(self._lacks, self.shape.fields))
            statement = self._sql.read([]) if lacking else self._sql.differing()
            rows = session.rows(statement) if session is not None else []
        found = {
            row: tuple(n for n, differs in zip(names, changed, strict=True) if differs)
            if not lacking
            else tuple(names)
            for row, *changed in rows
        }
        return iter([found.get(row) for row in range(len(batch))])

    def _lacks(self, field: Field) -> bool:
        return self.dialect.folded(field.name) not in self._sql.table.columns

    def scan(self) -> Iterator[tuple[str, ...]]:
        if not self._exists():
            return
        with self._session() as session, session.transaction(write=False):
            if self._look(session) is not None:
                for row in session.rows(self._sql.scan()):
                    texts = tuple(map(str, row))
                    if all(map(_is_unicode, texts)):
                        yield texts

    def dump(self, fields: Sequence[Field]) -> Iterator[bytes] | None:
        """None without table and columns, and where a column has no text that says all of a value."""
        if not self._exists():
            return None
        with self._session() as session, session.transaction(write=False):
            if self._look(session) is None or any(map(self._lacks, fields)):
                return None
        texts = self._sql.texts(fields)
        return None if texts is None else self._dumped(texts)

    def _dumped(self, texts: Sequence[tuple[str, str]]) -> Iterator[bytes]:
        with self._session() as session, session.transaction(write=False):
            yield from session.csv(texts, self._sql.keyed)

    def ask(self, sql: str) -> Any:
        if not self._exists():
            raise Systemic("58030", "there is no such file")
        with self._session() as session:
            session.only_read()
            with session.transaction(write=False):
                found = session.rows(sql)
        return found[0][0] if found else None

    @property
    def relation(self) -> str:
        return self._relation.sql

    def age_sql(self, column: str) -> str:
        return self.dialect.age.format(column=self.dialect.quoted(column), relation=self.relation)

    def preview(self, batch: Batch) -> bytes:
        """The transaction as a script for the database's own shell."""
        return self._sql.script(batch, self._staging(batch)).encode(errors="surrogatepass")

    def _staging(self, batch: Batch) -> Sequence[str]:
        """Statements that bring its rows into the stage, for a preview."""
        return [self._sql.staged(batch, self._values(batch))]

    def _values(self, batch: Batch) -> str:
        """The rows with their numbers, as SQL writes them."""
        rows = ((n, *map(self.dialect.literal, row)) for n, row in enumerate(self._rows(batch), 1))
        return ",\n".join(f"({', '.join(map(str, row))})" for row in rows)

    def interrupt(self) -> None:
        """End the current statement, or the wait for a lock: nothing of its batch is applied."""
        if self._lane is not None:
            self._lane.interrupt()

    def close(self) -> None:
        self._close_lane()

    def _close_lane(self) -> None:
        if self._lane is not None:
            self._lane.close()
        self._lane = None

    # --- sessions

    def _open(self) -> Session:
        """The lane's session, with its stage; a new one after an error."""
        if self._lane is None:
            session = self._connect(write=True)
            try:
                with session.transaction(write=False):
                    self._look(session)
                    self._marked = self._has_marks(session)
                    for statement in self._sql.make_stage():
                        session.change(statement)
            except BaseException:
                session.close()
                raise
            self._lane = session
        return self._lane

    @contextmanager
    def _session(self, *, write: bool = False, create: bool = False) -> Iterator[Session]:
        session = self._connect(write=write, create=create)
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def _staged(self, batch: Batch) -> Iterator[Session | None]:
        """A transaction with the batch in its stage, and nothing else written; None without a table."""
        if not self._exists():
            yield None
            return
        with self._session() as session, session.transaction(write=False):
            if self._look(session) is None:
                yield None
                return
            for statement in self._sql.make_stage():
                session.change(statement)
            stage(session, self._sql, batch, lambda: self._load(session, batch, staged=True))
            yield session


def may_write(path: Path) -> bool:
    """Whether this process may write to a file, or make files in a folder."""
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_unicode(text: str) -> bool:
    """Whether a row of a mart can have it."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
