"""What a database must say so that batches reach its tables the common way.

A `Dialect` is words: names, types, and the few statements that each database writes in its own way. A
`Session` is one connection: it runs statements and says what an error means. Everything else is shared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from msgspec import Struct

from retl.destinations.batch import Bends, Cell, Field, Folds, RowResult
from retl.errors import Poisoned, TargetError
from retl.values.sql import split
from retl.values.types import Type

ROW = "retl_row"  # the number of a staged row, from 1
Row = tuple[Any, ...]


class Column(Struct, frozen=True):
    """One column. `type` is the catalog's own text; `storage` is what the dialect decides by."""

    name: str
    type: str
    storage: str
    needed: bool = False  # NOT NULL without a default
    generated: bool = False  # cannot be written
    folds: Folds = ()  # what it ignores when it compares texts
    collation: str = ""  # SQL behind a value, so that it is compared as in this column
    nullable: bool = True


class Table(Struct, frozen=True):
    """A table as the catalog describes it now. `columns` by their names as the database compares names."""

    columns: Mapping[str, Column]
    keys: tuple[frozenset[str], ...] = ()  # the columns of each unique index over plain columns
    kind: str | None = None  # what it is, if rows cannot be delivered to it
    triggers: bool = False
    dependents: tuple[str, ...] = ()  # foreign keys through which our deletes would change other tables
    advice: str = "name the table behind it"  # with a `kind`


class Relation(Struct, frozen=True):
    """A table by its schema (empty where the database has none) and name. `identity` is the same for all
    spellings of the name."""

    schema: str
    name: str
    sql: str
    identity: str

    def __str__(self) -> str:
        return ".".join(filter(None, (self.schema, self.name)))


class Dialect(ABC):
    """The words of one database."""

    name: ClassVar[str]
    schema: ClassVar[str]  # of a table without one; empty if the database has no schemas
    longest_name: ClassVar[int] = 255  # bytes
    stage: ClassVar[str] = "temp.retl_stage"
    numbers: ClassVar[bool] = False  # rows come into the stage with their ROW: it does not count by itself
    insert: ClassVar[str] = "INSERT INTO"
    insert_absent: ClassVar[str] = ""  # the same, but nothing if the key is there; empty: the SQL asks first
    from_nothing: ClassVar[str] = ""  # FROM of a SELECT without a table, where WHERE needs one
    shared: ClassVar[str] = ""  # behind a SELECT whose rows must stay as they are until COMMIT
    needs_key: ClassVar[bool] = True  # an upsert needs a unique index: without one it reads the whole table
    age: ClassVar[str]  # a SELECT of the seconds since the latest time in a column
    marks: ClassVar[Mapping[str, str]] = {"text": "TEXT", "key": "TEXT", "number": "BIGINT"}
    now: ClassVar[str] = "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP"  # a column of the time of its row
    make_marks: ClassVar[str] = "CREATE TABLE IF NOT EXISTS"
    one_mark: ClassVar[str] = ""  # behind the primary key of marks
    locked: ClassVar[str] = ""  # behind a table that is asked for keys, so that it still lacks them at INSERT
    add: ClassVar[str] = "ADD COLUMN"
    begins: ClassVar[str] = "BEGIN"

    @abstractmethod
    def quoted(self, name: str) -> str: ...

    @abstractmethod
    def literal(self, value: Any) -> str:
        """A value of a cell as SQL."""

    @abstractmethod
    def ddl(self, type: Type, *, key: bool) -> str:
        """The column type that `create` makes."""

    @abstractmethod
    def made(self, of: Field, *, key: bool) -> Column:
        """The column that `create` makes, as the catalog will describe it."""

    @abstractmethod
    def holds(self, column: Column, of: Field, *, key: bool) -> bool:
        """Whether the column keeps every value of the field as it is, or refuses it with an error; of a key
        also, whether different values stay different."""

    @abstractmethod
    def cell(self, of: Field, column: Column) -> Cell:
        """The form in which the driver gets the values of a field for this column."""

    def bends(self, of: Field, column: Column) -> Bends | None:
        """Which values the column would keep as other ones in silence."""
        return None

    @abstractmethod
    def same(self, one: str, other: str, of: Field, column: Column) -> str:
        """SQL predicate: two values of a column are exactly the same, or both NULL."""

    def text(self, value: str, of: Field, column: Column) -> str | None:
        """SQL of the text of a value of a column. A row that already has what we would send has the text of
        `Batch.csv`; one with another value of the column never has it. None if there is no such text."""
        return None

    @abstractmethod
    def make_stage(self, relation: Relation, columns: Sequence[Column]) -> list[str]:
        """Statements that make an empty stage, with a ROW that counts by itself unless `numbers`."""

    @abstractmethod
    def update(self, relation: Relation, sets: Mapping[str, str], condition: str) -> str:
        """UPDATE the rows t of the table from the staged rows s that fit the condition."""

    @abstractmethod
    def delete(self, relation: Relation, keys: Sequence[str], rows: str) -> str:
        """DELETE the rows of the table that have the keys of the staged rows s for which `rows` is true."""

    @abstractmethod
    def storage(self, relation: Relation) -> str:
        """SQL of a text that changes when the table is dropped and created again."""

    def make_schema(self, named: str) -> str:
        """Make the schema of this name (SQL), if it is not there."""
        return f"CREATE SCHEMA IF NOT EXISTS {named}"

    def rename(self, relation: Relation, name: str, to: str) -> str:
        """Give a column another name."""
        return f"ALTER TABLE {relation.sql} RENAME COLUMN {self.quoted(name)} TO {self.quoted(to)}"

    def folded(self, name: str) -> str:
        """A column's name as the database compares it."""
        return name.lower()

    def folded_table(self, name: str) -> str:
        """The name of a table or schema as the database compares it."""
        return name.lower()

    def relation(self, text: str) -> Relation:
        """The table of this name. ValueError."""
        parts = split(text)
        if len(parts) > (2 if self.schema else 1):
            wanted = '"table" or "schema.table"' if self.schema else '"table"'
            raise ValueError(f"a table of {self.name} is {wanted}; put a part with a dot in double quotes")
        for part in parts:
            self.check_name(part)
        schema, name = ["", *parts][-2:]
        schema = schema or self.schema
        named = [part for part in (schema, name) if part]
        identity = ".".join(self.quoted(self.folded_table(part)) for part in named)
        return Relation(schema, name, ".".join(map(self.quoted, named)), identity)

    def check_name(self, name: str) -> None:
        """ValueError if the database would not take the name as it is."""
        if "\0" in name or not 0 < len(name.encode()) <= self.longest_name:
            raise ValueError(f"a name in {self.name} has 1 to {self.longest_name} bytes: {name[:80]!r}")


