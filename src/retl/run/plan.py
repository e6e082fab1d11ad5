"""A plan: a change set, what it was made from, and why it must not be delivered. Everything that writes is a
plan, and all plans are drained in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct, field

from retl.contract.judge import Contract
from retl.destinations.batch import Capabilities, Decision
from retl.engine.baseline import Distrust
from retl.engine.change_set import ChangeSet
from retl.engine.diff import Compares, Ends
from retl.engine.mapping import FieldMap, Run
from retl.engine.payload import Payload
from retl.engine.statistics import Statistics
from retl.ledger import Checkpoint, DeltaRow, Purpose
from retl.run.guards import Facts, Refusal
from retl.run.recovery import Settled
from retl.run.trace import Marks

if TYPE_CHECKING:
    from retl.run.shards import Shards


class Basis(Struct, frozen=True):
    """The baseline of a plan, with its fingerprints (`former`). `newest`: the newest batch of this object
    with an answer in the ledger, as (run id, batch id). `restarts`: the key's definition changed or the mart
    is adopted, so the old baseline is no longer used, except the deltas of the runs in `kept`. `others`:
    other syncs on the object, and the epoch of the last run of each."""

    checkpoint: Checkpoint | None
    deltas: tuple[DeltaRow, ...]
    former: Mapping[str, str]
    newest: tuple[str, str] | None = None
    restarts: bool = False
    others: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()

    @property
    def marked(self) -> frozenset[str]:
        """The runs whose marks the next run looks for."""
        since = self.checkpoint.epoch if self.checkpoint else 0
        runs = {delta.run_id for delta in self.deltas if delta.epoch > since}
        newest = [self.newest, self.checkpoint.newest if self.checkpoint else None]
        return frozenset(runs | {batch[0] for batch in newest if batch is not None})

    @property
    def is_first(self) -> bool:
        return self.checkpoint is None and not self.deltas


class Undecided(Struct, frozen=True):
    """What STATE_BEHIND and STATE_LOST are found by, and what a run that is no sync leaves as it is: every
    sync is refused until somebody decides for it. `runs`: those that the ledger does not know; `strange`: no
    sync of this ledger has delivered to the object, and another ledger has."""

    runs: frozenset[str] = frozenset()
    strange: bool = False


class Terms(Struct, frozen=True):
    """How a plan is drained. `max_failed_rate`: the share of rows that the target may reject;
    `max_conflict_rate`: that somebody else edited. `refill`: rows that are gone at the target are made
    again. `decisions`: of people about rows in conflict, by position."""

    batch_rows: int
    max_failed_rate: float
    max_conflict_rate: float
    refill: bool = False
    decisions: Mapping[int, Decision] = field(default_factory=dict)


class Plan(Struct, frozen=True):
    """What a run would do, and why it must not."""

    purpose: Purpose
    run: Run
    field_map: FieldMap
    contract: Contract
    capabilities: Capabilities
    changes: ChangeSet
    ends: Ends  # candidates by op and ending before delivery; rows of the change set have no ending yet
    read: int
    facts: Facts
    refusals: tuple[Refusal, ...]
    basis: Basis
    fingerprints: Mapping[str, str]
    watermark: str | None  # the next mark
    scope: str | None  # of its deletes, for the checkpoint
    read_rows: int  # of the last whole read, possibly this one
    source_version: str
    statistics: Mapping[str, Statistics] | None  # by column, where drift is judged
    distrust: Distrust | None  # what no longer holds of the baseline: recorded before the first write
    moved_from: str | None  # the place whose baseline this object continues: another address of it
    past: int  # the newest epoch that the target knows
    marks: Marks | None  # of earlier batches, as the target has them; None: it keeps no marks
    adopting: bool  # the rows are recorded as delivered and not sent
    payload: Payload | None  # how rejected rows are kept, if the sync asks for it
    notes: tuple[str, ...]  # news of this plan
    terms: Terms
    shards: Shards | None = None  # the processes that send it
    standing: tuple[str, ...] = ()  # notes that hold until their facts change
    narrowed: bool = False  # to explain rows, only these were read
    undecided: Undecided | None = None  # what a run that is no sync passes for itself alone
    settled: Settled = Settled()  # what became of rows that earlier runs got no answer for
    rest: bool = False  # of some keys: only a run of the whole mart does what is still to do

    @property
    def compares(self) -> Compares | None:
        """How the baseline's digests are read, if rows are written only where nobody else has edited them."""
        shape, former = self.field_map.shape, self.basis.former
        return Compares.between(self.fingerprints, former) if shape.conditional else None

    @property
    def behind(self) -> bool:
        """Whether the target has marks of runs that the ledger does not know."""
        return self.distrust is not None and self.distrust.disown

    @property
    def writes(self) -> bool:
        """Whether anything is sent."""
        return bool(len(self.changes)) and not self.adopting
