"""Documents of a MongoDB collection: every row is one document, by its key.

With `by: _id`, the default, the key is the document's `_id`: the value of one column, or of several columns
an embedded document with its fields in the order of `key`. With `by: fields` the key is in fields of the same
names, the `_id` is MongoDB's own, and a unique index on exactly these fields must be there
(`NO_UNIQUE_INDEX`); `create: true` makes it, and a missing collection.

    connections:
      app:
        type: mongodb
        url: "${MONGODB_URL}"       # mongodb+srv://user:password@cluster.example.net/app

    destination: {connection: app, collection: user_segments}
    key: [user_id]
    deletes: delete

A connection has a `url`, or its parts: `hosts`, `replica_set`, `database`, `user`, `password`. Except on the
loopback interface, TLS is fully verified, by `tls_ca_file` or the system's authorities, unless
`allow_plaintext` is set. `w`, `journal`, `retryWrites` and `tls` of a `url` have no effect, because retl sets
them: every write is confirmed by most members, on disk (`w: majority`, `j: true`), and goes once.

`write: upsert` is `updateOne` with `$set` and `upsert`, which touches only fields of the sync; those of
others stay. An empty field is removed (`$unset`), or stays (`nulls: keep`). `insert_only` is `$setOnInsert`;
`update_only` writes to documents that are there. `append` inserts a document for each row, with the key in
fields and an `_id` made of the run and the row. `deletes: {set: …}` sets fields.

**Exactly once.** A batch of up to 1,000 rows is one transaction, together with a mark in the collection
`retl_applied` of the same database. A commit without an answer is resolved by the mark, or by an abort marker
in its place, for which MongoDB waits until the transaction has ended. By the marks a ledger or a collection
that was restored or made again is noticed (by its UUID), and an append whose collection is empty. Each
transaction also changes the fence of the collection: so an older run that wakes up late writes nothing, nor
does a ledger that another one has relieved, which is when the other one's run begins (`VOIDED`). After a kill
the next run may have to wait up to a minute, until MongoDB ends the transaction that was left open.

**Without transactions.** A server that is no replica set has none: `check` says so (`NO_TRANSACTIONS`). With
`transactions: false` each row is written for itself, in unordered bulks and four lanes; there are no marks
and no fence, and no `append`. What is left unanswered is written again: the same row twice is the same
document. After a kill `insert_only` may call a row skipped that the killed run inserted.

**Values.** text is a string, uuid a UUID (binary, subtype 4), integer a long, decimal a Decimal128, float a
double, boolean a bool, a list an array. json is what it is; its numbers are longs or ints, doubles if those
have all their digits, else Decimal128. date, timestamp and timestamptz are dates, in UTC. MongoDB would cut
microseconds, and decimals of more than 34 digits: such rows are rejects (`NOT_EXACT`). Use
`date_trunc('milliseconds', …)` in the mart, or `times: text`, which writes ISO 8601 with all digits. A
document has at most 16 MB. A field's name cannot be `_id`, begin with `$` or have a `.`; names inside of json
can.

A row that MongoDB refuses is a reject, and costs only itself: `11000` if another document has the value of a
unique index, `121` with the fields that the collection's validator names, `DOCUMENT_REFUSED` for all else. A
transaction ends with the first of them, and is done again without it, so many rejects take time.

Views, time series, capped collections and those with a collation are refused. In a sharded cluster the shard
key must be the key of the sync. The account needs `readWrite` on the database. `check` asks for an update
that MongoDB always refuses. Deleted documents stay in the oplog and in backups for as long as those are kept.

What it cannot do: `conflicts` and rollback. Single documents that are lost are noticed by the sample of keys
that a run reads, and by `retl reconcile`.

Evidence: an emulator of its protocol, on a socket, for pymongo. **It was not run on MongoDB itself**: locks,
elections, sharding, Atlas and TLS are built from its documentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from retl.destinations.api import Destination, needs
from retl.destinations.batch import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    WRITTEN,
    Batch,
    Capabilities,
    Condition,
    Kind,
    Mode,
    Outcome,
    RowResult,
    Shape,
    SoftDelete,
    Trace,
    Visit,
    WriteMode,
)
from retl.destinations.marks import Attempts, peek
from retl.destinations.mongodb.connection import MongoDBConnection
from retl.destinations.mongodb.refusals import REASONS, Marked, Refused, Relieved, Unfit
from retl.errors import DefinitionError, Mismatch, Poisoned, Unavailable
from retl.model import Definition
from retl.net.gate import Gate

if TYPE_CHECKING:
    from pymongo.client_session import ClientSession

    from retl.destinations.mongodb.documents import Documents, Prepared
    from retl.destinations.mongodb.lane import Lane

BATCH_ROWS = 1000
BATCH_BYTES = 64 << 20  # of a transaction, which the server keeps in memory
_BY_KEY: frozenset[Mode] = frozenset({"upsert", "insert_only", "update_only", "delete"})
_KEYS = ("string", "integer", "decimal", "uuid", "date")
Found = dict[int, RowResult]


class MongoDBOptions(Definition):
    """The collection, and how its documents are found and written."""

    connection: MongoDBConnection
    collection: str = Field(description="The collection, in the connection's database.")
    by: Literal["_id", "fields"] = Field(
        "_id", description="`_id`: the key is the document's `_id`. `fields`: the fields of a unique index."
    )
    times: Literal["date", "text"] = Field(
        "date", description="`date`: BSON dates, of milliseconds. `text`: ISO 8601 with all digits."
    )
    transactions: bool = Field(
        True, description="Each batch is a transaction with a mark. `false`: for a server that has none."
    )
    create: bool = Field(False, description="Make the collection, and the unique index of `by: fields`.")

    @field_validator("collection")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name or "$" in name or "\0" in name or name.startswith("system.") or name == "retl_applied":
            raise ValueError("this cannot be the name of a collection for rows")
        return name


class MongoDB(Destination[MongoDBOptions]):
    """One collection."""

    Connection = MongoDBConnection
    Options = MongoDBOptions
    keeps_marks = True

    def __init__(self, options: MongoDBOptions, shape: Shape, gate: Gate | None = None) -> None:
        super().__init__(options, shape, gate)
        _check(options, shape)
        self._attempts = Attempts(options.collection)
        self._interrupted = False
        self.capabilities = Capabilities(
            object=self.place(options, shape.write),
            modes=_BY_KEY | {"append"} if options.transactions else _BY_KEY,
            idempotent=shape.write != "append",
            form="tuples",
            shaping={"by": options.by, "times": options.times},
            readable=True,
            repeats=shape.write == "append",
            nulls_keep=shape.write in ("upsert", "update_only"),
            soft_deletes=True,
            resolves=options.transactions,
            max_rows=BATCH_ROWS,
            lanes=1 if options.transactions else 4,
        )

    @classmethod
    def place(cls, options: MongoDBOptions, write: WriteMode) -> str:
        connection = options.connection
        return f"mongodb:{connection.servers}/{connection.name}.{options.collection}"

    # --- check and prepare

    def check(self, visit: Visit) -> Trace | None:
        """Systemic MONGODB_LOGIN, NOPERM, NO_TRANSACTIONS; Mismatch TARGET_DRIFT, NO_UNIQUE_INDEX."""
        lane = self._lane
        if self.options.transactions:
            lane.require_transactions()
        found = lane.found()
        if found is None and not self.options.create:
            raise Mismatch(
                "TARGET_DRIFT",
                f"there is no collection {self.options.collection} in {self.options.connection.name}",
                hint="`create: true` makes it; or fix the name",
            )
        if found is not None and found.unfit:
            raise Mismatch("TARGET_DRIFT", f"{self.options.collection} {found.unfit}", hint=found.hint)
        if found is not None and not (found.unique or self.options.create):
            raise self._unindexed()
        lane.probe(deletes=self.shape.deletes == "delete")
        if not self.options.transactions:
            return None
        return lane.marks.trace(None if found is None else found.storage)

    def _unindexed(self) -> Mismatch:
        listed = ", ".join(f"{one.name}: 1" for one in self.shape.key)
        statement = f"db.{self.options.collection}.createIndex({{{listed}}}, {{unique: true}})"
        return Mismatch(
            "NO_UNIQUE_INDEX",
            f"no unique index of {self.options.collection} is on exactly the fields of the key",
            hint=f"{statement}; or `create: true`",
        )

    def prepare(self, visit: Visit) -> None:
        """Makes what `create` and the marks need, and fences off older runs."""
        lane = self._lane
        if self.options.create:
            lane.create()
        if self.options.transactions:
            lane.marks.begin(visit, lane.storage)

    # --- write

    def write(self, batch: Batch) -> Outcome:
        """In one transaction with its mark, or each row for itself."""
        if self._interrupted:
            raise Unavailable("UNAVAILABLE", "the run was asked to stop")
        storage = self._lane.storage
        rows, found = self._prepared(batch)
        if self.options.transactions:
            return self._transact(batch, rows, found, storage)
        if rows:
            found |= self._apply(batch, rows, None)
        return Outcome(WRITTEN, found)

    def _prepared(self, batch: Batch) -> tuple[list[Prepared], Found]:
        """What is sent, and the rows that cannot be documents."""
        rows: list[Prepared] = []
        refused = Found()
        for number, row in enumerate(batch.tuples()):
            try:
                rows.append(self._documents.prepared(batch, number, row))
            except Unfit as why:
                refused[number] = RowResult(Kind.REJECTED, why.code, REASONS[why.code])
        if len(rows) > 1 and sum(row.size for row in rows) > BATCH_BYTES:
            raise Poisoned("TOO_MANY_ROWS", "the rows of the batch are too large for one transaction")
        return rows, refused

    def _transact(self, batch: Batch, rows: list[Prepared], found: Found, storage: str) -> Outcome:
        """A transaction, and another without the rows that it refuses: one refused row ends it."""
        lane, attempt = self._lane, self._attempts.number(batch)
        while True:
            try:
                with lane.client.transaction() as session:
                    lane.marks.claim(batch, session)
                    done = found | (self._apply(batch, rows, session) if rows else {})
                    lane.marks.applied(batch, attempt, done, storage, session)
            except Marked:
                return self._attempts.met(batch, lane.marks.found(batch, attempt))
            except Relieved:
                return self._attempts.met(batch, lane.marks.marked(batch, attempt))
            except Refused as answer:
                if any(one.kind is Kind.RETRY for one in answer.rows.values()):
                    raise Unavailable("CONCURRENT_WRITE", "others write the same documents now") from None
                found |= answer.rows
                rows = [row for row in rows if row.number not in found]
            else:
                self._attempts.answered(batch)
                return Outcome(WRITTEN, done)

    def _apply(self, batch: Batch, rows: list[Prepared], session: ClientSession | None) -> Found:
        """The rows that have another result than WRITTEN. In a session Refused, and nothing is applied."""
        found = Found()
        if batch.condition is Condition.PRESENT:
            there = self._lane.reading.present([row.key for row in rows], session)
            known = [row for row in rows if self._documents.token(row.key) in there]
            found = dict.fromkeys({row.number for row in rows} - {row.number for row in known}, ABSENT)
            rows = known
        if not rows:
            return found
        self._bytes += sum(row.size for row in rows)
        matched, made, refused = self._lane.client.write(
            self.options.collection, [row.operation for row in rows], session
        )
        if refused and session is not None:
            raise Refused({rows[at].number: one for at, one in refused.items()})
        found |= {rows[at].number: one for at, one in refused.items()}
        if batch.condition is Condition.ABSENT:
            met = (row.number for at, row in enumerate(rows) if at not in made and at not in refused)
            found |= dict.fromkeys(met, PRESENT)
        elif batch.condition is Condition.PRESENT and matched + len(refused) < len(rows):
            gone = RowResult(Kind.RETRY, "CONCURRENT_WRITE", "others remove documents of the batch")
            found |= {row.number: gone for at, row in enumerate(rows) if at not in refused}
        return found

    # --- resolve

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Outcome:
        """By the mark. Without one an abort marker is written: then the transaction cannot commit, and every
        row is RETRY. Without transactions UNKNOWN: the rows may be written again."""
        if not self.options.transactions:
            return Outcome(UNKNOWN)
        marks = self._lane.marks
        if not act:
            return peek(lambda attempt: marks.marked(batch, attempt))
        return self._attempts.resolve(
            batch,
            lambda attempt: marks.void(batch, attempt),
            lambda attempt: marks.found(batch, attempt),
        )

    # --- read

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        return self._lane.reading.read(batch)

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        return self._lane.reading.differing(batch)

    def scan(self) -> Iterator[tuple[str, ...]]:
        return self._lane.reading.scan()

    # --- preview, interrupt

    def preview(self, batch: Batch) -> bytes:
        """A line for each operation, in MongoDB's extended JSON."""
        rows, _ = self._prepared(batch)
        return "\n".join(self._documents.shown(row) for row in rows).encode()

    def interrupt(self) -> None:
        """The transaction or request under way ends; no other begins."""
        self._interrupted = True

    def close(self) -> None:
        if "_lane" in vars(self):
            self._lane.client.close()
            del self._lane

    @cached_property
    def _documents(self) -> Documents:
        with needs("mongodb"):
            from retl.destinations.mongodb.documents import Documents
        return Documents(self.shape, self.options.by, self.options.times)

    @cached_property
    def _lane(self) -> Lane:
        with needs("mongodb"):
            from retl.destinations.mongodb.lane import Lane
        options = self.options
        return Lane(options.connection, options.collection, self._documents, self._attempts)


def _check(options: MongoDBOptions, shape: Shape) -> None:
    """DefinitionError for names and keys that documents cannot have as they are."""
    soft = tuple(shape.deletes.set) if isinstance(shape.deletes, SoftDelete) else ()
    for name in (*(one.name for one in (*shape.key, *shape.fields)), *soft):
        if not name or name == "_id" or name.startswith("$") or "." in name or "\0" in name:
            raise DefinitionError(
                "IDENTIFIER",
                f"no field of a document can be called {name!r} here: `_id`, a `$` at the beginning and a"
                " `.` have a meaning of their own in MongoDB",
                hint="rename it under `fields`; for `_id` name the column otherwise, the key becomes `_id`",
            )
    if shape.write == "update_only" and not any(one.compared for one in shape.fields):
        raise DefinitionError("NOTHING_TO_WRITE", "`write: update_only` needs a field besides the key")
    if shape.write != "append" and any(one.type.name not in _KEYS for one in shape.key):
        raise DefinitionError(
            "KEY_UNFIT",
            "the key of a document is made of texts, uuids, integers, decimals or dates",
            hint="cast columns of the key to a text in the source's SQL",
        )