class Session(ABC):
    """One connection. Its methods raise `errors` of the driver, which `transaction` makes ours."""

    errors: tuple[type[Exception], ...]  # of the driver, also of a value that it cannot send

    @abstractmethod
    def rows(self, sql: str) -> list[Row]: ...

    @abstractmethod
    def change(self, sql: str) -> int:
        """The number of rows that the statement changed."""

    def csv(self, texts: Sequence[tuple[str, str]], rows: str) -> Iterator[bytes]:
        """Chunks of a CSV of all rows (a FROM clause): of each value (SQL) its text (SQL), quoted; NULL is
        empty. May raise Unshown. Only for a dialect that has `text`."""
        raise NotImplementedError

    @abstractmethod
    def table(self, relation: Relation) -> Table | None: ...

    def placed(self, relation: Relation) -> Relation:
        """The table with the SQL by which this session surely reaches it."""
        return relation

    def only_read(self) -> None:  # noqa: B027 - most cannot
        """Let no later transaction write, if the database can ensure that."""

    @abstractmethod
    def begin(self, *, write: bool) -> None: ...

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def refusal(self, error: Exception) -> RowResult | None:
        """The result of the row that the error is about; None if it is not about a row. No row values."""

    @abstractmethod
    def failure(self, error: Exception, *, committing: bool) -> TargetError:
        """Any other error in our words. If it comes from COMMIT, it may be unknown what was applied."""

    @abstractmethod
    def interrupt(self) -> None:
        """From another thread: end the current statement, or the wait for a lock."""

    @abstractmethod
    def close(self) -> None:
        """Never raises."""

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Commits at its end; an error undoes everything."""
        committing = False
        try:
            self.begin(write=write)
            try:
                yield
                committing = True
                self.commit()
            except BaseException:
                with suppress(*self.errors):
                    self.rollback()
                raise
        except self.errors as error:  # its text may contain values
            refused = self.refusal(error)
            if refused is not None:  # a row that cannot be staged, or a constraint that COMMIT tests
                raise Poisoned(refused.code or "REFUSED", refused.reason or "the row is refused") from None
            raise self.failure(error, committing=committing and write) from None

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """An error undoes what the block did, and the transaction goes on."""
        self.change("SAVEPOINT retl")
        try:
            yield
        except BaseException:
            with suppress(*self.errors):
                self.change("ROLLBACK TO SAVEPOINT retl")
                self.change("RELEASE SAVEPOINT retl")
            raise
        self.change("RELEASE SAVEPOINT retl")
