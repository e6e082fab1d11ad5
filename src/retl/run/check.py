"""What can be said of a sync before anything runs: `retl validate` without a network, `retl check` with one.

Definitions, contract, mapping and destination against each other and against the columns in the
warehouse's catalog. It reads no row of a mart, writes nothing and waits for no writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retl.contract.judge import build
from retl.destinations.batch import Visit
from retl.engine import changes, mapping
from retl.engine.mapping import FieldMap, Run
from retl.engine.scratch import private_directory
from retl.engine.workspace import Workspace
from retl.errors import DefinitionError, Mismatch
from retl.observe.signals import Stop
from retl.project.definitions import Sync, Warehouse
from retl.run.fit import fit
from retl.run.job import Job, Target
from retl.sources import duckdb as mart

_PARTS = ("source.sql", "source.dbt", "checks", "--where")  # of a sync, where a file and line are not known
_NOBODY = Run("none", datetime(2000, 1, 1, tzinfo=UTC))


def validate(
    sync: Sync, warehouse: Warehouse, folder: Path, variables: Mapping[str, Any], target: Target | None
) -> None:
    """DefinitionError for what is wrong with a sync. `target` is None where unset variables keep it from
    being made. SourceError or Later where the catalog cannot be asked: the rest is then right."""
    try:
        field_map = _field_map(sync, warehouse, folder, variables, "")
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


def check(job: Job) -> None:
    """Can the destination be reached, written to, and does it fit? Raises what `Destination.check` does."""
    sync, ledger = job.sync, job.ledger
    field_map = _field_map(sync, job.warehouse, job.folder, job.options.variables, ledger.state_id)
    destination = job.target.lane(field_map.shape)
    try:
        fit(sync, field_map, destination.capabilities)
        destination.check(Visit(_NOBODY.run_id, 0))
    finally:
        destination.close()


def _field_map(
    sync: Sync, warehouse: Warehouse, folder: Path, variables: Mapping[str, Any], state_id: str
) -> FieldMap:
    found = columns(sync, warehouse, folder, variables)
    judge = build(sync.contract, found, folder, sync.key, warehouse.timezone)
    return mapping.build(sync, judge, _NOBODY, state_id=state_id, timezone=warehouse.timezone)


def columns(sync: Sync, warehouse: Warehouse, folder: Path, variables: Mapping[str, Any]) -> dict[str, str]:
    """The mart's columns and their DuckDB types, from the warehouse's catalog; checks and cursor fit them."""
    wanted = mart.query(sync.source, variables, folder, warehouse)
    checks = [mart.select(text, variables, "checks") for text in sync.checks]
    with private_directory() as directory:
        workspace = Workspace(directory, Stop())
        try:
            mart.attach(workspace, warehouse.model_copy(update={"lock_wait": 0.0}), folder)
            workspace.harden([folder / path for path in warehouse.read_paths])
            found = mart.columns(workspace, wanted)
            changes.cursor(sync, found)
            mart.detach(workspace, warehouse)
            mart.bind(workspace, found, checks)
            return found
        finally:
            workspace.close()
