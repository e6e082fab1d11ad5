"""The types that delivery, the adapters and the ledger share.

Nothing here does I/O or knows a target; the maker of a batch provides its rows (`Rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from retl.destinations.window import KeyWindow
from retl.model import Formats
from retl.values.keys import Fold
from retl.values.types import Type

WriteMode = Literal["upsert", "insert_only", "update_only", "append", "replace"]
Mode = Literal["upsert", "insert_only", "update_only", "append", "replace", "delete", "restore"]
Operation = Literal["upsert", "append", "replace", "delete", "restore"]
Form = Literal["tuples", "documents", "csv", "cells", "literals", "parquet", "file"]
Cell = Literal["value", "text", "double", "utc", "stored"]  # a form of values: see `Batch.cells`
FileFormat = Literal["parquet", "csv", "ndjson", "json"]
Compares = Literal["atomic", "window", "no"]
Conflicts = Literal["warehouse_wins", "target_wins", "newest_wins", "manual"]
Folds = tuple[Fold, ...]  # what the target ignores when it compares values of one field of the key


class Condition(StrEnum):
    """The condition under which a row may be written; the target tests it in the same step."""

    NONE = "none"
    ABSENT = "absent"  # the target has no such key
    PRESENT = "present"  # the target has the key
    UNCHANGED = "unchanged"  # it holds what it held after our last confirmed write
    NEWER = "newer"  # our row is later than what it holds


MODES: dict[Mode, tuple[Operation, Condition]] = {
    "upsert": ("upsert", Condition.NONE),
    "insert_only": ("upsert", Condition.ABSENT),
    "update_only": ("upsert", Condition.PRESENT),
    "append": ("append", Condition.NONE),
    "replace": ("replace", Condition.NONE),  # each row is deleted and inserted
    "delete": ("delete", Condition.NONE),
    "restore": ("restore", Condition.UNCHANGED),  # what an earlier run changed: see `Batch.csv`
}
_NAMES = {pair: mode for mode, pair in MODES.items()}


class Field(Struct, frozen=True):
    """One field of the destination's object, in the destination's own name."""

    name: str
    type: Type
    nulls: Literal["clear", "keep"] = "clear"
    only_if_empty: bool = False
    sensitive: bool = False
    max_length: int | None = None  # of a string, from the contract: what a sized column must hold
    compared: bool = True  # False: sent, but never the reason for a write (run values, ignored)
    column: str | None = None  # the mart column it comes from; None for constants and run values
    conflicts: Conflicts = "warehouse_wins"
    newest: int = 0  # for newest_wins: which pair of `Shape.newest`
    description: str | None = None  # of the column, from the contract
    nullable: bool = True


class SoftDelete(Struct, frozen=True):
    """Instead of removing an object, write these values into its fields (typed by `Shape.fields`)."""

    set: Mapping[str, Any]


class Newest(Struct, frozen=True):
    """What newest_wins compares: a value of the mart's row, sent beside the fields, and a column of the
    target."""

    mart: Field
    target: str


class Shape(Struct, frozen=True):
    """What one sync writes: all that an adapter knows of the sync besides its options."""

    sync: str
    state_id: str
    key: tuple[Field, ...]
    fields: tuple[Field, ...]
    write: WriteMode = "upsert"
    deletes: Literal["keep", "delete"] | SoftDelete = "keep"
    cascade: bool = False  # a delete may change other objects, as the target's own rules say
    digests: Literal["none", "fields", "row"] = "none"  # asked for with each batch, see `Returns`
    conflicts: Conflicts = "warehouse_wins"  # of rows as a whole: gone, appeared, or to be deleted
    newest: tuple[Newest, ...] = ()
    images: bool = False  # each row is kept as it was before a write, see `Returns`
    flags: Mapping[str, Any] = field(default_factory=dict)  # what a soft rollback sets, and nothing else
    flagged: tuple[Field, ...] = ()  # the fields of `flags`, typed by their values
    description: str | None = None  # of the sync, for readers
    freshness: float | None = None  # seconds after which it is stale
    formats: Formats = Formats()  # of values in JSON

    @property
    def cautious(self) -> bool:
        """Whether other people's edits count: batches come with what the target held after our last write
        (`Rows.csv`), and write only what nobody else has changed."""
        strategies = (self.conflicts, *(one.conflicts for one in self.fields))
        return any(one != "warehouse_wins" for one in strategies)

    @property
    def conditional(self) -> bool:
        """Whether the target reports what it holds after a write. A row that is kept as it was must not
        appear in between."""
        return self.cautious or self.images

    @property
    def compared(self) -> tuple[Field, ...]:
        """The fields that are compared, in the order of the row hash and of digests."""
        return tuple(sorted((one for one in self.fields if one.compared), key=lambda one: one.name))


class Visit(Struct, frozen=True):
    """A run's state, as a target needs it.

    `keep`: the runs whose marks must stay, because the next run looks for them. With `exclusive` the run will
    write, and targets that support it keep other ledgers out from `check` until `close`.
    """

    run_id: str
    epoch: int
    keep: frozenset[str] = frozenset()
    exclusive: bool = False


class Trace(Struct, frozen=True):
    """What an object keeps of the batches that this ledger delivered to it: a mark of each, written together
    with its rows. So what was lost with a restored ledger or target is seen on the other side.

    `batches`: (run id, batch id) of every mark. Marks of older runs are removed (`Visit.keep`). `replaced`:
    those written before the object's storage was replaced (TRUNCATE, DROP, a restored dump, a rewrite), so a
    mark is no proof that its rows are there. `foreign`: runs of other syncs of this ledger. `epoch`: the
    newest that the object knows of this sync. `strangers`: other ledgers delivered here, this one never.
    `taken`: another ledger has delivered here since this one last did. `others_at`: when another one last
    delivered; None if the object does not tell. `lacks`: the compared fields for which it has no column
    yet: `create` makes it, and all rows that it has will be empty there.
    """

    batches: frozenset[tuple[str, str]] = frozenset()
    replaced: frozenset[tuple[str, str]] = frozenset()
    foreign: frozenset[str] = frozenset()
    epoch: int = 0
    strangers: bool = False
    taken: bool = False
    others_at: datetime | None = None
    lacks: frozenset[str] = frozenset()


def lacking(
    shape: Shape, columns: Container[str], named: Callable[[str], str] = lambda name: name
) -> frozenset[str]:
    """`Trace.lacks` of an object with these columns; `named`: how they spell a field's name."""
    return frozenset(one.name for one in shape.compared if named(one.name) not in columns)


