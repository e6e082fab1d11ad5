"""The mart of one run: described and mapped first, then read once in a separate thread.

Reading takes as long as reading the ledger and checking the target, so both happen at the same time. Only a
run that reads what changed since a mark waits for them. Nothing here uses the ledger or the target.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from retl.contract import judge
from retl.contract.judge import Contract
from retl.destinations.batch import Capabilities, Folds
from retl.engine import feed, freeze, hash, mapping, payload, scope, selection, sql_text
from retl.engine.diff import Compares, digests_of
from retl.engine.mapping import FieldMap, Run
from retl.engine.payload import Payload
from retl.engine.scope import Scope
from retl.engine.selection import Cursor
from retl.engine.sql_text import Query
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch
from retl.observe import log
from retl.project.contracts import Documented
from retl.run import results
from retl.run.columns import followed
from retl.run.fit import fit
from retl.run.job import Clock, Job
from retl.sources.api import Among, Description, Feed, Since, Snapshot
from retl.values.sql import quoted

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
MOST_KEYS = 1000  # of one query


class Mapped(Struct, frozen=True):
    """The mapping of the mart's rows to the target's, and the target's capabilities."""

    contract: Contract
    field_map: FieldMap
    capabilities: Capabilities
    # of target, key and payload; `types` and `follows` of fields and what `digests` are of, as JSON
    fingerprints: dict[str, str]

    def compares(self, former: Mapping[str, str], lacks: Collection[str]) -> Compares | None:
        """How digests that were made with the `former` fingerprints are read, if rows are written only where
        nobody else has edited them. `lacks`: fields for which the target has no column."""
        if not self.field_map.shape.conditional:
            return None
        return Compares.between(self.fingerprints, former, lacks)


class Opened(Struct, frozen=True):
    """The mart as the source describes it; no row is read yet. `reader` is the connection with the
    snapshot."""

    snapshot: Snapshot
    reader: Workspace
    mapped: Mapped
    cursor: Cursor | None
    measured: tuple[str, ...]  # columns whose drift is judged
    scope: Scope | None  # of deletes by absence; None: every key
    documented: Mapping[str, Documented]  # what dbt says of the columns

    @property
    def description(self) -> Description:
        return self.snapshot.description


class Frozen(Struct, frozen=True):
    """The rows as they were read. `mapped` fits their columns, also if the contract edited them; `edited` are
    the rows that the model rejected, as (row, stage, code, reason, column)."""

    total: int  # rows of the mart
    types: Mapping[str, str]  # DuckDB type by column, of those that were read
    mapped: Mapped
    hashed: bool  # they are hashed already, because the run uses all of them unchanged
    fed: bool  # only what the source reports as changed was read, with the keys that left
    unfed: str | None  # why a run that follows changes read every row
    narrowed: bool  # only the rows that are explained were read
    failed_checks: tuple[str, ...]
    payload: Payload | None  # how rejected rows are kept, if the sync asks for it
    edited: Sequence[tuple[Any, ...]]


class Extent(Struct, frozen=True):
    """How much of the mart a run reads. `whole`: why every row, or None; `mark`: where the last run's rows
    ended, with `rows` rows in the mart; `due`: keys that are due for another reason, `rejected` among
    them."""

    whole: str | None
    mark: str | None = None
    due: Sequence[str] = ()
    rejected: Sequence[str] = ()
    rows: int = 0


class Read(Struct, frozen=True):
    """What was read: see Frozen."""

    total: int
    fed: bool = False
    unfed: str | None = None
    narrowed: bool = False


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
    misfit = snapshot.description.misfit
    documented = job.source.documented()
    contract = judge.build(
        sync.contract, columns, job.folder, sync.key, job.source.timezone, misfit, documented
    )
    mapped = _map(job, run, contract, columns)
    fit(sync, mapped.field_map, mapped.capabilities)
    measured = tuple(one.column for one in sync.guards.drift)
    if missing := next((name for name in measured if name not in columns), None):
        raise Mismatch("SOURCE_DRIFT", f"the mart has no column {missing!r}, which `drift` names")
    within = sync.deletes.within
    found = within and scope.check(mapped.field_map, within, job.options.variables, sync.name)
    cursor = selection.cursor(sync, columns)
    return Opened(snapshot, reader, mapped, cursor, measured, found or None, documented)


def follows(job: Job) -> bool:
    """Whether the run asks the source what changed since a version. To explain rows, unchanged ones are read
    too."""
    return job.sync.changes.strategy == "cdf" and job.options.explains is None


def has_queries(job: Job) -> bool:
    """Whether `checks` has a query, which is about every row of the mart."""
    return any(isinstance(check, str) for check in job.sync.checks)


