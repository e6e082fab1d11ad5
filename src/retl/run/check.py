"""Checks of a sync before anything runs: `retl validate` without a network, `retl check` with one.

They compare definitions, contract, mapping, destination and the columns of the source. They read no row of a
mart, write nothing and wait for no writer.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retl.contract.judge import build
from retl.destinations.batch import Visit
from retl.engine import mapping, scope, selection, sql_text
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch
from retl.observe.signals import Stop
from retl.project.definitions import Sync
from retl.run import trace
from retl.run.fit import fit
from retl.run.job import Job, Target
from retl.sources.api import Source

_PARTS = ("source.sql", "source.dbt", "checks", "--where")  # of a sync, if file and line are unknown
_NOBODY = Run("none", datetime(2000, 1, 1, tzinfo=UTC))


def validate(sync: Sync, source: Source[Any], folder: Path, target: Target | None) -> None:
    """DefinitionError for what is wrong with a sync. `target` is None if a variable for it is unset.
    SourceError or Later if the source's catalog cannot be read: everything else is right then."""
    try:
        field_map = _field_map(sync, source, folder, "")
        if target is not None:
            fit(sync, field_map, target.lane(field_map.shape).capabilities)
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
    job.source.check(job.stop)
    field_map = _field_map(job.sync, job.source, job.folder, job.ledger.state_id)
    with closing(job.target.lane(field_map.shape)) as destination:
        fit(job.sync, field_map, destination.capabilities)
        seen = destination.check(Visit("none", 0))
        if seen is not None and seen.strangers:
            lost = trace.strangers(job.object)
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


def _field_map(sync: Sync, source: Source[Any], folder: Path, state_id: str) -> FieldMap:
    contract = build(sync.contract, columns(sync, source), folder, sync.key, source.timezone)
    field_map = mapping.build(sync, contract, _NOBODY, state_id=state_id, timezone=source.timezone)
    if sync.deletes.within is not None:
        scope.check(field_map, sync.deletes.within, source.invocation.variables, sync.name)
    return field_map