class Kind(StrEnum):
    """What became of one row at the target."""

    WRITTEN = "written"
    MERGED = "merged"  # written in part: fields that somebody else edited stay
    KEPT = "kept"  # nothing is written, or deleted: somebody else's edit stays
    CONFLICT = "conflict"  # nothing is written: a person decides
    SKIPPED = "skipped"  # insert_only: the key was there (settled); update_only: it was not (not settled)
    REJECTED = "rejected"
    RETRY = "retry"  # this row alone was refused for now; nothing of it was applied
    UNKNOWN = "unknown"  # there is no evidence either way


class Order(Struct, frozen=True):
    """Why another row of the sync may change a refusal: it has the value that these fields refer to, or it
    still holds the unique value that these fields ask for. Names are those of the destination."""

    fields: tuple[str, ...]
    refers_to: tuple[str, ...] = ()  # fields of the other row; empty: a unique value


class RowResult(Struct, frozen=True):
    """One row's outcome, with the target's own code and one sentence that holds no row values."""

    kind: Kind
    code: str | None = None
    reason: str | None = None
    ref: str | None = None  # the target's own id of the row
    settled: bool = True  # SKIPPED only: True = the target holds the key, not ours; False = try again
    order: Order | None = None  # REJECTED only, and only during the run
    ours: bool = True  # WRITTEN and MERGED only: False if somebody else made the row


