"""PostgreSQL 13 to 18: rows of a mart in a table, by key.

Each batch is one transaction: COPY into a temporary table, one statement that applies it to the table (or
COPY into the table itself, while all rows are new to it), and a marker in `retl_applied` in the same schema.
So a batch is applied as a whole or not at all, an unanswered COMMIT can be resolved, and a run that lost
its lock cannot commit. Rows that the table refuses are found and named; the rest of their batch is delivered.
Rows that refer to each other, or that move or swap unique values, are applied in an order that the table
takes, where its foreign keys and its unique indexes on plain columns tell that order.
Only columns of the sync are written; a row that already has its values is not touched. Rows of tables that
inherit from the table are not its own: they are neither read nor written. If the table has triggers, each
batch is compared with the table before COMMIT, because a trigger may drop a row or change its key.
Deletes are refused if foreign keys with ON DELETE CASCADE, SET NULL or SET DEFAULT would change other tables,
unless the sync says `cascade: true`, and if row-level security hides rows from the account.

A table may be partitioned: rows go in by the root. `upsert` and `insert_only` need the partition's columns in
the key, because PostgreSQL has no other unique constraint; `update_only` moves rows to other partitions. A
row that no partition takes is a reject. A new partition changes nothing; if one is emptied, detached or
dropped, its rows count as lost. Partitions on other servers are refused.

The table may be an application's. A column whose type does not keep every value (char(n), varchar(n), real,
time, inet, numeric of fewer places …) is judged value by value: PostgreSQL must give back what was sent,
otherwise the row is a reject with `NOT_EXACT`. Updates then take about a quarter longer, and new rows 2.5 to
3 times as long, because they are not copied straight into the table; a contract that proves the fit
(`max_length: 40` for varchar(40), `max_digits` and `decimal_places` for numeric) costs nothing. Keys may be
citext, have a collation that ignores case, or be unique only by an index on lower(column): then keys that
the table takes for one are rejects with `KEY_COLLIDES`. `write: update_only` may be keyed by a column that
the database generates. Columns that a BEFORE INSERT trigger fills may be left out.

Arrays take lists, also lists of lists that are rectangles and lists of STRUCTs; a composite type takes a
STRUCT, or JSON, with just its fields; pgvector's `vector` and `halfvec` take lists of floats. Each value is
compared with what PostgreSQL shows of it. A list of another length than `vector(n)`, one with NULL or NaN,
and a number that single (`vector`) or half precision (`halfvec`) would round is a reject of its row. For
rounded vectors keep a `vector` column and index `(v::halfvec(n))`. A time inside of a STRUCT must be a text
such as `2026-11-21T06:00:00`.

With `conflicts: target_wins`, `newest_wins` or `manual` a batch writes only what nobody else changed since
our last write: PostgreSQL compares digests that it made itself, in the statement that writes. An edit in
between is not lost.

With `mode: snapshot` the table holds one state of the mart and nothing else. If anything changed, all of the
mart is staged, and one transaction deletes rows whose keys are not in it and writes the rows that differ.
Readers never wait, and see the mart before or after, also in long transactions. The table stays the same
table: indexes, grants, policies, triggers, views and foreign keys on it, and columns that are not the sync's,
are untouched. Each changed row leaves a dead one for autovacuum. `deletes: delete` is required, because what
is not in the mart is not in the table. Rows of others are deleted with the next snapshot; a table that has
some before the first one is refused (`TARGET_NOT_EMPTY`). A row that the contract rejects refuses the run; if
that is accepted, or if the table refuses the row, it is not in the table. Above `max_failed_rate`, or if a
row that left the mart cannot be deleted, nothing is written. A killed run leaves nothing behind. The
transaction has the `timeout` of the connection. It is for tables that one sync fills; an update_only sync may
write other columns beside it.

    destination: {connection: crm_db, table: crm.segments, create: true, mode: snapshot}
    deletes: delete

The account needs SELECT, INSERT and UPDATE on the columns of the sync (DELETE on the table for
`deletes: delete`), TEMPORARY on the database, and once CREATE on the schema for `retl_applied`. Without the
last, upserts work, but unanswered batches stay in doubt, and append is refused.

During a run, one more session holds an advisory lock that keeps other ledgers away from the table. A session
must belong to the run alone: connect directly or through a pooler in session mode. A pooler in transaction
mode is refused before anything is written.

Sessions set what a role or database may have set otherwise: formats of values, timeouts, durability and the
isolation level. The search path of the role stays, for the triggers and defaults of the table, but no schema
comes before PostgreSQL's own. `default_transaction_read_only` and `session_replication_role` are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Literal

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, field_validator

from retl.destinations.api import Destination
from retl.destinations.batch import (
    UNKNOWN,
    WRITTEN,
    Batch,
    Capabilities,
    Condition,
    Field,
    Folds,
    Kind,
    Outcome,
    Peeked,
    RowResult,
    Shape,
    SoftDelete,
    Trace,
    Visit,
    WriteMode,
    lacking,
)
from retl.destinations.marks import Attempts, Mark, noted, peek
from retl.destinations.postgres import catalog, exclusion, fitness
from retl.destinations.postgres.judged import fit
from retl.destinations.postgres.relation import Relation, check_name
from retl.destinations.postgres.statements import (
    KEPT,
    NEWER,
    ROW,
    SEEN,
    SENT,
    STAGE,
    Statements,
)
from retl.errors import DefinitionError, Mismatch, Systemic
from retl.net.gate import Gate
from retl.net.postgres import PostgresConnection, Session, copied, transaction, usable
from retl.values.sql import quoted

LANES = 2  # two connections are 1.5 times as fast as one; more are slower on small servers
SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
MOST_COLUMNS = 1599
READ_ROWS = 1000  # keys asked for in one query
# A policy that hides rows is an error: rows that are only hidden must not be taken for missing.
ONLY_LOOK = "SET TRANSACTION READ ONLY; SET LOCAL row_security = off"
Row = tuple[Any, ...]
IMMEDIATE = "SET CONSTRAINTS ALL IMMEDIATE"  # a deferred one fails COMMIT and names no row


class PostgresOptions(BaseModel):
    """The table: `schema.table`, or a table of schema `public`, spelled as in the catalog (never folded to
    lower case). `create` makes schema, table and key and later adds missing columns. With `mode: snapshot`
    the table holds the mart and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connection: PostgresConnection
    table: str
    create: bool = False
    mode: Literal["changes", "snapshot"] = "changes"

    @field_validator("table")
    @classmethod
    def _named(cls, text: str) -> str:
        Relation.parse(text)
        return text


