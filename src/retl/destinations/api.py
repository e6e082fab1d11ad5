"""The one interface of all targets.

A destination translates. It never retries, waits, paces, logs rows or keeps state: delivery does
the first three, the ledger the last. One instance serves one lane and is never shared by threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Struct, field
from pydantic import BaseModel

from retl.destinations.batch import (
    UNKNOWN,
    Answer,
    Batch,
    Capabilities,
    Field,
    Folds,
    Outcome,
    Peeked,
    Shape,
    Trace,
    Visit,
    WriteMode,
)
from retl.errors import Systemic
from retl.model import Limits
from retl.net.gate import Gate

OptionsT = TypeVar("OptionsT", bound=BaseModel)
EXPIRES = "(expires)"  # in place of a field, in the answer of `differing`


_PREVIEW = (
    "preview: made from the vendor's documentation, and not yet tested against its contract, its own client"
    " or recorded answers"
)


class About(Struct, frozen=True):
    """What is known of a type, and the source of it. `limits` is what the vendor allows; a connection's own
    `limits` win. Without `summary` and `docs` the module's docstring is the page. `parts`: by title, the
    models of groups of options that have a table of their own."""

    limits: Limits = field(default_factory=Limits)
    evidence: tuple[str, ...] = ()
    source: str = ""
    checked_on: date | None = None
    limits_source: str = ""
    limits_checked_on: date | None = None
    example: str = ""
    summary: str = ""
    docs: str = ""
    parts: Mapping[str, type[BaseModel]] = field(default_factory=dict)

    @property
    def preview(self) -> str | None:
        """The warning for a type with no evidence except documentation."""
        return _PREVIEW if set(self.evidence) == {"docs"} else None


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import a target's client inside this: Systemic CLIENT_MISSING names the extra that has it."""
    try:
        yield
    except ImportError as problem:
        raise Systemic(
            "CLIENT_MISSING",
            f"this target needs a package that is not installed ({problem.name})",
            hint=f"pip install 'retl-cli[{extra}]'",
        ) from problem