SETTLED = frozenset({Kind.WRITTEN, Kind.MERGED, Kind.KEPT, Kind.SKIPPED})  # an answer, and no refusal
WRITTEN = RowResult(Kind.WRITTEN)
PRESENT = RowResult(Kind.SKIPPED, settled=True)
ABSENT = RowResult(Kind.SKIPPED, settled=False)
UNKNOWN = RowResult(Kind.UNKNOWN)


class Decision(Struct, frozen=True):
    """What a person decided about a row in conflict: whose version stays. It holds as long as both sides are
    as they were then, by the digest of the reject."""

    side: Literal["mart", "target"]
    both: str


class Peeked(Struct, frozen=True):
    """What `write` would do to a row now: its result, and per compared field `write`, `keep`, `conflict` or
    `same` (nothing to write). Without fields the row is not there, or is to be deleted."""

    result: RowResult
    fields: Mapping[str, str] = field(default_factory=dict)


class Outcome(Struct, frozen=True):
    """What became of every row of a batch: `default`, except for `exceptions` by row number (0-based).
    `divides`: in other batches the UNKNOWN and RETRY rows get answers of their own. The target refuses some
    of the UNKNOWN ones and does not say which; or it applied none because of others, which it named.
    `removed`: rows of the object that a whole mart took out, because it does not have their keys."""

    default: RowResult
    exceptions: Mapping[int, RowResult] = field(default_factory=dict)
    divides: bool = False
    removed: int = 0

    def result(self, row: int) -> RowResult:
        return self.exceptions.get(row, self.default)

    @property
    def arrived(self) -> bool:
        """Whether the target surely processed the batch, so that its marker must be there."""
        ends = (self.default, *self.exceptions.values())
        return any(one.kind in SETTLED for one in ends)


class Pending(Struct, frozen=True):
    """The target accepted the batch and works on it: resolve it by `handle` after `look_again` seconds."""

    handle: str
    look_again: float


Answer = Outcome | Pending


class Unshown(Exception):
    """A dump has a row that the target cannot show as text after all."""


class Capabilities(Struct, frozen=True):
    """What a destination can do, known from options and shape alone, without I/O."""

    object: str  # the place that is written to (server, object, key template); holds no secret
    modes: frozenset[Mode]  # the supported pairs of operation and condition, by their names
    idempotent: bool  # writing a batch twice has the same result as writing it once
    form: Form  # the form of its rows; no other form is made
    shaping: Mapping[str, Any] = field(default_factory=dict)  # options that shape the bytes sent
    posts_twice: bool = False  # idempotent by the user's word only: it may get a request twice after a crash
    key_window: float | None = None  # seconds an idempotency key is honoured; None = no such key
    readable: bool = False
    entries: bool = False  # has a row if it has one of its fields, so that new fields say nothing of a row
    looks: bool = False  # can read single rows, with a request for each: for people, not for samples
    repeats: bool = False  # a scan that has a key twice means that the object has
    nulls_keep: bool = False  # can leave a field as it is (`nulls: keep`); else a write replaces the object
    unsent_varies: bool = False  # whether a field that is not sent stays as it is, the target decides
    only_if_empty: bool = False  # can fill a field only if it is empty in the target
    cascades: bool = False  # a delete can change other objects, and `check` can see that
    resolves: bool = False  # `resolve` has evidence of what became of an unanswered batch
    soft_deletes: bool = False  # can set fields in the place of a delete (`SoftDelete`)
    whole: bool = False  # each run writes every row of the mart, in one batch, if anything changed
    in_place: bool = False  # of `whole`: a row that is the same already is compared and not written
    by_ref: bool = False  # deletes need the external id of each row
    max_rows: int | None = None
    max_deletes: int | None = None  # rows of a delete batch, where that differs
    requests: int = 1  # that a batch needs at least, of those that a connection's limits count
    probes: int = 0  # requests of a check, of those that a connection's limits count
    lanes: int = 1
    most_lanes: int | None = None  # limit if the connection's `concurrency` sets the number of lanes
    folds: tuple[Folds, ...] = ()  # per field of `Shape.key`; empty if the target compares every key exactly
    expires: float | None = None  # seconds after which the target removes a row by itself
    images: bool = False  # can keep rows as they were before a write, and restore them
    digested: tuple[str, ...] | None = None  # what a row's digests are of, if not of its compared fields
    compares: Compares = "no"  # how it can write only what nobody else has changed; "no": makes no digests


