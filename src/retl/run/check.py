"""Checks of a sync before anything runs: `retl validate` without a network, `retl check` with one.

They compare definitions, contract, mapping, destination and the columns of the source. They read no row of a
mart, write nothing and wait for no writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retl.contract.judge import Contract, build
from retl.destinations.batch import Visit
from retl.engine import mapping, scope, selection, sql_text
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch
from retl.ledger import Ledger
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.run import asserting, contract_diff, trace
from retl.run.fit import fit
from retl.run.job import Job, Target
from retl.sources.api import Source

_PARTS = ("source.sql", "source.dbt", "checks", "--where")  # of a sync, if file and line are unknown
_NOBODY = Run("none", datetime(2000, 1, 1, tzinfo=UTC))


def validate(
    sync: Sync, source: Source[Any], folder: Path, target: Target | None, ledger: Ledger | None = None
) -> tuple[str | None, frozenset[str]]:
    """DefinitionError for what is wrong with a sync. Returns a note about new columns of the mart, if there
    is a ledger, and the fields that the sync writes besides the key. `target` is None if a variable for it is
    unset. SourceError or Later if the source's catalog cannot be read: everything else is right then."""
    try:
        found = columns(sync, source)
        field_map = _field_map(sync, source, folder, "", found)
        if target is not None:
            asserting.require(sync, target.destination)
            fit(sync, field_map, target.lane(field_map.shape).capabilities)
        news = contract_diff.new_columns(ledger, sync, found) if ledger is not None else None
        return news, frozenset(one.name for one in field_map.shape.fields)
    except DefinitionError as problem:
        part = problem.where
        if part is None or part in _PARTS:
            problem.where = f"sync {sync.name}: {part}" if part else f"sync {sync.name}"
        raise
    except Mismatch as problem:
        raise DefinitionError(
            problem.code, problem.message, hint=problem.hint, where=f"sync {sync.name}"
        ) from problem


def check(job: Job) -> list[str]:
    """Can the source be read, can the destination be reached and written to, and do they fit? Raises like
    `Destination.check`. Returns what a person should know of it nevertheless."""
    asserting.require(job.sync, job.target.destination)
    job.source.check(job.stop)
    found = columns(job.sync, job.source)
    field_map = _field_map(job.sync, job.source, job.folder, job.ledger.state_id, found)
    with closing(job.target.lane(field_map.shape)) as destination:
        fit(job.sync, field_map, destination.capabilities)
        seen = destination.check(Visit("none", 0))
        if seen is not None and seen.strangers:
            lost = trace.strangers(job.object, job.sync, seen.others_at)
            raise Mismatch(lost.code, lost.message, hint=lost.hint)
        return destination.notes()


def columns(sync: Sync, source: Source[Any]) -> dict[str, str]:
    """The mart's columns and their DuckDB types, from its catalog. Checks and cursor must fit them."""
    texts = [one for one in sync.checks if isinstance(one, str)]
    checks = [sql_text.select(text, source.invocation.variables, "checks") for text in texts]
    with private_directory() as directory, Workspace(directory, Stop()) as workspace:
        with source.open(workspace, wait=False) as snapshot:
            workspace.harden(source.readable)
            found = dict(snapshot.description.columns)
            selection.cursor(sync, found)
            if unknown := [one.column for one in sync.guards.drift if one.column not in found]:
                raise DefinitionError(
                    "COLUMN_UNKNOWN", f"`drift` names a column {unknown[0]!r}, which the mart lacks"
                )
        sql_text.bind(workspace, found, checks)
        return found


def contract_of(sync: Sync, source: Source[Any], folder: Path, columns: Mapping[str, str]) -> Contract:
    """The sync's contract over these columns of its mart."""
    documented = source.documented()
    return build(sync.contract, columns, folder, sync.key, source.timezone, documented=documented)


def _field_map(
    sync: Sync, source: Source[Any], folder: Path, state_id: str, columns: Mapping[str, str]
) -> FieldMap:
    contract = contract_of(sync, source, folder, columns)
    field_map = mapping.build(sync, contract, _NOBODY, state_id=state_id, timezone=source.timezone)
    if sync.deletes.within is not None:
        scope.check(field_map, sync.deletes.within, source.invocation.variables, sync.name)
    return field_map