class Postgres(Destination[PostgresOptions]):
    """One table, written batch by batch."""

    Connection = PostgresConnection
    Options = PostgresOptions
    keeps_marks = True
    shards = True

    def __init__(self, options: PostgresOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        relation = Relation.parse(options.table)
        _check_names(shape)
        self._sql = Statements(relation, shape)
        self._exclusion = exclusion.Exclusion(relation, shape.state_id)
        self._guard: Session | None = None  # keeps other ledgers out while it is open
        self._lane: Session | None = None
        self._idle: Session | None = None  # what looked last; whatever is next goes on with it
        self._marked = False  # whether the marker table can be used: known once the lane is open
        self._straight = True  # COPY into the table itself, until it refuses a row or already has one
        self._attempts = Attempts(str(relation))
        self._whole = whole = self.publishes(options)
        self._removed = 0  # rows that the last snapshot took out of the table
        edits = (
            shape.write in ("upsert", "update_only") and not whole
        )  # the others never change existing rows
        compares = shape.write != "append" and not whole
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=frozenset({"upsert", "delete"})
            if whole
            else frozenset({"upsert", "insert_only", "update_only", "append", "delete"}),
            idempotent=shape.write != "append",
            form="csv",
            shaping={"mode": options.mode} if whole else {},
            readable=True,
            repeats=True,
            nulls_keep=edits,
            only_if_empty=edits,
            cascades=True,
            soft_deletes=not whole,
            resolves=True,
            whole=whole,
            in_place=whole,
            lanes=1 if whole else LANES,
            compares="atomic" if compares else "no",
            images=compares,
        )

    @classmethod
    def publishes(cls, options: PostgresOptions) -> bool:
        return options.mode == "snapshot"

    @classmethod
    def place(cls, options: PostgresOptions, write: WriteMode) -> str:
        return f"postgres://{options.connection.address}/{Relation.parse(options.table)}"

    @property
    def folds(self) -> tuple[Folds, ...]:
        """By the columns of the table that `check` found. Keys of append are not compared."""
        folding = self._sql.fit.folding if self.shape.write != "append" else frozenset[str]()
        texts = {field.name for field in self.shape.key if field.type.name == "string"}
        if not folding & texts:
            return ()
        return tuple(("case",) if field.name in folding & texts else () for field in self.shape.key)

    # --- check and prepare

    def check(self, visit: Visit) -> Trace | None:
        """Reads the catalog and the markers in a read-only transaction. No trace if this account has no right
        to write markers.

        Systemic with the GRANT, Mismatch TARGET_DRIFT with the DDL, CASCADE, ROW_SECURITY, Later TARGET_HELD.
        """
        if visit.exclusive and (self._guard is None or self._guard.closed):
            self._guard = self._connect(exclusion.name(self.shape.sync))
            with self._transaction(self._guard) as session:
                self._exclusion.take(session, visit.run_id)
        relation = self._sql.relation
        with self._session(read_only=True, fresh=True) as session:
            place = catalog.place(session, relation)
            fitness.judge_place(place, self._sql, whole=self._whole)
            table = catalog.table(session, relation)
            fitness.judge_table(table, place, self._sql, create=self.options.create)
            self._sql = self._fitting(table)
            if place.marker:
                self._require_ours(session, table, marked=True)
                found = catalog.trace(session, self._sql) if place.may_mark else None
                if found is None or table is None:
                    return found and replace(found, batches=frozenset())
                return replace(found, lacks=lacking(self.shape, table.columns))
            self._require_ours(session, table, marked=False)
        return Trace() if place.may_create else None  # this account would have created the markers

    def _require_ours(self, session: Session, table: catalog.Table | None, *, marked: bool) -> None:
        """Mismatch TARGET_NOT_EMPTY if a snapshot would delete rows of others that nobody has given up."""
        if not self._whole or table is None or (marked and self._holds(session, self._sql.markers.owned())):
            return
        if self._holds(session, f"SELECT EXISTS (SELECT FROM {self._sql.rows})"):
            raise Mismatch(
                "TARGET_NOT_EMPTY",
                f"{self._sql.relation} has rows from before its first snapshot, which deletes every row"
                " that is not in the mart",
                hint="if the table is for this sync alone, --accept TARGET_NOT_EMPTY; if others write rows"
                " there, use `mode: changes`",
            )

    def _holds(self, session: Session, query: str) -> bool:
        row = session.execute(query).fetchone()
        return bool(row and row[0])

    def columns(self) -> Mapping[str, str] | None:
        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
        return None if table is None else {name: one.type for name, one in table.columns.items()}

    def ddl(self, name: str, to: Field | str | None) -> str:
        return self._sql.add_column(to) if isinstance(to, Field) else self._sql.change_column(name, to)

    def prepare(self, visit: Visit) -> None:
        """Creates what `create` asks for and the marker table, and fences off runs of an older epoch.
        Several processes may do it at once."""
        relation, sql = self._sql.relation, self._sql
        with self._session() as session:
            session.execute("SELECT pg_advisory_xact_lock(pg_catalog.hashtextextended('retl:prepare', 0))")
            if self.options.create:
                self._create(session)
            place = catalog.place(session, relation)
            if not place.marker and place.may_create:
                session.execute(sql.markers.create())
            if place.may_mark if place.marker else place.may_create:
                if not session.execute(sql.markers.fence(visit.epoch, whole=self._whole)).rowcount:
                    raise self._attempts.voided()
                session.execute(sql.markers.prune(visit))

    def _create(self, session: Session) -> None:
        if not catalog.place(session, self._sql.relation).schema:
            session.execute(self._sql.create_schema())
        table = catalog.table(session, self._sql.relation)
        if table is None:
            session.execute(self._sql.create_table())
            return
        for field in (*self.shape.fields, *self.shape.flagged):
            if field.name not in table.columns:
                session.execute(self._sql.add_column(field))

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """One transaction. If the batch already has a marker, it is not written again: the marker contains
        its outcome."""
        attempt = self._attempts.number(batch)
        with self._transaction(self._open(), write=True) as session:
            if not self._marked and (batch.operation == "append" or self.shape.images or self._whole):
                what = "append" if batch.operation == "append" else "rollback"
                what = "a snapshot" if self._whole else what
                raise Systemic(
                    "NO_MARKER", f"{what} needs the table {self._sql.markers.table}", hint="run `retl check`"
                )
            self._begin(session, batch)
            if batch.returns is not None:
                batch.returns.forget(batch)
            found = self._apply(session, batch)
            if self._marked:
                left = sum(one.kind not in (Kind.WRITTEN, Kind.MERGED) for one in found.values())
                written = len(batch) - left
                mark = self._sql.markers.mark(batch, attempt, self._attempts.author, written, noted(found))
                if not session.execute(mark).rowcount:
                    session.rollback()
                    if batch.returns is not None:
                        batch.returns.forget(batch)
                    return self._attempts.met(batch, self._mark(session, batch, attempt))
            if batch.returns is not None:  # only now: what an attempt that arrived before put is true
                batch.returns.keep(batch, images=self.shape.images)
        self._attempts.answered(batch)
        removed = self._removed if batch.operation != "delete" else 0
        return Outcome(WRITTEN, found, removed=removed)

    def _apply(self, session: Session, batch: Batch) -> dict[int, RowResult]:
        """The rows that were not written. New rows are copied into the table itself until that fails
        once: each failed attempt leaves dead rows to vacuum."""
        from retl.destinations.postgres.transfer import copy_in, transfer

        if batch.mode == "restore":
            from retl.destinations.postgres.restoring import restore

            return restore(session, self._sql, batch, self._count)
        if self._whole and batch.operation != "delete":
            from retl.destinations.postgres.snapshot import publish

            found, self._removed = publish(session, self._sql, batch, self._count)
            return found
        if batch.new and batch.condition is not Condition.PRESENT and self._straight:
            self._straight = copy_in(session, self._sql, batch, self._count)
            if self._straight:
                return {}
        return transfer(session, self._sql, batch, self._count)

    def _count(self, size: int) -> None:
        self._bytes += size

    def _begin(self, session: Session, batch: Batch) -> None:
        if batch.exclusive:
            self._exclusion.begin(session, batch.run_id, IMMEDIATE)
        else:
            session.execute(IMMEDIATE)

    # --- ask

    def ask(self, sql: str) -> Any:
        with self._session(read_only=True) as session:
            session.execute(ONLY_LOOK)
            row = session.execute(sql).fetchone()
        return row[0] if row else None

    @property
    def relation(self) -> str:
        return self._sql.relation.sql

    def age_sql(self, column: str) -> str:
        latest = f"CAST(max({quoted(column)}) AS timestamptz)"
        return f"SELECT CAST(EXTRACT(epoch FROM now() - {latest}) AS float8) FROM {self.relation}"

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """Write an abort marker: then the unanswered transaction cannot commit, nothing was applied and
        every row is RETRY. If the batch has a marker, that contains the outcome. UNKNOWN if the account may
        not write markers. Systemic VOIDED if another run has aborted the batch.
        Without `act` the markers are only read; a batch without one counts as not applied, although its
        COMMIT may be in progress. The deletes of a snapshot are unknown then: they may have gone with it."""
        found = self._resolve(batch, act)
        gone_with = self._whole and batch.operation == "delete" and found.default.kind is Kind.RETRY
        return Outcome(UNKNOWN) if gone_with else found

    def _resolve(self, batch: Batch, act: bool) -> Outcome:
        with self._session(read_only=not act) as session:
            place = catalog.place(session, self._sql.relation)
            if not (place.marker and (place.may_mark or not act)):
                return Outcome(UNKNOWN)
            if not act:
                return peek(lambda attempt: self._mark(session, batch, attempt, wait=False))

            def void(attempt: int) -> bool:
                statement = self._sql.markers.void(batch, attempt, self._attempts.author)
                return bool(session.execute(statement).rowcount)

            return self._attempts.resolve(batch, void, lambda attempt: self._mark(session, batch, attempt))

    def _mark(self, session: Session, batch: Batch, attempt: int, *, wait: bool = True) -> Mark | None:
        row = session.execute(self._sql.markers.marked(batch, attempt, wait=wait)).fetchone()
        return Mark(*row) if row else None

    # --- read, preview, close

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """Per row the fields as the table holds them, None if it lacks the key; needs only SELECT. The table
        or columns may be missing if `create` will make them."""
        from retl.destinations.postgres.reading import read

        keys = batch.keys()
        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
            if table is None:
                return iter([None] * len(keys))
            names = [field.name for field in self.shape.fields if field.name in table.columns]
            casts = {name: column.cast for name, column in table.columns.items()}
            sql = self._fitting(table)
            rows = list[tuple[Any, ...]]()
            for start in range(0, len(keys), READ_ROWS):
                rows += read(session, sql, keys[start : start + READ_ROWS], casts, names)
        return iter([dict(zip(names, row[1:], strict=True)) if row[0] else None for row in rows])

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Stages the rows and compares them with the table in a read-only transaction; needs SELECT and
        TEMPORARY. Systemic if a row security policy hides rows from this account. The table or columns may
        be missing if `create` will make them."""
        from retl.destinations.postgres.comparison import unequal

        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
        if table is None or any(field.name not in table.columns for field in self.shape.fields):
            names = tuple(field.name for field in self.shape.fields)
            yield from (None if row is None else names for row in self._read_all(batch))
            return
        with self._transaction(self._open()) as session:
            session.execute(ONLY_LOOK)
            found = unequal(session, self._sql, batch)
        yield from (found.get(row, ()) for row in range(len(batch)))

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        """Stages the rows and judges them in a read-only transaction; needs what `same` needs. A row that the
        table cannot hold counts as written: only a write says which it refuses."""
        from retl.destinations.postgres.comparison import peeked

        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
        if table is None or any(field.name not in table.columns for field in self.shape.fields):
            yield from (Peeked(WRITTEN) for _ in range(len(batch)))
            return
        with self._transaction(self._open()) as session:
            session.execute(ONLY_LOOK)
            found = peeked(session, self._sql, batch)
        yield from found

    def scan(self) -> Iterator[tuple[str, ...]]:
        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
            if table is None:
                return
            session.execute(ONLY_LOOK)
            with session.cursor() as cursor, cursor.copy(self._fitting(table).scan()) as copy:
                for row in copy.rows():
                    if None not in row:
                        yield row

    def dump(self, fields: Sequence[Field]) -> Iterator[bytes] | None:
        """What PostgreSQL writes of a value, it reads as the same value. None if the table or a column is
        missing, as long as `create` has not made them."""
        with self._session(read_only=True) as session:
            table = catalog.table(session, self._sql.relation)
        if table is None or any(field.name not in table.columns for field in fields):
            return None
        return self._copied(self._fitting(table).scan(fields))

    def _copied(self, statement: str) -> Iterator[bytes]:
        with self._session(read_only=True) as session:
            session.execute(ONLY_LOOK)
            yield from copied(session, statement)

    def _read_all(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """`read`, a part at a time."""
        for first in range(batch.first, batch.last + 1, READ_ROWS):
            yield from self.read(batch.slice(first, min(first + READ_ROWS - 1, batch.last)))

    def preview(self, batch: Batch) -> bytes:
        """The transaction as input for psql. Of a conditional batch all statements that it may need: those
        after the first are for rows that are not as we left them."""
        sql, last = self._sql, len(batch) - 1
        rows = b"".join(batch.csv())
        stages, converted = [sql.stage()], list[str]()
        if sql.judged(batch.mode):
            from retl.destinations.postgres.conversion import fill, take_inexact

            stages.append(sql.stage_sent())
            converted = [fill(sql, batch.mode, 0, last), take_inexact(sql, batch.mode)]
        parts = [*stages, "BEGIN", IMMEDIATE, sql.copy(batch.mode)]
        head = "".join(f"{part};\n" for part in parts).encode()
        applied = [sql.apply(batch.mode, 0, last)]
        if self._whole and batch.operation != "delete":
            applied.insert(0, sql.remove_absent())
        if self.shape.conditional and batch.mode in ("upsert", "update_only"):
            applied = [sql.update_untouched(), sql.lock(batch.mode), sql.judge(note=True)]
            applied += [sql.apply("update_only", 0, last), sql.apply("insert_only", 0, last)]
        tail = [*converted, *applied, sql.markers.mark(batch, 0, "", len(batch), []), "COMMIT"]
        return head + rows + b"\\.\n" + "".join(f"{part};\n" for part in tail).encode()

    def interrupt(self) -> None:
        """Cancel the current statement, which may wait for a lock: nothing of its batch is applied."""
        import psycopg

        lane = self._lane
        if lane is not None and not lane.closed:
            with suppress(psycopg.Error):
                lane.cancel_safe(timeout=1.0)

    def close(self) -> None:
        for session in (self._lane, self._guard):
            if session is not None:
                session.close()
        self._lane = self._guard = None
        self._rest(None)

    # --- connections

    def _open(self) -> Session:
        """The lane's connection, with its stage; a new one after an error."""
        if self._lane is None or self._lane.closed:
            session = self._next()
            session.autocommit = True  # a lane sends COMMIT only for a batch
            with self._transaction(session):
                place = catalog.place(session, self._sql.relation)
                self._marked = place.marker and place.may_mark
                self._sql = self._fitting(catalog.table(session, self._sql.relation))
                self._straight = self._straight and self._sql.straight
                # a pooler without a reset query may have kept older stages
                session.execute(f"DROP TABLE IF EXISTS {STAGE}, {SENT}; {self._sql.stage()}")
                if self._sql.fit.judged:
                    session.execute(self._sql.stage_sent())
            session.autocommit = False
            self._lane = session
        return self._lane

    def _fitting(self, table: catalog.Table | None) -> Statements:
        """The statements that fit the table as the catalog describes it now."""
        if table is None:
            return Statements(self._sql.relation, self.shape)
        traits = catalog.traits(table, self.shape)
        others = [name for name in table.columns if name not in self._sql.names]
        return Statements(self._sql.relation, self.shape, traits, fit(table, self.shape), others)

    @contextmanager
    def _session(self, *, read_only: bool = False, fresh: bool = False) -> Iterator[Session]:
        """One transaction. A `fresh` connection reaches the server that has the address now."""
        if fresh:
            self._rest(None)
        session = self._next(read_only=read_only)
        with self._transaction(session):
            yield session
        self._rest(session)

    def _rest(self, session: Session | None) -> None:
        """Keep this connection for whatever is next, and close the one that was kept until now."""
        idle, self._idle = self._idle, session
        if idle is not None:
            idle.close()

    def _next(self, *, read_only: bool = False) -> Session:
        """The connection that is idle, which nobody else has from now on, or a new one."""
        session, self._idle = self._idle, None
        if session is not None and usable(session):
            session.read_only = read_only or None
            return session
        if session is not None:
            session.close()
        return self._connect(read_only=read_only)

    def _connect(self, name: str | None = None, *, read_only: bool = False) -> Session:
        return self.options.connection.connect(name or f"retl:{self.shape.sync}", read_only=read_only)

    def _transaction(self, session: Session, *, write: bool = False) -> AbstractContextManager[Session]:
        return transaction(session, self.options.connection.timeout, write=write)