class Destination(ABC, Generic[OptionsT]):
    """A target of one sync.

    `Connection` models the keys of a connection in retl.yml, `Options` those under `destination:` in
    a sync; `Options.connection` holds the former. Both refuse unknown keys.
    """

    Connection: ClassVar[type[BaseModel]]
    Options: ClassVar[type[BaseModel]]
    about: ClassVar[About] = About()
    keeps_marks: ClassVar[bool] = False  # `check` can tell that the ledger is older, or another one
    shards: ClassVar[bool] = False  # several processes of one run may write to it at the same time
    capabilities: Capabilities

    def __init__(self, options: OptionsT, shape: Shape, gate: Gate | None = None) -> None:
        """HTTP clients take their permits from the gate."""
        self.options = options
        self.shape = shape
        self.gate = gate or Gate()
        self._bytes = 0

    @property
    def sent(self) -> int:
        """Bytes that this lane has sent so far: of rows, or over HTTP of whole requests."""
        return self._bytes

    @property
    def folds(self) -> tuple[Folds, ...]:
        """`capabilities.folds`; a target whose columns decide it knows it only after `check`."""
        return self.capabilities.folds

    @classmethod
    @abstractmethod
    def place(cls, options: OptionsT, write: WriteMode) -> str:
        """The identity of the object this writes to (server, object, key template), normalised. Ownership,
        baseline and lock belong to it. It holds no secrets and needs no I/O. It equals
        `capabilities.object`, but does not need the mart's columns."""

    @classmethod
    def claim(cls, options: OptionsT, write: WriteMode) -> str | None:
        """Two syncs with the same claim write the same object. It is the place without what does not change
        the object, such as names of placeholders or an API's version. None if each write makes a new message,
        which has no owner. It may contain a digest of the account's secret: compare it, never store it."""
        return cls.place(options, write)

    @classmethod
    def erasing(cls, options: OptionsT) -> Mapping[str, Any]:
        """The options that let a delete erase a person for good, where the vendor has such a thing."""
        return {}

    @classmethod
    def learns(cls, options: OptionsT, write: WriteMode, key: Sequence[str]) -> bool:
        """Whether answers to writes contain the external id of a row with this key."""
        return False

    @classmethod
    def publishes(cls, options: OptionsT) -> bool:
        """Whether each run writes every row of the mart (`capabilities.whole`): no part can be sent."""
        return False

    @classmethod
    def forgets(cls, options: OptionsT) -> bool:
        """Whether a delete removes for good what was sent; else a person must erase it there."""
        return True

    @classmethod
    def asks(cls) -> bool:
        """Whether an erasure sends its deletes although `forgets` is false: they ask a receiver, whose answer
        says nothing of what it keeps."""
        return False

    @classmethod
    def comparable(cls, options: OptionsT) -> bool:
        """Whether it can be compared with a mart: it has `differing`, as these options let it."""
        return cls.differing is not Destination.differing

    @abstractmethod
    def check(self, visit: Visit) -> Trace | None:
        """Test that the target can be reached and written, and that the object fits the sync. Writes nothing.
        Returns the trace of this ledger, None if the target keeps none. Raises Systemic or Unavailable
        (exit 1) or Mismatch (a guard, exit 3). For an exclusive visit, if the target supports it: raises
        Later if another ledger is delivering to this object, and keeps other ledgers out until `close`."""

    def notes(self) -> list[str]:
        """What `retl check` says of a target that passed `check`: one sentence each. It only reads."""
        return []

    def columns(self) -> Mapping[str, str] | None:
        """The columns of the object with their types, as the target names them. None if there is no object,
        or if the target has no columns. It only reads."""
        return None

    def ddl(self, name: str, to: Field | str | None) -> str | None:
        """The statement that adds this field as a column, renames a column, or drops it. None if the target
        has no such statement. It does nothing."""
        return None

    def prepare(self, visit: Visit) -> None:
        """Once per run, after the guards: create what `create` and the promises need in the target."""

    @abstractmethod
    def write(self, batch: Batch) -> Answer:
        """Deliver the batch once. Raises a TargetError if no row was applied and the reason concerns the
        whole batch, and Ambiguous if it is not known what was applied.

        If `Shape.digests` asks for them, and `capabilities.compares` is not "no", digests of the written rows
        go to `batch.returns` before this returns, made in the transaction or script of the write. They join
        the baseline as `seen`, with the batch's answer (engine/answers.py)."""

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """What became of a batch that got no answer; may be called repeatedly. Without `act` it only reads,
        and returns UNKNOWN if that is no evidence."""
        return Outcome(UNKNOWN)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """Per row of the batch our fields as the target holds them, or None if it lacks the key.
        Only if `capabilities.readable`."""
        raise NotImplementedError

    def differing(self, batch: Batch) -> Iterator[tuple[str, ...] | None]:
        """Per row the compared fields in which the target does not hold what `write` would leave there, and
        EXPIRES if the row expires before it would be sent again; none if it holds exactly that; None if the
        target lacks the key. Writes nothing. A target without this method cannot be compared with a mart."""
        raise NotImplementedError

    def peek(self, batch: Batch) -> Iterator[Peeked]:
        """Per row of a conditional batch what `write` would do to it now. Writes nothing. Only if
        `capabilities.compares` is not "no"."""
        raise NotImplementedError

    def scan(self) -> Iterator[tuple[str, ...]]:
        """The key values, as text, of everything at this place, also of what others wrote; a key may come
        twice. Only for a target that has `differing`."""
        raise NotImplementedError

    def dump(self, fields: Sequence[Field]) -> Iterator[bytes] | None:
        """`scan` with values: chunks of a CSV of the key values and these fields as text, without a header;
        NULL is empty and not quoted. A row that a write of the same texts (`Batch.csv`) would leave as it is
        has these texts. None, or Unshown later, if that cannot be said here: then `scan` and `differing` are
        asked."""
        return None

    def ask(self, sql: str) -> Any:
        """The one value that a SELECT at the target returns, in a transaction that cannot write. Only for
        databases, as `relation` and `age_sql`. Raises a TargetError."""
        raise NotImplementedError

    @property
    def relation(self) -> str:
        """The table as SQL names it."""
        raise NotImplementedError

    def age_sql(self, column: str) -> str:
        """A SELECT of the seconds since the latest time in a column, by the target's clock; a time without a
        zone is in UTC."""
        raise NotImplementedError

    def preview(self, batch: Batch) -> bytes:
        """Exactly what `write` would send for this batch, without credentials; no I/O. If every resend must
        send the same bytes, delivery stores it as the prepared request."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Called from another thread if the run must stop while `write` is still working: end the current
        request if that does not leave it in doubt. The default lets it finish."""

    def close(self) -> None:
        """Close connections; never raises."""
