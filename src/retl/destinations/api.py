"""The one interface of all targets.

A destination translates. It never retries, waits, paces, logs rows or keeps state: delivery does
the first three, the ledger the last. One instance serves one lane and is never shared by threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from retl.destinations.batch import (
    UNKNOWN,
    Answer,
    Batch,
    Capabilities,
    Outcome,
    Shape,
    Visit,
    WriteMode,
)
from retl.model import Limits
from retl.net.gate import Gate

OptionsT = TypeVar("OptionsT", bound=BaseModel)


_PREVIEW = (
    "preview: made from the vendor's documentation, and not yet held against its contract, its own client or"
    " recorded answers"
)


@dataclass(frozen=True)
class About:
    """What is known of a type beside its code, and who says so. `limits` is what the vendor allows; a
    connection's own `limits` win. Without `summary` and `docs` the module's docstring is the page."""

    limits: Limits = field(default_factory=Limits)
    evidence: tuple[str, ...] = ()
    source: str = ""
    checked_on: date | None = None
    limits_source: str = ""
    limits_checked_on: date | None = None
    example: str = ""
    summary: str = ""
    docs: str = ""

    @property
    def preview(self) -> str | None:
        """What to say where nothing but documentation says that the target takes it so."""
        return _PREVIEW if set(self.evidence) == {"docs"} else None


class Destination(ABC, Generic[OptionsT]):
    """A target of one sync.

    `Connection` models the keys of a connection in retl.yml, `Options` those under `destination:` in
    a sync; `Options.connection` holds the former. Both refuse unknown keys.
    """

    Connection: ClassVar[type[BaseModel]]
    Options: ClassVar[type[BaseModel]]
    about: ClassVar[About] = About()
    capabilities: Capabilities

    def __init__(self, options: OptionsT, shape: Shape, gate: Gate | None = None) -> None:
        """An HTTP client that it makes takes its permits from the gate."""
        self.options = options
        self.shape = shape
        self.gate = gate or Gate()
        self._bytes = 0

    @property
    def sent(self) -> int:
        """Bytes that this lane handed to the wire so far: of rows, and over HTTP of whole requests."""
        return self._bytes

    @classmethod
    @abstractmethod
    def place(cls, options: OptionsT, write: WriteMode) -> str:
        """The identity of the object this writes to (server, object, key template), normalised, without
        secrets and without I/O: ownership, baseline and lock belong to it. The same as
        `capabilities.object`, known before the mart is."""

    @classmethod
    def claim(cls, options: OptionsT, write: WriteMode) -> str | None:
        """What two syncs must share to write one object: the place, in a form that what only differs in
        spelling or in options such as an API's version shares; None where each write makes a message of its
        own, which nobody owns. It may tell accounts apart by a digest of their secret: compare it, never
        store it."""
        return cls.place(options, write)

    @classmethod
    def learns(cls, options: OptionsT, write: WriteMode, key: Sequence[str]) -> bool:
        """Do answers to writes tell the target's own id of a row with such a key?"""
        return False

    @abstractmethod
    def check(self, visit: Visit) -> None:
        """Reached, writable, fitting? Raises Systemic or Unavailable (exit 1) or Mismatch (a guard,
        exit 3). Writes nothing. Where the visit is exclusive and the target can tell: Later if another
        ledger is delivering to this object; from here to `close` no other can."""

    def prepare(self, visit: Visit) -> None:
        """Once per run, after the guards: make what `create` and the promises need in the target."""

    @abstractmethod
    def write(self, batch: Batch) -> Answer:
        """Deliver the batch once. Raises a TargetError when no row of it was applied for a reason
        that concerns the batch as a whole, Ambiguous when nobody knows."""

    def resolve(self, batch: Batch, handle: str | None, *, act: bool = True) -> Answer:
        """What became of a batch whose answer never came; may be asked again and again. Without `act` it
        only reads, and is UNKNOWN where evidence takes more."""
        return Outcome(UNKNOWN)

    def read(self, batch: Batch) -> Iterator[Mapping[str, Any] | None]:
        """Per row of the batch what the target holds of our fields, or None where it lacks the key.
        Only if `capabilities.readable`."""
        raise NotImplementedError

    def preview(self, batch: Batch) -> bytes:
        """Exactly what `write` would send for this batch, without credentials; no I/O. Delivery stores it
        as the prepared request where every resend must carry the same bytes."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Called from another thread when the run was asked to stop and `write` takes its time: end the
        request in hand if that can be done without leaving it in doubt. The default lets it finish."""

    def close(self) -> None:
        """Let go of connections; never raises."""