class KeyText(Struct, frozen=True):
    """The value of a key column, by its position in `Shape.key`: as JSON, percent-encoded for a URL, or as it
    is."""

    index: int
    form: Literal["json", "url", "text"]


class FieldText(Struct, frozen=True):
    """The JSON of one field, by its position in `Shape.fields`; null if it is empty."""

    index: int


class FieldsText(Struct, frozen=True):
    """The JSON object of all fields."""


class Size(Struct, frozen=True):
    """The number of bytes of these pieces in UTF-8, as decimal digits."""

    of: Line


class Seen(Struct, frozen=True):
    """The digests of what the target held, in hexadecimal. As many `-` if it may lack the row, as many `!` if
    they are not of this size in bytes."""

    size: int


class Digest(Struct, frozen=True):
    """The first 8 bytes of the SHA-1 of these pieces in UTF-8, in hexadecimal."""

    of: Line


Piece = str | KeyText | FieldText | FieldsText | Size | Seen | Digest  # a str stands for itself
Line = tuple[Piece, ...]  # the text of one row, as a target takes it
LINE_KEYS = frozenset({"string", "integer", "uuid"})  # types that a KeyText supports


class Bends(Struct, frozen=True):
    """The values of a field that a column would keep as other ones in silence: NULL (`null`), -0.0 (`zero`),
    floats too small to have all their digits (`subnormal`), texts that are not ASCII (`ascii`) or not among
    `known`, and texts that fit into `characters`, `units` of UTF-16, or `bytes` only without the blanks at
    their end."""

    null: bool = False
    zero: bool = False
    subnormal: bool = False
    ascii: bool = False
    units: int | None = None
    known: frozenset[str] | None = None
    characters: int | None = None
    bytes: int | None = None


class Tuples(Struct, frozen=True):
    """Rows as SQL writes them behind VALUES. `cells` as for `Batch.cells`; `numbered`: before them the number
    of the row in its batch, from 1."""

    cells: tuple[Cell, ...]
    numbered: bool = False


class Layout(Struct, frozen=True):
    """A file of rows: every column of key and fields under its name. `operation`: the value of a further
    column, OPERATION."""

    format: FileFormat
    operation: str | None = None


OPERATION = "_op"  # the column of a file of changes that says what to do with a row


class Rows(Protocol):
    """The rows of a change set. Positions are absolute; `last` is included."""

    def keys(self, first: int, last: int) -> Sequence[tuple[Any, ...]]: ...

    def refs(self, first: int, last: int) -> Sequence[str | None]: ...

    def tuples(self, first: int, last: int) -> Sequence[tuple[Any, ...]]: ...

    def cells(self, first: int, last: int, cells: tuple[Cell, ...]) -> Sequence[tuple[Any, ...]]: ...

    def literals(self, first: int, last: int, tuples: Tuples, most: int) -> Iterator[bytes]: ...

    def bent(self, first: int, last: int, bends: Mapping[int, Bends]) -> Sequence[int]: ...

    def documents(self, first: int, last: int) -> Sequence[tuple[Any, ...]]: ...

    def lines(self, first: int, last: int, line: Line) -> Sequence[str]: ...

    def tuples_of(self, first: int, last: int, lines: tuple[Line, ...]) -> Sequence[tuple[str, ...]]: ...

    def csv(self, first: int, last: int, *, delete: bool, numbered: bool) -> Iterator[bytes]: ...

    def parquet(self, first: int, last: int, *, delete: bool) -> Path: ...

    def seen(self, first: int, last: int) -> Sequence[tuple[Any, ...]]: ...

    def undo(self, first: int, last: int) -> Sequence[tuple[str, str | None, bytes | None]]: ...

    def file(self, first: int, last: int, layout: Layout, *, delete: bool) -> Path: ...


