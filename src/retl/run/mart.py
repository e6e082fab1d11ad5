"""The mart of one run: described and mapped first, then read once in a separate thread.

Reading takes as long as reading the ledger and checking the target, so both happen at the same time. Nothing
here uses the ledger or the target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from retl.contract import judge
from retl.contract.judge import Contract
from retl.destinations.batch import Capabilities
from retl.engine import freeze, hash, mapping, payload, selection, sql_text
from retl.engine.mapping import FieldMap, Run
from retl.engine.payload import Payload
from retl.engine.selection import Cursor
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError
from retl.observe import log
from retl.run.fit import fit
from retl.run.job import Clock, Job
from retl.sources.api import Description, Snapshot
from retl.values.sql import quoted


@dataclass(frozen=True)
class Mapped:
    """The mapping of the mart's rows to the target's, and the target's capabilities."""

    contract: Contract
    field_map: FieldMap
    capabilities: Capabilities
    fingerprints: dict[str, str]  # of target, key and payload; `types` are the fields' types as JSON


@dataclass(frozen=True)
class Opened:
    """The mart as the source describes it; no row is read yet. `reader` is the connection with the
    snapshot."""

    snapshot: Snapshot
    reader: Workspace
    mapped: Mapped
    cursor: Cursor | None

    @property
    def description(self) -> Description:
        return self.snapshot.description


@dataclass(frozen=True)
class Frozen:
    """The rows as they were read. `mapped` fits their columns, also if the contract edited them; `edited` are
    the rows that the model rejected, as (row, stage, code, reason, column)."""

    total: int  # rows of the mart
    mapped: Mapped
    hashed: bool  # they are hashed already, because the run uses all of them unchanged
    failed_checks: tuple[str, ...]
    payload: Payload | None  # how rejected rows are kept, if the sync asks for it
    edited: Sequence[tuple[Any, ...]]


def open_mart(job: Job, run: Run, workspace: Workspace) -> Opened:
    """Open the mart and bind it to the contract, the fields and the target.
    DefinitionError, SourceError, Mismatch SOURCE_DRIFT, Later MART_LOCKED."""
    sync = job.sync
    reader = workspace.beside()
    snapshot = job.source.open(reader)
    workspace.harden([*job.source.readable, *job.ledger.readable()])
    columns = snapshot.description.columns
    if taken := next((name for name in columns if name.lower().startswith("retl ")), None):
        raise DefinitionError(
            "COLUMN_NAME",
            f"the mart's column {taken!r} has a name that retl uses itself",
            hint="give it another name in the source's SQL",
            where=f"sync {sync.name}",
        )
    contract = judge.build(sync.contract, columns, job.folder, sync.key, job.source.timezone)
    mapped = _map(job, run, contract)
    fit(sync, mapped.field_map, mapped.capabilities)
    return Opened(snapshot, reader, mapped, selection.cursor(sync, columns))


def is_whole(job: Job, opened: Opened) -> bool:
    """Whether the run uses every row of the mart, unchanged."""
    return opened.cursor is None and not job.options.selection.partial


class Reading:
    """The mart while a thread reads it. `mapped` is available at once, `frozen` afterwards."""

    def __init__(self, job: Job, run: Run, opened: Opened, workspace: Workspace, clock: Clock) -> None:
        self._job, self._run, self._opened, self._workspace, self._clock = job, run, opened, workspace, clock
        self.mapped = opened.mapped
        self._frozen: Frozen | None = None
        edits = self.mapped.contract.edits
        self._at_once = is_whole(job, opened) and not (edits or self.mapped.field_map.lookups)

    @property
    def frozen(self) -> Frozen:
        assert self._frozen is not None, "the mart is still being read"
        return self._frozen

    @contextmanager
    def under_way(self) -> Iterator[Reading]:
        """Read the mart while the body runs. An error of the mart is raised before an error of the body. A
        contract that edits must have all rows before the body begins, because it decides their types."""
        with ThreadPoolExecutor(1, "retl-mart") as other:
            future = other.submit(_read, self._opened, self._at_once)
            if self.mapped.contract.edits:
                self._finish(future)
            try:
                yield self
            finally:
                if self._frozen is None:
                    self._finish(future)

    def _finish(self, future: Future[int]) -> None:
        job, workspace, mapped = self._job, self._workspace, self.mapped
        with self._clock.phase("freeze"):
            total = future.result()
            log.event("mart_frozen", rows=total)
            types = self._opened.description.columns
            named = {name: types[name] for name in _names(self._opened)}
            log.event("mart_described", columns=named, level="debug")
            failed = tuple(check for check in job.sync.checks if self._returns_rows(check))
            kept, edited = None, list[tuple[Any, ...]]()
            if job.sync.rejects.payload:
                table = freeze.UNEDITED if mapped.contract.edits else hash.MART
                kept = payload.of(mapped.contract, table, job.sync.rejects.mask)
            if mapped.contract.edits:
                contract, edited = freeze.edit(workspace, mapped.contract, keep=kept is not None)
                self.mapped = _map(job, self._run, contract)
        self._frozen = Frozen(total, self.mapped, self._at_once, failed, kept, edited)

    def _returns_rows(self, check: str) -> bool:
        """Whether a check returns a row; `source` has the columns that were read."""
        listed, table = (
            ", ".join(map(quoted, _names(self._opened))),
            hash.MART if self._at_once else freeze.FROZEN,
        )
        self._workspace.run(f"CREATE OR REPLACE VIEW source AS SELECT {listed} FROM {table}")
        wanted = sql_text.select(check, self._job.options.variables, "checks")
        return sql_text.returns_rows(self._workspace, wanted)


def hash_rows(workspace: Workspace, mapped: Mapped, chosen: str | None = None) -> None:
    """Hash the frozen rows, or those that match a predicate, with the contract's prefilter."""
    prefilter = "TRUE" if mapped.contract.edits else mapped.contract.prefilter()
    hash.hash_rows(workspace, mapped.field_map, prefilter, mapped.fingerprints["what"], chosen)


def _read(opened: Opened, at_once: bool) -> int:
    with closing(opened.reader):
        with opened.snapshot as snapshot:
            columns = {name: snapshot.description.columns[name] for name in _names(opened)}
            total = freeze.freeze(opened.reader, snapshot.rows(list(columns)), columns)
        if at_once:
            hash_rows(opened.reader, opened.mapped)
    return total


def _names(opened: Opened) -> list[str]:
    """The columns of the mart that a run reads."""
    cursor = [opened.cursor.column] if opened.cursor else []
    return list(dict.fromkeys([*opened.mapped.contract.columns, *cursor]))


def _map(job: Job, run: Run, contract: Contract) -> Mapped:
    sync = job.sync
    field_map = mapping.build(
        sync,
        contract,
        run,
        state_id=job.ledger.state_id,
        timezone=job.source.timezone,
        referred=job.referred,
    )
    capabilities = job.capabilities(field_map.shape)
    field_map = replace(field_map, folds=capabilities.folds)
    fingerprints = {
        "where": capabilities.object,
        "who": mapping.key_fingerprint(sync, field_map),
        "what": mapping.payload_fingerprint(sync, contract, field_map, capabilities.shaping),
        "types": json.dumps({field.name: str(field.type) for field in field_map.shape.fields}),
    }
    return Mapped(contract, field_map, capabilities, fingerprints)
