"""What a run would do, and why it may not: the end of planning, the beginning of delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retl.contract.judge import Contract
from retl.destinations.batch import Capabilities, Visit
from retl.engine.change_set import ChangeSet
from retl.engine.mapping import FieldMap, Run
from retl.engine.payload import Payload
from retl.engine.workspace import Workspace
from retl.ledger import Checkpoint, LayerRow
from retl.observe.summary import Counts, Deletes
from retl.run.guards import Refusal


@dataclass
class Plan:
    """What a run would do, and why it may not."""

    run: Run
    visit: Visit
    workspace: Workspace
    field_map: FieldMap
    contract: Contract
    change_set: ChangeSet
    capabilities: Capabilities
    checkpoint: Checkpoint | None
    layers: Sequence[LayerRow]
    fingerprints: dict[str, str]
    read: int
    outcome: Mapping[str, int]  # candidates by op before the limit, and rejected rows
    baseline_rows: int
    refusals: list[Refusal]
    source_identity: str
    watermark: str | None  # where the mark would move to
    adopting: bool
    forgets: bool  # the key's definition changed and that was accepted: the old baseline is void
    withheld_deletes: int  # planned, but rows without a usable key might be them
    unnamed_deletes: int  # planned, but the target's own id of them was never learnt
    read_whole: bool
    notes: list[str]
    payload: Payload | None  # how rejected rows are kept, where the sync asks for it

    def held_back(self) -> Counts:
        """The numbers of a run that a guard refused: nothing was attempted."""
        counts = self.counts()
        return replace(
            counts,
            inserted=0,
            updated=0,
            refreshed=0,
            deleted=0,
            not_attempted=counts.not_attempted + counts.inserted + counts.updated + counts.refreshed,
            deletes=replace(counts.deletes, rejected=0, not_attempted=counts.deletes.planned),
        )

    def counts(self) -> Counts:
        """The numbers of this plan if the target takes everything."""
        sent, cut = self.change_set.counts, self.outcome
        upserts = sum(sent.get(op, 0) for op in ("insert", "update", "refresh"))
        planned = sum(cut.get(op, 0) for op in ("insert", "update", "refresh"))
        deletes = sent.get("delete", 0)
        skipped = cut.get("skipped", 0) + (upserts if self.adopting else 0)
        return Counts(
            read=self.read,
            unchanged=self.read - planned - cut["rejected"] - cut.get("skipped", 0) - cut.get("in_doubt", 0),
            inserted=0 if self.adopting else sent.get("insert", 0),
            updated=0 if self.adopting else sent.get("update", 0),
            refreshed=0 if self.adopting else sent.get("refresh", 0),
            rejected=cut["rejected"],
            skipped=skipped,
            in_doubt=cut.get("in_doubt", 0),
            not_attempted=planned - upserts,
            deleted=deletes,
            deletes=Deletes(
                planned=deletes + self.withheld_deletes + self.unnamed_deletes,
                rejected=self.unnamed_deletes,
                not_attempted=self.withheld_deletes,
            ),
        )
