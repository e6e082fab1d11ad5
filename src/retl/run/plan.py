"""A plan: a change set, what it was made from, and why it may not be delivered. Everything that ever writes
is one, and all of them are drained alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retl.contract.judge import Contract
from retl.destinations.batch import Capabilities
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Ends
from retl.engine.mapping import FieldMap, Run
from retl.engine.payload import Payload
from retl.ledger import Checkpoint, DeltaRow, Purpose
from retl.model import Retry
from retl.run.guards import Facts, Refusal


@dataclass(frozen=True)
class Basis:
    """The baseline that a plan stands on. `newest`: the newest batch of this object that the ledger knows as
    answered, as (run id, batch id). `restarts`: the key's definition changed, so that the former
    baseline says nothing any more."""

    checkpoint: Checkpoint | None
    deltas: tuple[DeltaRow, ...]
    newest: tuple[str, str] | None = None
    restarts: bool = False

    @property
    def is_first(self) -> bool:
        return self.checkpoint is None and not self.deltas


@dataclass(frozen=True)
class Terms:
    """How a plan is delivered. `resend_unknown`: a batch without an answer is sent again, also where twice is
    not once. `max_failed_rate`: the part of the rows that the target may reject."""

    batch_rows: int
    retry: Retry
    max_failed_rate: float
    resend_unknown: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run would do, and why it may not."""

    purpose: Purpose
    run: Run
    field_map: FieldMap
    contract: Contract
    capabilities: Capabilities
    changes: ChangeSet
    ends: Ends  # candidates by op and ending before delivery; those of the change set have none yet
    read: int
    facts: Facts
    refusals: tuple[Refusal, ...]
    basis: Basis
    fingerprints: Mapping[str, str]
    watermark: str | None  # where the mark moves to
    read_rows: int  # of the last whole read, this one if it is one
    source_version: str
    adopting: bool  # the rows are taken as delivered and not sent
    payload: Payload | None  # how rejected rows are kept, where the sync asks for it
    notes: tuple[str, ...]
    terms: Terms

    @property
    def writes(self) -> bool:
        """Whether anything is sent."""
        return bool(len(self.changes)) and not self.adopting