class Returns(Protocol):
    """Where a destination puts, in bulk, what the target returned with a batch. Only for batches of a shape
    that asks for it; it counts if the batch is acknowledged as written."""

    def digests(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        """Digests that the target made of the rows as they are right after the write, in the transaction or
        script of the write itself. CSV without header: the row's number in the batch, `\\x` and hex of 8
        bytes per field of `Shape.compared`; with `digests: row` 8 more over all other columns. Rows that the
        batch rejects, or deletes, have no line. A target that keeps all fields as one value has one digest of
        them. What was put for the same batch before is replaced."""

    def images(self, batch: Batch, chunks: Iterable[bytes]) -> None:
        """The rows as they were right before the write, under a lock that lasts until it is committed. CSV
        without header: the row's position (not its number in the batch), and a JSON object of the target's
        own texts: of the fields, or before a delete or a restore of all columns. A row that is not there has
        no line."""

    def updated(self, batch: Batch, chunks: Iterable[bytes], names: Sequence[str]) -> None:
        """Both at once, of rows that were updated: CSV of the number in the batch, the digests, and the texts
        of these fields as they were; NULL is empty and not quoted."""

    def keep(self, batch: Batch, *, images: bool) -> None:
        """Make durable what was put for this batch; called before its commit, once nothing else can fail, for
        the answer may be lost. `images`: the shape asks for them."""

    def forget(self, batch: Batch) -> None:
        """Drop what was put for this batch and is not kept: the attempt was not applied, or an earlier one
        was."""


class Batch(Struct, frozen=True, dict=True):
    """Consecutive rows of one change set under one operation and condition; numbers count from 0 at `first`.

    `id` names exactly these rows of this run, so each half has its own. `request` and `idempotency_key`
    are set if the exact bytes were prepared and stored before the first send; `window.use()` comes before
    each send with the key. An `exclusive` batch is written only while its run still has the lock that `check`
    took. `returns`: set if the shape asks for digests; a destination that `compares` puts them there.
    """

    rows: Rows
    operation: Operation
    condition: Condition
    run_id: str
    epoch: int
    first: int
    last: int
    started_at: str = ""  # the run's start, ISO 8601 in UTC
    request: bytes | None = None
    idempotency_key: str | None = None
    window: KeyWindow | None = None
    round: int = 0  # counts intended repetitions of the same rows
    new: bool = False  # the baseline knows no key of these rows
    exclusive: bool = False
    returns: Returns | None = None
    refill: bool = False  # rows that are gone at the target are made again
    most_refused: int | None = None  # of a whole mart: with more refused rows nothing of it may be written
    decisions: Mapping[int, Decision] = field(default_factory=dict)  # by position in the change set

    def __len__(self) -> int:
        return self.last - self.first + 1

    @cached_property
    def id(self) -> str:
        text = f"{self.run_id}/{self.mode}/{self.first}-{self.last}/{self.round}"
        return sha256(text.encode()).hexdigest()[:32]

    @property
    def mode(self) -> Mode:
        """Operation and condition, by their name in syncs and in the ledger."""
        return _NAMES[self.operation, self.condition]

    def keys(self) -> Sequence[tuple[Any, ...]]:
        """The key values of each row, in the order of `Shape.key`."""
        return self.rows.keys(self.first, self.last)

    def refs(self) -> Sequence[str | None]:
        """The external id of each row, from an earlier answer; None if it is not known."""
        return self.rows.refs(self.first, self.last)

    def tuples(self) -> Sequence[tuple[Any, ...]]:
        """Per row the values of `Shape.key`, then of `Shape.fields`, as Python values (deletes: keys)."""
        if self.operation == "delete":
            return self.keys()
        return self.rows.tuples(self.first, self.last)

    def cells(self, cells: tuple[Cell, ...]) -> Sequence[tuple[Any, ...]]:
        """Per row the values of `Shape.key`, then of `Shape.fields` (deletes: keys), each in its form of
        `cells`: a Python value as `tuples` has it, its text, or a float. Made in SQL, which is faster than to
        convert Python values. Texts: digits with all decimal places, `2026-11-28 06:00:00[.5]`, a timestamptz
        in UTC with all six places and `+00:00` (not if its form is "utc"), a list as JSON. "stored": days and
        microseconds since 1970, the digits of a decimal as an int, the text of a uuid, also in lists."""
        return self.rows.cells(self.first, self.last, cells)

    def literals(self, tuples: Tuples, most: int) -> Iterator[bytes]:
        """The rows as `(1,'text',NULL),(…)`, in pieces of `most` bytes at most; a row that is larger is a
        piece of its own, perhaps behind the rows that follow it. In a text only single quotes are doubled; a
        float that is no number is a text."""
        return self.rows.literals(self.first, self.last, tuples, most)

    def bent(self, bends: Mapping[int, Bends]) -> Sequence[int]:
        """The numbers of the rows with a value that bends, by its position in `Shape.key`, then
        `Shape.fields`."""
        return self.rows.bent(self.first, self.last, bends)

    def documents(self) -> Sequence[tuple[Any, ...]]:
        """Per row the key values, then one JSON object (str) of the fields: made in SQL. Formats and
        transforms are applied; a NULL field with `nulls: keep` is left out (deletes: keys)."""
        if self.operation == "delete":
            return self.keys()
        return self.rows.documents(self.first, self.last)

    def lines(self, line: Line) -> Sequence[str]:
        """Per row the text that `line` describes, made in SQL, which is 20 times as fast as Python. Not for
        deletes, which have no fields."""
        return self.rows.lines(self.first, self.last, line)

    def tuples_of(self, lines: tuple[Line, ...]) -> Sequence[tuple[str, ...]]:
        """Per row what `Batch.lines` gives for each of `lines`."""
        return self.rows.tuples_of(self.first, self.last, lines)

    def csv(self, *, numbered: bool = True) -> Iterator[bytes]:
        """Chunks of a CSV without header: the row number if `numbered`, then key and fields in the order of
        `Shape` (deletes: keys). NULL is empty and unquoted, every text is quoted.

        For a cautious shape also the values of `Shape.newest` (not for deletes), and the digests of what
        the target held as `\\x` and hex: NULL if the target may lack the row, other digests than the
        target's if they are not known.

        To restore: row number, what to do (restore: the fields, remove, remake: the row, flag), the keys, the
        image as JSON, and the digests of the row as the run left it."""
        return self.rows.csv(self.first, self.last, delete=self.operation == "delete", numbered=numbered)

    def parquet(self) -> Path:
        """A new Parquet file of the rows in their order, in columns v0, v1 … of key, then fields (deletes:
        keys), in the types that store them; JSON is text. Made to be read once: it is not compressed. The
        caller removes the file."""
        return self.rows.parquet(self.first, self.last, delete=self.operation == "delete")

    def seen(self) -> Sequence[tuple[Any, ...]]:
        """Per row of a conditional shape the digests of what the target held, as in `csv`, but as bytes; then
        the values of `Shape.newest` as texts: a number, or what JSON has for a time."""
        return self.rows.seen(self.first, self.last)

    def undo(self) -> Sequence[tuple[str, str | None, bytes | None]]:
        """To restore: per row what to do, the image as JSON, and the digests, as in `csv`."""
        return self.rows.undo(self.first, self.last)

    def file(self, layout: Layout) -> Path:
        """A new file of the rows, in their order: the same rows have the same bytes. Columns have their own
        types in Parquet; in CSV and JSON `formats` are applied. A delete has only keys. The caller removes
        the file."""
        return self.rows.file(self.first, self.last, layout, delete=self.operation == "delete")

    def halves(self) -> tuple[Batch, Batch]:
        """The same rows as two batches; only for a batch of two rows or more."""
        middle = (self.first + self.last) // 2
        return self.slice(self.first, middle), self.slice(middle + 1, self.last)

    def renewed(self, round: int) -> Batch:
        """The same rows without a prepared request, in this round of sending them."""
        return replace(self, round=round, request=None, idempotency_key=None, window=None)

    def slice(self, first: int, last: int) -> Batch:
        """Some of the rows, by their positions, as a new batch."""
        return replace(self, first=first, last=last).renewed(self.round)
