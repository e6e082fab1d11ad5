"""The marks of a topic: a topic beside it, in which every batch leaves a record, in its own transaction.

Its one partition is read with read_committed: what is there was applied as a whole. Runs leave a record too,
which fences off older runs and other ledgers. The newest record of a key counts, so the topic is compacted.
It knows no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from retl.destinations.batch import Batch, Shape, Trace
from retl.errors import Systemic

Owner = tuple[str, str]  # a ledger and a sync
BATCH, FENCE = "batch", "fence"


class Marks(Struct):
    """The marks as far as they were read; a writer that nobody has fenced off adds its own."""

    shape: Shape
    batches: dict[tuple[str, str, str, str], Mapping[str, Any]] = field(default_factory=dict)  # …, run, batch
    epochs: dict[Owner, int] = field(default_factory=dict)
    owner: Owner | None = None  # of the newest run
    whole: bool = True  # False: a transaction that is not ended may add a mark

    def take(self, key: bytes, value: bytes | None) -> None:
        """The next record."""
        kind, ledger, sync, *names = json.loads(key)
        said = json.loads(value) if value is not None else None
        if kind == BATCH:
            run, batch = names
            self.batches.pop((ledger, sync, run, batch), None)
            if said is not None:
                self.batches[ledger, sync, run, batch] = said
        elif said is not None:
            self.owner = ledger, sync
            self.epochs[self.owner] = max(self.epochs.get(self.owner, 0), said["epoch"])

    def of(self, batch: Batch) -> Mapping[str, Any] | None:
        """The mark of a batch."""
        return self.batches.get((*self.us, batch.run_id, batch.id))

    def began(self, epoch: int) -> bool:
        """Whether a run of this epoch has fenced off the others. Systemic VOIDED if a newer run of this sync
        wrote here, or another ledger or sync since."""
        newest = self.epochs.get(self.us, 0)
        if newest > epoch or (newest == epoch and self.owner != self.us):
            raise Systemic(
                "VOIDED", "a newer run, or another ledger, delivers here: this one may no longer write"
            )
        return newest == epoch

    def fence(self, epoch: int) -> tuple[bytes, bytes]:
        """The record of a run that begins."""
        return encoded([FENCE, *self.us]), encoded({"epoch": epoch})

    def mark(self, batch: Batch, **said: Any) -> tuple[bytes, bytes]:
        """The record of a batch."""
        return encoded([BATCH, *self.us, batch.run_id, batch.id]), encoded(said)

    def old(self, keep: frozenset[str]) -> Iterator[bytes]:
        """The keys of our marks that the ledger no longer asks for."""
        for ledger, sync, run, batch in self.batches:
            if (ledger, sync) == self.us and run not in keep:
                yield encoded([BATCH, ledger, sync, run, batch])

    def trace(self, topic: str) -> Trace:
        """Of this ledger. A mark counts only for the topic that its rows went to: one that was deleted and
        made again under the same name has another id."""
        mine = [
            (sync, run, batch)
            for (ledger, sync, run, batch), said in self.batches.items()
            if ledger == self.shape.state_id and said["topic"] == topic
        ]
        ledgers = {ledger for ledger, _ in self.epochs}
        return Trace(
            batches=frozenset((run, batch) for _, run, batch in mine),
            foreign=frozenset(run for sync, run, _ in mine if sync != self.shape.sync),
            epoch=self.epochs.get(self.us, 0),
            strangers=bool(ledgers) and self.shape.state_id not in ledgers,
        )

    @property
    def us(self) -> Owner:
        return self.shape.state_id, self.shape.sync


def encoded(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