def _check_names(shape: Shape) -> None:
    """DefinitionError for names that PostgreSQL would cut, or that PostgreSQL or retl use themselves, and for
    more columns than a table can have."""
    soft = tuple(shape.deletes.set) if isinstance(shape.deletes, SoftDelete) else ()
    for name in (*(field.name for field in (*shape.key, *shape.fields, *shape.flagged)), *soft):
        try:
            check_name(name)
        except ValueError as error:
            raise DefinitionError("IDENTIFIER", str(error)) from None
        if name in (ROW, SEEN, KEPT) or name.startswith(NEWER):
            raise DefinitionError("IDENTIFIER", f"no column can be called {name}: batches are staged with it")
        if name in SYSTEM_COLUMNS:
            raise DefinitionError(
                "IDENTIFIER",
                f"no column can be called {name}: every PostgreSQL table has one of its own",
                hint=f'give it another name: fields: {{"*": "*", {name}_: {name}}}',
            )
    if (count := len(shape.key) + len(shape.fields)) > MOST_COLUMNS:
        raise DefinitionError(
            "TOO_MANY_COLUMNS",
            f"{count} columns are too many: PostgreSQL has room for {MOST_COLUMNS} and a row number",
            hint="name fewer of them under `fields`, or put some into one column of type json",
        )
    if shape.write == "update_only" and not any(field.compared for field in shape.fields):
        raise DefinitionError("NOTHING_TO_WRITE", "`write: update_only` needs a field besides the key")