def _is_whole(job: Job, opened: Opened) -> bool:
    """Whether the run surely uses every row of the mart, unchanged."""
    return opened.cursor is None and not job.options.selection.partial and not follows(job)


Elsewhere = Callable[[Sequence[Query], Mapping[str, str], FieldMap], int]  # reads parts; returns the rows


class Reading:
    """The mart while a thread reads it. `mapped` is available at once, `frozen` afterwards."""

    def __init__(
        self,
        job: Job,
        run: Run,
        opened: Opened,
        workspace: Workspace,
        clock: Clock,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """`elsewhere`: what reads parts of the mart in other processes, where that gives the same."""
        self._job, self._run, self._opened, self._workspace, self._clock = job, run, opened, workspace, clock
        self.mapped = opened.mapped
        self._frozen: Frozen | None = None
        edits = self.mapped.contract.edits
        unchanged = _is_whole(job, opened) and not (edits or self.mapped.field_map.lookups)
        self._at_once = unchanged and job.shards == 1
        self._elsewhere = elsewhere
        self._parts: Sequence[Query] | None = None
        if elsewhere is not None and unchanged and not has_queries(job):
            self._parts = opened.snapshot.parts(job.shards)
        self.folds: Sequence[Folds] = ()  # how the target compares keys, if it had to be asked
        judged_whole = job.sync.guards.min_rows is not None or has_queries(job)
        pushes = opened.cursor is not None and job.source.narrows and not judged_whole
        pushes = pushes and job.options.explains is None
        waits = (follows(job) or pushes) and not edits
        self.waits = waits or self._parts is not None  # until `extent` and `folds` are known
        self.extent = Extent("the contract edits rows" if edits else None)

    @property
    def frozen(self) -> Frozen:
        assert self._frozen is not None, "the mart is still being read"
        return self._frozen

    @contextmanager
    def under_way(self) -> Iterator[Reading]:
        """Read the mart while the body runs. An error of the mart is raised before an error of the body. A
        contract that edits must have all rows before the body begins, because it decides their types. A run
        that waits reads after the body, which sets `extent`."""
        if touched := self._job.options.selection.touched:
            selection.load_touched(self._workspace, self.mapped.field_map, touched)
        with ThreadPoolExecutor(1, "retl-mart") as other:
            if self.waits:
                with closing(self._opened.reader), self._opened.snapshot:
                    yield self
                    self._finish(other.submit(copy_context().run, self._follow))
                return
            future = other.submit(copy_context().run, self._read)
            if self.mapped.contract.edits:
                self._finish(future)
            try:
                yield self
            finally:
                if self._frozen is None:
                    self._finish(future)

    def _read(self) -> Read:
        with closing(self._opened.reader):
            with self._opened.snapshot as snapshot:
                read = self._read_whole(snapshot)
            if self._at_once:
                hash_rows(self._opened.reader, self.mapped)
        return replace(read, unfed=self.extent.whole) if follows(self._job) else read

    def _read_whole(self, snapshot: Snapshot, since: Since | None = None) -> Read:
        opened, columns, names = self._opened, self._columns, _names(self._opened)
        among = self._among()
        some = snapshot.rows_among(names, among) if among is not None else None
        touched = self._job.options.selection.touched and self._some_suffice()
        only = selection.is_touched(self.mapped.field_map) if touched else None
        total = freeze.freeze(opened.reader, some or snapshot.rows(names, since), columns, only)
        return Read(total, narrowed=some is not None and self._job.options.explains is not None)

    def _some_suffice(self) -> bool:
        """Whether rows with other keys than those that were asked for cannot matter: no query, limit, scope
        or watermark is about them, none of them can be one of these keys at the target, and the target
        takes rows without them."""
        job, opened, field_map = self._job, self._opened, self.mapped.field_map
        sync, asked = job.sync, job.options
        whole = sync.guards.min_rows is not None or has_queries(job) or asked.selection.where is not None
        whole = whole or opened.scope is not None or self.mapped.capabilities.whole
        whole = whole or follows(job) or self.mapped.contract.edits or bool(field_map.lookups)
        plain = asked.purpose == "sync" and not asked.retry and job.shards == 1 and opened.cursor is None
        return plain and not whole and not field_map.may_collide

    def _among(self) -> Among | None:
        """What --key, or keys that may have changed, say of a column that has integers."""
        (column, *more), asked = self._job.sync.key, self._job.options
        touched = asked.selection.touched
        keys = asked.selection.keys or asked.explains or ()
        kind = self._opened.description.columns.get(column, "")
        if more or kind not in _INTEGERS or self.mapped.field_map.shape.key[0].type.name != "integer":
            return None
        if touched:
            keys = tuple(selection.touched_keys(self._opened.reader))
        if not (keys or touched) or len(keys) > MOST_KEYS or not all(_INTEGER.fullmatch(one) for one in keys):
            return None
        return Among(column, tuple(map(int, keys))) if self._some_suffice() else None

    def _follow(self) -> Read:
        """Read what changed since the mark, or the whole mart if that cannot be told."""
        opened, extent, columns = self._opened, self.extent, _names(self._opened)
        snapshot, cursor = opened.snapshot, opened.cursor
        if self._parts is not None and self._elsewhere is not None:
            field_map = self.mapped.field_map
            folded = replace(field_map, folds=tuple(self.folds) or field_map.folds)
            return Read(self._elsewhere(self._parts, self._columns, folded))
        if cursor is not None:
            least = selection.least(cursor, extent.mark) if extent.mark and not extent.due else None
            since = Since(cursor.column, cursor.column_type, least) if least else None
            return self._read_whole(snapshot, since)
        if extent.mark is None:
            return replace(self._read_whole(snapshot), unfed=extent.whole)
        key = list(self._job.sync.key)
        found = snapshot.feed(columns, key, extent.mark)
        gap = found if isinstance(found, str) else self._take(found, extent)
        if isinstance(found, str) or gap is not None:
            return replace(self._read_whole(snapshot), unfed=gap)
        return Read(found.total, fed=True)

    def _take(self, found: Feed, extent: Extent) -> str | None:
        """Freeze the rows of a feed, and those that are due for another reason; a sentence if changes are
        missing."""
        reader, field_map = self._opened.reader, self.mapped.field_map
        grown = feed.take(reader, field_map, found.rows, found.left, self._columns, extent.rejected)
        if extent.rows + grown != found.total:
            freeze.release(reader)
            return (
                f"FEED_GAP: the source has {found.total} rows, and with the changes it reports it would have"
                f" {extent.rows + grown}"
            )
        if extent.due:
            every = self._opened.snapshot.rows(_names(self._opened))
            feed.add(reader, field_map, every, self._columns, extent.due)
        return None

    @property
    def _columns(self) -> dict[str, str]:
        """The columns of the mart that the run reads, with their types."""
        described = self._opened.description
        read = {name: described.columns[name] for name in _names(self._opened)}
        return read | ({described.misfit: "VARCHAR"} if described.misfit else {})

    def _finish(self, future: Future[Read]) -> None:
        job, workspace, mapped = self._job, self._workspace, self.mapped
        with self._clock.phase("freeze"):
            read = future.result()
            log.event("mart_frozen", rows=read.total)
            log.event("mart_described", columns=self._columns, level="debug")
            failed = tuple(self._failed_checks())
            kept, edited = None, list[tuple[Any, ...]]()
            if job.sync.rejects.payload:
                table = freeze.UNEDITED if mapped.contract.edits else hash.MART
                kept = payload.of(mapped.contract, table, job.sync.rejects.mask)
            if mapped.contract.edits:
                contract, edited = freeze.edit(workspace, mapped.contract, keep=kept is not None)
                self.mapped = _map(job, self._run, contract, self._opened.description.columns)
        self._frozen = Frozen(
            total=read.total,
            types=self._columns,
            mapped=self.mapped,
            hashed=self._at_once,
            fed=read.fed,
            unfed=read.unfed,
            narrowed=read.narrowed,
            failed_checks=failed,
            payload=kept,
            edited=edited,
        )

    def _failed_checks(self) -> Iterator[str]:
        for check in self._job.sync.checks:
            if isinstance(check, str):
                if self._returns_rows(check):
                    yield f"a check returned rows: {check}"
            else:
                yield from results.failed(check, self._job.folder, self._run.started_at)

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
    contract, what = mapped.contract, mapped.fingerprints["what"]
    prefilter = "TRUE" if contract.edits else contract.prefilter()
    misfit = None if contract.edits else contract.first_misfit()
    hash.hash_rows(workspace, mapped.field_map, prefilter, what, chosen, misfit)


def _names(opened: Opened) -> list[str]:
    """The columns of the mart that a run reads."""
    cursor = [opened.cursor.column] if opened.cursor else []
    return list(dict.fromkeys([*opened.mapped.contract.columns, *cursor, *opened.measured]))


def _map(job: Job, run: Run, contract: Contract, columns: Mapping[str, str]) -> Mapped:
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
        "parts": json.dumps(mapping.payload_parts(sync, contract, field_map, capabilities.shaping)),
        "types": json.dumps({field.name: str(field.type) for field in field_map.shape.fields}),
        "follows": followed(sync, field_map, columns),
    }
    names = capabilities.digested or [one.name for one in field_map.shape.compared]
    fingerprints["digests"] = digests_of(fingerprints["what"], names)
    return Mapped(contract, field_map, capabilities, fingerprints)
